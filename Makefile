# LASER: `make demo` shows the whole flow, `make test` checks it. Everything else is for developers.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
DATA ?=
KEEP ?= 0
# Libraries' start-up chatter is not ours: a person sees our output, not theirs.
export TF_CPP_MIN_LOG_LEVEL := 3
export PYTHONWARNINGS := ignore::FutureWarning:google.api_core._python_version_support,ignore::FutureWarning:google.cloud.aiplatform.models

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env:  ## create the environment (.venv) from requirements/pipeline.lock
	@tools/setup_env.sh pipeline

demo: env  ## events -> SeqVault -> TFX pipeline -> SavedModel -> served rank request; DATA=folder for a real log, KEEP=1 to leave the server up
	@$(PY) -m tfx_pipeline.cli demo $(if $(DATA),--data $(DATA)) $(if $(filter 1,$(KEEP)),--keep)

test: env  ## every test, with lint and types
	@$(MAKE) --no-print-directory lint
	@$(PY) -m pytest -q tests

lint: env  ## style, types, import directions
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m importlinter.cli lint 2>/dev/null || .venv/bin/lint-imports

lock: env  ## refresh requirements/pipeline.lock from setup.py
	uv pip compile setup.py --extra pipeline --extra dev --python-version 3.10 --python $(PY) \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate -q -o requirements/pipeline.lock

clean:  ## remove environments, caches and demo output
	rm -rf .venv .venv-* .laser build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

.PHONY: help env demo test lint lock clean
