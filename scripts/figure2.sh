#!/usr/bin/env bash
# Figure 2 of the PATS paper: the distribution of sensitivities, vanilla against PATS. See --help and docs/figures.md.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<TEXT
bash scripts/figure2.sh [RAW_GLUE_DIR [DEVICES [figure arguments]]]

Prepares GLUE's raw files, trains bert-base-uncased on CoLA plainly and with PATS, seeds 1 to 5 (10 runs), and draws the
distribution of the sensitivities of the fine-tuned encoder over the paper's range and over all of it, how concentrated
they are (standard deviation, Gini coefficient, entropy), a heat map by layer, learning curves and the seeds' scores,
with their numbers, into results/figure2/bert-base-uncased. Started again, it goes on where it stopped.

$PLACES
  figure arguments, the last of which wins: python -m experiments.glue.figure2 --help

  bash scripts/figure2.sh data 0,1 --methods vanilla,noisytune,sage,pats --tasks cola,rte
  bash scripts/figure2.sh data cpu --encoder all-MiniLM-L6-v2 --seeds 2 --set epochs=3    without a GPU

Exit status: 0 every run is there, 1 some failed, 2 a setting or file is wrong, 75 stopped by a signal, 130 killed.
TEXT
}

# shellcheck source=scripts/glue.sh
source "$ROOT/scripts/glue.sh"
read_arguments "$@"
prepare_environment
on_glue experiments.glue.figure2 --encoder bert-base-uncased --unequal_grids --seeds 5
