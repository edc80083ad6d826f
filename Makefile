# Everything a checkout needs: `make demo` and `make test` create .venv by themselves, once.
SHELL := /bin/bash
PYTHON := $(shell for p in python3.11 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python
# Where the demo is written.
DEMO ?= demo
# More settings of its training, such as "train.steps=60 augment.crop=64,128" for a quick one.
DEMO_SET ?=

# Where the pipeline's demo is written.
PIPELINE ?= pipeline-demo

.PHONY: demo pipeline-demo docs lint format test test-all lock clean

# Trains EncNet on the built-in synthetic set, evaluates it and draws what it predicts.
demo: .venv/installed
	@$(RUN) -m kseg.train --config encnet_shapes --workdir "$(DEMO)/run" --set data.directory="$(DEMO)/shapes" $(DEMO_SET)
	@$(RUN) -m kseg.evaluate --workdir "$(DEMO)/run" --out "$(DEMO)"
	@echo "look at $(DEMO)/report.html and $(DEMO)/predictions.png"

# From the built-in set to a pushed model by TFX; started again, everything is cached.
pipeline-demo: .venv/installed
	@$(RUN) -m pipeline.run_local --config encnet_shapes --root "$(PIPELINE)/run" --floor 0.5 --set data.directory="$(PIPELINE)/shapes" $(DEMO_SET)
	@$(RUN) -m pipeline.history --root "$(PIPELINE)/run"

# The documentation as a site, site/index.html. Its tools have an environment of their own, without TensorFlow.
docs: .venv-docs/installed
# With --quiet, --strict would not see warnings.
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
	@echo "open site/index.html; with search: python3 -m http.server --directory site"

# The order of the packages, and ruff's rules and format.
lint: .venv/installed
	@.venv/bin/lint-imports
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check .

format: .venv/installed
	@.venv/bin/ruff check --quiet --fix .
	@.venv/bin/ruff format .

# Three processes, for two cores: one of them often waits for servers, hosts or clusters. Each wants 4 GB of memory.
test: .venv/installed lint
	@$(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Also the tests that repeat a check for another head, format or setting.
test-all: .venv/installed
	@KSEG_ALL_TESTS=1 $(MAKE) test

# The locks are installed as they stand: nothing is resolved again, and every file must have a hash listed there.
.venv/installed: bootstrap.lock requirements.lock setup.cfg setup.py pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "kseg needs Python 3.11: neither python3.11 nor python3 is that version" >&2; exit 1; fi
	@echo "installing into .venv (about 3 GB)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r bootstrap.lock
	@.venv/bin/python -m uv pip install --quiet --no-deps --require-hashes --python .venv/bin/python -r requirements.lock
	@.venv/bin/python -m uv pip install --quiet --no-deps --no-build-isolation --python .venv/bin/python -e .
	@touch .venv/installed

.venv-docs/installed: docs/requirements.lock
	@if [ -z "$(PYTHON)" ]; then echo "the locks are for Python 3.11: neither python3.11 nor python3 is that version" >&2; exit 1; fi
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r docs/requirements.lock
	@touch .venv-docs/installed

# Resolves requirements.in and docs/requirements.in again.
lock: .venv/installed
	.venv/bin/python -m uv pip compile --quiet --override overrides.txt requirements.in -o requirements.lock \
	    --python-version 3.11 --no-header --no-annotate --no-emit-index-url --generate-hashes
	.venv/bin/python -m uv pip compile --quiet docs/requirements.in -o docs/requirements.lock \
	    --python-version 3.11 --no-header --no-annotate --no-emit-index-url --generate-hashes

clean:
	rm -rf .venv .venv-docs site demo pipeline-demo build kseg.egg-info
