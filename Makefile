# Everything runs in .venv, which these targets create. `make PYTHON=python3.12 ...` picks the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

# Also pins what pip installs to build the package; paths are relative because pip splits them at spaces.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

# A stamp per step, so that nothing is installed twice.
CREATED := $(VENV)/created
INSTALLED := $(VENV)/installed
INSTALLED_DEV := $(VENV)/installed-dev
INSTALLED_DOCS := $(VENV)/installed-docs
INSTALLED_CAPTURE := $(VENV)/installed-capture

.DEFAULT_GOAL := help
.PHONY: help demo capture test lint format bench docs smoke clean

help:  ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## Simulate one scenario and show what it returned
	@$(BIN)/moesim simulate

capture: $(INSTALLED_CAPTURE)  ## Install PyTorch and transformers: without them, the tests of capture are skipped

test: $(INSTALLED_DEV)  ## Run the tests
	@$(BIN)/python -m pytest -q -n auto --dist loadfile

lint: $(INSTALLED_DEV)  ## Check style, formatting, types and layers
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet || { echo "not formatted (make format):"; $(BIN)/ruff format --check; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > $(VENV)/layers.txt || { cat $(VENV)/layers.txt; exit 1; }
	@tail -n 1 $(VENV)/layers.txt

format: $(INSTALLED_DEV)  ## Format the code and fix what can be fixed safely
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --fix --quiet

bench: $(INSTALLED_DEV)  ## Measure speed, each benchmark against a peer or a limit
	@$(BIN)/python benchmarks/run.py

docs: $(INSTALLED_DOCS)  ## Build the manual into docs/_build; warnings are errors
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

smoke: $(INSTALLED_DEV)  ## Build the wheel, install it elsewhere and run it from there
	@bash tools/smoke_test.sh $(BIN)/python

clean:  ## Remove everything that was built, .venv included
	rm -rf $(VENV) build dist out docs/_build src/moesim.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) > /dev/null || { echo "moesim needs Python 3.11 or newer, but there is no $(PYTHON); name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "moesim needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1); name another with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(INSTALLED): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing moesim into $(VENV) (once, a minute or two)"
	@$(PIP) install --editable .
	@touch $@

$(INSTALLED_DEV): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing moesim and its development tools into $(VENV) (once, a minute or two)"
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(INSTALLED)

$(INSTALLED_DOCS): $(INSTALLED)
	@echo "Installing the documentation tools into $(VENV) (once)"
	@$(PIP) install --editable '.[docs]'
	@touch $@

$(INSTALLED_CAPTURE): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing PyTorch and transformers into $(VENV) (once)"
	@$(PIP) install --editable '.[dev,capture]'
	@touch $@ $(INSTALLED) $(INSTALLED_DEV)
