PYTHON ?= python3
MODEL ?=
WORKERS ?= 2

PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := .venv/ready

.PHONY: help demo test test-slow lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       run a Vision Transformer on real photographs (MODEL=<folder or hub name> for your own)"
	@echo "make test       the tests, without a GPU in Triton's interpreter (WORKERS=2)"
	@echo "make test-slow  the same with the full matrices"
	@echo "make lint       ruff check, ruff format"
	@echo "make clean      remove .venv and caches"
	@echo "Each makes .venv first; PYTHON=python3.12 picks another interpreter (>= 3.10)."

$(READY): setup.py pyproject.toml constraints.txt
	@echo "making .venv: the first time this downloads PyTorch"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) -e ".[dev,demo]"
	@touch $@

demo: $(READY)
	@$(PY) examples/demo.py $(if $(MODEL),--model "$(MODEL)")

test: $(READY)
	@$(PY) -m pytest -n $(WORKERS)

test-slow: $(READY)
	@$(PY) -m pytest -n $(WORKERS) -m ""

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
