# make demo [ARGS="--all --json out.json"]    a year of real flights through the whole way
# make test [ALL=1] [LONG=1]                  lint, types, imports, tests; with ALL=1 the slow ones too, as CI does; LONG=1: the longest
# make deploy-test                            the chart on a Kubernetes control plane (KUBERNETES_HOME)
# make constraints                            the versions of .venv (Python 3.11) become those of the image
# PYTHON=/path/to/python3.12 names the Python to build .venv with.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)",$$/\1/p' pyproject.toml)
TORCH_CPU := https://download.pytorch.org/whl/cpu

.PHONY: demo test deploy-test clean

demo: $(VENV)/.demo
	@$(BIN)/headrace demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.prometheus
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q -m "not slow and not long" --numprocesses 2 --dist loadfile $(ARGS)
	$(if $(ALL),$(BIN)/python -m pytest -q -m slow --numprocesses 2 --dist loadfile $(ARGS))
	$(if $(LONG),$(BIN)/python -m pytest -q -m long $(ARGS))

deploy-test: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/test_deploy.py tests/test_probes.py tests/test_chart.py tests/test_pod.py $(ARGS)

# CuPy is only here for its version. PyTorch's own index names its variant after the version, which is not asked for.
.PHONY: constraints
constraints: $(VENV)/.dev
	@$(PIP) -e ".[dev,gpu]"
	@set -o pipefail; { \
	  echo "# What the image is made of, written by make constraints: the versions that the tests ran with."; \
	  $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//'; \
	} > ops/deploy/constraints.txt

clean:
	rm -rf $(VENV) .headrace features/repo/data

$(VENV)/.demo: $(VENV)/.torch
	@echo "installing headrace into $(VENV): about 0.4 GB of wheels"
	@$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch
	@echo "installing headrace and what its tests need into $(VENV): about 0.5 GB of wheels"
	@$(PIP) -e ".[dev]"
	@touch $(VENV)/.demo $@

# Debian's Prometheus, which scrapes a job in the tests: unpacked, not installed. Tests that need it are skipped without it, and say so.
$(VENV)/.prometheus: $(VENV)/.made
	@if [ -n "$$PROMETHEUS" ] || command -v prometheus >/dev/null || ! command -v apt-get >/dev/null; then exit 0; fi; \
	echo "downloading Debian's prometheus into $(VENV): 20 MB"; \
	folder=$$(mktemp -d); \
	if (cd $$folder && apt-get download prometheus && dpkg -x prometheus_*.deb prometheus) >/dev/null 2>&1; then \
	  rm -rf $(VENV)/prometheus && mv $$folder/prometheus $(VENV)/ && touch $@; \
	else \
	  echo "Debian's prometheus cannot be had here (apt-get update may help): tests that need it are skipped"; \
	fi; \
	rm -rf $$folder

# On Linux PyTorch's build on PyPI brings gigabytes of CUDA, so its index of builds for CPUs is asked first, for 3 seconds.
$(VENV)/.torch: $(VENV)/.made pyproject.toml
	@if $(BIN)/python -c 'import signal, urllib.request as u; signal.alarm(3); u.urlopen("$(TORCH_CPU)/torch/", timeout=3)' \
	  >/dev/null 2>&1; then \
	  echo "installing $(TORCH) for CPUs into $(VENV): about 0.2 GB"; \
	  $(PIP) "$(TORCH)" --index-url $(TORCH_CPU); \
	else \
	  echo "installing $(TORCH) into $(VENV): about 0.2 GB (3 GB where pip only finds the build for CUDA)"; \
	  $(PIP) "$(TORCH)"; \
	fi
	@touch $@

$(VENV)/.made:
	@for python in $(PYTHON) python3.12 python3.11 python3; do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV) && touch $@; exit; \
	  fi; \
	done; \
	echo "headrace needs Python 3.11 or 3.12 with venv: install it (Debian, Ubuntu: apt install python3.12-venv;" \
	  "macOS: brew install python@3.12; anywhere: uv python install 3.12), or name it with make PYTHON=..." >&2; \
	exit 1
