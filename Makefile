# Every target does all of its own set-up and is quick when repeated. `make help` lists them; CONTRIBUTING.md explains.
#
#   make test ARGS="-k overlay -x"     more arguments for pytest
#   make test PYTHON=python3.13        the interpreter to make the environment with
#   make test VENV=/var/tmp/env        where to keep the environment

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# The owner of the checkout keeps environment and build in it. Anybody else, root included, has them in his own cache and leaves
# the checkout as it is.
ifeq ($(shell [ -O . ] && [ -w . ] && echo own),own)
STATE := $(CURDIR)
else
STATE := $(shell echo "$${XDG_CACHE_HOME:-$$HOME/.cache}/isolib/$$(echo '$(CURDIR)' | cksum | cut -d' ' -f1)")
export PYTHONDONTWRITEBYTECODE := 1
endif
VENV := $(STATE)/.venv
BUILD := $(STATE)/build
ARGS :=

override VENV := $(abspath $(VENV))
PY := $(VENV)/bin/python
# An environment is bound to its path: one that was moved along with its checkout is made anew.
STAMPS := $(VENV)/stamps$(subst /,-,$(VENV))
# Directories too: their times tell that a file is gone.
SOURCES := $(shell find isolib -name __pycache__ -prune -o \( -type d -o -name '*.py' -o -name '*.[ch]' -o -name meson.build \) -print)
C_SOURCES := $(shell find isolib tests benchmarks -name '*.[ch]' 2>/dev/null)

export PATH := $(VENV)/bin:$(PATH)
export PYTHON
# The tests are for the installed package: the checkout's isolib/, which has no compiled part, must not hide it.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HYPOTHESIS_STORAGE_DIRECTORY := $(BUILD)/hypothesis
export MYPY_CACHE_DIR := $(BUILD)/mypy
export RUFF_CACHE_DIR := $(BUILD)/ruff
PYTEST := $(PY) -m pytest -o cache_dir=$(BUILD)/pytest

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS='	' read -r name text; do \
	    printf '  make %-14s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: $(STAMPS)/isolib ## install isolib and run a real program in a full sandbox
	@$(PY) docs/demo.py

.PHONY: test
test: $(STAMPS)/isolib $(STAMPS)/test ## run the tests (ARGS="..." goes to pytest)
	@$(PYTEST) -m "not slow and not vm" $(ARGS)

.PHONY: test-slow
test-slow: $(STAMPS)/isolib $(STAMPS)/test ## run the tests that take long: packaging, endurance
	@$(PYTEST) -m "slow and not vm" $(ARGS)

.PHONY: test-vm
test-vm: $(STAMPS)/isolib $(STAMPS)/test ## run the tests that boot other kernels
	@.ci/system-packages build vm
	@$(PYTEST) -m vm -v -n 2 --maxschedchunk=1 -o faulthandler_timeout=900 tests/vm $(ARGS)

.PHONY: test-native
test-native: $(STAMPS)/build ## run the launcher's own tests, with AddressSanitizer and UndefinedBehaviorSanitizer
	@$(call meson_test,$(BUILD)/native,-Dsanitize=true)

.PHONY: test-aarch64
test-aarch64: $(STAMPS)/build ## cross-compile the native parts for aarch64 and run their tests under qemu
	@$(call meson_test,$(BUILD)/aarch64,-Dnative_tests=true --cross-file .ci/aarch64.ini)

.PHONY: test-debian
test-debian: ## demo and tests in new Debian 12 and 13 trees, as root and as an ordinary user (needs root, debootstrap)
	@for release in 12 13; do tests/vm/debian.sh $$release $(or $(ARGS),demo test) || exit; done

.PHONY: lint
lint: lint-ruff lint-format lint-types ## check style, formatting and types

.PHONY: lint-ruff
lint-ruff: $(STAMPS)/dev
	ruff check

.PHONY: lint-format
lint-format: $(STAMPS)/dev
	ruff format --check
	clang-format --dry-run -Werror $(C_SOURCES)

.PHONY: lint-types
lint-types: $(STAMPS)/build $(STAMPS)/test $(STAMPS)/dev
	mypy --python-executable $(PY) --cache-dir $(BUILD)/mypy

.PHONY: format
format: $(STAMPS)/dev ## rewrite the sources as lint wants them, as far as tools can
	ruff check --fix-only
	ruff format
	clang-format -i $(C_SOURCES)

.PHONY: bench
bench: $(STAMPS)/isolib ## run the benchmarks, each beside its floor and its peers
	@for bench in benchmarks/bench_*.py; do setsid -w $(PY) "$$bench" $(ARGS) || exit; done

.PHONY: docs
docs: $(STAMPS)/isolib $(STAMPS)/docs ## build the documentation
	$(PY) -m sphinx -W --keep-going -d $(BUILD)/doctrees docs $(BUILD)/docs

.PHONY: setup
setup: $(STAMPS)/isolib $(STAMPS)/test $(STAMPS)/docs $(STAMPS)/dev ## all that a developer needs, and the commit hook
	@! [ -d .git ] || pre-commit install

.PHONY: clean
clean: ## remove what make made
	rm -rf $(VENV) $(BUILD) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# ---- set-up -----------------------------------------------------------------------------------------------------------

# A tree that was configured before only rebuilds what changed.
meson_test = meson setup $(1) -Dextension=false $(2) $$(! [ -e $(1)/build.ninja ] || echo --reconfigure) >$(1).log || \
    { cat $(1).log; exit 1; }; meson compile -C $(1) && meson test -C $(1) --print-errorlogs $(ARGS)

# An environment whose interpreter is gone is made anew.
ifneq ($(shell $(PY) -c 'print("works")' 2>/dev/null),works)
.PHONY: $(STAMPS)/venv
endif
$(STAMPS)/venv:
	@.ci/system-packages build
	@echo "isolib: making the environment $(VENV)" >&2
	@"$$(.ci/system-packages --python)" -m venv --clear $(VENV)
	@mkdir -p $(STAMPS) $(BUILD) && touch $@

# What isolib is built with and runs with.
$(STAMPS)/build: pyproject.toml $(STAMPS)/venv
	@$(call install,build run)

$(STAMPS)/test: pyproject.toml $(STAMPS)/venv
	@.ci/system-packages build test
	@$(call install,test)

$(STAMPS)/docs: pyproject.toml $(STAMPS)/venv
	@$(call install,docs)

$(STAMPS)/dev: pyproject.toml $(STAMPS)/venv
	@$(call install,dev)

install = echo "isolib: installing from PyPI: $(1)" >&2 && $(PY) .ci/requirements.py $(1) >$@.txt && \
    $(PY) -m pip install -q -r $@.txt && touch $@

# A plain installation, as every user has it, built in a tree that is kept and without network.
$(STAMPS)/isolib: $(SOURCES) pyproject.toml meson.build meson.options $(STAMPS)/build
	@echo "isolib: building and installing isolib" >&2
	@$(PY) -m pip install -q --no-index --no-deps --no-build-isolation --force-reinstall \
	    --config-settings=build-dir=$(VENV)/build-isolib .
	@touch $@
