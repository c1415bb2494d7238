"""Maximal causes and noisy-OR: what is particular to models whose causes hide each other."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import special, stats

import gem
from gem.kernels import source
from gem.kernels.__main__ import FRAGMENTS
from gem.models import MCA, MMCA, PMCA, NoisyOR
from gem.models.noises import shape_of

RHO = 3.0


def all_states(H):
    return np.array(list(product([0, 1], repeat=H)))


def problem(model, seed=0, N=60, gaps=0.0):
    """Parameters and data; a share of the entries is missing."""
    rng = np.random.default_rng(seed)
    params = {"W": 3 * rng.standard_normal((model.D, model.H)), "pi": np.array(0.3), "sigma": np.array(0.8)}
    params["shape"] = np.array(2.5)
    if isinstance(model, MCA | PMCA):
        params["W"] = np.abs(params["W"]) + 0.2
    if getattr(model, "noise", "") == "bernoulli":
        params["W"] = rng.uniform(0.15, 0.9, (model.D, model.H))
    if isinstance(model, NoisyOR):
        params["pi"] = rng.uniform(0.1, 0.5, model.H)
    params = {name: params[name] for name in model.shapes}
    Y, _ = model.generate_data(params, N, seed=seed + 1)
    Y[rng.random(Y.shape) < gaps] = np.nan
    return params, Y


def shares(model, W, states):
    """E[y | s], (S, D), and A, (S, D, H), of the maximal causes: docs/math.md, one state after the other."""
    mean, A = np.zeros((len(states), len(W))), np.zeros((len(states), *W.shape))
    for i, s in enumerate(states):
        on = np.flatnonzero(s)
        if not len(on):
            mean[i] = model.of.floor
            continue
        for d, w in enumerate(W[:, on]):
            if getattr(model, "rho", None) is None:
                best = int(np.argmax(np.abs(w)))
                mean[i, d], A[i, d, on[best]] = w[best], 1
            else:
                t = np.sum(np.sign(w) * np.abs(w) ** RHO)
                mean[i, d] = np.sign(t) * np.abs(t) ** (1 / RHO)
                A[i, d, on] = np.minimum((np.abs(w) / np.abs(mean[i, d])) ** (RHO - 1), 1)
    return mean, A


def updated(model, params, Y, T=1.0):
    """W and σ² of an EM step by brute force over all states."""
    states, seen = all_states(model.H), np.isfinite(Y)
    mean, A = shares(model, params["W"], states)
    gap = np.where(seen[:, None], Y[:, None] - mean, 0)
    terms = -(gap**2) / (2 * params.get("sigma", 1) ** 2)
    joint = terms.sum(axis=2) + model.log_prior(params, states)
    q = np.exp(joint / T - np.logaddexp.reduce(joint / T, axis=1)[:, None])
    y = np.where(seen[:, None], Y[:, None], mean)
    W = np.einsum("ns,sdh,nsd->dh", q, A, y) / np.einsum("ns,sdh->dh", q, A)
    squares = np.sum(q[:, :, None] * np.where(seen[:, None], gap**2, params.get("sigma", 1) ** 2))
    return W, squares / Y.size, q @ mean[:, :] if seen.all() else np.einsum("ns,sd->nd", q, mean)


@pytest.mark.parametrize("T", [1.0, 2.5])
@pytest.mark.parametrize("gaps", [0.0, 0.4])
@pytest.mark.parametrize("rho", [None, RHO])
@pytest.mark.parametrize("kind", [MCA, MMCA])
def test_a_step_is_that_of_the_definition(kind, rho, gaps, T, backend):
    model = kind(D=7, H=4, Hprime=4, gamma=4, missing=gaps > 0, rho=rho)
    params, Y = problem(model, gaps=gaps)
    W, variance, mean = updated(model, params, Y, T)
    new, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64", T=T, anneal_prior=True)
    np.testing.assert_allclose(new["W"], np.maximum(W, 0) if kind is MCA else W, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(new["sigma"] ** 2, variance, rtol=1e-8)
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", T=T, anneal_prior=True, reconstruct=True)
    np.testing.assert_allclose(post.reconstruction, mean, atol=1e-8)


DENSITIES = {  # log p(y | mean), of gamma noise of shape 2.5
    "bernoulli": stats.bernoulli.logpmf,
    "poisson": stats.poisson.logpmf,
    "exponential": lambda y, mean: stats.expon.logpdf(y, scale=mean),
    "gamma": lambda y, mean: stats.gamma.logpdf(y, 2.5, scale=mean / 2.5),
}


@pytest.mark.parametrize(("gaps", "T", "Hprime"), [(0.0, 1.0, 1), (0.4, 2.5, 1), (0.4, 1.0, 4)])
@pytest.mark.parametrize("noise", DENSITIES)
def test_a_step_under_any_noise_is_that_of_the_definition(noise, gaps, T, Hprime, backend):
    """By brute force over all states of at most H' causes, from densities of scipy; so is the shape of gamma noise."""
    model = MCA(D=7, H=4, Hprime=Hprime, gamma=Hprime, missing=gaps > 0, noise=noise, background=0.1)
    params, Y = problem(model, gaps=gaps)
    states, seen = all_states(4), np.isfinite(Y)[:, None]
    states = states[states.sum(axis=1) <= Hprime]
    mean, A = shares(model, params["W"], states)
    y = np.where(seen, Y[:, None], mean)
    terms = np.where(seen, DENSITIES[noise](np.where(seen, Y[:, None], 1), mean), 0)
    joint = terms.sum(axis=2) + model.log_prior(params, states)
    q = np.exp(joint / T - np.logaddexp.reduce(joint / T, axis=1)[:, None])
    asked = {"backend": backend, "dtype": "float64", "T": T, "anneal_prior": True}
    new, info = gem.em_step(model, params, Y, **asked)
    np.testing.assert_allclose(info.free_energy, np.logaddexp.reduce(joint, axis=1).sum(), rtol=1e-10)
    W = np.einsum("ns,sdh,nsd->dh", q, A, y) / np.einsum("ns,sdh->dh", q, A)
    np.testing.assert_allclose(new["W"], np.clip(W, 0.1, model.of.most), rtol=1e-8)
    if noise == "gamma":
        gap = np.einsum("ns,nsd->", q, np.where(seen, y / mean - np.log(y / mean) - 1, 0)) / seen.sum()
        np.testing.assert_allclose(np.log(new["shape"]) - special.digamma(new["shape"]), gap, rtol=1e-8)
    post = gem.posterior(model, params, Y, **asked, reconstruct=True)
    np.testing.assert_allclose(post.reconstruction, np.einsum("ns,sd->nd", q, mean), atol=1e-8)


def test_which_causes_have_which_noise():
    for make, says in (
        (lambda: NoisyOR(D=4, H=3, noise="gaussian"), "NoisyOR has no noise 'gaussian'.*MMCA: gaussian.*bernoulli"),
        (lambda: MMCA(D=4, H=3, noise="gamma"), "MMCA has no noise 'gamma'.*MCA: gaussian, bernoulli, poisson, expo"),
        (lambda: MCA(D=4, H=3, noise="cauchy"), "MCA has no noise 'cauchy'"),
        (lambda: MCA(D=4, H=3, noise="gamma", rho=3.0), "smooth maximum is there with gaussian noise"),
        (lambda: MCA(D=4, H=3, background=0.1), "gaussian noise has none"),
        (lambda: MCA(D=4, H=3, noise="bernoulli", background=1.0), "a probability"),
    ):
        with pytest.raises(gem.ConfigError, match=says):
            make()


def test_gamma_noise_of_a_large_shape_keeps_its_digits_in_float32(backend):
    """Data within 1 % of their means: terms of the log likelihood are 10⁴ times as large as what they vary by."""
    model = MCA(D=64, H=5, Hprime=5, gamma=5, noise="gamma", background=200.0)
    rng = np.random.default_rng(0)
    params = {"W": 800 * (1 + rng.uniform(0, 0.01, (64, 5))), "pi": np.array(0.3), "shape": np.array(1e4)}
    Y, _ = model.generate_data(params, 60, seed=1)
    exact = np.logaddexp.reduce(model.log_joint(params, Y, all_states(5)), axis=1)
    wanted = gem.posterior(model, params, Y, backend="numpy", dtype="float64")
    found = gem.posterior(model, params, Y, backend=backend, dtype="float32")
    np.testing.assert_allclose(wanted.log_evidence, exact, rtol=1e-9)
    np.testing.assert_allclose(found.log_evidence, exact, atol=0.02)
    np.testing.assert_allclose(found.mean, wanted.mean, atol=0.01)
    assert np.ptp(wanted.mean) > 0.9


@pytest.mark.parametrize("k", [1e-2, 0.3, 1.0, 7.0, 1e4, 1e8])
def test_the_shape_is_found_from_its_digamma_function(k):
    gap = np.log(k) - special.digamma(k) if k < 1e3 else 1 / (2 * k) + 1 / (12 * k**2)
    assert shape_of(gap) == pytest.approx(k, rel=1e-9)


@pytest.mark.parametrize("kind", [MCA, MMCA])
def test_a_sharp_maximum_is_the_exact_one(kind, backend):
    exact, sharp = (kind(D=7, H=6, Hprime=5, gamma=3, rho=rho) for rho in (None, 3000.0))
    params, Y = problem(exact)
    wanted, _ = gem.em_step(exact, params, Y, backend=backend, dtype="float64")
    found, _ = gem.em_step(sharp, params, Y, backend=backend, dtype="float64")
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=2e-2)


def test_annealing_sharpens_the_maximum(backend):
    annealed = MCA(D=7, H=6, Hprime=5, gamma=3, rho="anneal")
    params, Y = problem(annealed)
    for T, rho in ((1.0, 21.0), (2.0, 2.0), (1.02, 21.0)):
        fixed = MCA(D=7, H=6, Hprime=5, gamma=3, rho=rho)
        one, other = (gem.em_step(m, params, Y, backend=backend, T=T)[0] for m in (annealed, fixed))
        np.testing.assert_allclose(one["W"], other["W"], rtol=1e-4)


def test_large_and_small_fields_stay_in_the_range_of_a_float(backend):
    """W to the power 21 does not."""
    model = MMCA(D=6, H=4, Hprime=4, gamma=4, rho=21.0)
    params, Y = problem(model)
    plain, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    for scale in (1e-4, 1e4):
        scaled = {"W": params["W"] * scale, "pi": params["pi"], "sigma": params["sigma"] * scale}
        new, _ = gem.em_step(model, scaled, Y * scale, backend=backend, dtype="float32")
        np.testing.assert_allclose(new["W"] / scale, plain["W"], rtol=2e-3, atol=2e-3)


def test_the_first_of_equal_causes_has_it_all(backend):
    """Ties are the rule where W was held at 0."""
    model = MCA(D=3, H=3, Hprime=3, gamma=3)
    W = np.array([[0.0, 0, 2], [1, 1, 1], [0, 3, 0]])
    params = {"W": W, "pi": 0.4, "sigma": 1.0}
    Y = np.random.default_rng(0).random((30, 3)) * 3
    expected, *_ = updated(model, model.check(params), Y)
    new, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    np.testing.assert_allclose(new["W"], expected, rtol=1e-9)


@pytest.mark.parametrize("T", [1.0, 2.5])
@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_a_step_of_noisy_or_is_that_of_the_definition(gaps, T, backend):
    """What is missing does not count."""
    model = NoisyOR(D=7, H=4, Hprime=4, gamma=4, missing=gaps > 0)
    params, Y = problem(model, gaps=gaps)
    states, W = all_states(4), params["W"]
    P = np.prod(1 - W * states[:, None, :], axis=2)
    seen, y = np.isfinite(Y), np.nan_to_num(Y)
    with np.errstate(all="ignore"):
        terms = np.where(y[:, None] > 0, np.log(1 - P), np.log(P))
    joint = np.where(seen[:, None], terms, 0).sum(axis=2) + model.log_prior(params, states)
    q = np.exp(joint / T - np.logaddexp.reduce(joint / T, axis=1)[:, None])
    f = 1 - W
    with np.errstate(all="ignore"):
        B = np.where(states[:, None, :], 1 / (f * (1 - P)[..., None]), 0)
        C = np.where(states[:, None, :], P[..., None] / (f**2 * (1 - P)[..., None]), 0)
    wanted = 1 + np.einsum("ns,sdh,nd->dh", q, B, seen * (y - 1)) / np.einsum("ns,sdh,nd->dh", q, C, seen)
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", T=T, anneal_prior=True)
    np.testing.assert_allclose(new["W"], np.clip(wanted, 1e-5, 1 - 1e-5), atol=1e-9)
    np.testing.assert_allclose(new["pi"], (q @ states).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(info.free_energy, np.logaddexp.reduce(joint, axis=1).sum(), rtol=1e-10)


def test_noisy_or_of_many_causes_near_one_stays_finite(backend):
    """Ten causes that all but surely switch on: their product of 1e-50 is 0 in float32, and missing entries hide it."""
    model = NoisyOR(D=7, H=10, Hprime=10, gamma=10, missing=True)
    params, Y = problem(model, gaps=0.4)
    params["W"][:] = 1 - 1e-5
    params["W"][:3] = 0.1
    Y[0] = np.nan
    wanted, reference = gem.em_step(model, params, Y, backend="numpy", dtype="float64")
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float32")
    np.testing.assert_allclose(info.free_energy, reference.free_energy, rtol=1e-5)
    np.testing.assert_allclose(new["W"], wanted["W"], atol=2e-3)
    np.testing.assert_allclose(new["pi"], wanted["pi"], rtol=1e-3)


@pytest.mark.parametrize("kind", [MCA, MMCA, NoisyOR, PMCA])
def test_learning_with_gaps(kind, backend):
    """F rises by far more than it ever falls, and what is missing is filled in better than by the mean."""
    model = kind(D=12, H=3, Hprime=3, gamma=3, missing=True)
    _, whole = problem(model, N=400)
    Y = np.where(np.random.default_rng(5).random(whole.shape) < 0.3, np.nan, whole)
    learnt, energies = model.init_params(Y, seed=1), []
    for _ in range(30):
        learnt, info = gem.em_step(model, learnt, Y, backend=backend, dtype="float64")
        energies.append(info.free_energy)
    gain = energies[-1] - energies[0]
    assert np.diff(energies).min() > -5e-3 * gain  # winners that change with W may cost a little
    filled = gem.posterior(model, learnt, Y, backend=backend, dtype="float64", reconstruct=True).reconstruction
    gaps = np.isnan(Y)
    mean = np.broadcast_to(np.nanmean(Y, axis=0), Y.shape)
    assert np.mean((filled - whole)[gaps] ** 2) < 0.9 * np.mean((mean - whole)[gaps] ** 2)


def test_poisson_causes_are_recovered(backend):
    """Bars of rate 8 on a background of 0.2, from a start near the mean."""
    bars = np.zeros((6, 3, 3))
    for i in range(3):
        bars[i, i], bars[3 + i, :, i] = 8, 8
    model = PMCA(D=9, H=6, Hprime=6, gamma=3, background=0.2)
    params = {"W": np.maximum(bars.reshape(6, 9).T, 0.2), "pi": 0.2}
    Y, _ = model.generate_data(params, 1000, seed=3)
    learnt, energies = model.init_params(Y, seed=0), []
    for T in (*np.linspace(6, 1, 25), *[1.0] * 10):
        learnt, info = gem.em_step(model, learnt, Y, backend=backend, T=T)
        energies.append(info.free_energy)
    assert np.all(np.diff(energies[25:]) > -1e-4 * abs(energies[-1]))
    distance = np.abs(learnt["W"].T[:, None] - params["W"].T[None]).max(axis=2)
    assert sorted(distance.argmin(axis=1)) == list(range(6))
    assert distance.min(axis=1).max() < 1


@pytest.mark.parametrize("gaps", [0.0, 0.3])
@pytest.mark.parametrize("rate", [1000, 20_000])
def test_large_counts_keep_their_digits_in_float32(rate, gaps, backend):
    """Terms of the log likelihood are 10⁵ times as large as what it varies by: so they are of differences."""
    model = PMCA(D=256, H=5, Hprime=5, gamma=5, missing=gaps > 0, background=rate / 4)
    rng = np.random.default_rng(0)
    params = {"W": rate * (1 + rng.uniform(0, 0.02, (256, 5))), "pi": np.array(0.3)}
    Y, _ = model.generate_data(params, 60, seed=1)
    Y[rng.random(Y.shape) < gaps] = np.nan
    wanted = gem.posterior(model, params, Y, backend="numpy", dtype="float64")
    found = gem.posterior(model, params, Y, backend=backend, dtype="float32")
    states = all_states(5)
    exact = np.logaddexp.reduce(model.log_joint(params, Y, states), axis=1)
    np.testing.assert_allclose(wanted.log_evidence, exact, rtol=1e-9)
    np.testing.assert_allclose(found.log_evidence, exact, rtol=1e-6)
    np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-4)
    assert np.ptp(wanted.mean) > 0.9


def test_states_without_weight_change_nothing(backend, monkeypatch):
    """All states counted, by the twin, against those whose weight counts."""
    import gem.kernels.causes as twin

    model = MCA(D=20, H=8, Hprime=6, gamma=4)
    params, Y = problem(model)
    found, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    monkeypatch.setattr(twin, "SKIP", {"float64": -1.0})
    wanted, _ = gem.em_step(model, params, Y, backend="numpy", dtype="float64")
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9)


def test_data_that_are_not_of_the_model_are_refused(backend):
    for model, bad, says in (
        (NoisyOR(D=4, H=3), 0.5, "neither 0 nor 1"),
        (PMCA(D=4, H=3), -1.0, "no count"),
        (MCA(D=4, H=3, noise="bernoulli"), 2.0, "neither 0 nor 1"),
        (MCA(D=4, H=3, noise="exponential"), -0.5, "negative"),
        (MCA(D=4, H=3, noise="gamma", missing=True), 0.0, "not positive"),
    ):
        params, Y = problem(model)
        Y[17, 2] = bad
        with pytest.raises(gem.DataError, match=rf"{bad} at row 17, column 2 is {says}"):
            gem.em_step(model, params, Y, backend=backend, batch=10)


def test_a_cause_that_is_never_on_keeps_its_field(backend):
    model = MCA(D=4, H=3, Hprime=2, gamma=2)
    W = np.array([[5.0, 0, 0], [0, 5, 0], [0, 0, 0], [0, 0, 400.0]])
    params = {"W": W, "pi": 0.3, "sigma": 0.5}
    Y = np.abs(np.random.default_rng(0).random((50, 4)))
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    np.testing.assert_array_equal(new["W"][:, 2], W[:, 2])
    assert "latent 2 was never active: its field was kept" in info.notes


def test_the_score_is_how_far_a_field_exceeds_the_data(backend):
    model = MCA(D=6, H=9, Hprime=3, gamma=2, missing=True)
    params, Y = problem(model, gaps=0.3)
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64")
    score = -np.nansum(np.maximum(params["W"].T[None] - Y[:, None], 0), axis=2)
    best = 8 - np.argsort(-score[:, ::-1], axis=1, kind="stable")[:, :3]  # of equals the higher index
    np.testing.assert_array_equal(post.candidates, np.sort(best, axis=1))


def test_every_fragment_says_the_same_in_c_and_in_numpy():
    folder = source.FOLDER / "fragments"
    assert {path.stem for path in folder.glob("*.h")} == {p.stem for p in folder.glob("*.py")} - {"__init__"}
    for both in FRAGMENTS["causes"]:
        twin, text = source.fragment_twin(both), source.program("causes", fragment=both)
        for name in ("start", "combine", "term", "share", "value"):
            assert callable(getattr(twin, name))
            assert f"DEVICE vec {name}(" in text
        for flag in ("RELATIVE", "EXCLUSIVE", "IMPUTED"):
            assert f"#define {flag} {int(getattr(twin, flag))}" in text


@pytest.mark.parametrize("rho", [1.0, 0.5, "sharp", True, np.inf])
def test_a_rho_that_is_none_is_refused(rho):
    with pytest.raises(gem.ConfigError, match="rho"):
        MCA(D=4, H=3, rho=rho)


def test_settings_make_the_same_model():
    for model in (MCA(D=4, H=3, rho="anneal"), PMCA(D=4, H=3, background=0.3), NoisyOR(D=4, H=3, missing=True)):
        assert "noise" not in model.settings()  # as in run files from before there was a choice
        assert repr(type(model)(**model.settings())) == repr(model)
    with pytest.raises(gem.ConfigError, match="background"):
        PMCA(D=4, H=3, background=0)
    with pytest.raises(gem.ConfigError, match="states per data point"):
        MMCA(D=4, H=30, Hprime=20, gamma=8)


@pytest.mark.parametrize("model", [MCA(D=16, H=4), MMCA(D=16, H=4)], ids=repr)
def test_noise_far_below_the_data_keeps_its_digits(model, backend):
    """log p(y | s) of a point is the small difference of large terms: it is taken before points are added up."""
    rng = np.random.default_rng(0)
    params = {"W": 100 + rng.uniform(0, 20, (16, 4)), "pi": np.array(0.3), "sigma": np.array(3e-5)}
    Y, s = model.generate_data(params, N=50_000, seed=0)
    found, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    residual = Y - model.combined(params, s)  # no other state comes near
    np.testing.assert_allclose(found["sigma"], np.sqrt(np.mean(residual**2)), rtol=2e-3)
