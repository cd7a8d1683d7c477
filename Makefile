# Each target does all of its own set-up, in .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test fuzz check bench lab clean

demo: .venv/installed
	$(BIN)/ivlens audit lab --task antonym --out runs/demo

test: .venv/installed-test
	$(BIN)/python -m pytest

# 1,000 mutations of every kind of file, other ones each time.
fuzz: .venv/installed-test
	IVLENS_FUZZ=1000 $(BIN)/python -m pytest tests/test_untrusted.py

check: .venv/installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed
	$(BIN)/python -m ivlens.bench

lab: .venv/installed
	$(BIN)/python -m ivlens.lab.train

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) -e ".[test]"
	touch $@

.venv/installed-check: .venv/installed
	$(INSTALL) -e ".[check]"
	touch $@

clean:
	rm -rf .venv build *.egg-info
