# `make demo` and `make test` prepare a fresh clone by themselves: they create
# .venv, install the tested versions into it and run. An existing .venv is reused.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?= --short

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
DOCS_STAMP := $(VENV)/.installed-docs
MIN_VENV := .venv-min
MIN_STAMP := $(MIN_VENV)/.installed
BENCHMARKS := $(filter-out examples/benchmarks/_%,$(wildcard examples/benchmarks/*.py))

# Figures are written to files, never shown.
export MPLBACKEND := Agg

# scikit-learn skips its array API checks without this variable.
test test-slow test-min: export SCIPY_ARRAY_API := 1
# The workers of pytest share the cores; threads of their own would only contend.
test test-slow test-min: export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: demo test test-slow test-min lint bench docs format clean help

demo: $(STAMP)  ## Long-tailed digits: plain training against re-weighted training
	$(PY) examples/plot_quickstart.py

# That every message was reached is checked after a run of all tests only.
test: $(STAMP)  ## Tests, doctests and coverage; PYTEST_ARGS="--no-cov tests/test_x.py"
	$(PY) -m pytest -n auto --cov=sk_otreweight \
		--cov-report=term-missing:skip-covered $(PYTEST_ARGS)
	$(if $(strip $(PYTEST_ARGS)),,$(PY) docs/generate_messages.py --reached .coverage)

test-slow: $(STAMP)  ## Only the tests marked slow
	$(PY) -m pytest -n auto -m slow $(PYTEST_ARGS)

test-min: $(MIN_STAMP)  ## Tests with the oldest supported versions, in .venv-min
	$(MIN_VENV)/bin/python -m pytest -n auto $(PYTEST_ARGS)

lint: $(STAMP)  ## Check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(BENCH_STAMP)  ## Benchmarks in their short form; BENCH_ARGS= for the full one
	@set -e; for script in $(BENCHMARKS); do \
		echo "== $$script $(BENCH_ARGS)"; \
		$(PY) $$script $(BENCH_ARGS); \
	done

docs: $(DOCS_STAMP)  ## Pages and gallery in docs/_build/html, warnings as errors
	OMP_NUM_THREADS=1 $(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

format: $(STAMP)  ## Reformat and fix what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## Remove caches, builds and written figures; .venv is kept
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .hypothesis \
		.pytest_cache .ruff_cache examples/output docs/_build docs/auto_examples \
		docs/generated docs/records docs/changelog.md docs/contributing.md \
		docs/security.md
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

$(STAMP): setup.py constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install torch -c constraints.txt
	$(PY) -m pip install -e ".[test]" -c constraints.txt
	touch $(STAMP)

$(BENCH_STAMP): $(STAMP)
	$(PY) -m pip install -e ".[bench]" -c constraints.txt
	touch $(BENCH_STAMP)

$(DOCS_STAMP): $(STAMP)
	$(PY) -m pip install -e ".[docs]" -c constraints.txt
	touch $(DOCS_STAMP)

$(MIN_STAMP): setup.py constraints-min.txt
	test -x $(MIN_VENV)/bin/python || $(PYTHON) -m venv $(MIN_VENV)
	$(MIN_VENV)/bin/python -m pip install torch -c constraints-min.txt
	$(MIN_VENV)/bin/python -m pip install -e ".[test]" -c constraints-min.txt
	touch $(MIN_STAMP)
