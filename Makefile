# Two commands do everything on a machine with Python (3.11 or newer), pip and make:
#   make train   installs, builds the demo set, trains on it with two Ray workers
#   make test    installs, runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Ray and DeepSpeed start many processes: keep compiled bytecode, whatever the shell says
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: install train test readme check format bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	@touch $@

# ARGS are passed on: make train ARGS="demo --run.seed 1"
train: $(INSTALLED)
	$(BIN)/python ray_jobs/train.py $(ARGS)

# two processes: one begins with the tests on Ray, which mostly wait, the other with the rest (tests/conftest.py)
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder $(ARGS)

# every command of the README and of docs/ that needs no cluster, in a fresh clone; ARGS="--cluster" for those too
readme: $(INSTALLED)
	$(BIN)/python -m tests.readme $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/frames.py
	$(BIN)/python benchmarks/demo_signal.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis
