#!/usr/bin/env bash
# Intermediate training on GLUE: MNLI first, then RTE, MRPC and STS-B from it. See --help and docs/reproduce.md.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<TEXT
bash scripts/intermediate.sh [RAW_GLUE_DIR [DEVICES [more arguments]]]

Prepares GLUE's raw files, trains bert-base-uncased on MNLI, once for each of the seeds 1 to 5, then on RTE, MRPC and STS-B,
plainly and with PATS, from the run of the same seed and from the encoder itself, and writes the table of both with its
tests into results/bert-base-uncased-mnli-first. Started again, it goes on where it stopped.

$PLACES
  more arguments, the last of which wins: python -m experiments.study.intermediate --help

  bash scripts/intermediate.sh data 0,1 --first qnli --then rte
  bash scripts/intermediate.sh data cpu --encoder all-MiniLM-L6-v2 --first mrpc --then rte --seeds 2    without a GPU

Exit status: 0 every run is there, 1 some failed, 2 a setting or file is wrong, 75 stopped by a signal, 130 killed.
TEXT
}

# shellcheck source=scripts/glue.sh
source "$ROOT/scripts/glue.sh"
read_arguments "$@"
prepare_environment
on_glue experiments.study.intermediate --encoder bert-base-uncased --first mnli --then rte,mrpc,stsb --seeds 5
