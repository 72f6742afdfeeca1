#!/usr/bin/env bash
# Every method and its control on four GLUE tasks, in short runs. See --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<TEXT
[TASKS=cola,stsb] bash scripts/all_methods.sh [RAW_GLUE_DIR [DEVICES [study arguments]]]

Every method of module/methods but matched_noise, and its control, on CoLA, MRPC, RTE and STS-B with the packaged
encoder, 2 epochs of a part of each training set, seeds 1 to 3; the table goes to results/all_methods. Some hours on 2
CPU cores. Started again, it goes on where it stopped.

Settings are the recipes', but for the learning rate: 3e-4 for all, because at the recipes' 1e-4 most methods still
predict one class after so few steps. SAGE has twice that, as its authors advise; BitFit and LoRA keep their own rates.

$PLACES
  TASKS          some of cola,mrpc,rte,stsb [all]
  study arguments, such as --seeds 1 or --workers_per_device 2: python -m experiments.study --help
TEXT
}

# shellcheck source=scripts/glue.sh
source "$ROOT/scripts/glue.sh"
read_arguments "$@"
TASKS=${TASKS:-cola,mrpc,rte,stsb}
declare -A SETTINGS_OF=(
  [cola]="--set cola.train_size=4096"
  [stsb]="--set stsb.train_size=1280 --set stsb.batch_size=8"
  [mrpc]="--set mrpc.train_size=256 --set mrpc.batch_size=8"
  [rte]="--set rte.train_size=128 --set rte.batch_size=8"
)
SETTINGS=()
for task in ${TASKS//,/ }; do
  [[ -n ${SETTINGS_OF[$task]:-} ]] || { echo "error: TASKS: $task is none of ${!SETTINGS_OF[*]}" >&2; exit 2; }
  # shellcheck disable=SC2206  # words without blanks
  SETTINGS+=(${SETTINGS_OF[$task]})
done

prepare_environment requirements-lora.txt
install_encoder
RUNS=runs/all_methods
check_arguments experiments.study.arguments ${MORE[@]+"${MORE[@]}"}
convert "$RAW" "$RAW/canonical_data"

study() { # METHODS [study arguments]
  "$PY" -m experiments.study --encoder all-MiniLM-L6-v2 --methods "$1" --tasks "$TASKS" --seeds 3 \
    --data_dir "$RAW/canonical_data" --devices "$DEVICES" --output_dir "$RUNS" --name all_methods_part \
    --set epochs=2 --set max_seq_len=128 --set save=none --set tensorboard=false "${SETTINGS[@]}" "${@:2}"
}

METHODS=vanilla,noisytune,pats,component_clip,child_tuning,neftune,reinit,smart,freelb,rdrop,r3f,sam,pgd,mixout
METHODS+=,pac_tuning,recadam,l2sp,llrd,ema,swa
# RecAdam: learning rate x gamma as in its recipe, and a sigmoid that opens within so few steps (its recipe's t0 is 250).
# SWA: the mean begins with the last epoch.
study "$METHODS" --controls --set learning_rate=3e-4 --set recadam.gamma=333 --set recadam.t0=50 \
  --set swa.start_epoch=1 ${MORE[@]+"${MORE[@]}"}
# HyPe's noise needs fp32 (its recipe), so its control has it too.
study hype,no_hidden_dropout --set learning_rate=3e-4 --set precision=fp32 ${MORE[@]+"${MORE[@]}"}
study sage --set learning_rate=6e-4 ${MORE[@]+"${MORE[@]}"}
study bitfit,lora ${MORE[@]+"${MORE[@]}"}
if [[ " ${MORE[*]-} " == *" --dry_run "* ]]; then exit 0; fi
exec "$PY" -m experiments.study.tables "$RUNS" --step_times "$ROOT/records/method_costs/result.json" \
  --out results/all_methods
