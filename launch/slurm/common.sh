# shellcheck shell=bash
# Sourced by the job scripts, with ROOT: how a job starts its ranks, and returns to the queue.
. "$ROOT/launch/common.sh"

# Start `MODULE arguments` on every node of the job, RANKS_PER_NODE ranks each, and end the job with
# their status. A run that was told to stop ends with status 85: then the job goes back to the queue,
# and the run goes on from its checkpoint when Slurm starts it again.
run_ranks() {
  local status=0 first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  first=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*')
  export MASTER_ADDR=${MASTER_ADDR:-${first#NodeAddr=}}
  export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
  # A preempted job gets SIGTERM, its script too, which has to outlive the ranks.
  trap : TERM
  # A rank that fails leaves the others a minute to end by themselves and to say where they stood.
  srun --label --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * RANKS_PER_NODE))" \
    --ntasks-per-node="$RANKS_PER_NODE" --kill-on-bad-exit=0 --wait=60 "${SRUN_ARGS[@]}" \
    "$ROOT/launch/slurm/rank.sh" "${CONTAINER[@]}" "$PYTHON" -m "$@" || status=$?
  if [[ $status -eq $STOPPED ]]; then
    echo "stopped with a checkpoint: job $SLURM_JOB_ID goes back to the queue" >&2
    scontrol requeue "$SLURM_JOB_ID" || true # refused where Slurm has done so itself
  fi
  exit "$status"
}

# Run a command that goes on where it was killed; told by SIGUSR1 that the time is nearly over, the
# job goes back to the queue.
run_restartable() {
  local status=0
  trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
  "${CONTAINER[@]}" "$PYTHON" "$@" &
  wait "$!" || status=$?
  exit "$status"
}
