# `make train` and `make test` need Linux, make and Python 3.11 to 3.14; everything else is installed into .venv.
PYTHON ?= $(or $(shell for v in 3.11 3.12 3.13 3.14 3; do command -v python$$v && break; done),python3)
# cpu or gpu: what .venv is for. Empty keeps what it is for; the first time it is gpu where there is one.
DEVICE ?=
ARGS ?=
# Of `make test`, on two cores and 24 GB: engines wait for most of their time.
WORKERS ?= 3
export OMP_NUM_THREADS ?= 1
RUN = .venv/bin/python -m
CODE = common rollout learner tests deploy/local deploy/monitoring
BENCHMARKS = step learner rollout publish memory gpu_learner default methods objectives mismatch plan startup classes dead_groups ranges fleet

SCRIPTS = $(shell git grep -lE '^\#!.*[/ ](ba)?sh$$')
DOCKERFILES = $(shell git ls-files '*Dockerfile')

.PHONY: setup train test test-alone test-fast lint image-check bench lock clean

setup:
	@$(PYTHON) deploy/local/setup.py $(DEVICE)

train: setup
	$(RUN) learner.main $(ARGS)

# A file's tests share what they start, so they share a worker.
PYTEST = $(RUN) pytest --dist loadfile --no-loadscope-reorder --durations=20
test: setup
	$(PYTEST) -n $(WORKERS) $(ARGS)

test-alone: setup
	$(RUN) pytest -m alone $(ARGS)

test-fast: setup
	$(PYTEST) -n logical -m "not engine and not slow and not browser" $(ARGS)

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy $(CODE)
	.venv/bin/shellcheck $(SCRIPTS)
	.venv/bin/hadolint $(DOCKERFILES)

# Builds the CPU image and runs it: needs root, buildah, debootstrap, ten minutes and 15 GB. ARGS go to `buildah build`.
image-check:
	deploy/check_image.sh $(ARGS)

# One after the other, on an otherwise idle machine; one that asks for a device that is not here ends with 2.
bench: setup
	@for name in $(BENCHMARKS); do echo "== $$name"; $(RUN) tests.benchmarks.$$name || [ $$? -eq 2 ] || exit 1; done

# Needs uv on the PATH; where no index offers torch's CPU build, UV_FIND_LINKS names a folder that holds its wheel. The
# hashes of deploy/local/torch-cpu.lock are those that PyTorch's CPU index lists for Linux, and are kept by hand.
COMPILE_FROM = uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q
COMPILE = $(COMPILE_FROM) pyproject.toml
UV_VERSION = 0.13.9
lock:
	echo uv==$(UV_VERSION) | $(COMPILE_FROM) - -o deploy/local/uv-installer.lock
	$(COMPILE) --extra cpu --extra bench --extra dev -o requirements-cpu.lock \
	  --no-emit-package torch --no-emit-package torchaudio --no-emit-package torchcodec
	env -u UV_FIND_LINKS $(COMPILE) --extra gpu --extra dev -o requirements-gpu.lock

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
