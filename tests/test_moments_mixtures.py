"""Moments of mixtures and of SC outlive a step: those of two data sets are those of both, whatever their frames."""

from __future__ import annotations

import numpy as np
import pytest

from gem.backends import blas, select
from gem.em import Work, expect, local_shard
from gem.models import SC, MoG, MoP, Step
from gem.parallel import communicator
from gem.statistics import N_USE

D, K = 3, 4
MODELS = {
    "mog-diag": MoG(D=D, K=K),
    "mog-diag-missing": MoG(D=D, K=K, missing=True),
    "mog-spherical": MoG(D=D, K=K, covariance="spherical"),
    "mog-tied": MoG(D=D, K=K, covariance="tied"),
    "mog-full": MoG(D=D, K=K, covariance="full"),
    "mog-full-missing": MoG(D=D, K=K, covariance="full", missing=True),
    "mop": MoP(D=D, K=K),
    "mop-missing": MoP(D=D, K=K, missing=True),
    "sc": SC(D=D, H=K, tol=1e-6),
}
MIXTURES = [name for name in MODELS if name != "sc"]
COVARIANCES = ("diag", "spherical", "tied", "full")
STEP = Step(T=1.3, dtype="float64")


def data(model, seed=0):
    rng = np.random.default_rng(seed)
    if isinstance(model, MoP):
        Y = rng.poisson(np.array([2.0, 9, 20])[rng.integers(3, size=60)], (D, 60)).T.astype(float)
    else:
        Y = rng.standard_normal((60, D)) + 4 * rng.integers(3, size=(60, 1))
    if getattr(model, "missing", False):
        Y[rng.random(Y.shape) < 0.2] = np.nan
    return Y


def moments(model, params, Y, step=STEP):
    backend, comm = select("numpy", "float64"), communicator()
    batches = backend.load(local_shard(model, Y, backend, comm, None))
    with blas.limited(1):
        return model.moments(expect(Work(model, batches, backend, comm), params, step), params, step)


def far(model, params):
    """Parameters whose centres lie 1000 spreads off."""
    size = np.sqrt(params["lam"]) if model.centre == "lam" else 1.0
    return {**params, model.centre: params[model.centre] + 1e3 * size}


def assert_same(one, other, rtol):
    for name, value in one[0].items():
        np.testing.assert_allclose(value, other[0][name], rtol=rtol, atol=rtol * np.abs(value).max(), err_msg=name)
    assert one[1] == other[1]


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 1), (0, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_two_parts_make_the_whole(name, a, b):
    model = MODELS[name]
    Y = data(model)
    params = model.init_params(Y, seed=1)
    A, B = Y[:37], Y[37:]
    both = model.combine(moments(model, params, A), moments(model, params, B), a, b)
    whole = moments(model, params, np.concatenate([A] * a + [B] * b))
    assert both[N_USE] == whole[N_USE]
    assert_same(model.maximize(both, params, STEP), model.maximize(whole, params, STEP), 1e-12)


@pytest.mark.parametrize("name", MIXTURES)
def test_another_frame_changes_nothing(name):
    """Of moments that count for nothing only the frame is left."""
    model = MODELS[name]
    Y = data(model)
    params = model.init_params(Y, seed=1)
    first, other = moments(model, params, Y[:37]), moments(model, far(model, params), Y[37:])
    moved = model.combine(first, other, 1, 0)
    np.testing.assert_array_equal(moved["centres"], far(model, params)[model.centre])
    back = model.combine(moved, moments(model, params, Y[37:]), 1, 0)
    wanted = model.maximize(first, params, STEP)
    assert_same(model.maximize(moved, params, STEP), wanted, 1e-10)
    assert_same(model.maximize(back, params, STEP), wanted, 1e-10)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_moments_about_different_centres_a_long_way_from_each_other(covariance):
    """One component explains all data, so it does not matter which parameters they were seen with."""
    rng = np.random.default_rng(2)
    A, B = rng.standard_normal((50, D)), 1e6 + rng.standard_normal((80, D))
    model = MoG(D=D, K=1, covariance=covariance)
    near = [model.init_params(part) for part in (A, B)]
    seen = [moments(model, params, part) for params, part in zip(near, (A, B), strict=True)]
    new, _ = model.maximize(model.combine(*seen, 1, 1), near[1], STEP)
    Y = np.concatenate([A, B])
    np.testing.assert_allclose(new["mu"][0], Y.mean(axis=0), rtol=1e-12)
    cov = np.cov(Y.T, bias=True)
    expected = {"diag": [np.diag(cov)], "spherical": [np.diag(cov).mean()], "tied": cov, "full": [cov]}[covariance]
    np.testing.assert_allclose(new["var" if "var" in new else "cov"], expected, rtol=1e-9)
    only, _ = model.maximize(model.combine(*seen, 1, 1e-300), near[1], STEP)  # the distance leaves no trace
    exact = np.cov(A.T, bias=True)
    found = only["var" if "var" in only else "cov"].reshape(-1)[0]
    assert found == pytest.approx(np.diag(exact).mean() if covariance == "spherical" else exact[0, 0], rel=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_what_explains_nothing_stays_where_it_was_in_any_frame(covariance):
    one, model = MoG(D=D, K=1, covariance=covariance), MoG(D=D, K=2, covariance=covariance)
    Y = data(model)
    began = one.init_params(Y)
    best, _ = one.maximize(moments(one, began, Y), began, STEP)  # nothing is left to pay a new start with
    params = {name: value if name == "cov" and value.ndim == 2 else np.repeat(value, 2, axis=0)
              for name, value in best.items()}  # fmt: skip
    params["mu"][1], params["pi"] = 1e5, np.array([1 - 1e-12, 1e-12])
    first = moments(model, params, Y, Step())
    assert first["counts"][1] == 0
    moved = model.combine(first, moments(model, far(model, params), Y, Step()), 1, 0)
    new, notes = model.maximize(moved, params, Step())
    assert notes == ["component 1 is empty: no data point is explained by it"]
    np.testing.assert_array_equal(new["mu"][1], params["mu"][1])
    assert_same((new, notes), model.maximize(first, params, Step()), 1e-10)
