# `make demo` and `make test` set up their own environment in .venv the first time, and take seconds to start afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint lock clean
.DEFAULT_GOAL := test

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "lightning-tracin needs Python >= 3.10; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $(READY)

demo: $(READY)
	$(BIN)/python examples/finetune.py

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The CUDA packages that torch's own metadata names are left out: a CPU build of torch is enough, and pip adds them where it is not.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --no-annotate --no-header \
		--constraint requirements.in | grep -vE '^(nvidia|cuda|triton)' > requirements.lock

clean:
	rm -rf $(VENV) runs
