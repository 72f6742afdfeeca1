#!/usr/bin/env bash
# Is this installation right on this machine's GPU, and how fast is it? See --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
bash scripts/gpu_check.sh [--out FOLDER]

Uses the active virtual environment, or makes .venv; installs requirements.txt and requirements-dev.txt. On the first GPU
(CUDA_VISIBLE_DEVICES chooses another) it runs the tests of the CUDA kernels, then attention, methods, and a run that is
stopped and resumed (benchmarks.gpu_check), then times the optimizers' steps (benchmarks.cuda_step) and whole training
steps, recorded as CUDA graphs and not (benchmarks.cuda_pass), and runs that share the GPU (benchmarks.sharing). Each
part has a time limit of its own and runs even if an earlier one failed. The last line is the verdict; figures and what
each part printed go to FOLDER, by default gpu_check.

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
running=
trap '[[ -z $running ]] || kill "$running" 2>/dev/null || true' EXIT

part() { # FILE SECONDS COMMAND...: what it prints stays in FILE.log, also if it is cut off
  local log=$out/$1.log limit=$2 shown code=0
  shift 2
  : >"$log"
  timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1 &
  running=$!
  tail -n +1 -s 0.1 -f --pid="$running" "$log" &
  shown=$!
  wait "$running" || code=$?
  running=
  wait "$shown" || true
  ((code != 124 && code != 137)) || echo "cut off after $limit seconds"
  return "$code"
}

step "whole passes as graphs" part pass_graphs 240 "$PY" -m pytest -q -m "not slow" tests/mt_dnn/test_pass_graphs_gpu.py
step "packing" part packing 90 "$PY" -m pytest -q -m gpu tests/mt_dnn/encoder/test_packing.py
step "tests of the kernels" part kernels 300 "$PY" -m pytest -q -n 2 -m "not slow" tests/module/test_cuda_gpu.py \
  tests/module/test_cuda_step.py tests/module/test_cuda_stream.py tests/module/test_cuda_compile.py tests/module/test_unmasked.py
step "attention, methods, resume" part gpu_check 300 "$PY" -m benchmarks.gpu_check --out "$out/gpu_check.json"
step "time of the optimizers" part cuda_step 120 "$PY" -m benchmarks.cuda_step --rounds 30 --out "$out/cuda_step.json"
step "time of a step" part cuda_pass 240 "$PY" -m benchmarks.cuda_pass --out "$out/cuda_pass.json"
step "workers per GPU" part sharing 300 "$PY" -m benchmarks.sharing --turns 1 --runs 4 --steps 50 --out "$out/sharing.json"

if ((${#failed[@]})); then
  printf 'WRONG on this GPU: %s; figures in %s\n' "$(IFS=,; printf '%s' "${failed[*]}")" "$out"
  exit 1
fi
printf 'This installation is right on this GPU; figures in %s\n' "$out"
