# `make test` and `make demo` set up what they need in .venv/ by themselves; a
# second run finds it there. Another Python: `make test PYTHON=python3.12`.

.DEFAULT_GOAL := help
.PHONY: help test demo lint docs test-base test-modern test-judges test-zoo lock clean
MAKEFLAGS += --no-print-directory

# A pyenv shim may stand on PATH with no Python behind it, so each is run.
runs = $(shell for p in $(1); do "$$p" -c '' >/dev/null 2>&1 && echo "$$p" && break; done)

ifndef PYTHON
PYTHON := $(or $(call runs,python3.11),python3)
endif
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

# rlds and EnvLogger exist for this Python and platform alone (see setup.cfg). Empty elsewhere.
REFERENCE := $(filter 3.11-Linux-x86_64,$(VERSION)-$(shell uname -s -m | tr ' ' -))

VENV := .venv
INSTALLED := $(VENV)/installed-$(VERSION)

# Without -q, pip shows the size and the progress of each download. Modules are compiled when they are first imported:
# compiling all of them would add a third to the time of the installation.
PIP_INSTALL := -m pip install --disable-pip-version-check --no-compile

help:
	@echo 'make test         set up .venv/ and run the tests'
	@echo 'make demo         set up .venv/, record a real environment, convert, validate, inspect'
	@echo 'make lint         ruff and mypy'
	@echo 'make docs         the documentation as a site, in site/'
	@echo 'make test-base    the tests that need no TensorFlow, on the base install'
	@echo 'make test-modern  the tests without rlds and EnvLogger, on Python 3.12 or newer, newest TensorFlow'
	@echo 'make test-judges  PyTorch, Grain, JAX and robomimic read what is served and exported; files of robosuite are converted'
	@echo 'make test-zoo     HDF5 files of other projects and generated hostile files; with ZOO=FOLDER, those of a folder too'
	@echo 'make lock         update constraints.txt after a change of setup.cfg; with UPGRADE=1, to the newest versions'
	@echo 'make clean        remove what the above made'

test: $(INSTALLED)
	$(if $(REFERENCE),,@echo 'Python $(VERSION): leaving out the tests that need rlds or EnvLogger (Python 3.11 on Linux x86-64 has them)')
	@$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(if $(REFERENCE),,-m 'not reference')

demo: $(INSTALLED)
	@$(VENV)/bin/kabuki-rlds demo

lint: $(INSTALLED)
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy

# Its own environment: MkDocs needs none of what the tests need.
DOCS := .venv-docs
$(DOCS)/installed: setup.cfg constraints.txt
	@echo 'setting up $(DOCS)/ with MkDocs'
	@"$(PYTHON)" -m venv --clear $(DOCS)
	@$(DOCS)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCS)/installed
	@$(DOCS)/bin/mkdocs build --quiet
	@echo 'open site/index.html'

# The base install: no extra, and what runs the tests.
BASE := .venv-base
$(BASE)/installed: setup.cfg constraints.txt
	@echo 'setting up $(BASE)/ without TensorFlow'
	@"$(PYTHON)" -m venv --clear $(BASE)
	@$(BASE)/bin/python $(PIP_INSTALL) -c constraints.txt -e . pytest pytest-xdist hypothesis packaging
	@touch $@

# No module of these imports an extra. The first goes through everything that the base install can do.
test-base: $(BASE)/installed
	@$(BASE)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
		tests/project/test_base_install.py tests/project/test_extras.py tests/data/test_blocks_and_chunks.py \
		tests/formats/test_appending_sink.py tests/robustness/test_broken_rules.py tests/robustness/test_envlogger_logs.py

test-modern: MODERN = $(call runs,python3.12 python3.13 $(wildcard $(shell pyenv root 2>/dev/null)/versions/3.1[23]*/bin/python3))
test-modern:
	@$(MAKE) test VENV=.venv-modern \
		PYTHON='$(or $(MODERN),$(error the modern stack needs Python 3.12 or 3.13: install one, or say `make test-modern MODERN=/path/to/python3.12`))'

# robomimic and robosuite are installed without most of their requirements, because reading a dataset needs no simulator.
# PyTorch is pinned, because the newest release may download another few GB.
JUDGES := .venv-judges
$(JUDGES)/installed: Makefile setup.cfg
	@echo 'setting up $(JUDGES)/: PyTorch, Grain, JAX, robomimic and robosuite, without TensorFlow'
	@"$(PYTHON)" -m venv --clear $(JUDGES)
	@$(JUDGES)/bin/python $(PIP_INSTALL) -e . torch==2.13.0 grain==0.2.18 jax==0.10.2 psutil imageio termcolor matplotlib
	@$(JUDGES)/bin/python $(PIP_INSTALL) --no-deps robomimic==0.3.0 robosuite==1.4.0
	@touch $@

test-judges: $(INSTALLED) $(JUDGES)/installed
	@JUDGES_PYTHON=$(JUDGES)/bin/python $(VENV)/bin/python -m pytest tests/project/test_judges.py

# The downloads are kept for the next run.
ZOO_FILES := .zoo

test-zoo: $(INSTALLED)
	@$(VENV)/bin/python -m tests.zoo --downloads $(ZOO_FILES) $(ZOO)

# uv resolves for all supported Pythons and all platforms at once. The requirements are those of setup.cfg. The newest
# TensorFlow excludes the newest h5py; the two lines that printf adds pin each of them on one of the stacks.
LOCK := .venv-lock
lock:
	@"$(PYTHON)" -m venv --clear $(LOCK)
	@$(LOCK)/bin/python $(PIP_INSTALL) -q uv==0.13.9
	@printf '%s\n' 'tensorflow>=2.21; python_version >= "3.12"' 'h5py>=3.16; python_version < "3.12"' | \
		$(LOCK)/bin/uv pip compile -q --python $(LOCK)/bin/python --python-version 3.11 --universal \
		--system-certs --no-annotate --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) \
		$(EXTRAS:%=--extra %) setup.cfg - -o constraints.txt
	@echo 'constraints.txt is up to date: see `git diff constraints.txt`'

# Each extra but `all`, which repeats the others.
EXTRAS = $(filter-out all,$(shell sed -n '/^\[options.extras_require\]/,/^\[/s/^\([a-z0-9_-]*\) *=$$/\1/p' setup.cfg))

clean:
	rm -rf .zoo .venv .venv-base .venv-modern .venv-judges .venv-lock .venv-docs build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- setting up ---

PYTHON_REMEDY = install Python 3.11 (3.12 and 3.13 do without rlds and EnvLogger) and say `make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.11`

# What a fresh machine may lack. Each check is empty where nothing is missing.
no-venv = $(shell "$(PYTHON)" -c 'import ensurepip, venv; ensurepip.version()' 2>&1 >/dev/null)
no-gmpxx = $(if $(REFERENCE),$(shell "$(PYTHON)" -c 'import ctypes; ctypes.CDLL("libgmpxx.so.4")' 2>&1))

# Not empty if $(VENV) was made with this very Python. With another one of the same version, its links and its libraries
# would not match.
python-id = "$$("$(1)" -c 'import sys; $(2); print(sys.base_prefix, sys.version_info)' 2>/dev/null)"
existing = $(shell [ $(call python-id,$(PYTHON),pass) = $(call python-id,$(VENV)/bin/python,import pip) ] && echo yes)
may-apt = $(and $(filter 0,$(shell id -u)),$(shell command -v apt-get))

define get-gmpxx
@echo 'installing the system library libgmpxx4ldbl, which EnvLogger needs'
@apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libgmpxx4ldbl >/dev/null
endef

define create-venv
@echo 'setting up $(VENV)/ with Python $(VERSION), once: about 0.9 GB to download, 3 GB on disk'
@"$(PYTHON)" -m venv --clear $(VENV)
endef

# Updated when a file on the right changes, and created again for another Python.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(if $(VERSION),,$(error '$(PYTHON)' does not run: $(PYTHON_REMEDY)))
	$(if $(filter 3.11 3.12 3.13,$(VERSION)),,$(error '$(PYTHON)' is Python $(VERSION), which is too $(if $(filter 2.% 3.0 3.1 3.2 3.3 3.4 3.5 3.6 3.7 3.8 3.9 3.10,$(VERSION)),old,new): $(PYTHON_REMEDY)))
	$(if $(no-venv),$(error '$(PYTHON)' cannot create virtual environments: run `sudo apt-get install python$(VERSION)-venv`, then `make $(or $(MAKECMDGOALS),test)` again))
	$(if $(no-gmpxx),$(if $(may-apt),,$(error EnvLogger needs the system library libgmpxx.so.4: run `sudo apt-get install libgmpxx4ldbl`, then `make $(or $(MAKECMDGOALS),test)` again)))
	$(if $(no-gmpxx),$(get-gmpxx))
	$(if $(existing),@echo 'updating $(VENV)/',$(create-venv))
	@$(VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[all,test,lint]'
	@touch $@
