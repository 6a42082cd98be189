# `make demo` and `make test` each set up everything they need in .venv; running them again is quick.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
# Installed first, so that nothing below chooses another release. On an index whose Linux wheels
# bring CUDA along, point pip at one with CPU wheels to save space.
TORCH := torch==2.13.0

.PHONY: demo test lint docs format clean
.DEFAULT_GOAL := test

# Done again only when pyproject.toml changes.
$(VENV)/ready: pyproject.toml
	@bash scripts/debian-packages.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) $(TORCH)
	$(PIP) -e '.[train,eval,plots,dev]'
	@touch $@

$(VENV)/ready-docs: $(VENV)/ready
	$(PIP) -e '.[docs]'
	@touch $@

demo: $(VENV)/ready ## compress sample clips and write a report to open in a browser
	$(BIN)/sonorant demo

test: $(VENV)/ready ## all tests, slow ones included
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/ready ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/ready-docs ## the documentation, as a web site in site/
	$(BIN)/mkdocs build --strict

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site
