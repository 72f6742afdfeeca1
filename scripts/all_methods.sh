#!/usr/bin/env bash
# Every method on four GLUE tasks, short: records/all_methods. See --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
bash scripts/all_methods.sh [RAW_GLUE_DIR [DEVICES [study arguments]]]

Every method of module/methods and its control on CoLA, MRPC, RTE and STS-B with the packaged encoder, 2 epochs of a
part of each training set, seeds 1 to 3: the table of records/all_methods. About 3 hours on 2 CPU cores. Started again,
it goes on where it stopped.

  RAW_GLUE_DIR   folder with CoLA/, MRPC/, ... as scripts/download_glue.sh leaves it [data]
  DEVICES        CUDA devices such as 0,1,2,3, or cpu, or auto for all there are [auto]
  study arguments, such as --seeds 1 or --output_dir DIR: python -m experiments.glue.study --help
TEXT
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"
use_environment
install_once requirements.txt
install_once requirements-lora.txt
RAW=${1:-data}
DEVICES=${2:-auto}
METHODS=vanilla,noisytune,sage,pats,hype,component_clip,child_tuning,neftune,reinit,smart,freelb,rdrop,r3f,sam,pgd,mixout
METHODS+=,pac_tuning,recadam,l2sp,llrd,ema,swa,bitfit,lora
"$PY" "$ROOT/experiments/glue/glue_prepro.py" --root_dir "$RAW" --out "$RAW/canonical_data"
# The recipes' values, but: SWA's mean begins with the last epoch, and RecAdam's sigmoid (t0 250 in its recipe) opens
# within so few steps.
exec "$PY" -m experiments.glue.study --encoder all-MiniLM-L6-v2 --methods "$METHODS" --controls \
  --tasks cola,mrpc,rte,stsb --seeds 3 --data_dir "$RAW/canonical_data" --devices "$DEVICES" --name all_methods \
  --set epochs=2 --set max_seq_len=128 --set save=none --set tensorboard=false \
  --set cola.train_size=5120 --set stsb.train_size=1280 --set mrpc.train_size=768 --set rte.train_size=512 \
  --set stsb.batch_size=8 --set mrpc.batch_size=8 --set rte.batch_size=8 \
  --set swa.start_epoch=1 --set recadam.t0=50 "${@:3}"
