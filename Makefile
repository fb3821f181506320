# Everything a user or developer types. `make help` lists it.
# The virtual environment is made when needed and brought up to date when the pins change.

PYTHON ?= python3
VENV ?= .venv
STUDY ?= experiments/quick.yaml
# How long `make fuzz` tries, all targets together.
SECONDS ?= 60
# What the benchmark plays: real games where ALFWORLD_DATA names them, else generated ones.
GENERATED := build/bench_games
GAMES ?= $(if $(ALFWORLD_DATA),$(ALFWORLD_DATA)/json_2.1.1/valid_seen,$(GENERATED))
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt tools/install.py

# One thread per process: two processes with two threads each on two cores run several times slower.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

# Tests of one file share what is slow to make, so a file stays with one process.
PARALLEL := -n logical --dist loadfile

# Nothing is byte-compiled at installation. What the first process compiles, later ones find: without
# this, an environment that forbids writing it costs every process about 25 seconds of imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help ablate test test-all faults fuzz lint types bench notebooks docs docs-serve reference clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

ablate: $(VENV)/.run ## run a study and report it (STUDY=experiments/quick.yaml)
	$(BIN)/python -m envrl.experiments.ablate --study $(STUDY)

test: $(VENV)/.dev ## run the fast tests
	$(ONE_THREAD) $(BIN)/pytest -q $(PARALLEL) -m "not slow"

test-all: $(VENV)/.dev ## run all tests, those that take minutes too
	$(ONE_THREAD) $(BIN)/pytest -q $(PARALLEL)

faults: $(VENV)/.dev ## make go wrong what can (docs/faults.md), and count what is survived
	$(ONE_THREAD) $(BIN)/python tools/faults.py

lint: $(VENV)/.dev ## check style, formatting and the import rule
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev ## check types
	$(BIN)/mypy

bench: $(VENV)/.bench $(filter $(GENERATED),$(GAMES)) ## measure engines and training beside their rivals (GAMES="path ...")
	$(ONE_THREAD) $(BIN)/python benchmarks/alfworld_engine.py $(GAMES)
	$(ONE_THREAD) $(BIN)/python benchmarks/webshop_env.py
	$(ONE_THREAD) $(BIN)/python benchmarks/training.py
	$(ONE_THREAD) $(BIN)/python benchmarks/iteration.py
	$(BIN)/python benchmarks/collect.py

notebooks: $(VENV)/.dev ## execute the notebooks
	$(ONE_THREAD) $(BIN)/pytest -q -k notebook tests

fuzz: $(VENV)/.fuzz ## throw broken and hostile input at every reader (SECONDS=60)
	$(ONE_THREAD) HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS) --crashes build/fuzz

docs: $(VENV)/.docs ## build the documentation site into site/, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean
	@echo "docs: open site/index.html"

docs-serve: $(VENV)/.docs ## show the documentation while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

$(GENERATED): | $(VENV)/.run
	$(BIN)/python -m envrl.envs.alfworld.generate --out $@ --count 24 --seed 0

reference: $(VENV)/.reference ## install TextWorld, for `backend: textworld` and the comparisons

clean: ## remove the virtual environment, caches and build products; runs and results stay
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	rm -rf .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.run: $(PINS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if v >= (3, 11) else f"make: Python {v[0]}.{v[1]} is too old; set PYTHON=python3.11 or newer")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/install.py run
	touch $@

$(VENV)/.reference: $(VENV)/.run
	$(BIN)/python tools/install.py reference
	touch $@

# The tools bring the reference stack with them, so that its own target has nothing left to do.
$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python tools/install.py dev
	touch $(VENV)/.reference $@

$(VENV)/.fuzz: $(VENV)/.run
	$(BIN)/python tools/install.py fuzz
	touch $@

$(VENV)/.bench: $(VENV)/.reference
	$(BIN)/python tools/install.py bench
	touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/python tools/install.py docs
	touch $@
