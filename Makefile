# Every target sets up what it needs: a clone and Python >= 3.11 are enough.
PYTHON ?= python3
BIN := .venv/bin
# Nothing here may ask the network for models or data, or report to anybody.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help venv quickstart test test-slow test-versions test-latest lint bench clean

help:
	@echo "make venv        create .venv and install narlm with its development tools, at the tested versions"
	@echo "make quickstart  pretrain, fine-tune and align a small model on this machine; report in runs/quickstart"
	@echo "make test        the test suite (make test-slow adds what is marked slow)"
	@echo "make test-versions  load saved models without this package on seven minor versions of transformers"
	@echo "make test-latest    the suite on the newest transformers, trl, peft, accelerate and torch"
	@echo "make lint        ruff check and ruff format --check"
	@echo "make bench       every benchmark in benchmarks/, results printed"

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=24" "setuptools>=77" wheel
	@# torch first and by its exact version: an open range would take a build with gigabytes of GPU libraries.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

quickstart: .venv/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pipeline.run configs/quickstart/recipe.yaml --jobs 2

test: .venv/.installed
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

test-versions: .venv/.installed
	$(BIN)/python -m tests.versions.saved

# LATEST: arguments of tests/versions/latest.py, such as "--keep-torch tests/model"
test-latest: .venv/.installed
	$(BIN)/python -m tests.versions.latest $(LATEST)

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/.installed
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
