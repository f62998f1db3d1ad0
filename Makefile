# `make` lists the targets. `repro` and `test` set up everything that they need on a fresh machine.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
BASE ?= main
BIN := .venv/bin
# DVC runs the stages with the `python` that it finds first.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup repro test test-all faults lint ui bench diff lock clean

help: ## List these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

setup: .venv/installed ## Make .venv with the pinned packages (skipped when nothing changed)

# The scripts of an environment name its folder, so that one that was moved or copied is made again.
moved = [ ! -e $(BIN)/dvc ] || [ "$$(sed -n '1,2s|^[^/]*\(/.*\)/python.*|\1|p' $(BIN)/dvc)" -ef $(BIN) ] || echo .venv/moved
.PHONY: .venv/moved
.venv/moved:
	@rm -rf .venv

# The stamp is written last, so that a set-up that was broken off is done again. Bytecode is
# compiled, or else every process compiles torch and Great Expectations anew: twice the time.
.venv/installed: requirements.lock $(shell $(moved))
	@echo "Setting up .venv: torch and all, some GB, a minute or two; later runs skip this"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and f"ERROR: $(PYTHON) is Python {sys.version.split()[0]}, expected 3.11 to 3.13: make PYTHON=python3.12 setup")'
	@$(BIN)/python -c '' 2>/dev/null || { rm -rf .venv; $(PYTHON) -m venv .venv; }
	@sed -n '/^uv==/,/^ *# via/p' $< | $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin
	@$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@$(BIN)/uv pip check --quiet --python $(BIN)/python
	@touch $@

repro: setup ## Run the pipeline: download, validate, stats, train, evaluate, register
	dvc repro

test: setup ## Run the units and the pipeline end to end on small data, in 3 minutes (no network)
	pytest tests/unit tests/e2e/test_pipeline.py
	@echo 'Everything else, in 15 minutes: make test-all'

test-all: setup ## Run all tests: queues, servers that fail, several processes, workflows, docs
	pytest

faults: setup ## Kill, damage, fill and cut everything on purpose, in an hour: docs/faults.md
	python -m tests.faults --write $(ARGS)

lint: setup ## Check format, style, types, pages and the workflows of CI (no network)
	ruff format --check
	ruff check
	mypy
	python -m tests.lint_docs
	zizmor --quiet --offline --pedantic --strict-collection .github
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	python -c 'import glob, yaml; print(*("(\n" + step["run"] + "\n)" for file in glob.glob(".github/workflows/*.yml") \
	    for job in yaml.safe_load(open(file))["jobs"].values() for step in job["steps"] if "run" in step), sep="\n")' \
	    | shellcheck --shell=bash -

ui: PORT ?= 5000
ui: setup ## Browse the runs in the MLflow UI
	@uri=$$(python -m mnist.tracking.database); \
	shown=$$(python -c 'from mnist.core import paths; print(paths.shown(paths.store_uri()))'); case $$uri in \
	    http*) echo "The runs are on the server $$shown" ;; \
	    *) python -c 'import sys; sys.tracebacklimit = 0; from mnist.tracking import client; \
	            print("The runs: http://127.0.0.1:$(PORT)/" + client.connect().page, flush=True)' || true; \
	        MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --backend-store-uri "$$uri" --port $(PORT) ;; \
	esac

bench: setup ## Measure everything side by side (ARGS="--only loop" a part of it; ARGS=--show the last)
	@python -m benchmarks $(ARGS)

diff: export BASE := $(BASE)
diff: setup ## The same as `mnist diff`, for CI: BASE=main, HEAD=the workspace
	@python -m mnist diff "$$BASE" $(if $(HEAD),"$$HEAD") $(ARGS)

lock: .venv/installed ## Pin the newest packages that pyproject.toml allows, in both locks
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade --extra s3 --group dev --output-file requirements.lock pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade --constraint requirements.lock --group servers --output-file requirements-servers.lock

clean: ## Remove .venv, downloads and tool caches; the MLflow store and DVC's cache stay
	rm -rf .venv .cache/mnist .cache/onnx dvc_plots .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find mnist stages benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
