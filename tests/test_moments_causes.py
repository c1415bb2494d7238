"""Moments of models whose causes hide each other: they may be added and kept, whatever W they were found with."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from gem.backends import select
from gem.em import Work, expect, local_shard
from gem.models import MCA, MMCA, PMCA, NoisyOR, Step
from gem.parallel import communicator

SIZES = {"D": 6, "H": 4, "Hprime": 4, "gamma": 4}
MODELS = {
    "mca": MCA(**SIZES),
    "mca-smooth": MCA(**SIZES, rho=3.0),
    "mmca-missing": MMCA(**SIZES, missing=True),
    "pmca": PMCA(**SIZES),
    "pmca-missing": PMCA(**SIZES, missing=True),
    "mca-gamma-missing": MCA(**SIZES, missing=True, noise="gamma"),
    "noisyor": NoisyOR(**SIZES),
    "noisyor-missing": NoisyOR(**SIZES, missing=True),
}
STEP = Step(T=1.5, anneal_prior=True)
STATES = np.array(list(product([0, 1], repeat=4)))
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def problem(model, seed=0, N=60):
    """Parameters and data, some of which are missing if that may be."""
    rng = np.random.default_rng(seed)
    shape = (model.D, model.H)
    params = {"W": 0.2 + 3 * rng.random(shape), "pi": np.array(0.3), "sigma": np.array(0.8), "shape": np.array(2.5)}
    if isinstance(model, MMCA):
        params["W"] = 3 * rng.standard_normal(shape)
    if isinstance(model, NoisyOR):
        params |= {"W": rng.uniform(0.05, 0.9, shape), "pi": rng.uniform(0.1, 0.5, model.H)}
    params = {name: params[name] for name in model.parameters}
    Y, _ = model.generate_data(params, N, seed=seed + 1)
    if model.missing:
        Y[rng.random(Y.shape) < 0.3] = np.nan
    return params, Y


def found(model, params, Y, step=STEP):
    """The moments of these data."""
    backend, comm = select("numpy", "float64"), communicator()
    work = Work(model, backend.load(local_shard(model, Y, backend, comm, None)), backend, comm)
    return model.moments(expect(work, params, step), params, step)


def assert_same(one, other):
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], **EXACT, err_msg=name)


def test_moments_of_parts_are_those_of_the_whole(model):
    params, Y = problem(model)
    first, second = (found(model, params, part) for part in (Y[:20], Y[20:]))
    whole, notes = model.maximize(found(model, params, Y), params, STEP)
    merged, said = model.maximize(model.combine(first, second, 1.0, 1.0), params, STEP)
    assert_same(merged, whole)
    assert said == notes
    twice, _ = model.maximize(found(model, params, np.concatenate([Y[:20], Y])), params, STEP)
    assert_same(model.maximize(model.combine(first, second, 2.0, 1.0), params, STEP)[0], twice)


def test_nothing_else_of_the_step_is_needed(model):
    """What made the moments may be gone: other old parameters give the same new ones."""
    params, Y = problem(model)
    other, _ = problem(model, seed=5)
    moments = found(model, params, Y)
    kept = model.combine(moments, found(model, other, Y), 1.0, 0.0)
    new, notes = model.maximize(moments, params, STEP)
    assert not any("kept" in note for note in notes)
    assert_same(model.maximize(kept, other, STEP)[0], new)


def posterior(model, params, Y):
    """q of all states, (N, S), by the definition."""
    joint = model.log_joint(params, Y, STATES) / STEP.T
    return np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])


@pytest.mark.parametrize("name", ["mca", "mmca-missing", "pmca", "pmca-missing"])
def test_maximal_causes_of_two_steps_have_the_mean_of_what_they_won_in_either(name):
    """By brute force: who wins is a matter of the old W, what is won is not; nor are squares of residuals."""
    model = MODELS[name]
    nothing = model.of.floor
    moments, A, Ay, residual = [], 0.0, 0.0, 0.0
    for seed, times in ((0, 1.0), (5, 3.0)):
        params, Y = problem(model, seed)
        effect = np.abs(STATES[:, None] * params["W"])  # (S, D, H)
        shown = effect.max(axis=2) > nothing
        won = np.eye(4)[effect.argmax(axis=2)] * shown[..., None]
        mean = np.where(shown, (won * params["W"]).sum(axis=2), nothing)
        q, seen = posterior(model, params, Y), np.isfinite(Y)
        y = np.where(seen[:, None], np.nan_to_num(Y)[:, None], mean)
        A = A + times * np.einsum("ns,sdh->dh", q, won)
        Ay = Ay + times * np.einsum("ns,sdh,nsd->dh", q, won, y)
        gaps = np.sum(~seen) * params.get("sigma", 0) ** 2
        residual += times * (np.einsum("ns,nsd->", q, (y - mean) ** 2) + gaps)
        moments.append(found(model, params, Y))
    new, _ = model.maximize(model.combine(*moments, 1.0, 3.0), params, STEP)
    np.testing.assert_allclose(new["W"], np.maximum(Ay / A, {"mca": 0, "mmca-missing": -np.inf}.get(name, nothing)))
    if "sigma" in new:
        np.testing.assert_allclose(new["sigma"] ** 2, residual / (4 * Y.size), rtol=1e-10)


@pytest.mark.parametrize("name", ["noisyor", "noisyor-missing"])
def test_noisy_or_of_two_steps_weighs_the_same_data_alike(name):
    """1 − W is Σ⟨(1 − y) / (1 − P)⟩ / Σ⟨R / (1 − P)⟩, R what the others leave off: one W near 1 outweighs nothing."""
    model = MODELS[name]
    moments, top, bottom = [], 0.0, 0.0
    for seed, times in ((0, 1.0), (5, 3.0)):
        params, Y = problem(model, seed)
        if seed:
            params["W"][:, 1] = 1 - 1e-5
        off = 1 - STATES[:, None] * params["W"]  # (S, D, H)
        P = off.prod(axis=2)[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            weight, rest = (np.where(STATES[:, None] > 0, x, 0) for x in (1 / (1 - P), P / off / (1 - P)))
        q, seen = posterior(model, params, Y), np.isfinite(Y)
        top = top + times * np.einsum("ns,sdh,nd->dh", q, weight, seen * (1 - np.nan_to_num(Y)))
        bottom = bottom + times * np.einsum("ns,sdh,nd->dh", q, rest, seen)
        moments.append(found(model, params, Y))
    new, _ = model.maximize(model.combine(*moments, 1.0, 3.0), params, STEP)
    np.testing.assert_allclose(new["W"], np.clip(1 - top / bottom, 1e-5, 1 - 1e-5), rtol=1e-9)
