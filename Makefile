# Everything a fresh machine needs is made here: a virtual environment, the package in it, then the job.
#   make demo          the whole journey on generated data, with a report
#   make test          lint and all tests (RUN="tests/model -k oov" runs a part); COVERAGE=1 counts the lines that run, those of
#                      subprocesses too, and fails below the floor in pyproject.toml
#   make quick         lint and the tests that are neither `slow` nor `cluster`: under two minutes
#   make test-kernels  the tests of numbers on a CPU without AVX-512, and with TensorFlow's own kernels instead of oneDNN's
#   make test-ascend   the core on Python 3.9 and TF 2.6.5, the Ascend plugin's
#   make test-mindspore  files exchanged with MindSpore itself (Python 3.9 to 3.12, 3 GB of disk, minutes to install)
#   make test-torch    PyTorch and torchrec checkpoints against the networks run there (torch's default build for Linux brings
#                      gigabytes of CUDA; pip takes its CPU build where its settings offer one)
#   make test-spark    prepare on a stand-alone Spark cluster of two workers on this machine, one of which is killed (Python 3.11)
# test-ascend and test-mindspore fail where their Python is missing; with ALLOW_SKIP=1 they say so and pass.
#   make fuzz          coverage-guided: TARGET=ckpt|weights|vocabulary|manifest|records, RUNS=1000000
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN ?=
COVERAGE ?=
# A pyenv shim is on PATH even where it can't run: hence the trial.
PYTHON39 ?= $(shell for p in python3.9 $$HOME/.pyenv/versions/3.9.*/bin/python; do \
	"$$p" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 9))' 2>/dev/null && echo "$$p" && break; done)
ASCEND_VENV ?= .venv-ascend
MINDSPORE_VENV ?= .venv-mindspore
TORCH_VENV ?= .venv-torch
# MindSpore has wheels for these.
MINDSPORE_PYTHON ?= $(shell for p in $(PYTHON) python3.12 python3.11 python3.10; do \
	"$$p" -c 'import sys, venv; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo "$$p" && break; done)
ALLOW_SKIP ?=

.PHONY: demo test quick test-kernels test-ascend test-mindspore test-torch test-spark fuzz lint format docs dist clean

# $(call no_python,what to install): the recipe of a target whose Python is missing.
no_python = $(if $(filter 1,$(ALLOW_SKIP)),@echo "make $@ skipped: $(1)",$(error make $@: $(1); install it, or skip with ALLOW_SKIP=1))

demo: $(VENV)/.all
	$(BIN)/dlrm-tf demo -o demo_out

test: $(VENV)/.test lint
ifeq ($(COVERAGE),1)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(RUN)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
else
	$(BIN)/python -m pytest $(RUN)
endif

quick: $(VENV)/.test lint
	$(BIN)/python -m pytest -m 'not slow and not cluster' $(RUN)

# What MindSpore's numbers, hand-computed ones and a NumPy reference are compared with.
NUMERIC_TESTS = $(addprefix tests/,model/test_dlrm.py model/test_optimizers.py checkpoints/test_convert.py \
	checkpoints/test_verify.py export/savedmodel export/tflite/test_tflite_export.py) \
	$(addprefix tests/train/test_,golden_sgd.py bad_numbers.py fit.py optimizer_state.py)
test-kernels: $(VENV)/.test
	ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(or $(RUN),$(NUMERIC_TESTS))
	TF_ENABLE_ONEDNN_OPTS=0 $(BIN)/python -m pytest $(or $(RUN),$(NUMERIC_TESTS))

# Without the tests that kill conversions and preparations for minutes: nothing of TensorFlow is in them.
ASCEND_TESTS = tests/ascend tests/model tests/checkpoints tests/weights tests/data $(addprefix tests/test_,config.py files.py progress.py) \
	$(addprefix tests/train/test_,fit.py golden_sgd.py bad_numbers.py optimizer_state.py metrics.py) \
	$(addprefix --ignore=tests/,checkpoints/test_interrupted.py checkpoints/test_fetch.py data/test_prepare_resume.py)
ifeq ($(strip $(PYTHON39)),)
test-ascend:
	$(call no_python,no Python 3.9 on PATH or under ~/.pyenv/versions/3.9.*/bin)
else
test-ascend: $(VENV)/.test $(ASCEND_VENV)/.done
	DLRM_TF_OTHER_PYTHON=$(abspath $(BIN)/python) $(ASCEND_VENV)/bin/python -m pytest $(or $(RUN),$(ASCEND_TESTS))
endif

$(ASCEND_VENV)/.done: setup.py pyproject.toml
	$(PYTHON39) -m venv $(ASCEND_VENV)
	$(ASCEND_VENV)/bin/python -m pip install --quiet --editable '.[ascend-test]'
	touch $@

ifeq ($(strip $(MINDSPORE_PYTHON)),)
test-mindspore:
	$(call no_python,no Python 3.9 to 3.12 on PATH (MINDSPORE_PYTHON=... chooses one))
else
test-mindspore: $(MINDSPORE_VENV)/.done
	$(MINDSPORE_VENV)/bin/python -m pytest tests/checkpoints/test_real_mindspore.py
endif

# All that conversion needs, without TensorFlow: MindSpore, torch and TensorFlow need not agree on their requirements.
CORE = 'numpy>=1.20,<3' 'h5py>=3.1,<4' 'absl-py>=0.15,<3' 'tqdm>=4.60,<5' 'pytest>=8,<10'
$(MINDSPORE_VENV)/.done: setup.py pyproject.toml
	$(MINDSPORE_PYTHON) -m venv $(MINDSPORE_VENV)
	$(MINDSPORE_VENV)/bin/python -m pip install --quiet 'mindspore>=2.10,<2.11' $(CORE)
	$(MINDSPORE_VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

test-torch: $(TORCH_VENV)/.done
	$(TORCH_VENV)/bin/python -m pytest tests/checkpoints/test_pytorch.py

# In an environment of its own: users need no torch. torchrec without its requirements, which ask for fbgemm-gpu of CUDA;
# torchrec and fbgemm each load one version of torch (1.8.0 loads 2.13, 1.9 does not).
$(TORCH_VENV)/.done: Makefile setup.py pyproject.toml
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --quiet 'torch==2.13.0' 'fbgemm-gpu-cpu==1.8.0' 'tensordict<0.16' 'torchmetrics==1.0.3' \
		'pyre-extensions' $(CORE)
	$(TORCH_VENV)/bin/python -m pip install --quiet --no-deps 'torchrec==1.8.0' --editable .
	touch $@

test-spark: $(VENV)/.test
	DLRM_TF_SPARK_CLUSTER=1 $(BIN)/python -m pytest tests/data/spark/test_spark_cluster.py

fuzz: $(VENV)/.test
	$(BIN)/python -m pip install --quiet 'atheris>=3,<4'
	$(BIN)/python tests/fuzz/run.py $(or $(TARGET),ckpt) -runs=$(or $(RUNS),1000000)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site in site/, built without the network. `test` too: the pages of the verbs come from their argparse, and some verbs'
# options from the packages they use.
docs: $(VENV)/.test $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The sdist and the wheel in dist/.
dist: $(VENV)/.test
	$(BIN)/python -m build --no-isolation

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else "make: wanted Python 3.10 to 3.13, came %d.%d; choose one with make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# One stamp an extra; pyproject.toml is what decides when to install again.
$(VENV)/.%: setup.py pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) $(ASCEND_VENV) $(MINDSPORE_VENV) $(TORCH_VENV) demo_out build dist site *.egg-info
