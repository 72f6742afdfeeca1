# Short names for what the scripts do; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help demo checks test docs format clean

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

format: ## rewrite the code in the house format
	ruff check --fix .
	ruff format .

clean: ## remove caches of tools; runs, data and .venv stay
	rm -rf site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
