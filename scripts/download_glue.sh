#!/usr/bin/env bash
# GLUE's official files for machines with internet: fetched, resumed, unpacked safely, checked by row count. See --help.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
bash scripts/download_glue.sh                                   eight tasks into data/
bash scripts/download_glue.sh --out_dir DIR --tasks cola,rte    some of them elsewhere
GLUE_BASE_URL=http://mirror.example bash scripts/download_glue.sh
bash scripts/download_glue.sh --source hub                      the Hub's Parquet copies (pip install -r requirements-parquet.txt)

A broken-off download goes on where it stopped. Each file's rows are counted: a swapped or truncated one is refused with
both counts. Afterwards: python experiments/glue/glue_prepro.py --root_dir data
TEXT
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"
use_environment
install_once requirements.txt
exec "$PY" "$ROOT/experiments/glue/download.py" "$@"
