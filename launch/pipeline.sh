#!/usr/bin/env bash
# The whole method on one machine, from a model and text to a sheared model and its report:
#
#   launch/pipeline.sh MODEL_DIR TEXT_DIR OUT_DIR
#
# By default the small bench: tiny-llama (8.4M parameters) to half its width on a sample of
# RedPajama. Other recipes by DATA, PRUNE and CONTINUE, ranks by RANKS, overrides by PRUNE_ARGS and
# CONTINUE_ARGS; SKIP_EVALUATION=1 leaves the evaluations out. What is finished is kept: started
# again, it goes on where it stopped.
set -euo pipefail

[[ $# -eq 3 ]] || { sed -n '2,10p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
MODEL=$1 TEXT=$2 OUT=$3
ROOT=$(cd "$(dirname "$0")/.." && pwd)
DATA=${DATA:-$ROOT/yamls/data/redpajama-sample.yaml}
PRUNE=${PRUNE:-$ROOT/yamls/prune/tiny-llama-to-half.yaml}
CONTINUE=${CONTINUE:-$ROOT/yamls/continue/tiny-llama-half.yaml}
RANKS=${RANKS:-1}
BIN=${BIN:-$ROOT/.venv/bin}
read -ra PRUNE_ARGS <<<"${PRUNE_ARGS:-}"
read -ra CONTINUE_ARGS <<<"${CONTINUE_ARGS:-}"

run() { printf '\n$ %s\n' "$*" >&2; "$@"; }
train() { run "$BIN/composer" -n "$RANKS" -m llmshearing.train "$@"; }
export_run() { [[ -f $2/llmshearing.json ]] || run "$BIN/llmshearing" export "$1" "$2"; }
evaluate() {
  [[ -n ${SKIP_EVALUATION:-} || -f $OUT/$2.json ]] ||
    run "$BIN/llmshearing" evaluate "$1" --data "$OUT/data/eval" --json "$OUT/$2.json"
}

mkdir -p "$OUT"
[[ -f $OUT/data/manifest.json ]] ||
  run "$BIN/python" "$ROOT/data_prep/prepare.py" "$DATA" source="$TEXT" tokenizer="$MODEL" output="$OUT/data"
evaluate "$MODEL" source

[[ -f $OUT/pruned/llmshearing.json ]] ||
  train "$PRUNE" model.path="$MODEL" data.root="$OUT/data" run.directory="$OUT/prune" "${PRUNE_ARGS[@]}"
export_run "$OUT/prune" "$OUT/pruned"
evaluate "$OUT/pruned" pruned

[[ -f $OUT/sheared/llmshearing.json ]] ||
  train "$CONTINUE" model.path="$OUT/pruned" data.root="$OUT/data" run.directory="$OUT/continue" "${CONTINUE_ARGS[@]}"
export_run "$OUT/continue" "$OUT/sheared"
evaluate "$OUT/sheared" sheared

run "$BIN/llmshearing" report "$OUT/prune" "$OUT/continue" --out "$OUT/report.html"
