# make test: sets up and tests.  make check: style, types, import rules.  make fix: repairs style.
# make test-lowest: tests with the lowest versions that pyproject.toml allows, in LOWEST.
# VENV names the virtual environment: `make test VENV=/somewhere/else` keeps it outside the checkout
# (as an environment variable it holds for ./launch.sh too). No spaces in it, please.
VENV ?= .venv
PYTHON ?= python3
# Of pyproject.toml, beside what every run needs: what the tests and checks need.
EXTRAS = dev,coco
LOWEST ?= .venv-lowest
BIN = $(VENV)/bin
SOURCES = vlds data_prep tests benchmarks setup.py

.PHONY: venv dev check fix test test-all test-lowest test-ranks test-rest
.DEFAULT_GOAL := test

venv: $(VENV)/.installed
dev: $(VENV)/.installed-dev

# pip shows its progress the first time. The stamps are newer than what they stand for, so that an
# up-to-date environment costs nothing.
# compat: puts the checkout on Python's path, where it comes before a folder called vlds in the working
# directory (the clone, seen from the folder above it).
PIP = $(BIN)/python -m pip install --disable-pip-version-check $(if $(wildcard $@),--quiet) \
	--config-settings editable_mode=compat

$(VENV)/.installed: pyproject.toml setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing vlds and what it needs into $(VENV): about 60 packages, 1 GB with PyTorch for"
	@echo "CPUs, several with its CUDA libraries. That takes minutes, once."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and checks need: about 50 packages, 350 MB."
	@$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

check: dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# One thread per process: the tests start many processes.
test: dev
	$(MAKE) --no-print-directory -j 2 VENV=$(VENV) test-ranks test-rest

# Two processes side by side, one for each of two cores. RANKS start most of the ranks, and take as
# long as all others.
RANKS = tests/training tests/launch tests/faults tests/runtime tests/report
# Tests start make themselves, which must not take this one's variables for theirs.
FAST = env -u MAKEFLAGS -u MFLAGS OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu"

test-ranks:
	$(FAST) $(RANKS)

test-rest:
	$(FAST) tests $(RANKS:%=--ignore %)

test-all: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-lowest:
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tests/lowest_versions.py > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt \
		--editable '.[$(EXTRAS),examples]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --ignore tests/faults \
		-m "not slow and not gpu and not launcher"
