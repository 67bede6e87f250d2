# Two commands do all the set-up on a machine with Python 3.11+, git and make: `make demo` and `make test`.
PYTHON ?= python3
WORKERS ?= 0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := greenroom tests benchmarks examples

# Agents of the Agent Client Protocol, for tests: each in a folder of its own, since two have a program of the same name.
NPM ?= npm
AGENTS := .agents
LIGHT_AGENTS := claude-agent-acp codex-acp-zed
HEAVY_AGENTS := codex-acp gemini-cli opencode
claude-agent-acp := @agentclientprotocol/claude-agent-acp@0.49.0
codex-acp-zed := @zed-industries/codex-acp@0.16.0
codex-acp := @agentclientprotocol/codex-acp@2.6.0
gemini-cli := @google/gemini-cli@0.61.0
opencode := opencode-ai@1.18.33

.PHONY: help install install-light-agents install-agents demo test test-providers check format lint types floors bench bench-agents chaos chaos-store clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(INSTALLED) ## make .venv and install into it

$(AGENTS)/%/.installed:
	@if command -v $(NPM) > /dev/null; then \
		$(NPM) install --prefix $(AGENTS)/$* --no-audit --no-fund --no-save --loglevel=error $($*) && touch $@; \
	else \
		echo "npm is not here: the agent $* is NOT installed, and the tests that need it are skipped"; \
	fi

install-light-agents: $(LIGHT_AGENTS:%=$(AGENTS)/%/.installed)

install-agents: install-light-agents $(HEAVY_AGENTS:%=$(AGENTS)/%/.installed) ## all agents that the tests of providers drive; 1.5 GB

demo: install ## the main job, with two processes killed in the middle
	$(BIN)/greenroom demo

test: install install-light-agents ## the whole test suite. WORKERS=2: what needs no Ray in a process of its own, beside the rest
	$(BIN)/python -m pytest -n $(WORKERS)

test-providers: install install-agents ## the tests of providers, with every agent there is
	$(BIN)/python -m pytest tests/conformance/test_providers.py tests/conformance/test_*_provider.py \
		tests/recovery/test_agents.py tests/ray/test_claude_code.py

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

bench-agents: install install-light-agents ## start-up, first event and memory of agents' clients; half a minute
	$(BIN)/python -m benchmarks agents

chaos: install ## sessions while their processes are killed at random, for five minutes. CHAOS="--seed 7" for the same again
	$(BIN)/python -m tests.chaos.sessions $(CHAOS)

chaos-store: install ## the event store under faults, with counts; about six minutes. FAULTS="--seed 7 flips" for some
	$(BIN)/python -m tests.chaos $(FAULTS)

clean: ## remove what was installed and built
	rm -rf $(VENV) $(AGENTS) build dist *.egg-info
