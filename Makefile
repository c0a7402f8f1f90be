# Everything a fresh machine needs is made here: a virtual environment, the package in it, then the job.
#   make demo          the whole journey on generated data, with a report
#   make test          lint and all tests (RUN="tests/model -k oov" runs a part)
#   make test-ascend   the core on Python 3.9 and TF 2.6.5, the Ascend plugin's; skipped where there is no Python 3.9
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?=
# A pyenv shim is on PATH even where it can't run: hence the trial.
PYTHON39 ?= $(shell for p in python3.9 $$HOME/.pyenv/versions/3.9.*/bin/python; do \
	"$$p" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 9))' 2>/dev/null && echo "$$p" && break; done)
ASCEND_VENV ?= .venv-ascend

.PHONY: demo test test-ascend lint format bench clean

demo: $(VENV)/.all
	$(BIN)/dlrm-tf demo -o demo_out

test: $(VENV)/.test lint
	$(BIN)/python -m pytest $(RUN)

ASCEND_TESTS = tests/ascend tests/model tests/mindspore tests/data tests/test_config.py tests/test_files.py tests/test_progress.py \
	$(addprefix tests/train/test_,fit.py golden_sgd.py optimizers.py optimizer_state.py metrics.py)
ifeq ($(strip $(PYTHON39)),)
test-ascend:
	@echo "make test-ascend: skipped, no Python 3.9 (looked for python3.9 on PATH and under ~/.pyenv/versions/3.9.*/bin)"
else
test-ascend: $(VENV)/.test $(ASCEND_VENV)/.done
	DLRM_TF_OTHER_PYTHON=$(abspath $(BIN)/python) $(ASCEND_VENV)/bin/python -m pytest $(or $(RUN),$(ASCEND_TESTS))
endif

$(ASCEND_VENV)/.done: setup.py pyproject.toml
	$(PYTHON39) -m venv $(ASCEND_VENV)
	$(ASCEND_VENV)/bin/python -m pip install --quiet --editable '.[ascend-test]'
	touch $@

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
	rm -rf $(VENV) $(ASCEND_VENV) demo_out build *.egg-info
