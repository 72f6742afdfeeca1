#!/usr/bin/env bash
# Is this installation right on this machine's GPU, and how fast is it? See --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
bash scripts/gpu_check.sh [--out FOLDER]

Uses the active virtual environment, or makes .venv; installs requirements.txt and requirements-dev.txt. On the first GPU
(CUDA_VISIBLE_DEVICES chooses another) it runs the tests of recorded passes and packed batches, then attention, methods,
and a run that is stopped and resumed (benchmarks.gpu_check), then the tests of the CUDA kernels. Then it times whole
training steps, recorded as CUDA graphs and not (benchmarks.cuda_pass), the optimizers' steps (benchmarks.cuda_step), and
runs that share the GPU (benchmarks.sharing). Each part has a time limit of its own, 14 minutes in all, and runs even if
an earlier one failed. The last line is the verdict, before it stand the parts that did not run to their end, if any;
these stand there also if the check itself is ended early. Figures and what each part printed go to FOLDER, by default
gpu_check.

Exit status: 0 all is right, 1 something is not, 2 there is no NVIDIA GPU here or an argument is wrong.
TEXT
}

out=gpu_check
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --out) [[ -n ${2:-} ]] || { echo "error: --out needs a folder" >&2; exit 2; }; out=$2; shift 2 ;;
    *) echo "error: $1 is no argument of gpu_check.sh; see --help" >&2; exit 2 ;;
  esac
done
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo "error: gpu_check.sh needs an NVIDIA GPU with its driver, and nvidia-smi finds none here" >&2
  exit 2
fi
# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"
use_environment
install_once requirements.txt
install_once requirements-dev.txt
install_once experiments/demo/encoder.txt --no-deps --require-hashes --only-binary :all:
mkdir -p -- "$out"
out=$(cd -- "$out" && pwd)
cd -- "$ROOT"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

parts() { # COMMAND: calls it with the name and the command of every part; what is right comes before how fast it is
  "$1" "whole passes as graphs" part pass_graphs 130 -m pytest -q -m "not slow" tests/mt_dnn/test_pass_graphs_gpu.py
  "$1" "packing" part packing 60 -m pytest -q -m gpu tests/mt_dnn/encoder/test_packing.py
  "$1" "attention, methods, resume" part gpu_check 180 -m benchmarks.gpu_check --out "$out/gpu_check.json"
  "$1" "tests of the kernels" part kernels 180 -m pytest -q -n 2 -m "not slow" tests/module/test_cuda_gpu.py \
    tests/module/test_cuda_step.py tests/module/test_cuda_stream.py tests/module/test_cuda_compile.py \
    tests/module/test_unmasked.py
  "$1" "time of a step" part cuda_pass 90 -m benchmarks.cuda_pass --out "$out/cuda_pass.json"
  "$1" "time of the optimizers" part cuda_step 60 -m benchmarks.cuda_step --rounds 30 --out "$out/cuda_step.json"
  "$1" "workers per GPU" part sharing 140 -m benchmarks.sharing --workers 1,2,4 --turns 1 --runs 4 --out "$out/sharing.json"
}

left=() unfinished=() running=
note() { left+=("$1"); }
take() { step "$@"; left=("${left[@]:1}"); }

part() { # FILE SECONDS ARGUMENTS...: what python prints stays in FILE.log, also if it is cut off
  local log=$out/$1.log limit=$2 shown code=0
  shift 2
  : >"$log"
  timeout --kill-after=10 "$limit" "$PY" "$@" >"$log" 2>&1 &
  running=$!
  tail -n +1 -s 0.1 -f --pid="$running" "$log" &
  shown=$!
  wait "$running" || code=$?
  running=
  wait "$shown" || true
  if ((code == 124 || code == 137)); then
    echo "cut off after $limit seconds"
    unfinished+=("${left[0]}")
  fi
  return "$code"
}

tell_unfinished() {
  [[ -z $running ]] || kill "$running" 2>/dev/null || true
  unfinished+=("${left[@]}")
  ((!${#unfinished[@]})) || { printf 'did not run to the end:'; printf ' %s;' "${unfinished[@]}"; echo; }
  left=() unfinished=()
}

parts note
trap tell_unfinished EXIT
parts take
tell_unfinished
if ((${#failed[@]})); then
  printf 'WRONG on this GPU: %s; figures in %s\n' "$(IFS=,; printf '%s' "${failed[*]}")" "$out"
  exit 1
fi
printf 'This installation is right on this GPU; figures in %s\n' "$out"
