# run, test, bench, lint: each sets itself up on a fresh machine that has Python 3.11 to 3.14.
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# The interpreter of .venv once there is one; before that the newest fitting one. PYTHON=... names another.
FITS = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
FIND_PYTHON = for python in $(if $(PYTHON),"$(PYTHON)",$(BIN)/python python3.14 python3.13 python3.12 python3.11 python3); do \
	"$$python" -c '$(FITS)' 2>/dev/null && break; python=; done; \
	if [ -z "$$python" ]; then echo '$(if $(PYTHON),PYTHON=$(PYTHON) does not fit: )Python 3.11 to 3.14 with its venv module is needed' >&2; exit 1; fi
SET_UP = @$(FIND_PYTHON); "$$python" -m engine.install
# Tests start a hundred processes. Where Python was told to keep nothing, each would compile the project anew.
KEEP_COMPILED = PYTHONDONTWRITEBYTECODE=
# Servers and browsers wait much of the time and models fill a core: with four at once two cores have work.
# A fifth took more from the others' caches than it added.
WORKERS ?= 4

.PHONY: setup run test bench lint browsers

# Everything that the tests, the benchmarks and the real model need.
setup:
	$(SET_UP) test

run:
	$(SET_UP) run $(ARGS)
	@$(BIN)/python -m demo $(ARGS)

test: setup browsers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(KEEP_COMPILED) $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# What the browser, proxy and console tests need; a test that misses something says so and is skipped.
browsers:
	@sh tests/install_tools.sh

bench:
	$(SET_UP) model
	$(BIN)/python -m engine bench $(or $(ARGS),server)

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
