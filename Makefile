# make demo       the whole story: environment, demonstrations, training, evaluation, report (outputs/demo/report)
# make test       what needs no LIBERO assets, offline, on all cores; eight minutes on two
# make test-all   also what starts trainings and evaluations as processes of their own: twice as long
# make test-fast  in about two minutes on two cores: the core's numbers, statistics and reports, the driver; no simulator
# make lint       ruff, mypy, and the limits of scripts/structure.py
# Others: venv (the environment alone), demo-smoke (the demo in minutes, for CI), format, clean.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SOURCES := multismolvla policies envs robots data eval run benchmarks scripts docs tests train.py
OUTPUT ?= outputs

# Everything runs offline and without a display. One rendering thread and passive waiting: on few cores spinning threads
# of several processes cost more than they give.
export HF_HUB_OFFLINE ?= 1
export MUJOCO_GL ?= egl
export LP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

# One process per core, one thread each. A file's tests stay together, for their fixtures' sake.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist loadfile
FAST := tests/multismolvla tests/run tests/eval/analysis tests/eval/protocol tests/eval/records

.PHONY: venv demo demo-smoke test test-all test-fast lint format clean

venv: $(STAMP)

# robosuite's and hf-libero's EGL probes are compiled here with the cmake of its wheel: the binary itself, because the
# wheel's start script cannot import it inside pip's isolated build. cmake 4 refuses the probes' old minimum version
# unless told otherwise.
$(STAMP): pyproject.toml constraints.txt .python-version scripts/find-python.sh scripts/system-packages.sh
	@scripts/system-packages.sh
	@test -x $(PY) && $(PY) -c "import sys; sys.exit(sys.version_info[:2] != (3, 12))" 2>/dev/null \
	  || { python=$$(scripts/find-python.sh) && echo "+ $$python -m venv $(VENV)" && "$$python" -m venv --clear $(VENV); }
	$(PY) -m pip install -q -c constraints.txt "setuptools<82" cmake
	PATH="$$($(PY) -c 'import cmake; print(cmake.CMAKE_BIN_DIR)'):$$PATH" CMAKE_POLICY_VERSION_MINIMUM=3.5 HF_HUB_OFFLINE=0 \
	  $(PY) -m pip install -c constraints.txt -e ".[dev]"
	@rm -rf *.egg-info # left by the build; a stale one would hide the installed metadata from programs started here
	@touch $@

demo: venv
	@$(PY) -m multismolvla_run.demo --size=demo --output=$(OUTPUT)/demo

demo-smoke: venv
	@$(PY) -m multismolvla_run.demo --size=smoke --output=$(OUTPUT)/demo-smoke

test: venv
	@$(PYTEST) -m "not libero and not slow"

test-all: venv
	@$(PYTEST) -m "not libero"

test-fast: venv
	@$(PYTEST) -m "not libero and not sim and not slow" $(FAST)

lint: venv
	@$(PY) -m ruff check $(wildcard $(SOURCES))
	@$(PY) -m ruff format --check $(wildcard $(SOURCES))
	@$(PY) -m mypy
	@$(PY) scripts/structure.py --check

format: venv
	@$(PY) -m ruff check --fix $(wildcard $(SOURCES))
	@$(PY) -m ruff format $(wildcard $(SOURCES))

clean:
	rm -rf $(OUTPUT) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
