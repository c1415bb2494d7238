"""What all tests share: which backends must be there, and how a test runs under mpiexec."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache

import pytest

import gem
from benchmarks import scaling
from gem.errors import ConfigError
from gem.parallel import communicator, launched

# Hundreds of tests start a Python of their own: each would compile gem anew where the environment forbids to keep that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

REQUIRED = {name for name in os.environ.get("GEM_REQUIRE", "").split(",") if name}


def missing(what: str, reason: str) -> None:
    """Skip a test for want of `what`, or fail it where GEM_REQUIRE names that."""
    if what in REQUIRED:
        pytest.fail(f"GEM_REQUIRE names {what}, but {reason}")
    pytest.skip(f"{what}: {reason}")


@pytest.fixture(scope="session")
def world():
    """The communicator of this test run: MPI under mpiexec, else serial."""
    return communicator("world" if launched() else None)


@pytest.fixture
def mpiexec():
    """The launcher, where MPI works."""
    try:
        from mpi4py import MPI  # noqa: F401  only to see that it loads
    except (ImportError, RuntimeError) as error:
        missing("mpi", str(error).splitlines()[0])
    try:
        return scaling.mpiexec()
    except ConfigError as error:
        missing("mpi", str(error))


@lru_cache(maxsize=1)
def available():
    return gem.backends.available()


def backends(**schedules: tuple[str, ...]):
    """Parameters of tests, one for each of gem.backends.BACKENDS, or those given for one ("opencl-items": opencl).

    cuda where CuPy runs on the CPU (tests/test_kernels.py) or a GPU is there.
    """
    for name in gem.backends.BACKENDS:
        marks = [pytest.mark.gpu] if name == "cuda" and "CUSHIM_ORDER" not in os.environ else []
        for kind in schedules.get(name, (name,)):
            yield pytest.param(kind, marks=marks)


@pytest.fixture(params=list(backends()))
def backend(request):
    """Each backend's name, in turn."""
    about = available()[request.param]
    if "unavailable" in about:
        missing(request.param, about["unavailable"])
    return request.param


@pytest.hookimpl(tryfirst=True)  # before pytest makes its own folder
def pytest_configure(config):
    config.addinivalue_line("markers", "serial: starts processes or judges the whole machine: not under mpiexec")
    config.addinivalue_line("markers", "long: takes many seconds: begun first where several workers share the tests")
    if launched() and config.option.basetemp is None:
        # ranks that end together would tidy up the folder that pytest shares among its runs, in each other's way
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        config.option.basetemp = folder.name


@lru_cache(maxsize=1)
def gpu():
    """Whether there is a CUDA device."""
    return "unavailable" not in available()["cuda"]


def pytest_collection_modifyitems(config, items):
    """Begin with long tests where workers share them, so that none is left with one at the end. Drop what this run is
    not for: those of a GPU where none is (unless required), and under mpiexec the serial ones and all to which ranks
    make no difference: those without the communicator `world`."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("long") is None)
    without = {"gpu"} if "gpu" not in REQUIRED and not gpu() else set()
    if launched():
        without.add("serial")
    dropped = [
        item
        for item in items
        if any(item.get_closest_marker(mark) for mark in without) or (launched() and "world" not in item.fixturenames)
    ]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


def pytest_runtest_logreport(report):
    if report.failed and launched():  # the other ranks would wait for this one for ever
        print(f"\n{report.nodeid}\n{report.longreprtext}", flush=True)
        communicator("world").abort()
