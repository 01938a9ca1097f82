# run, test, bench, lint: each sets itself up on a fresh machine with Python 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Rooms whose tests need no server; they run side by side, as do servers' files. A browser runs alone.
UNIT := tests/model tests/runtime tests/dialogue

.PHONY: setup run test bench lint browsers

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

run: setup
	$(BIN)/python -m demo $(ARGS)

test: setup browsers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest -n 2 $(UNIT) tests/test_*.py $(ARGS)
	$(BIN)/pytest -n 2 --dist loadfile $(UNIT:%=--ignore=%) --ignore=tests/browser \
		--ignore-glob='tests/test_*.py' $(ARGS)
	$(BIN)/pytest tests/browser $(ARGS)

# What the browser, proxy and console tests need; a test that misses something says so and is skipped.
browsers:
	@sh tests/install_tools.sh

bench: setup
	$(BIN)/python -m engine bench $(or $(ARGS),server)

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
