#!/usr/bin/env bash
# Figure 3 of the PATS paper: score and spread of sensitivities by share of training data. See --help, docs/figures.md.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<TEXT
bash scripts/figure3.sh [RAW_GLUE_DIR [DEVICES [figure arguments]]]

Prepares GLUE's raw files, trains bert-base-uncased on 10, 20, ... 100 % of CoLA plainly and with PATS, seeds 1 to 5 (100
runs, those on 100 % shared with Figure 2), and draws the score and the standard deviation of the sensitivities against the
share, mean and standard deviation over the seeds, with their numbers, into results/figure3/bert-base-uncased. Started
again, it goes on where it stopped.

$PLACES
  figure arguments, the last of which wins: python -m experiments.glue.figure3 --help

  bash scripts/figure3.sh data 0,1 --tasks rte --shares 20,60,100
  bash scripts/figure3.sh data cpu --encoder all-MiniLM-L6-v2 --seeds 2 --set epochs=3    without a GPU

Exit status: 0 every run is there, 1 some failed, 2 a setting or file is wrong, 75 stopped by a signal, 130 killed.
TEXT
}

# shellcheck source=scripts/glue.sh
source "$ROOT/scripts/glue.sh"
read_arguments "$@"
prepare_environment
on_glue experiments.glue.figure3 --encoder bert-base-uncased --unequal_grids --seeds 5
