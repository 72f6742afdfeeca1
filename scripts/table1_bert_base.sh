#!/usr/bin/env bash
# Table 1 of the PATS paper on BERT-base: 8 tasks, 4 methods, 5 seeds. See --help and docs/reproduce.md.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
bash scripts/table1_bert_base.sh [RAW_GLUE_DIR [DEVICES [study arguments]]]

Prepares GLUE's raw files and computes Table 1 for bert-base-uncased: vanilla, NoisyTune, SAGE and PATS on CoLA, MRPC,
RTE, STS-B, QQP, QNLI, MNLI and SST-2 with the seeds 1 to 5, by the recipes experiments/glue/recipes/bert-base-uncased_*.yml
(Table 2's learning rates, 10 epochs, batch 32, warm-up 0.1). Started again, it goes on where it stopped.

  RAW_GLUE_DIR   folder with CoLA/, MRPC/, ... as scripts/download_glue.sh leaves it [data]
  DEVICES        CUDA devices such as 0,1,2,3, or cpu, or auto for all there are [auto]
  study arguments, such as --workers_per_device 2 or --output_dir DIR: python -m experiments.study --help

  bash scripts/table1_bert_base.sh                             data/, every GPU
  bash scripts/table1_bert_base.sh /glue 0,1 --tasks rte,cola  two tasks on two GPUs
  bash scripts/table1_bert_base.sh data auto --dry_run         list the runs, done and missing
TEXT
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"
use_environment
install_once requirements.txt
RAW=${1:-data}
DEVICES=${2:-auto}
"$PY" "$ROOT/experiments/glue/glue_prepro.py" --root_dir "$RAW" --out "$RAW/canonical_data"
"$PY" "$ROOT/prepro_std.py" --model bert-base-uncased --root_dir "$RAW/canonical_data"
exec "$PY" -m experiments.study --encoder bert-base-uncased --data_dir "$RAW/canonical_data" \
  --methods vanilla,noisytune,sage,pats --unequal_grids --seeds 5 --devices "$DEVICES" "${@:3}"
