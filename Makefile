# Everything here sets itself up: it needs Python 3.11+ with pip, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
BIN := $(VENV)/bin
PIP = $(PYTHON) -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help run test test-all check lint types bench docs pages clean

help:
	@echo "make run    train on 300,326 real flights and judge the model by the 27,020 of December"
	@echo "make test   run the tests but for the slowest"
	@echo "make test-all   run those, too, that take most of a minute each"
	@echo "make check  lint, format and type checks, then the tests"
	@echo "make bench  time it beside its peers (installs PyTorch, JAX, TensorFlow and Keras; about 45 minutes)"
	@echo "make docs   build the documentation site into site/; a broken link is an error"
	@echo "make pages  write the generated pages of docs/ again (capabilities, examples, moving, differences from Keras)"

run: $(VENV)/.demo
	$(BIN)/adagrad demo --out demo-run

# A file goes to one worker: what its tests share is made once.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

bench: $(BENCH_VENV)/.peers
	$(BENCH_VENV)/bin/python -m bench
	$(BENCH_VENV)/bin/python docs/scripts/overview.py --times

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pages: $(BENCH_VENV)/.peers $(VENV)/.dev
	$(BIN)/python docs/scripts/gallery.py
	$(BIN)/python docs/scripts/capabilities.py
	$(BIN)/python docs/scripts/moving.py
	$(BENCH_VENV)/bin/python docs/scripts/keras_differences.py

# A virtual environment without ensurepip, which Debian packs apart; pip installs into it from outside.
$(VENV)/bin/python $(BENCH_VENV)/bin/python:
	$(PYTHON) -m venv --without-pip $(@D)/..

$(VENV)/.%: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --python $< install --quiet --no-compile --constraint constraints.txt --editable '.[$*]'
	@touch $@

$(BENCH_VENV)/.%: $(BENCH_VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --python $< install --quiet --no-compile --constraint constraints.txt --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist demo-run site src/*.egg-info
