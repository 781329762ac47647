#!/usr/bin/env bash
# Gradual pruning: reach a shape in several cuts of at most half of the parameters each, with a short
# recovery after each and one learning-rate schedule over all of it:
#
#   launch/gradual.sh MODEL_DIR DATA_ROOT OUT_DIR hidden=128 layers=6 heads=4 intermediate=344
#
# CUTS (2) is the number of cuts, SHORT (75) the steps of recovery after each but the last, LONG (450)
# those after the last. RECIPE is the recipe of the recovery (yamls/continue/tiny-llama-half.yaml) and
# ARGS holds its overrides. With LONGER=DATA_ROOT, a tree of longer rows, LONGER_STEPS (50) more steps
# train on those at the end of the schedule. ROWS (512) rows give the importance before each cut.
#
# Finished steps are kept: run the same command again to resume.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/launch/common.sh"
[[ $# -ge 4 && $1 != -* ]] || usage "$0"
MODEL=$1 DATA=$2 OUT=$3
shift 3
CUTS=${CUTS:-2} SHORT=${SHORT:-75} LONG=${LONG:-450} ROWS=${ROWS:-512} LONGER=${LONGER:-}
RECIPE=${RECIPE:-$ROOT/yamls/continue/tiny-llama-half.yaml}
[[ -n $LONGER ]] && LONGER_STEPS=${LONGER_STEPS:-50} || LONGER_STEPS=0
read -ra ARGS <<<"${ARGS:-}"

run() { printf '\n$ %s\n' "$*" >&2; "$@"; }
llmshearing() { run "${CONTAINER[@]}" "$PYTHON" -m llmshearing.cli "$@"; }

# recover STAGE MODEL DATA STEPS: train it and export it to STAGE/model. Each stage reads rows in an
# order of its own, and starts from the mixture of the one before it.
NUMBER=0 DONE=0 MIXTURE='' TOTAL=$(((CUTS - 1) * SHORT + LONG + LONGER_STEPS))
recover() {
  local stage=$1 steps=$4
  local given=(model.path="$2" data.root="$3" run.directory="$stage/run" run.duration="${steps}ba")
  given+=(run.seed="$((17 + NUMBER))" optimizer.schedule_length="${TOTAL}ba")
  [[ $DONE -eq 0 ]] || given+=(optimizer.schedule_from="${DONE}ba" mixture.start_from="$MIXTURE")
  if [[ ! -f $stage/model/llmshearing.json ]]; then
    run "$ROOT/launch/local.sh" "$RECIPE" "${given[@]}" "${ARGS[@]}"
    llmshearing export "$stage/run" "$stage/model"
  fi
  NUMBER=$((NUMBER + 1)) DONE=$((DONE + steps)) MIXTURE=$stage/run/mixture.yaml
}

for ((left = CUTS; left > 0; left--)); do
  stage=$OUT/$((CUTS - left + 1))
  scores=$stage/importance.safetensors
  mkdir -p "$stage"
  [[ -f $scores ]] ||
    llmshearing importance "$MODEL" --data "$DATA/prune" --rows "$ROWS" --out "$scores"
  [[ -f $stage/cut/llmshearing.json ]] || llmshearing prune-oneshot "$MODEL" "$stage/cut" \
    --importance "$scores" --cuts "$left" --target "$@"
  recover "$stage" "$stage/cut" "$DATA" $((left > 1 ? SHORT : LONG))
  MODEL=$stage/model
done
[[ -z $LONGER ]] || recover "$OUT/longer" "$MODEL" "$LONGER" "$LONGER_STEPS"
