# Two commands do all the set-up on a machine with Python 3.11+, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := greenroom tests benchmarks

.PHONY: help install demo test check format lint types floors bench chaos chaos-store clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(INSTALLED) ## make .venv and install into it

demo: install ## the main job, with two processes killed in the middle
	$(BIN)/greenroom demo

test: install ## the whole test suite
	$(BIN)/python -m pytest

check: format lint types floors test ## everything that CI runs

format: install
	$(BIN)/ruff format --check $(SOURCES)

lint: install
	$(BIN)/ruff check $(SOURCES)

types: install
	$(BIN)/pyright

floors: install
	$(BIN)/lint-imports

bench: install ## figures beside their limits; about six minutes
	$(BIN)/python -m benchmarks

chaos: install ## sessions while their processes are killed at random, for five minutes. CHAOS="--seed 7" for the same again
	$(BIN)/python -m tests.chaos.sessions $(CHAOS)

chaos-store: install ## the event store under faults, with counts; about six minutes. FAULTS="--seed 7 flips" for some
	$(BIN)/python -m tests.chaos $(FAULTS)

clean: ## remove what was installed and built
	rm -rf $(VENV) build dist *.egg-info
