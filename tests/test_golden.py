"""Reference numbers from an independent implementation: tests/golden/README.md."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, available, missing

import gem
from gem.backends import _opencl
from gem.models import MODELS, make

TOLERANCE = {"bsc": {"float64": 1e-8, "float32": 2e-4}, "mog": {"float64": 1e-8, "float32": 2e-4}}
OTHERS = {"float64": 1e-8, "float32": 5e-4}
BOUNDS = {"mca": (0, np.inf), "noisyor": (1e-5, 1 - 1e-5)}  # of W; the reference updates without them
NAMES = sorted(path.name for path in GOLDEN.glob("*.npz") if path.name.split("_")[0] in MODELS)


def model_of(name, case):
    """The model of a case: its sizes are those of the parameters, its settings are in the file or its name."""
    kind = name.split("_")[0]
    params = {key[6:]: value for key, value in case.items() if key.startswith("param_")}
    if kind in ("mog", "mop"):
        K, D = params["lam" if kind == "mop" else "mu"].shape
        return make(kind, {"D": D, "K": K} | ({"covariance": name.split("_")[1]} if kind == "mog" else {})), params
    D, H = params["W"].shape
    settings = {"D": D, "H": H, "Hprime": int(case["Hprime"]), "gamma": int(case["gamma"])}
    return make(kind, settings | ({"values": case["values"].tolist()} if kind == "dsc" else {})), params


def close(found, wanted, tolerance):
    """Largest deviation relative to the largest entry."""
    assert np.shape(found) == np.shape(wanted)
    deviation = np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))
    assert deviation <= tolerance, f"deviates by {deviation:.2g}"


def test_every_case_is_there():
    assert len(NAMES) == 48


def further_devices():
    """The OpenCL devices that "opencl" alone does not choose, as another runtime of the same processor."""
    return [f"opencl:{index}" for index in range(1, len(_opencl.devices()))]


ONE_OF_EACH = [name for name in NAMES if "_T1." in name and ("Hprime5" in name or name[:2] == "mo")]


@pytest.mark.serial
@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("name", NAMES)
def test_golden(name, dtype, backend):
    check(name, dtype, backend, None)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_golden_over_ranks(name, backend, world):
    check(name, "float64", backend, world)


@pytest.mark.serial
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_golden_on_every_further_opencl_device(name):
    if "unavailable" in available()["opencl"]:
        missing("opencl", available()["opencl"]["unavailable"])
    for device in further_devices():
        for dtype in OTHERS:
            check(name, dtype, device, None)


@pytest.mark.serial
def test_pocl_is_found_beside_another_runtime():
    """What gem-em[opencl] brings must not be hidden by what gem-em[opencl-intel] adds."""
    if "unavailable" in available()["opencl"]:
        missing("opencl", available()["opencl"]["unavailable"])
    pyopencl = pytest.importorskip("pyopencl")  # it is there
    bundled = list((Path(pyopencl.__file__).parent / ".libs").glob("pocl.icd"))
    environment = dict(os.environ)
    names = {device.platform.name for device in _opencl.devices()}
    assert not bundled or "Portable Computing Language" in names
    assert dict(os.environ) == environment


def check(name, dtype, backend, comm):
    """One EM step and the posterior of a case against the reference."""
    with np.load(GOLDEN / name) as file:
        case = dict(file)
    model, params = model_of(name.removesuffix(".npz"), case)
    tolerance, T = TOLERANCE.get(name.split("_")[0], OTHERS)[dtype], float(case["T"])

    post = gem.posterior(model, params, case["Y"], backend=backend, dtype=dtype, T=T)
    close(post.log_evidence, case["logZ"], tolerance)
    if "resp" in case:
        close(post.mean, case["resp"], tolerance)
    else:
        np.testing.assert_array_equal(post.candidates, case["candidates"])
        close(post.mean, case["Es"], tolerance)
    if "Esz" in case:
        close(post.product, case["Esz"], tolerance)

    new, info = gem.em_step(model, params, case["Y"], backend=backend, dtype=dtype, T=T, comm=comm)
    assert set(new) == {key[4:] for key in case if key.startswith("new_")}
    if name.split("_")[0] in BOUNDS:
        case["new_W"] = np.clip(case["new_W"], *BOUNDS[name.split("_")[0]])
    for key, value in new.items():
        close(value, case[f"new_{key}"], tolerance)
    close(info.free_energy, case["logZ"].sum(), tolerance)
