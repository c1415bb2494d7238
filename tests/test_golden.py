"""Reference numbers from an independent implementation: tests/golden/README.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import available, missing

from benchmarks import golden
from gem.backends import _opencl


def test_every_case_is_there():
    assert len(golden.NAMES) == 48


def further_devices():
    """The OpenCL devices that "opencl" by itself does not choose, as another runtime of the same processor."""
    return [f"opencl:{index}" for index in range(1, len(_opencl.devices()))]


ONE_OF_EACH = [name for name in golden.NAMES if name.endswith("_T1") and ("Hprime5" in name or name[:2] == "mo")]


@pytest.mark.serial
@pytest.mark.parametrize("dtype", golden.DTYPES)
@pytest.mark.parametrize("name", golden.NAMES)
def test_golden(name, dtype, backend):
    check(name, dtype, backend, None)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_golden_over_ranks(name, backend, world):
    check(name, "float64", backend, world)


@pytest.mark.serial
def test_pocl_is_one_of_the_devices():
    """Whatever device "opencl" by itself chooses: the OpenCL build of every kernel is to run on PoCL."""
    platforms = [about.get("platform", "") for about in available().values()]
    if not any("Portable Computing Language" in platform for platform in platforms):
        missing("pocl", f"no device of it works: {available()['opencl']}")


@pytest.mark.serial
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_golden_on_every_further_opencl_device(name):
    if "unavailable" in available()["opencl"]:
        missing("opencl", available()["opencl"]["unavailable"])
    for device in further_devices():
        for dtype in golden.DTYPES:
            check(name, dtype, device, None)


@pytest.mark.serial
def test_pocl_is_found_beside_another_runtime():
    """What gem-em[opencl] brings must not be hidden by what gem-em[opencl-intel] adds."""
    if "unavailable" in available()["opencl"]:
        missing("opencl", available()["opencl"]["unavailable"])
    pyopencl = pytest.importorskip("pyopencl")  # it is there
    bundled = list((Path(pyopencl.__file__).parent / ".libs").glob("pocl.icd"))
    environment = dict(os.environ)
    _opencl.survey.cache_clear()
    working, told = _opencl.survey()
    pocl = "Portable Computing Language"
    said = [answer for answer in told if pocl in answer]
    assert not bundled or said or any(pocl in device.platform.name for device in working)
    for answer in said:  # its wheel is of 2022: it need not know this processor, and that is all it may lack
        assert answer.endswith("error: unknown target CPU 'generic'")
    assert dict(os.environ) == environment


def check(name, dtype, backend, comm):
    """One EM step and the posterior of a case against the reference."""
    tolerance = golden.asked(golden.kind_of(name), dtype)
    for quantity, found in golden.deviations(name, dtype, backend, comm).items():
        assert found <= (0 if quantity == "candidates" else tolerance), f"{quantity} deviates by {found:.2g}"
