# make run [ARGS=...]   set up, then profile the bundled AnomalyGPT and print the path of its report
# make test [ARGS=...]  set up, then run the test suite
# make setup            set up alone: .venv, pinned packages, DeepSpeed's compiled ops
# make check            set up, then the gate: ruff, mypy, import contracts
# make horovod          set up, then build Horovod into .venv-horovod, once (minutes; not needed by anything else)
# make clean            remove .venv, .venv-horovod and caches (not your runs)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := run
.PHONY: setup run test check horovod clean

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
ARGS ?=
# pip's own settings on this machine (index, cache, certificates) stay in force.
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --progress-bar off
KEY := $(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
INSTALLED := .venv/.agprof-installed-$(KEY)

run: setup
	@$(BIN)/agprof run anomalygpt $(ARGS)

test: setup
	@$(BIN)/python -m pytest -ra $(ARGS)

check: setup
	@scripts/check

setup: $(INSTALLED)
	@scripts/ops

# Everything here is quiet but for what takes long, which says so, and how long it took.
$(INSTALLED):
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 with venv found; install one or say make PYTHON=..." >&2; exit 1; }
	@[ -x $(BIN)/python ] && $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "setup: creating .venv with $(PYTHON)"; rm -rf .venv; $(PYTHON) -m venv .venv; }
	@echo "setup: installing torch 2.13.0 (1/2) ..."; begin=$$SECONDS; \
		$(PIP) -c constraints.txt 'torch==2.13.0'; \
		echo "setup: torch installed in $$((SECONDS - begin)) s"
	@echo "setup: installing the other packages (2/2) ..."; begin=$$SECONDS; \
		DS_BUILD_OPS=0 $(PIP) -c constraints.txt -e '.[workloads,test,gate]'; \
		echo "setup: packages installed in $$((SECONDS - begin)) s"
	@rm -f .venv/.agprof-installed-*; touch $@

horovod: setup
	@scripts/horovod

clean:
	rm -rf .venv .venv-horovod .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
