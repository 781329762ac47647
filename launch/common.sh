# shellcheck shell=bash
# Sourced by every script here, with ROOT, the repository: what the site says, and its defaults.
: "${ROOT:?}"
export LLMSHEARING_ROOT=$ROOT

# shellcheck disable=SC2034  # for the scripts that source this
CONTAINER=() SRUN_ARGS=() GPU_JOB=() CPU_JOB=()
SITE_ENV=${SITE_ENV:-$ROOT/launch/site.env}
if [[ -f $SITE_ENV ]]; then
  # shellcheck source=launch/site.env.example
  . "$SITE_ENV"
fi
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
if [[ -z ${RANKS_PER_NODE:-} ]]; then
  RANKS_PER_NODE=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || true
  [[ $RANKS_PER_NODE -gt 0 ]] || RANKS_PER_NODE=1
fi
# Of a run that stopped early with a whole checkpoint (llmshearing/callbacks/stop_signal.py).
STOPPED=85
export STOPPED

# Print a script's opening comment and leave: it was called in another way than it tells.
usage() {
  sed -n '2,/^[^#]/{/^#\( \|$\)/s/^# \{0,1\}//p}' "$1" >&2
  exit 2
}
