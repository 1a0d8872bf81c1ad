# `make compare` trains BD-LRU and its baselines on a small task; `make test` lints and runs every test.
# Both need only Python 3.10 or newer with venv; the first call fills .venv, later ones do not touch it.

PYTHON ?= python3
VENV ?= .venv
PY := "$(VENV)/bin/python"
# extra arguments, e.g. make compare ARGS="--task parity --seeds 3" in place of S4; make test ARGS="tests/ops -k naive"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help compare test test-gpu docs lint format clean
SETUP := @$(PYTHON) scripts/setup_env.py --venv "$(VENV)" --extras
DEVELOP := cpu,benchmark,ray,test

help:
	@echo "make compare  train BD-LRU and its baselines on S4 and show a table and a picture (ARGS='--help' for options)"
	@echo "make test     lint, then run every test (ARGS='...' goes to pytest)"
	@echo "make test-gpu run the tests that need a CUDA device"
	@echo "make docs     build the documentation into site/, strictly: a dead link is an error"
	@echo "make lint     ruff check and ruff format --check"
	@echo "make format   let ruff mend what it can"
	@echo "make clean    remove .venv and caches; results/ stays"

compare:
	$(SETUP) cpu,benchmark
	$(PY) -m benchmarks.compare $(or $(ARGS),--grid benchmarks/compare/first.toml)

# a module's tests stay together, on as many processes as there are cores, four at most
test: lint
	@$(PY) -m pytest -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder $(ARGS)

# what needs a CUDA device: skipped by `make test` where there is none
test-gpu:
	$(SETUP) $(DEVELOP)
	@$(PY) -m pytest -m gpu $(ARGS)

docs:
	$(SETUP) cpu,docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint:
	$(SETUP) $(DEVELOP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format:
	$(SETUP) $(DEVELOP)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean:
	rm -rf "$(VENV)" "$(VENV).log" build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
