# Two commands: `make demo` learns features of photographs, `make test` runs everything that must hold.
# Both need Python ≥ 3.10 and pip; all else comes from PyPI into ./.venv.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin

.PHONY: demo test test-oldest test-newest lint clean

demo: $(VENV)/.ready
	$(RUN)/python -m examples.photographs --output run.h5

# REQUIRE names what must be there: a missing one fails the tests that need it instead of skipping them.
REQUIRE ?= numpy,opencl,mpi

# Three ranks with numpy alone: what a device does beside a second rank, it does beside a third.
test: $(VENV)/.ready lint
	GEM_REQUIRE=$(REQUIRE) $(RUN)/python -m pytest -n auto --dist worksteal
	GEM_REQUIRE=$(REQUIRE) $(RUN)/mpiexec -n 2 $(RUN)/python -m pytest
	GEM_REQUIRE=$(REQUIRE) $(RUN)/mpiexec -n 3 $(RUN)/python -m pytest -k "not opencl"

# With the oldest packages that setup.cfg allows, and with the newest: each in an environment of its own.
test-oldest test-newest:
	.ci/dependencies $(@:test-%=%) -n auto --dist worksteal

lint: $(VENV)/.ready
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gem needs Python 3.10 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) .cache build *.egg-info
