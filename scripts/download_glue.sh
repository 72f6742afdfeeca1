#!/usr/bin/env bash
# GLUE's official files for machines with internet: fetched, resumed, unpacked safely, checked by row count. See --help.
#
#   bash scripts/download_glue.sh                                   eight tasks into data/
#   bash scripts/download_glue.sh --out_dir DIR --tasks cola,rte    some of them elsewhere
#   GLUE_BASE_URL=http://mirror.example bash scripts/download_glue.sh
#
# Next: python experiments/glue/glue_prepro.py --root_dir data
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"
use_environment
install_once requirements.txt
exec "$PY" "$ROOT/experiments/glue/download.py" "$@"
