# Two commands on a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo lint types test test-all benchmarks clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup: $(VENV)/.ready  ## create .venv and install the product with its tools

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: setup  ## run the main experiment on the embedded real data set
	$(BIN)/csl run

lint: setup  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## types
	$(BIN)/mypy

test: setup  ## fast tests, under 5 minutes
	$(BIN)/pytest -m "not slow"

test-all: setup  ## every test, also those that break things for real
	$(BIN)/pytest

benchmarks: setup  ## every number the documentation claims
	$(BIN)/python -m benchmarks.student_loop
	$(BIN)/python -m benchmarks.rounds
	$(BIN)/python -m benchmarks.paper_scale
	$(BIN)/python -m benchmarks.seeds
	$(BIN)/python -m benchmarks.sweep

clean:  ## remove .venv and caches, keep results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
