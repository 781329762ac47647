# shellcheck shell=bash
# Sourced by the job scripts, with ROOT set: how a job starts its ranks and requeues.
. "$ROOT/launch/common.sh"

# Start `MODULE arguments` with RANKS_PER_NODE ranks on every node of the job, and exit with their
# status. A run stopped by a signal exits with 85; then the job requeues, and the run resumes from
# its checkpoint when Slurm starts the job again.
run_ranks() {
  local status=0 first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  first=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*')
  export MASTER_ADDR=${MASTER_ADDR:-${first#NodeAddr=}}
  export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
  # On preemption this script gets SIGTERM too; it must outlive the ranks.
  trap : TERM
  # After a rank fails, the others get a minute to exit and to write where they stood.
  srun --label --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * RANKS_PER_NODE))" \
    --ntasks-per-node="$RANKS_PER_NODE" --kill-on-bad-exit=0 --wait=60 "${SRUN_ARGS[@]}" \
    "$ROOT/launch/slurm/rank.sh" "${CONTAINER[@]}" "$PYTHON" -m "$@" || status=$?
  if [[ $status -eq $STOPPED ]]; then
    echo "stopped with a checkpoint: requeueing job $SLURM_JOB_ID" >&2
    scontrol requeue "$SLURM_JOB_ID" || true # refused if Slurm has already requeued it
  fi
  exit "$status"
}

# Run a command that can resume. On SIGUSR1, shortly before the time limit, the job requeues.
run_restartable() {
  local status=0
  trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
  "${CONTAINER[@]}" "$PYTHON" "$@" &
  wait "$!" || status=$?
  exit "$status"
}
