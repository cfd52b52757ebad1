PYTHON ?= python3
MODEL ?=
WORKERS ?= 2
SUITE ?= quick
ARGS ?=

PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
READY := .venv/ready
# the other programs that the benchmarks compare with; tests do not need them
BENCH := .venv/bench-ready

# the oldest transformers that is supported, in an environment of its own
OLDEST := 5.17.0
OLD := .venv-$(OLDEST)
OLD_PIP := $(OLD)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLD)/constraints.txt

.PHONY: help demo test test-slow test-matrix bench lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       run a Vision Transformer on real photographs (MODEL=<folder or hub name> for your own)"
	@echo "make test       the tests, without a GPU in Triton's interpreter (WORKERS=2)"
	@echo "make test-slow  the same with the full matrices"
	@echo "make test-matrix  the tests with the oldest and the newest transformers that are supported"
	@echo "make bench      measure vit-fast beside other programs here (SUITE=quick, ARGS=\"--only block\"; ARGS=--help)"
	@echo "make lint       ruff check, ruff format"
	@echo "make clean      remove .venv, .venv-* and caches; what was measured stays in .benchmarks"
	@echo "Each makes .venv first; PYTHON=python3.12 picks another interpreter (>= 3.10)."

$(READY): setup.py pyproject.toml constraints.txt
	@echo "making .venv: the first time this downloads PyTorch"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) -e ".[dev,demo]"
	@touch $@

$(BENCH): $(READY)
	@echo "installing what the benchmarks compare with"
	@$(PIP) -e ".[bench]"
	@touch $@

demo: $(READY)
	@$(PY) examples/demo.py $(if $(MODEL),--model "$(MODEL)")

test: $(READY)
	@$(PY) -m pytest -n $(WORKERS)

test-slow: $(READY)
	@$(PY) -m pytest -n $(WORKERS) -m ""

$(OLD)/ready: setup.py pyproject.toml constraints.txt
	@echo "making $(OLD), with transformers $(OLDEST)"
	@$(PYTHON) -m venv $(OLD)
	@sed 's/^transformers==.*/transformers==$(OLDEST)/' constraints.txt > $(OLD)/constraints.txt
	@$(OLD_PIP) torch
	@$(OLD_PIP) -e ".[dev,demo]"
	@touch $@

test-matrix: $(READY) $(OLD)/ready
	@for python in $(OLD)/bin/python $(PY); do \
		$$python -c "import transformers; print('transformers', transformers.__version__)" && \
		$$python -m pytest -n $(WORKERS) || exit 1; \
	done

bench: $(BENCH)
	@$(PY) -m benchmarks run --suite $(SUITE) $(ARGS)

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .ci/artifacts
