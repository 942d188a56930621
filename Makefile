# Everything a person or the CI does here. `make help` lists it.

# The first Python that fits and can make virtual environments; or name one: make PYTHON=...
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		2>/dev/null && echo $$python && break; done)
# Passed on by serve and test: make serve ARGS="server.port=9000"
ARGS :=
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv serve test lint build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: .venv/.serve ## create .venv with what serving needs

serve: .venv/.serve ## serve the bundled model; ARGS="model=opt-125m server.port=9000" overrides
	@exec $(BIN)/pluribus serve $(ARGS)

test: .venv/.dev ## run all tests; ARGS="-k batcher" narrows
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/.dev ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

build: .venv/.dev ## build sdist and wheel in dist/, and try the wheel in a clean environment
	rm -rf dist
	$(BIN)/python -m build
	.ci/try-wheel $(BIN)/python dist/*.whl

clean: ## remove everything that was made here
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.python:
	@test -n "$(PYTHON)" || { \
		echo "Pluribus needs Python 3.11, 3.12 or 3.13 with the venv module, and found none." >&2; \
		echo "Install one (Debian, Ubuntu: python3 and python3-venv), or name one:" >&2; \
		echo "    make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# torch comes first and by itself: so pip takes the build that fits the machine, and no other.
.venv/.serve: .venv/.python pyproject.toml constraints.txt
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable .
	@touch $@

.venv/.dev: .venv/.serve
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@
