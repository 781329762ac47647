#!/usr/bin/env bash
# The whole method, from a model and text to a sheared model and its report:
#
#   launch/pipeline.sh MODEL_DIR TEXT_DIR OUT_DIR            on this machine, step by step
#   launch/pipeline.sh --slurm MODEL_DIR TEXT_DIR OUT_DIR    as Slurm jobs that wait for each other
#   launch/pipeline.sh --start masks ...                     learned masks instead of one cut
#
# Steps with --start oneshot (the default): prepare -> cut by importance and continue, one run ->
# export -> report. With --start masks, the paper's way: prepare -> prune -> export -> continue ->
# export -> report. There are evaluations in between. The recipes are those of the small bench:
# tiny-llama (8.4M parameters) to half its width on a RedPajama sample. Set DATA, and ONESHOT or
# PRUNE and CONTINUE, for others, DATA_ARGS, ONESHOT_ARGS, PRUNE_ARGS and CONTINUE_ARGS for
# overrides, and SKIP_EVALUATION=1 to skip the evaluations. Under Slurm also PREPARE_TASKS (8),
# PRUNE_NODES (1) and CONTINUE_NODES (1). Site settings are in launch/site.env.
#
# Finished steps are kept: run the same command again to resume.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/launch/common.sh"

SLURM=''
START=oneshot
while [[ ${1:-} == -* ]]; do
  case $1 in
    --slurm) SLURM=yes ;;
    --start)
      START=${2:-}
      shift
      ;;
    *) usage "$0" ;;
  esac
  shift
done
[[ $# -eq 3 && ($START == masks || $START == oneshot) ]] || usage "$0"
MODEL=$1 TEXT=$2 OUT=$3
DATA=${DATA:-$ROOT/yamls/data/redpajama-sample.yaml}
PRUNE=${PRUNE:-$ROOT/yamls/prune/tiny-llama-to-half.yaml}
CONTINUE=${CONTINUE:-$ROOT/yamls/continue/tiny-llama-half.yaml}
ONESHOT=${ONESHOT:-$ROOT/yamls/prune/tiny-llama-to-half-oneshot.yaml}
read -ra DATA_ARGS <<<"${DATA_ARGS:-}"
read -ra PRUNE_ARGS <<<"${PRUNE_ARGS:-}"
read -ra CONTINUE_ARGS <<<"${CONTINUE_ARGS:-}"
read -ra ONESHOT_ARGS <<<"${ONESHOT_ARGS:-}"

run() { printf '\n$ %s\n' "$*" >&2; "$@"; }
llmshearing() { run "${CONTAINER[@]}" "$PYTHON" -m llmshearing.cli "$@"; }

# job NAME AFTER [OPTIONS] SCRIPT ARGUMENTS: submit a step that starts once the jobs AFTER (separated
# by colons; may be empty) have succeeded. Sets ID to its job number.
job() {
  local name=$1 after=$2
  shift 2
  local options=(--parsable --job-name="$name" --output="$OUT/logs/$name-%j.log")
  [[ -z $after ]] || options+=(--dependency="afterok:$after" --kill-on-invalid-dep=yes)
  ID=$(sbatch "${options[@]}" "$@")
  ID=${ID%%;*} # drop a cluster name
  echo "$ID" >>"$OUT/jobs"
  printf '%-18s job %-8s %s\n' "$name" "$ID" "${after:+after $after}"
}

# Each step does nothing if its result exists; else it submits a job (number in ID) or runs here.
prepare() {
  local arguments=("$DATA" source="$TEXT" tokenizer="$MODEL" output="$OUT/data" "${DATA_ARGS[@]}")
  ID=
  if [[ -f $OUT/data/manifest.json ]]; then
    return
  elif [[ -z $SLURM ]]; then
    run "${CONTAINER[@]}" "$PYTHON" "$ROOT/data_prep/prepare.py" "${arguments[@]}"
  else
    local script=("${CPU_JOB[@]}" "$ROOT/launch/slurm/prepare.sbatch")
    job tokenise "" --array="0-$((${PREPARE_TASKS:-8} - 1))" "${script[@]}" "${arguments[@]}"
    job pack "$ID" "${script[@]}" "${arguments[@]}"
  fi
}

# train STAGE AFTER NODES RESULT RECIPE arguments: RESULT is the directory that export will write.
train() {
  local stage=$1 after=$2 nodes=$3 result=$4
  shift 4
  ID=$after
  if [[ -f $result/llmshearing.json ]]; then
    return
  elif [[ -z $SLURM ]]; then
    run "$ROOT/launch/local.sh" "$@"
  else
    job "$stage" "$after" "${GPU_JOB[@]}" --nodes="$nodes" "$ROOT/launch/slurm/$stage.sbatch" "$@"
  fi
}

# verb NAME AFTER RESULT VERB arguments, on one process.
verb() {
  local name=$1 after=$2 result=$3
  shift 3
  ID=$after
  if [[ -e $result ]]; then
    return
  elif [[ -z $SLURM ]]; then
    llmshearing "$@"
  else
    job "$name" "$after" "${CPU_JOB[@]}" "$ROOT/launch/slurm/verb.sbatch" "$@"
  fi
}

# evaluate NAME AFTER MODEL
evaluate() {
  local name=$1 after=$2 arguments=("$3" --data "$OUT/data/eval" --json "$OUT/$1.json")
  if [[ -n ${SKIP_EVALUATION:-} || -f $OUT/$name.json ]]; then
    return
  elif [[ -z $SLURM ]]; then
    llmshearing evaluate "${arguments[@]}"
  else
    job "evaluate-$name" "$after" "${GPU_JOB[@]}" \
      "$ROOT/launch/slurm/evaluate.sbatch" "${arguments[@]}"
  fi
}

mistake() {
  echo "error: $1" >&2
  exit 2
}

check_slurm() {
  local number
  command -v sbatch >/dev/null ||
    mistake "found no sbatch, expected Slurm's commands: omit --slurm"
  [[ $OUT != *%* ]] || mistake "found % in $OUT, which Slurm reads as a pattern: choose another"
  [[ -f $OUT/jobs ]] || return 0
  while read -r number; do
    [[ -z $(squeue --noheader --jobs="$number" 2>/dev/null) ]] ||
      mistake "found job $number for $OUT in the queue, expected none: wait for it or scancel it"
  done <"$OUT/jobs"
  rm "$OUT/jobs"
}

mkdir -p "$OUT"
if [[ -n $SLURM ]]; then
  check_slurm
  mkdir -p "$OUT/logs"
fi

prepare
DATA_JOB=$ID
evaluate source "$DATA_JOB" "$MODEL"
RUNS=("$OUT/prune" "$OUT/continue")
if [[ $START == masks ]]; then
  train prune "$DATA_JOB" "${PRUNE_NODES:-1}" "$OUT/pruned" "$PRUNE" model.path="$MODEL" \
    data.root="$OUT/data" run.directory="$OUT/prune" "${PRUNE_ARGS[@]}"
  verb export-pruned "$ID" "$OUT/pruned/llmshearing.json" export "$OUT/prune" "$OUT/pruned"
  PRUNED_JOB=$ID
  evaluate pruned "$PRUNED_JOB" "$OUT/pruned"
  train continue "$PRUNED_JOB" "${CONTINUE_NODES:-1}" "$OUT/sheared" "$CONTINUE" \
    model.path="$OUT/pruned" data.root="$OUT/data" run.directory="$OUT/continue" \
    "${CONTINUE_ARGS[@]}"
else
  RUNS=("$OUT/continue")
  train continue "$DATA_JOB" "${CONTINUE_NODES:-1}" "$OUT/sheared" "$ONESHOT" model.path="$MODEL" \
    data.root="$OUT/data" run.directory="$OUT/continue" pruning.method=oneshot "${ONESHOT_ARGS[@]}"
  evaluate pruned "$ID" "$OUT/continue/cut"
fi
verb export-sheared "$ID" "$OUT/sheared/llmshearing.json" export "$OUT/continue" "$OUT/sheared"
SHEARED_JOB=$ID
evaluate sheared "$SHEARED_JOB" "$OUT/sheared"
verb report "$SHEARED_JOB" "" report "${RUNS[@]}" --out "$OUT/report.html"
