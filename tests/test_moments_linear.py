"""Moments of linear models outlive their step: added up, weighted, and brought into the frame of other parameters."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from gem.backends import select
from gem.data import load_weights, open_data
from gem.em import Work, expect, local_shard
from gem.models import BSC, DSC, GSC, TSC, Step
from gem.parallel import communicator

D, H = 7, 5
SIZES = {"D": D, "H": H, "Hprime": 4, "gamma": 3}
EXACT = {"Hprime": H, "gamma": H}
MODELS = {
    "bsc": BSC(**SIZES),
    "bsc-missing": BSC(**SIZES, missing=True),
    "tsc": TSC(**SIZES),
    "dsc": DSC(**SIZES, values=(-1, 0, 2)),
    "dsc-missing": DSC(**SIZES, values=(-1, 0, 2), missing=True),
    "gsc": GSC(**SIZES),
    "gsc-missing": GSC(**SIZES, missing=True),
}
PI = {"DSC": np.array([0.2, 0.5, 0.3]), "GSC": np.full(H, 0.3)}
FRAMES = [(False, False), (True, True), (False, True), (True, False)]


def truth(model, rng):
    params = {"W": 2 * rng.standard_normal((D, H)), "pi": PI.get(model.name, np.array(0.3)), "sigma": np.array(0.7)}
    if isinstance(model, GSC):
        params |= {"mu": 3 + rng.standard_normal(H), "psi": rng.uniform(0.5, 2, H)}
    return params


def data(model, params, N=120):
    Y, _ = model.generate_data(params, N, seed=1)
    if model.missing:
        Y[np.random.default_rng(2).random(Y.shape) < 0.2] = np.nan
    return Y


def moments(model, params, Y, residuals=False, weights=None):
    step, backend, alone = Step(residuals=residuals), select("numpy", "float64"), communicator()
    counts = None if weights is None else load_weights(weights, len(Y), alone)
    batches = backend.load(local_shard(model, open_data(Y), backend, alone, 50), counts)
    return model.moments(expect(Work(model, batches, backend, alone, counts), params, step), params, step)


def maximum(model, found, params):
    return model.maximize(found, params, Step())[0]


def assert_same(one, other, rtol):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("residuals", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_moments_of_parts_add_up(name, residuals):
    model = MODELS[name]
    params = truth(model, np.random.default_rng(0))
    Y = data(model, params)
    A, B = (moments(model, params, part, residuals) for part in (Y[:70], Y[70:]))
    before = A.buffer.copy(), B.buffer.copy()
    for a, weights in ((1, None), (2, np.where(np.arange(len(Y)) < 70, 2, 1))):
        whole = moments(model, params, Y, residuals)
        if weights is not None:
            whole = moments(model, params, np.repeat(Y, weights, axis=0), residuals)
        both = model.combine(A, B, a, 1)
        assert both.layout == whole.layout
        assert_same(maximum(model, both, params), maximum(model, whole, params), 1e-12)
    np.testing.assert_array_equal(A.buffer, before[0])
    np.testing.assert_array_equal(B.buffer, before[1])


@pytest.mark.parametrize("far", [0.1, 1e3])
@pytest.mark.parametrize(("here", "there"), FRAMES)
@pytest.mark.parametrize("name", MODELS)
def test_the_frame_of_other_parameters_changes_nothing(name, here, there, far):
    """Also where these are far off: fields 1000 times as far as they are long, strengths 1000 spreads away."""
    model, rng = MODELS[name], np.random.default_rng(0)
    params = truth(model, rng)
    Y = data(model, params)
    A = moments(model, params, Y, here)
    other = {**params, "W": params["W"] + far * rng.standard_normal((D, H)), "sigma": np.array(0.9)}
    if isinstance(model, GSC):
        other |= {"mu": params["mu"] + far, "psi": 3 * params["psi"]}
    B = moments(model, other, Y, there)
    assert ("about" in B) is there
    assert_same(maximum(model, model.combine(A, B, 1, 0), params), maximum(model, A, params), 1e-10)
    whole = model.combine(A, B, 1, 1), model.combine(B, A, 1, 1)
    assert_same(maximum(model, whole[0], params), maximum(model, whole[1], params), 1e-9)


@pytest.mark.parametrize("name", ["bsc", "bsc-missing", "tsc", "dsc"])
def test_noise_that_squares_of_the_data_would_lose_is_there_in_any_frame(name):
    """Where it is certain what is active, halves with other old fields each give the step of the whole."""
    model, rng = type(MODELS[name])(**{**MODELS[name].settings(), **EXACT}), np.random.default_rng(3)
    params = {**truth(model, rng), "sigma": np.array(1e-9)}
    Y = data(model, params)
    olds = [{**params, "W": params["W"] + 1e-9 * rng.standard_normal((D, H))} for _ in range(2)]
    assert model.needs_residuals(params, Step())
    A, B = (moments(model, old, part, True) for old, part in zip(olds, (Y[:60], Y[60:]), strict=True))
    found = maximum(model, model.combine(A, B, 1, 1), params)
    if not model.missing:  # what is missing is where the old fields say it is
        wanted = maximum(model, moments(model, params, Y, True), params)
        np.testing.assert_allclose(found["W"] - params["W"], wanted["W"] - params["W"], atol=1e-14)
        np.testing.assert_allclose(found["sigma"], wanted["sigma"], rtol=1e-5)
    assert 0.5e-9 < found["sigma"] < 2e-9


@pytest.mark.parametrize("far", [0, 1e-4, 3])
def test_the_variance_of_strengths_keeps_its_digits_beside_their_mean(far):
    """ψ = 10⁻¹⁰ μ²: of halves whose old means were others, against exact arithmetic."""
    model, rng = GSC(D=D, H=H, **EXACT), np.random.default_rng(4)
    params = {**truth(model, rng), "mu": np.full(H, 100.0), "psi": np.full(H, 1e-6), "sigma": np.array(1e-3)}
    Y = data(model, params, 400)
    olds = params, {**params, "mu": params["mu"] + far, "psi": 2 * params["psi"]}
    halves = [moments(model, old, part) for old, part in zip(olds, (Y[:150], Y[150:]), strict=True)]
    found = maximum(model, model.combine(*halves, 3, 1), params)
    for h in range(H):
        s, sz, spread = ([Fraction(float(half[name][h])) for half in halves] for name in ("s", "sz", "spread"))
        count, total = 3 * s[0] + s[1], 3 * sz[0] + sz[1]
        second = sum(w * (v + z**2 / n) for w, v, z, n in zip((3, 1), spread, sz, s, strict=True))
        np.testing.assert_allclose(found["mu"][h], float(total / count), rtol=1e-14)
        np.testing.assert_allclose(found["psi"][h], float(second / count - (total / count) ** 2), rtol=1e-7)
    if far == 0:
        np.testing.assert_allclose(found["psi"], 1e-6, rtol=0.5)


@pytest.mark.parametrize("name", ["bsc", "gsc"])
@pytest.mark.parametrize("residuals", [False, True])
def test_latents_that_were_never_active_keep_what_they_had(name, residuals):
    """Also where the moments are about other fields than the parameters have."""
    model = MODELS[name]
    params = truth(model, np.random.default_rng(0))
    A = moments(model, params, data(model, params), residuals)
    for key in {"s", "sz", "spread", "squares"} & set(A):
        A[key][2] = 0
    A["ys"][:, 2] = 0
    second = A["ss" if "ss" in A else "szsz"]
    second[2] = second[:, 2] = 0
    other = {key: value + 0.1 for key, value in params.items() if key in ("W", "mu")}
    new, notes = model.maximize(model.combine(A, A, 1, 1), {**params, **other}, Step())
    assert any("latent 2 was never active" in note for note in notes)
    for key, value in other.items():
        np.testing.assert_allclose(new[key][..., 2], value[..., 2], rtol=1e-14)
        assert not np.allclose(new[key][..., 1], value[..., 1])
