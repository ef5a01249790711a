# Every target sets up its own .venv first; nothing needs to be installed by hand.
# PYTHON may be 3.11, 3.12 or 3.13: each has its lock, and .venv is made anew when the version changes.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCK := $(if $(filter 3.11,$(VERSION)),requirements.lock,requirements-py312.lock)
VENV := .venv
WEB := .venv-web
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed-$(VERSION)
RUNS ?= runs
KILLS ?= 100

.PHONY: help setup demo web test test-all soak lint clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 14

setup: $(INSTALLED)  ## make .venv from the lock of this Python's version

$(INSTALLED): $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -e $(VENV)/bin/python$(VERSION) || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -r $(LOCK)
	touch $@

demo: setup      ## train a first stage and a class-conditional LDM on built-in shapes, sample, read the samples (minutes on 2 cores)
	$(PY) scripts/demo.py --out=$(RUNS)/demo

web: $(WEB)/.installed-$(VERSION)  ## a page to play with a model: make web RUN=runs/text
	$(WEB)/bin/python web.py $(addprefix --workdir=,$(RUN)) $(addprefix --run=,$(WATCH))

# Gradio wants an older Pillow than the lock: its environment is its own.
$(WEB)/.installed-$(VERSION): $(LOCK)
	rm -rf $(WEB)
	$(PYTHON) -m venv $(WEB)
	$(WEB)/bin/python -m pip install --quiet --upgrade pip
	$(WEB)/bin/python -m pip install --quiet -r $(LOCK)
	$(WEB)/bin/python -m pip install --quiet 'gradio>=6.31'
	touch $@

test: setup      ## the tests that run everywhere
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: setup  ## the same and the slow ones: full-size parity, several processes
	$(PY) -m pytest -m ''

soak: setup      ## end 100 training runs at random moments and compare how they end (an hour or more on idle cores)
	$(PY) scripts/soak.py --kills=$(KILLS)

lint: setup      ## ruff: rules and format; mypy on networks and mathematics; shellcheck, where it is installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	if command -v shellcheck; then shellcheck launch/*.sh launch/*.sbatch; else echo "no shellcheck here: launch/ is not checked"; fi

clean:           ## remove .venv and caches (keeps runs/)
	rm -rf $(VENV) $(WEB) .pytest_cache .ruff_cache
