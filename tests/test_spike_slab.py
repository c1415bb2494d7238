"""Spike-and-slab sparse coding against Gaussian integrals in the space of the data; what conformance cannot ask."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

import gem
from gem.models import GSC
from gem.models.linear import solve_fields

STATES = np.array(list(product([0, 1], repeat=4)), dtype=float)  # of H = 4


def truth(D=6, H=4, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "W": 2 * rng.standard_normal((D, H)),
        "pi": rng.uniform(0.1, 0.5, H),
        "mu": rng.standard_normal(H),
        "psi": rng.uniform(0.3, 2, H),
        "sigma": np.array(0.7),
    }


def data(model, params, N, seed=2, holes=False):
    Y, _ = model.generate_data(params, N, seed)
    if holes:
        Y[np.random.default_rng(seed).random(Y.shape) < 0.3] = np.nan
        Y[0] = np.nan
    return Y


def integral(params, y, s):
    """log p(y | s), E[s∘z | s, y] (H,) and E[(s∘z)(s∘z)ᵀ | s, y] (H, H) of one data point, by its D × D covariance."""
    seen = np.isfinite(y)
    W = params["W"][seen] * s
    gain = params["psi"][:, None] * W.T
    C = W @ gain + params["sigma"] ** 2 * np.eye(seen.sum())
    apart = y[seen] - W @ params["mu"]
    log_p = -(apart @ np.linalg.solve(C, apart) + np.linalg.slogdet(2 * np.pi * C)[1]) / 2
    mean = s * (params["mu"] + gain @ np.linalg.solve(C, apart))
    covariance = (np.diag(params["psi"]) - gain @ np.linalg.solve(C, gain.T)) * np.outer(s, s)
    return log_p, mean, covariance + np.outer(mean, mean)


def brute_force(params, y, states, T=1.0):
    """log evidence, ⟨s⟩, ⟨s∘z⟩, ⟨(s∘z)(s∘z)ᵀ⟩ and q of one data point on the given states."""
    on = states != 0
    prior = on @ np.log(params["pi"]) + ~on @ np.log1p(-params["pi"])
    log_p, mean, second = (np.array(part) for part in zip(*(integral(params, y, s) for s in states), strict=True))
    joint = prior + log_p
    q = np.exp(joint / T - np.max(joint / T))
    q /= q.sum()
    return np.logaddexp.reduce(joint), q @ states, q @ mean, np.tensordot(q, second, 1), q


@pytest.mark.parametrize("holes", [False, True])
def test_the_strengths_are_integrated_out(holes):
    model = GSC(D=6, H=4, missing=holes)
    params = truth()
    Y = data(model, params, 5, holes=holes)
    wanted = [[integral(params, y, s)[0] for s in STATES] for y in Y]
    np.testing.assert_allclose(model.log_likelihood(params, Y, STATES), wanted, rtol=1e-10)


@pytest.mark.parametrize("holes", [False, True])
def test_posterior_is_that_of_the_definition(holes, backend):
    model = GSC(D=6, H=4, Hprime=4, gamma=4, missing=holes)
    params = truth()
    Y = data(model, params, 40, holes=holes)
    hot = gem.posterior(model, params, Y, backend=backend, dtype="float64", T=1.7, anneal_prior=True)
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", top=3, reconstruct=True)
    for n, y in enumerate(Y):
        log_evidence, s, sz, _, q = brute_force(params, y, STATES)
        np.testing.assert_allclose(post.log_evidence[n], log_evidence, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(post.mean[n], s, atol=1e-10)
        np.testing.assert_allclose(post.product[n], sz, atol=1e-9)
        np.testing.assert_allclose(post.reconstruction[n], params["W"] @ sz, atol=1e-9)
        np.testing.assert_array_equal(post.states[n], STATES[np.argsort(-q)[:3]])
        np.testing.assert_allclose(post.probabilities[n], np.sort(q)[:-4:-1], atol=1e-9)
        _, s, sz, _, _ = brute_force(params, y, STATES, T=1.7)
        np.testing.assert_allclose(hot.mean[n], s, atol=1e-10)
        np.testing.assert_allclose(hot.product[n], sz, atol=1e-9)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("Hprime", "gamma"), [(1, 1), (3, 1), (4, 3), (5, 2)])
def test_truncated_posterior_enumerates_exactly_its_states(Hprime, gamma, holes, backend):
    model = GSC(D=6, H=7, Hprime=Hprime, gamma=gamma, missing=holes)
    params = truth(H=7)
    Y = data(model, params, 20, holes=holes)
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64")
    score = model.log_joint(params, Y, np.eye(7))
    for n, y in enumerate(Y):
        best = sorted(np.argsort(-score[n], kind="stable")[:Hprime])
        np.testing.assert_array_equal(post.candidates[n], best)
        K = [np.zeros(7), *np.eye(7)]
        K += [np.isin(np.arange(7), c).astype(float) for g in range(2, gamma + 1) for c in combinations(best, g)]
        log_evidence, s, sz, _, _ = brute_force(params, y, np.array(K))
        np.testing.assert_allclose(post.log_evidence[n], log_evidence, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(post.mean[n], s, atol=1e-10)
        np.testing.assert_allclose(post.product[n], sz, atol=1e-9)


def test_m_step_is_a_stationary_point(backend):
    """Of the expected log p(s, z, y): its moments by brute force, its gradient by differences."""
    model = GSC(D=6, H=4, Hprime=4, gamma=4)
    old = truth(seed=3)
    Y = data(model, truth(), 60)
    new, _ = gem.em_step(model, old, Y, backend=backend, dtype="float64")
    s, sz, second = (sum(parts) for parts in list(zip(*(brute_force(old, y, STATES) for y in Y), strict=True))[1:4])
    ysz = sum(np.outer(y, brute_force(old, y, STATES)[2]) for y in Y)

    def expected(p):
        prior = s @ np.log(p["pi"]) + (len(Y) - s) @ np.log1p(-p["pi"])
        squares = np.diag(second) - 2 * p["mu"] * sz + p["mu"] ** 2 * s
        slab = -np.sum(squares / p["psi"] + s * np.log(p["psi"])) / 2
        residual = np.sum(Y**2) - 2 * np.sum(p["W"] * ysz) + np.sum((p["W"] @ second) * p["W"])
        return prior + slab - residual / (2 * p["sigma"] ** 2) - Y.size * np.log(p["sigma"])

    best, rng = expected(new), np.random.default_rng(6)
    for name, value in new.items():
        step = 1e-4 * value * rng.standard_normal(value.shape)
        up, down = (expected({**new, name: value + sign * step}) for sign in (1, -1))
        assert up + down < 2 * best, name
        assert abs(up - down) < 1e-3 * abs(up + down - 2 * best), name


@pytest.mark.parametrize("holes", [False, True])
def test_free_energy_never_falls(holes, backend, world):
    model = GSC(D=6, H=4, Hprime=4, gamma=4, missing=holes)
    Y = data(model, truth(), 300, holes=holes)
    params = model.init_params(Y, seed=1)
    energies = []
    for _ in range(30):
        params, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", comm=world)
        energies.append(info.free_energy)
    assert np.all(np.diff(energies) >= -1e-9 * np.abs(energies[0]))
    assert energies[-1] > energies[0] + 10


def test_missing_entries_need_the_setting(backend):
    params = truth()
    Y = data(GSC(D=6, H=4), params, 20, holes=True)
    with pytest.raises(gem.DataError, match="row 0"):
        gem.em_step(GSC(D=6, H=4), params, Y, backend=backend)


@pytest.mark.parametrize("scale", [1e-5, 1e6])
def test_units_of_data_and_strengths_do_not_matter(scale, backend):
    """y in other units, each latent's strengths in its own: in float32, since the kernels know neither."""
    model = GSC(D=6, H=4, Hprime=4, gamma=3)
    params = truth()
    Y = data(model, params, 200)
    of_latent = np.array([1e-4, 1, 30, 1e5])
    other = {
        "W": scale * params["W"] / of_latent,
        "pi": params["pi"],
        "mu": params["mu"] * of_latent,
        "psi": params["psi"] * of_latent**2,
        "sigma": scale * params["sigma"],
    }
    wanted, info = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    found, info32 = gem.em_step(model, other, scale * Y, backend=backend, dtype="float32")
    np.testing.assert_allclose(info32.free_energy, info.free_energy - Y.size * np.log(scale), rtol=1e-5)
    np.testing.assert_allclose(found["W"] * of_latent / scale, wanted["W"], rtol=1e-3, atol=1e-3)
    for name, value in (("mu", found["mu"] / of_latent), ("psi", found["psi"] / of_latent**2), ("pi", found["pi"])):
        np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(found["sigma"] / scale, wanted["sigma"], rtol=1e-3)


def test_strengths_that_hardly_vary_keep_their_variance(backend):
    """μ² = 10⁵ ψ: in float32 ⟨z²⟩ − μ² would have one digit."""
    model = GSC(D=6, H=4, Hprime=4, gamma=4)
    params = {**truth(), "mu": np.full(4, 3.0), "psi": np.full(4, 9e-5), "sigma": np.array(5e-2)}
    Y = data(model, params, 2000)
    found, wanted = params, params
    for _ in range(3):
        wanted, _ = gem.em_step(model, wanted, Y, backend=backend, dtype="float64")
        found, _ = gem.em_step(model, found, Y, backend=backend, dtype="float32")
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0.02, atol=2e-3 * np.abs(value).max(), err_msg=name)


def test_noiseless_data_in_float32_stay_finite(backend):
    """Far from the truth and almost without noise: pivots of 10⁸, strengths of 10³ prior standard deviations."""
    model = GSC(D=6, H=5, Hprime=5, gamma=4)
    params = {**truth(H=5, seed=4), "sigma": np.array(1e-4), "psi": np.full(5, 1e-2)}
    params["W"][:, 1] = params["W"][:, 0] * (1 + 1e-5)  # and all but singular
    Y = 30 * data(model, truth(H=5), 300)
    for _ in range(10):
        params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float32")
        assert all(np.all(np.isfinite(value)) for value in params.values())
        assert np.all(params["psi"] > 0)
        assert params["sigma"] > 0


def test_a_dead_latent_keeps_field_and_strengths_and_says_so(backend):
    model = GSC(D=6, H=4, Hprime=2, gamma=2)
    params = truth()
    Y = data(model, {**params, "pi": np.array([0.3, 0.3, 0.3, 1e-10])}, 200)
    params["W"][:, 3], params["mu"][3] = 1e3, 50.0  # so far from all data that its posterior underflows
    new, info = gem.em_step(model, params, Y, backend=backend)
    for name in ("W", "mu", "psi"):
        np.testing.assert_array_equal(new[name][..., 3], params[name][..., 3])
    assert new["pi"][3] < 1e-9
    assert info.notes == ["latent 3 was never active: its field and strengths were kept"]
    again, _ = gem.em_step(model, new, Y, backend=backend)
    assert all(np.all(np.isfinite(value)) for value in again.values())


@pytest.mark.parametrize("holes", [False, True])
def test_data_selection_sums_the_selected_points_alone(holes, backend, world):
    model = GSC(D=6, H=4, Hprime=3, gamma=2, missing=holes)
    params = truth()
    Y = data(model, params, 300, holes=holes)
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", Ncut=1.0, comm=world)
    energy = gem.posterior(model, params, Y, backend=backend, dtype="float64").log_evidence
    kept = np.sort(np.argsort(-energy)[: info.N_use])
    assert 0 < info.N_use < 300
    alone, _ = gem.em_step(model, params, Y[kept], backend=backend, dtype="float64")
    for name in ("W", "mu", "psi", "sigma"):
        np.testing.assert_allclose(new[name], alone[name], rtol=1e-9, err_msg=name)


def test_an_equivalent_parametrisation_has_the_old_norms():
    """Where a latent has none, or its variance would leave the range of a float, it stays as it is."""
    model = GSC(D=6, H=4, Hprime=4, gamma=4)
    old, drifted = truth(), truth()
    c = np.array([1e-70, 3.0, 1e145, 0.2])
    drifted |= {"W": old["W"] * c, "mu": old["mu"] / c, "psi": old["psi"] / c**2}
    settled = model.settle(drifted, old)
    for name, value in old.items():
        np.testing.assert_allclose(settled[name], value, rtol=1e-12, err_msg=name)
    turned = {**drifted, "W": -drifted["W"][::-1]}
    same = model.settle(turned, old)
    np.testing.assert_allclose(np.linalg.norm(same["W"], axis=0), np.linalg.norm(old["W"], axis=0), rtol=1e-12)
    Y = data(model, old, 20)
    np.testing.assert_allclose(model.log_joint(same, Y, STATES), model.log_joint(turned, Y, STATES), rtol=1e-12)
    gone = {**old, "W": old["W"] * [0.0, 1.0, 1.0, 1.0]}
    np.testing.assert_array_equal(model.settle(gone, old)["W"], gone["W"])
    np.testing.assert_array_equal(model.settle(old, gone)["psi"], old["psi"])
    tiny = {**old, "psi": old["psi"] * 1e-300, "W": old["W"] * 1e-10}
    np.testing.assert_array_equal(model.settle(tiny, old)["psi"], tiny["psi"])


def test_a_run_keeps_the_norms_of_the_fields_and_the_free_energy_of_plain_steps():
    model = GSC(D=6, H=4, Hprime=4, gamma=3)
    params = {**truth(seed=3), "pi": np.full(4, 0.2)}
    Y = data(model, truth(), 60)
    run = gem.EM(model, Y, gem.Annealing(40), params=params, backend="numpy", dtype="float64").run()
    energies, plain = [], params
    for _ in range(40):
        plain, info = gem.em_step(model, plain, Y, backend="numpy", dtype="float64")
        energies.append(info.free_energy)
    norms, start, drifted = (np.linalg.norm(p["W"], axis=0) for p in (run.params, params, plain))
    np.testing.assert_allclose(norms, start, rtol=1e-12)
    assert np.abs(drifted / start - 1).max() > 0.2
    np.testing.assert_allclose(run.history["free_energy"][:-1], energies[:-1], rtol=1e-9)
    np.testing.assert_allclose(run.params["W"] * run.params["mu"], plain["W"] * plain["mu"], atol=1e-6)


def test_fields_of_latents_that_are_hardly_ever_active_are_their_own_least_squares(monkeypatch):
    """Beside two that are always active together, which leaves the whole undetermined: rounding once made them 1e60.

    Which vectors of equal eigenvalues there are is up to the library: here they are mixed.
    """

    def mixed(matrix):
        values, vectors = eigh(matrix)
        equal = np.abs(values - 1) < 1e-12
        angles = np.linalg.qr(rng.standard_normal((equal.sum(), equal.sum())))[0]
        vectors[:, equal] = vectors[:, equal] @ angles
        return values, vectors

    eigh, rng = np.linalg.eigh, np.random.default_rng(0)
    monkeypatch.setattr(np.linalg, "eigh", mixed)
    s, weight = np.zeros((60, 6)), np.ones((60, 1))
    s[:40, :3] = rng.standard_normal((40, 3))
    s[:, 1] = s[:, 0]
    s[40:50, 3] = s[50:55, 4] = s[55:, 5] = 1
    weight[50:55], weight[55:] = 1e-150, 1e-40
    Y = rng.standard_normal((60, 6))
    old = rng.standard_normal((6, 6))
    W = solve_fields((weight * Y).T @ s, (weight * s).T @ s, old)
    np.testing.assert_allclose((Y - s @ W.T).T @ s, 0, atol=1e-9)
    np.testing.assert_array_equal(solve_fields(np.zeros((6, 6)), np.zeros((6, 6)), old), old)


@pytest.mark.parametrize("holes", [False, True])
def test_a_bright_point_leaves_the_noise_its_digits(holes, backend, world):
    """In float32, of one point 10⁶ times as bright as the noise; in float64 its square has digits enough."""
    model, params = GSC(D=8, H=4, Hprime=4, gamma=4, missing=holes), truth(D=8)
    Y, _ = model.generate_data(params, 200, seed=2)
    Y[7] += 1e6 * params["W"][:, 0] / np.linalg.norm(params["W"][:, 0])
    if holes:
        Y[np.random.default_rng(2).random(Y.shape) < 0.1] = np.nan
    Y = Y.astype("float32")
    off = {**params, "W": params["W"] + 0.1}
    found = {t: gem.em_step(model, off, Y, backend=backend, dtype=t, comm=world)[0] for t in ("float32", "float64")}
    np.testing.assert_allclose(found["float32"]["sigma"], found["float64"]["sigma"], rtol=1e-3)
    np.testing.assert_allclose(found["float32"]["W"], found["float64"]["W"], atol=1e-3)
