#!/usr/bin/env bash
# Tables 2 and 3 of the PATS paper: a search over learning rates and PATS's settings. See --help and docs/search.md.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
bash scripts/table2_search.sh [RAW_GLUE_DIR [DEVICES [study arguments]]]

Prepares GLUE's raw files and searches the settings of vanilla, NoisyTune, SAGE and PATS for bert-base-uncased over the
grids of experiments/glue/recipes/bert-base-uncased_*.yml (for PATS the paper's Table 3): 9 trials for each method and
task, a Sobol sequence, seed 101. Nine is what plain fine-tuning's grid has. Writes results/bert-base-uncased-search:
Tables 2 and 3, pictures, and the chosen settings as recipes for study.py --recipes. Started again, it goes on where it
stopped.

  RAW_GLUE_DIR   folder with CoLA/, MRPC/, ... as scripts/download_glue.sh leaves it [data]
  DEVICES        CUDA devices such as 0,1,2,3, or cpu, or auto for all there are [auto]
  study arguments, which win over these: python -m experiments.study --help

  bash scripts/table2_search.sh                                         data/, every GPU
  bash scripts/table2_search.sh data 0,1 --tasks rte --holdout 0.1   choose on a tenth of the training set, not on dev
  bash scripts/table2_search.sh data auto --search tpe --trials 60 --unequal_grids   optuna's TPE, more for PATS
  bash scripts/table2_search.sh data auto --encoder roberta-large --prune_after 3    the other model, with pruning
  bash scripts/table2_search.sh data auto --dry_run                     list the runs, done and missing
TEXT
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"
use_environment
install_once requirements.txt
install_once requirements-search.txt
RAW=${1:-data}
DEVICES=${2:-auto}
"$PY" "$ROOT/experiments/glue/glue_prepro.py" --root_dir "$RAW" --out "$RAW/canonical_data"
exec "$PY" -m experiments.study --encoder bert-base-uncased --data_dir "$RAW/canonical_data" \
  --methods vanilla,noisytune,sage,pats --search sobol --trials 9 --devices "$DEVICES" "${@:3}"
