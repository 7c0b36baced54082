# The two commands of the README: make train, make test. Everything lives in $(VENV); delete it to start anew.
# PYTHON: the interpreter; without it the newest that starts, of those that pyproject.toml's classifiers name.
# PARITY=1: tests/parity too, against transformers in PyTorch, whose wheel is gigabytes for some versions of Python.
PYTHON ?=
PARITY ?=
VENV ?= .venv
BIN = $(VENV)/bin
CONFIG ?= t5_sotu
ARGS ?=
CHECK ?= not slow and not proof
comma = ,
TEST_EXTRAS = quickstart,test$(if $(PARITY),$(comma)parity)
TEST_STAMP = $(VENV)/.test$(if $(PARITY),-parity)

.PHONY: train test check proof faults slurm bench kernels-aot on-device clean

train: $(VENV)/.train
	$(BIN)/t5x-like train $(CONFIG) $(ARGS)

# Three tiers: what is fast, what CI runs, and what takes hours.
check: $(TEST_STAMP)
	$(BIN)/python -m pytest -n 2 -m "$(CHECK)"

test: $(TEST_STAMP)
	$(BIN)/python -m pytest -n 2 -m "not proof"

# Run again, it passes over the tests that have passed at this commit.
proof: $(TEST_STAMP)
	$(BIN)/python -m pytest -n 2 -m "" --passed .proof

# launch/slurm.py on a real Slurm of two nodes on this machine, which root installs if it is missing.
slurm: $(TEST_STAMP)
	.ci/slurm
	$(BIN)/python -m pytest tests/launch/test_real_slurm.py

# Five faults of each kind in real jobs, forty flipped bits and sixty resumes elsewhere; each result is kept, run again it does
# what is missing, and the table goes into docs/faults.md. A share: make faults FAULTS=20, or FAULTS="kill in a save".
faults: export FAULTS ?=
faults: $(TEST_STAMP)
	$(BIN)/python -m pytest -m "" tests/faults

bench: $(TEST_STAMP)
	$(BIN)/python benchmarks/all.py --json benchmarks/latest.json

kernels-aot: $(TEST_STAMP)
	$(BIN)/python benchmarks/kernels_aot.py

on-device: $(VENV)/.train
	$(BIN)/python benchmarks/on_device.py --json benchmarks/latest.json

$(VENV)/.train: pyproject.toml
	$(BIN)/python -c '' 2>/dev/null || { python="$(PYTHON)" && python="$${python:-$$(.ci/python newest)}" && \
		"$$python" -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[quickstart]'
	touch $@

$(TEST_STAMP): $(VENV)/.train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(TEST_EXTRAS)]'
	$(BIN)/python benchmarks/install_libtpu.py $(VENV)/libtpu
	touch $@

clean:
	rm -rf $(VENV)
