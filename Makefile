# `make demo` and `make test` set up their own environment in .venv the first time, and take seconds to start afterwards.
# `make bench` has another one, .venv-peers, where this project and those it is measured against run on the same torch.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file's tests share fixtures, so a process takes whole files, in the order of tests/conftest.py.
SPREAD = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# One more than cores, because tests also wait for processes that they start; at most 4.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')
PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready

.PHONY: demo test test-all fuzz lint docs dist lock bench bench-gpu audit clean
.DEFAULT_GOAL := test

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "lightning-tracin needs Python >= 3.10; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $(READY)

# --no-deps: the file names everything the peers import, see there.
$(PEERS_READY): requirements.lock benchmarks/requirements-peers.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make bench needs Python >= 3.11 for some peers; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement requirements.lock
	$(PEERS)/bin/python -m pip install --quiet --no-deps --requirement benchmarks/requirements-peers.txt
	$(PEERS)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $(PEERS_READY)

demo: $(READY)
	$(BIN)/python examples/finetune.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" $(SPREAD) --durations 15

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --hypothesis-profile thorough $(SPREAD)

# 5,000 drawn mixtures of forms, widths, lengths and batches for each property; about 45 minutes on one core.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/gradients/test_any_forms.py --hypothesis-profile fuzz --numprocesses auto --dist load

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every link and anchor of the pages is checked; no network is asked.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What is uploaded to PyPI: built, checked, and installed into an environment of its own.
dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	TRACIN_DIST=dist $(BIN)/python -m pytest tests/test_distribution.py

# About 35 minutes on 2 quiet cores; one measurement alone: make bench BENCH="--only exact_vs_plain --repetitions 3"
bench: $(PEERS_READY)
	$(PEERS)/bin/python -m benchmarks $(BENCH)

# On a CUDA device only; elsewhere it says so and ends with code 2. A quick look: make bench-gpu BENCH="--scale 0.05 --repetitions 1"
bench-gpu: $(PEERS_READY)
	$(PEERS)/bin/python -m benchmarks.gpu $(BENCH)

# Needs a network: the advisories come from PyPI. What is not known there is listed as skipped, and is not audited.
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --no-deps --disable-pip --requirement requirements.lock

# The CUDA packages that torch's own metadata names are left out: a CPU build of torch is enough, and pip adds them where it is not.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --no-annotate --no-header \
		--constraint requirements.in | grep -vE '^(nvidia|cuda|triton)' > requirements.lock

clean:
	rm -rf $(VENV) $(PEERS) .venv-audit build dist runs
