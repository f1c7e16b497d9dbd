# Each target makes its own environment first; a fresh machine needs Python 3.10–3.13, a C++17 compiler and make.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-gpu lint bench clean

help:
	@echo "make demo    score, select, suppress and evaluate on the embedded model"
	@echo "make test    run the tests (PYTEST_ARGS='-k selection' for some of them)"
	@echo "make test-gpu  run the tests of kernels and engine on a GPU, for real and under compute-sanitizer"
	@echo "make lint    ruff and mypy"
	@echo "make bench   run the benchmarks"
	@echo "make clean   remove $(VENV) and what was built"
	@echo "PYTHON=$(PYTHON) makes the environment VENV=$(VENV); constraints.txt has the versions that were tried"

# torch goes first: with it in place no other package's looser range can bring in another build of it.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/culnig-fast demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# No interpreter: where there is no GPU these tests say so instead of passing on something else.
test-gpu: $(STAMP)
	$(BIN)/python -c "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 'no CUDA device: make test runs the kernels under the interpreter')"
	TRITON_INTERPRET=0 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/kernels tests/test_fused.py tests/test_fidelity.py tests/test_attributor.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python bench/attribution_speed.py --device cpu
	$(BIN)/python bench/meaning.py

clean:
	rm -rf $(VENV) build dist *.egg-info culnig_fast/_selection*.so culnig_fast/_selection*.pyd
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find culnig_fast kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
