# make demo: the whole path on the embedded miniature world; make test: the test suite; make lint: ruff
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint setup clean

# insightface asks for opencv-python, whose import needs libGL and X11; the headless build of the same
# version has the same module and runs on a bare server, so only that one stays.
OPENCV := 5.0.0.93

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -r requirements.txt
	$(RUN) -m pip uninstall --quiet --yes opencv-python opencv-python-headless
	$(RUN) -m pip install --quiet --no-deps opencv-python-headless==$(OPENCV)
	touch $@

demo: setup
	$(RUN) -m mini.demo

test: setup lint
	$(RUN) -m pytest

lint: setup
	$(RUN) -m ruff check .

clean:
	rm -rf demo_output .pytest_cache .ruff_cache
