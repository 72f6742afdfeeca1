#!/usr/bin/env bash
# Table 1 of the PATS paper on RoBERTa-large: 8 tasks, 4 methods, 5 seeds. See --help and docs/reproduce.md.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/glue.sh
source "$ROOT/scripts/glue.sh"
table1 roberta-large "$@"
