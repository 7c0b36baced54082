# The two commands of the README: make train, make test. Everything lives in $(VENV); delete it to start anew.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CONFIG ?= t5_sotu
ARGS ?=

.PHONY: train test check bench kernels-aot clean

train: $(VENV)/.train
	$(BIN)/t5x-like train $(CONFIG) $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m "not slow"

bench: $(VENV)/.test
	$(BIN)/python benchmarks/all.py --json benchmarks/latest.json

kernels-aot: $(VENV)/.test
	$(BIN)/python benchmarks/kernels_aot.py

$(VENV)/.train: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[quickstart]'
	touch $@

$(VENV)/.test: $(VENV)/.train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[quickstart,test,parity]'
	$(BIN)/python benchmarks/install_libtpu.py $(VENV)/libtpu
	touch $@

clean:
	rm -rf $(VENV)
