# Each target makes its own environment first; a fresh machine needs Python 3.10–3.13, a C++17 compiler and make.
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# A process a core, but few: a container may have less of them than it sees. A file's tests stay together, since they
# share what is costly to make.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed

.PHONY: help demo test test-gpu test-sanitize lint bench docs wheel clean

help:
	@echo "make demo    score, select, suppress and evaluate on the embedded model, and a report page of it"
	@echo "make test    run the tests (PYTEST_ARGS='-k selection' for some of them)"
	@echo "make test-gpu  run the tests of kernels and engine on a GPU, for real and under compute-sanitizer"
	@echo "make test-sanitize  run the tests of the C++ code under address, undefined-behaviour and thread sanitizers"
	@echo "make lint    ruff and mypy"
	@echo "make bench   run the benchmarks"
	@echo "make docs    build the documentation's pages into site/, strictly (Python 3.11 or newer)"
	@echo "make wheel   build a wheel and a source distribution into dist/"
	@echo "make clean   remove $(VENV) and what was built"
	@echo "PYTHON=$(PYTHON) makes the environment VENV=$(VENV); constraints.txt has the versions that were tried"

# torch goes first: with it in place no other package's looser range can bring in another build of it.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

demo: $(STAMP)
	$(BIN)/culnig-fast demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

# No interpreter: where there is no GPU these tests say so instead of passing on something else.
test-gpu: $(STAMP)
	$(BIN)/python -c "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 'no CUDA device: make test runs the kernels under the interpreter')"
	TRITON_INTERPRET=0 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/kernels tests/fused tests/test_fidelity.py

# Checks within the core alone: Python and the other libraries leak by design. Addresses are not randomised, since
# the thread sanitizer of GCC 12 does not know where newer kernels put things.
test-sanitize: $(STAMP)
	for kind in address,undefined thread; do \
		CULNIG_SANITIZE=$$kind $(BIN)/python setup.py -q build_ext --force --build-temp build/temp-$$kind --build-lib build/$$kind || exit 1; \
	done
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		$(BIN)/python tests/sanitized.py build/address,undefined $(PYTEST_ARGS)
	LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)" TSAN_OPTIONS=ignore_noninstrumented_modules=1:report_signal_unsafe=0 OMP_NUM_THREADS=1 \
		setarch -R $(BIN)/python tests/sanitized.py build/thread $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python bench/attribution_speed.py --device cpu
	$(BIN)/python bench/selection_speed.py
	$(BIN)/python bench/meaning.py

docs: $(DOCS_STAMP)
	$(BIN)/mkdocs build --strict --clean

# The wheel is built out of the source distribution. The environment has what building needs; nothing is fetched.
wheel: $(STAMP)
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) build dist site *.egg-info culnig_fast/_selection*.so culnig_fast/_selection*.pyd kernels/culnig_kernels/_cpu*.so kernels/culnig_kernels/_cpu*.pyd
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find culnig_fast kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
