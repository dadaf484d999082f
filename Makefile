# LASER: `make demo` shows the whole flow, `make test` checks it. Everything else is for developers.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
DATA ?=
KEEP ?= 0
# Test files side by side; a worker needs about 3 GB. 0 runs them in one process.
JOBS ?= 2
PYTEST := -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Keeps compiled bytecode, which some images turn off: without it each process that imports TensorFlow
# and TFX compiles them again, which takes longer than all else of its start.
export PYTHONDONTWRITEBYTECODE :=
# Libraries' start-up chatter is not ours: a person sees our output, not theirs.
export TF_CPP_MIN_LOG_LEVEL := 3
export PYTHONWARNINGS := ignore::FutureWarning:google.api_core._python_version_support,ignore::FutureWarning:google.cloud.aiplatform.models

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env:  ## create the environment (.venv) from requirements/pipeline.lock
	@tools/setup_env.sh pipeline

demo: env  ## events -> SeqVault -> TFX pipeline -> SavedModel -> served rank request; DATA=folder for a real log, KEEP=1 to leave the server up
	@$(PY) -m tfx_pipeline.cli demo $(if $(DATA),--data $(DATA)) $(if $(filter 1,$(KEEP)),--keep)

test: env  ## the tests but those of `make test-long`, with lint and types
	@.venv/bin/seqvault warm-up & kernels=$$!; \
	  $(MAKE) --no-print-directory lint; lint=$$?; wait $$kernels && exit $$lint
	@$(PY) $(PYTEST) -m 'not long' tests

test-long: env  ## the tests that `make test` leaves out: killed runs, clusters of processes, `make demo` of own data
	@$(PY) $(PYTEST) -m long tests

test-crash: env  ## kill SeqVault at 1000 random points, end it amid all that it does, and compare with an oracle
	@$(PY) -m seqvault.testing.crash_run --points 1000
	@$(PY) -m seqvault.testing.lifetime_run --seconds 600

soak-serving: env  ## 30 minutes of hostile and ordinary load on both servers: memory stays flat
	@$(PY) benchmarks/serving/soak.py --minutes 30 --output benchmarks/serving/soak_results.json

test-hostile: env  ## 100,000 hostile requests: peak memory within 1.2 of ordinary load
	@$(PY) benchmarks/serving/soak.py --requests 100000 --output benchmarks/serving/hostile_results.json

# python:keras backend; together every supported Python and every backend.
LAYERS_MATRIX ?= 3.10:tensorflow 3.11:torch 3.12:jax 3.13:tensorflow
# For instance -m 'not long', which leaves out what costs much on one backend and runs on another.
LAYERS_FLAGS ?=
STORE_MATRIX ?= 3.10 3.11 3.12 3.13
SERVING_MATRIX ?= 3.10 3.11 3.12 3.13

test-layers:  ## laser_keras alone: keras, numpy and one backend, Python 3.10 to 3.13, without TFX
	@set -e; for entry in $(LAYERS_MATRIX); do python=$${entry%%:*}; backend=$${entry##*:}; \
	  package=$$backend; if [ $$backend = torch ]; then package='torch==2.13.0'; fi; \
	  echo "== laser_keras on Python $$python with $$backend"; \
	  tools/setup_env.sh light layers-$$python $$python . $$package pytest pytest-timeout pytest-xdist; \
	  KERAS_BACKEND=$$backend .venv-layers-$$python/bin/python $(PYTEST) $(LAYERS_FLAGS) \
	    tests/examples/test_layers.py tests/laser_keras; done

test-store:  ## seqvault alone, Python 3.10 to 3.13
	@set -e; for python in $(STORE_MATRIX); do echo "== seqvault on Python $$python"; \
	  tools/setup_env.sh light store-$$python $$python '.[kafka]' pytest pytest-timeout pytest-xdist hypothesis pandas; \
	  .venv-store-$$python/bin/seqvault warm-up; \
	  .venv-store-$$python/bin/python $(PYTEST) tests/seqvault; done

test-serving:  ## serving alone with current TensorFlow, Python 3.10 to 3.13
	@set -e; for python in $(SERVING_MATRIX); do echo "== serving on Python $$python"; \
	  tools/setup_env.sh light serving-$$python $$python '.[serving]' pytest pytest-timeout pytest-xdist hypothesis; \
	  .venv-serving-$$python/bin/seqvault warm-up; \
	  .venv-serving-$$python/bin/python $(PYTEST) tests/serving tests/laser_features; done

test-light: test-layers test-store test-serving  ## the three light environments

lint: env  ## style, types, import directions
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports

examples: env  ## run every tutorial of examples/
	@for script in examples/*.py; do echo "== $$script"; PYTHONPATH=. $(PY) -W ignore $$script || exit 1; done

docs:  ## build the documentation site into site/; any warning or lost link fails
	@tools/setup_env.sh light docs 3.10 '.[docs]'
	@.venv-docs/bin/mkdocs build --strict --quiet

docs-serve: docs  ## show the documentation at http://127.0.0.1:8000
	@.venv-docs/bin/mkdocs serve

package:  ## build sdist and wheel into dist/, check them, install the wheel into empty environments
	@tools/package.sh

test-kill: env  ## kill `laser-pipeline run` at 30 random moments; the same command ends well, with an equal result
	@$(PY) tests/end_to_end/kill_run.py --points $(or $(POINTS),30) --seed $(or $(SEED),1)

test-s3: env  ## datasets and pushed models on an S3-compatible server, which is started for it
	@tools/setup_env.sh light s3 3.10 . 'moto[server]'
	@LASER_MOTO_SERVER=$(CURDIR)/.venv-s3/bin/moto_server $(PY) -m pytest -q tests/components/test_file_systems.py

test-images: env  ## lint the Dockerfiles and run the pipeline image's steps in an empty environment
	@tools/try_image.sh tfx_pipeline/deploy/pipeline.Dockerfile

lock: env  ## refresh requirements/*.lock from setup.py
	$(or $(wildcard .venv-tools/bin/uv),uv) pip compile setup.py --extra pipeline --extra dev --python-version 3.10 --python $(PY) \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate -q -o requirements/pipeline.lock
	$(or $(wildcard .venv-tools/bin/uv),uv) pip compile setup.py --extra pipeline --python-version 3.10 --python $(PY) -c requirements/pipeline.lock \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate -q -o requirements/image.lock

clean:  ## remove environments, caches and demo output
	rm -rf .venv .venv-* .laser site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

.PHONY: help env demo test test-crash soak-serving test-hostile test-layers test-store test-serving test-light lint examples docs docs-serve package test-kill test-s3 test-images lock clean
