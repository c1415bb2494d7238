"""Reference numbers from an independent implementation: tests/golden/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN

import gem
from gem.models import BSC, MoG

TOLERANCE = {"float64": 1e-8, "float32": 2e-4}


def bsc(case):
    return BSC(*case["param_W"].shape, int(case["Hprime"]), int(case["gamma"]))


MAKE = {
    "bsc": bsc,
    "mog_diag": lambda case: MoG(*case["param_mu"].shape[::-1], covariance="diag"),
    "mog_full": lambda case: MoG(*case["param_mu"].shape[::-1], covariance="full"),
}
CASES = sorted(path for name in MAKE for path in GOLDEN.glob(f"{name}_*.npz"))


def close(found, wanted, dtype):
    """Largest deviation relative to the largest entry."""
    assert np.shape(found) == np.shape(wanted)
    deviation = np.max(np.abs(found - wanted)) / np.max(np.abs(wanted))
    assert deviation <= TOLERANCE[dtype], f"deviates by {deviation:.2g}"


def test_every_case_of_these_models_is_there():
    assert len(CASES) == 10


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path: Path, dtype, backend, world):
    with np.load(path) as file:
        case = dict(file)
    name = next(n for n in MAKE if path.name.startswith(n))
    model, T = MAKE[name](case), float(case["T"])
    params = {key[6:]: value for key, value in case.items() if key.startswith("param_")}

    post = gem.posterior(model, params, case["Y"], backend=backend, dtype=dtype, T=T)
    close(post.log_evidence, case["logZ"], dtype)
    if name == "bsc":
        np.testing.assert_array_equal(post.candidates, case["candidates"])
        close(post.mean, case["Es"], dtype)
    else:
        close(post.mean, case["resp"], dtype)

    new, info = gem.em_step(model, params, case["Y"], backend=backend, dtype=dtype, T=T, comm=world)
    assert set(new) == {key[4:] for key in case if key.startswith("new_")}
    for key, value in new.items():
        close(value, case[f"new_{key}"], dtype)
    close(info.free_energy, case["logZ"].sum(), dtype)
