#!/usr/bin/env bash
# A run on this machine, one rank per GPU, or one process without GPUs:
#
#   launch/local.sh RECIPE.yaml key=value ...
#
# On several machines without Slurm, run the same command on each, with NODE_RANK from 0 up. The
# repository, the data and the run directory must be on a shared file system:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=first-machine launch/local.sh RECIPE.yaml key=value ...
#   NODES=2 NODE_RANK=1 MASTER_ADDR=first-machine launch/local.sh RECIPE.yaml key=value ...
#
# On SIGUSR1 or SIGTERM to this script the run saves a checkpoint and exits with status 85; the same
# command resumes it. RANKS_PER_NODE sets the ranks per machine.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/launch/common.sh"
[[ $# -ge 1 && $1 != -* ]] || usage "$0"

flags=(-n "$RANKS_PER_NODE")
if [[ ${NODES:-1} -gt 1 ]]; then
  : "${NODE_RANK:?number of this machine, from 0}" "${MASTER_ADDR:?name or address of machine 0}"
  flags+=(--world_size "$((NODES * RANKS_PER_NODE))" --node_rank "$NODE_RANK")
  flags+=(--master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
fi

# A signal to the launcher would end it, and its ranks 30 seconds later, so signal the ranks instead.
# One signalled rank is enough. A rank that does not handle the signal yet would die from it.
tell_ranks() {
  local child children
  read -ra children <"/proc/$1/task/$1/children" || true
  for child in "${children[@]}"; do
    if grep --quiet --null-data '^LOCAL_RANK=' "/proc/$child/environ"; then
      if heeds "$child" && kill -USR1 "$child"; then told=yes; fi
    else
      tell_ranks "$child"
    fi
  done
}

# Whether a process blocks or catches SIGUSR1.
heeds() {
  local field mask
  while read -r field mask; do
    [[ $field == SigBlk: || $field == SigCgt: ]] && ((0x$mask & 0x200)) && return
  done <"/proc/$1/status"
  return 1
}

"${CONTAINER[@]}" "$PYTHON" -m composer.cli "${flags[@]}" -m llmshearing.train "$@" &
launcher=$!
trap 'asked=yes' USR1 TERM
trap : INT # the terminal also sends it to the launcher, which ends the ranks
status=0
while :; do
  asked='' told='' code=0
  wait "$launcher" || code=$?
  [[ $code -eq 127 ]] || status=$code # 127: already waited for
  [[ -n $asked ]] || break
  while [[ -z $told ]] && kill -0 "$launcher" 2>/dev/null; do # the ranks may not have started yet
    tell_ranks "$launcher"
    [[ -n $told ]] || sleep 0.2
  done
done
exit "$status"
