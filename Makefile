# Everything a fresh machine needs is made here: a virtual environment, the package in it, then the job.
#   make demo          the whole journey on generated data, with a report
#   make test          lint and all tests (RUN="tests/model -k oov" runs a part)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?=

.PHONY: demo test lint format bench clean

demo: $(VENV)/.all
	$(BIN)/dlrm-tf demo -o demo_out

test: $(VENV)/.test lint
	$(BIN)/python -m pytest $(RUN)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else "make: wanted Python 3.10 to 3.13, came %d.%d; choose one with make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# One stamp an extra; setup.py is what decides when to install again.
$(VENV)/.%: setup.py pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) demo_out build *.egg-info
