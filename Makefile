# make test: install and test.  make check: style, types, import rules.  make fix: fix the style.
# make test-gpu: what a GPU computes, beside the CPU's numbers.
# make site: build/site/html/index.html, the pages as a site that needs no network; checks its links.
# make reader: what a reader pays: sizes of rooms, files on the way of an example.
# make test-lowest: test with the lowest versions that pyproject.toml allows, in LOWEST.
# VENV is the virtual environment: `make test VENV=/somewhere/else` keeps it outside the checkout
# (./launch.sh reads it as an environment variable). Its path must not contain spaces.
VENV ?= .venv
PYTHON ?= python3
# Optional dependencies in pyproject.toml that tests and checks need.
EXTRAS = dev,coco
LOWEST ?= .venv-lowest
BIN = $(VENV)/bin
SOURCES = vlds data_prep tests benchmarks docs/site setup.py

.PHONY: venv dev check fix reader site test test-all test-gpu test-lowest
.DEFAULT_GOAL := test

venv: $(VENV)/.installed
dev: $(VENV)/.installed-dev

# The stamp files record what is installed, so that an up-to-date environment costs no time. Without
# editable_mode=compat, Python would import the clone's own folder as `vlds` if it is started in the
# parent folder.
PIP = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
	--config-settings editable_mode=compat
# Of pip's hundred notes a terminal shows the newest, in one line; warnings and errors stay as they are.
install = @{ $(PIP) --editable '$(1)'; echo "status $$?"; } | { while read -r word rest; do \
	case $$word in status) [ ! -t 1 ] || printf '\033[K'; exit $$rest ;; esac; \
	[ ! -t 1 ] || printf '\033[K%.78s\r' "$$word $$rest"; done; }

$(VENV)/.installed: pyproject.toml setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing vlds and its dependencies into $(VENV), once: about 60 packages, 1 GB with"
	@echo "PyTorch for CPUs or several with its CUDA libraries. This takes minutes."
	$(call install,.)
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(call install,.[docs])
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the dependencies of tests and checks: about 50 packages, 350 MB."
	$(call install,.[$(EXTRAS)])
	@touch $@

check: dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

reader: dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reader

# The first time, it also runs the tutorial whose report the site shows: two minutes on two cores.
site: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python docs/site/make_site.py

# One thread per process: the tests start many processes. A worker keeps the order of the tests, and
# takes from the end of the other's when its own are done. Some tests run make themselves, and it
# must not inherit this make's variables.
MARKS = not slow and not gpu
PART = 1/1
WORKERS = 2
PYTEST = env -u MAKEFLAGS -u MFLAGS OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(MARKS)" \
	--part $(PART) --numprocesses $(WORKERS) --dist worksteal --durations 15

test: dev
	$(PYTEST)

# `make test-all PART=3/8` runs the third eighth of all tests. The slow tests build the site.
test-all: MARKS = not gpu
test-all: dev $(VENV)/.installed-docs
	$(PYTEST)

# On a machine without a GPU, the CPU takes its place.
test-gpu: dev
	$(BIN)/python -m pytest -m gpu tests/gpu

test-lowest:
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tests/lowest_versions.py > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt \
		--editable '.[$(EXTRAS),examples]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --ignore tests/faults \
		-m "not slow and not gpu and not launcher"
