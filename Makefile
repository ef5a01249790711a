# Every target sets up its own .venv first; nothing needs to be installed by hand.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUNS ?= runs

.PHONY: help setup demo test test-all lint clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 14

setup: $(VENV)/.installed  ## make .venv from requirements.lock

$(VENV)/.installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r requirements.lock
	touch $@

demo: setup      ## train a small first stage and a small LDM on built-in shapes, sample (minutes on 2 cores)
	$(PY) scripts/demo.py --out=$(RUNS)/demo

test: setup      ## the tests that run everywhere
	$(PY) -m pytest -n 2 --dist loadfile

test-all: setup  ## the same and the slow ones: full-size parity, several processes
	$(PY) -m pytest -m ''

lint: setup      ## ruff
	$(VENV)/bin/ruff check .

clean:           ## remove .venv and caches (keeps runs/)
	rm -rf $(VENV) .pytest_cache .ruff_cache
