# shellcheck shell=bash
# Sourced by the scripts: one Python environment for all of them. The caller sets ROOT, the project's folder.
#   use_environment       PY, PREFIX: the active virtual environment, else ROOT/.venv, made on first use
#   install_once FILE...  pip install -r FILE with the arguments that follow, unless FILE is unchanged since last time;
#                         torch is constraints.txt's where none is there yet, and stays as it is where one is
#   step NAME COMMAND...  runs the command; keeps the name in `failed` if it fails, and goes on

say() { printf '%s\n' "== $*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

failed=()
step() { # NAME COMMAND...
  local name=$1
  shift
  say "$name"
  "$@" || failed+=("$name")
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() { # the first interpreter that is new enough; PYTHON=... names one
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or newer"
    printf '%s\n' "$PYTHON"
    return
  fi
  for candidate in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} python3.11 python3.12 python3.13 python3 python; do
    if new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer on PATH (python3 is: $(python3 --version 2>&1 || true)); install one or set PYTHON=/path/to/python"
}

use_environment() {
  local base=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
  if [[ -n $base ]]; then
    PY=$base/bin/python
    new_enough "$PY" || die "the active environment $base has no Python 3.11 or newer; deactivate it and run again"
    "$PY" -m pip --version >/dev/null 2>&1 || die "the active environment $base has no pip: run '$PY -m ensurepip'"
  else
    PY=$ROOT/.venv/bin/python
    if ! "$PY" -m pip --version >/dev/null 2>&1; then
      base=$(find_python)
      say "making $ROOT/.venv with $("$base" --version)"
      "$base" -m venv "$ROOT/.venv" >/dev/null || die "$base cannot make $ROOT/.venv: install its venv module (Debian: python3-venv) or activate an environment of yours"
    fi
    new_enough "$PY" || die "$ROOT/.venv has no Python 3.11 or newer; remove it and run again"
  fi
  PREFIX=$("$PY" -c 'import sys; print(sys.prefix)')
  # Packages are found from any working directory, and a folder of the caller's never shadows one of ours.
  export PYTHONPATH=$ROOT PYTHONSAFEPATH=1
  # Set in many container images. What is installed here is not compiled (see below), and without a place for compiled
  # code every process would compile all that it imports, torch above all: eight seconds each.
  unset PYTHONDONTWRITEBYTECODE
}

install_once() { # FILE [pip arguments]
  local file=$1 stamp sum
  shift
  stamp=$PREFIX/.pats-${file//\//-}
  sum=$(cksum <"$ROOT/$file")
  if [[ -f $stamp && $(<"$stamp") == "$sum" ]]; then return; fi
  if ! "$PY" -c 'import importlib.metadata as found; found.version("torch")' 2>/dev/null; then
    set -- -c "$ROOT/constraints.txt" "$@"
  fi
  say "installing $file"
  # Compiling all that is installed takes longer than compiling what is imported, when it first is.
  "$PY" -m pip install -qq --disable-pip-version-check --no-compile "$@" -r "$ROOT/$file" ||
    die "pip could not install $file (its own message stands above)"
  printf '%s\n' "$sum" >"$stamp"
}
