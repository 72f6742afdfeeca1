#!/usr/bin/env bash
# A table of fine-tuning methods over seeds: the demo without arguments, any encoder, tasks and devices with. See --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'TEXT'
bash run_pats.sh
    The demo, in minutes on two CPU cores: plain fine-tuning, NoisyTune, SAGE and PATS x 5 seeds on two movie-review
    tasks (polarity, rating), with an encoder and data from the Python package index. Not GLUE: its numbers are not
    the paper's. Everything it makes lies in demo/ and .venv/ of this project.

bash run_pats.sh --data_dir DIR --encoder NAME [more]
    The same table on GLUE. --data_dir and --canonical_dir are flags of this script. All others go to
    python -m experiments.study, whose --help has the rest:
    --data_dir DIR       raw GLUE files: DIR/CoLA, DIR/MRPC, ... (scripts/download_glue.sh fetches them)
    --canonical_dir DIR  where the converted files and token caches go [<data_dir>/canonical_data]
    --encoder NAME       Hub name (bert-base-uncased, roberta-large), local folder, or all-MiniLM-L6-v2
    --recipe_base NAME   take the learning rates of this encoder's recipes, for an encoder without recipes
    --recipes A,B        recipe names or files, instead of --encoder and --methods
    --tasks A,B          cola, mrpc, rte, stsb, qqp, qnli, mnli, sst [all that the recipes hold]
    --task_def FILE      tasks of your own: --data_dir is then the folder of their canonical files, as
                         python -m data_utils.import_dataset writes both of any table
    --methods A,B        [vanilla,noisytune,sage,pats]
    --seeds N            5 is the seeds 1 to 5; 3,7 those two; 7, (with the comma) seed 7 [5]
    --devices D          0,1,2,3 (CUDA devices), cpu or auto [auto]
    --workers_per_device N, --retries N, --set KEY=VALUE, --controls, --holdout SHARE, --dry_run
    --launcher ray       on a Ray cluster (docs/cluster.md): --address A, --gpus_per_run F, --cpus_per_run N
    --output_dir DIR     runs [runs/ of this project]
    --results_dir DIR    tables and figures, in a folder --name of it [results/ of this project, the encoder's name]

    bash run_pats.sh --data_dir data --encoder bert-base-uncased --tasks cola,mrpc,rte,stsb --devices 0,1,2,3
    bash run_pats.sh --data_dir data --encoder all-MiniLM-L6-v2 --tasks rte --methods vanilla,pats --devices cpu
    bash run_pats.sh --data_dir my_data --task_def my_data/task_def.yml --encoder roberta-large --methods vanilla,pats

Uses the active virtual environment, or makes .venv with Python 3.11 or newer (PYTHON=... names one); installs only what
changed. Finished runs are kept: the same command again takes seconds, and after a stop or a kill it goes on.
Exit status: 0 every run is there, 1 some failed, 2 a setting or file is wrong, 75 stopped by a signal, 130 killed.
TEXT
}

# shellcheck source=scripts/glue.sh
source "$ROOT/scripts/glue.sh"

data_dir='' canonical_dir='' tasks=() MORE=()
demo=$(($# == 0))
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --data_dir=* | --canonical_dir=* | --tasks=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --data_dir | --canonical_dir | --tasks) ;;
    *) MORE+=("$1"); shift; continue ;;
  esac
  if (($# < 2)) || [[ -z $2 || $2 == --* ]]; then die "$1 needs a value; see bash run_pats.sh --help"; fi
  case $1 in
    --data_dir) data_dir=$2 ;;
    --canonical_dir) canonical_dir=$2 ;;
    --tasks) tasks=("$1" "$2") ;;
  esac
  shift 2
done
study=(${tasks[@]+"${tasks[@]}"} ${MORE[@]+"${MORE[@]}"})
if ((!demo)); then
  PY=$(find_python) # of any kind: the arguments are checked before anything is installed
  PYTHONPATH=$ROOT PYTHONSAFEPATH=1 check_arguments experiments.study.arguments ${study[@]+"${study[@]}"}
  [[ -n $data_dir ]] || die "--data_dir is missing: the folder with the raw GLUE files (scripts/download_glue.sh fetches them)"
  [[ -d $data_dir ]] || die "--data_dir $data_dir: no such folder (scripts/download_glue.sh fetches the GLUE files)"
  [[ " ${MORE[*]-}" =~ ' --encoder'|' --recipes' ]] || die "--encoder is missing (or --recipes); see bash run_pats.sh --help"
fi

prepare_environment
if ((demo)); then
  install_encoder
  say "fetching the text: movie-review snippets with human ratings"
  "$PY" -m experiments.demo.prepare --output_dir "$ROOT/demo"
  say "training: 4 methods x 5 seeds x 2 tasks, a line for each finished run; then the table"
  cd -- "$ROOT/experiments/demo"
  exec "$PY" -m experiments.study --task_def demo_task_def.yml --data_dir "$ROOT/demo/canonical_data" \
    --recipes demo_vanilla,demo_noisytune,demo_sage,demo_pats \
    --seeds 5 --devices cpu --output_dir "$ROOT/demo/runs" --results_dir "$ROOT/demo" --name results
fi
if [[ " ${MORE[*]-}" =~ ' --task_def' ]]; then
  canonical_dir=${canonical_dir:-$data_dir} # nothing to convert
else
  canonical_dir=${canonical_dir:-$data_dir/canonical_data}
  convert "$data_dir" "$canonical_dir" ${tasks[@]+"${tasks[@]}"}
fi
exec "$PY" -m experiments.study --data_dir "$canonical_dir" --output_dir "$ROOT/runs" --results_dir "$ROOT/results" \
  --unequal_grids ${study[@]+"${study[@]}"}
