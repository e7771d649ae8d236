# make demo: the whole path on the embedded miniature world; make test: the test suite; make lint: ruff, import-linter
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint setup clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip uninstall --quiet --yes opencv-python opencv-python-headless
	$(RUN) -m pip install --quiet --no-deps $(shell grep ^opencv-python-headless requirements.txt)
	touch $@

demo: setup
	$(RUN) -m mini.demo

test: setup lint
	$(RUN) -m pytest

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache

clean:
	rm -rf demo_output .pytest_cache .ruff_cache
