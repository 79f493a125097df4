# `make demo` and `make test` do everything on a fresh machine: git, make and Python 3.11+.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The torch to install: `make TORCH=torch==2.9.1 demo` takes another.
TORCH  ?= torch==2.13.0
DEMO   ?= rin-demo
# `make gpu-check GPU="--device cpu --size tiny"` tries the script anywhere.
GPU        ?=
GPU_PYTHON ?= 3.12

# Processes that run the tests: as many as the smallest machine has cores. A module is run by one
# of them, so that its fixtures are made once, and in the order of tests/conftest.py.
JOBS   ?= 2
PYTEST  = -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-fast test-slow coverage check bench gpu-wheels gpu-check clean

demo: $(VENV)/installed
	$(BIN)/rin demo $(DEMO) --force

test: $(VENV)/tested check
	$(BIN)/python $(PYTEST) -m "not slow"

# While one works, a minute: without the modules that tests/conftest.py calls long (the demo, Ray,
# commands, killed processes, the documents, sharing, faults of S3, the browser), and unchecked.
test-fast: $(VENV)/tested
	$(BIN)/python $(PYTEST) -m "not slow and not long"

# The main job on SmolLM2-135M, which is downloaded; needs the Alpaca rows.
test-slow: $(VENV)/tested
	$(BIN)/python -m pytest -m slow

coverage: $(VENV)/tested
	$(BIN)/coverage erase
	$(BIN)/coverage run $(PYTEST) -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/house.py

bench: $(VENV)/tested
	$(BIN)/python tests/benchmarks/caching.py
	$(BIN)/python tests/benchmarks/workers.py
	$(BIN)/python tests/benchmarks/scan.py $(VENV)/bench --scale 0.005

# Two machines: the wheels are downloaded where there is a network, and carried. Where the
# accelerator is there need be none, and PYTHON is the Python 3.12 that has PyTorch.
gpu-wheels:
	$(PYTHON) tests/gpu/wheels.py fetch wheels --python $(GPU_PYTHON)

gpu-check:
	$(PYTHON) tests/gpu/wheels.py unpack wheels build/gpu-site
	PYTHONPATH="$(CURDIR):$(CURDIR)/storage:$(CURDIR)/build/gpu-site:$$PYTHONPATH" \
		$(PYTHON) -m tests.gpu $(GPU)

# torch first and pinned: resolved with the rest, it would bring gigabytes of CUDA.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	echo "$(TORCH)" > $(VENV)/constraint.txt
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --constraint $(VENV)/constraint.txt --editable .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/python tests/requirements.py > $(VENV)/test-requirements.txt
	$(BIN)/pip install --quiet --constraint $(VENV)/constraint.txt --requirement $(VENV)/test-requirements.txt
	sh tests/install-chromium.sh
	touch $@

clean:
	rm -rf $(VENV) rin-demo build dist
