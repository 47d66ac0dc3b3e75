# Everything goes through the environment that `make setup` makes from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# One thread a process: the suite and the demo run several processes, and thread counts change roundings.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo demo-full test test-unit lint docs clean

help:            ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 18

setup: $(STAMP)  ## Make .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: setup      ## A part of the embedded benchmark with three methods (a minute and a half)
	$(BIN)/streamcvit demo

demo-full: setup ## All of it, with MoELoRA, replay and joint training too
	$(BIN)/streamcvit demo --full

lint: setup      ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy streamcvit

test-unit: setup ## The unit tests alone
	$(BIN)/python -m pytest tests/unit -n 2

# PEFT imports bitsandbytes wherever it finds it, which takes two seconds of every process: it stands apart.
$(VENV)/quantize: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --target $@ bitsandbytes
	@touch $@

# A file stays in one worker, so that what its tests share is made once; the long ones come first, in the order of their folders.
test: lint $(VENV)/quantize ## Lint, types and all tests
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder
	PYTHONPATH=$(VENV)/quantize $(BIN)/python -m pytest tests/unit/test_quantize.py

docs: setup      ## Make docs/settings.md again from the settings themselves
	$(BIN)/python -W ignore -m streamcvit.settings > docs/settings.md

clean:           ## Remove what was made here (not the runs)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
