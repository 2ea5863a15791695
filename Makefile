PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes; threads that wait for work leave the cores to the other one.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist loadfile

.PHONY: quickstart test check fast clean

quickstart: $(READY)  ## the main job, offline: a few minutes on two cores
	$(BIN)/distill run quickstart

test: $(READY) check  ## style, types and all tests
	$(PYTEST)

fast: $(READY)  ## the tests that take no more than a few seconds each
	$(PYTEST) -m "not slow"

check: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:  ## forget the environment
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
