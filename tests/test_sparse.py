"""Sparse coding against other solvers of the same objective, and what must hold on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import DictionaryLearning, sparse_encode

import gem
from gem.models import SC
from gem.models.sparse import turned_fields

PENALTY = 0.6


def lasso(W, Y, s, penalty=PENALTY):
    """½‖y − Ws‖² + penalty ‖s‖₁ of each data point."""
    return ((Y - s @ W.T) ** 2).sum(axis=1) / 2 + penalty * np.abs(s).sum(axis=1)


@pytest.fixture
def case():
    """A model twice overcomplete, parameters of unit columns, and sparse data with noise."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((12, 24))
    W /= np.linalg.norm(W, axis=0)
    s = rng.laplace(size=(120, 24)) * (rng.random((120, 24)) < 0.2) * 3
    Y = s @ W.T + 0.3 * rng.standard_normal((120, 12))
    sigma = 0.5
    return SC(D=12, H=24, tol=1e-9, iterations=2000), {"W": W, "sigma": sigma, "b": sigma**2 / PENALTY}, Y


def test_the_most_probable_latents_are_those_of_another_solver(case, backend):
    model, params, Y = case
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", reconstruct=True, top=1)
    theirs = sparse_encode(Y, params["W"].T, algorithm="lasso_cd", alpha=PENALTY, max_iter=20_000)
    best = lasso(params["W"], Y, theirs)
    np.testing.assert_allclose(lasso(params["W"], Y, post.mean), best, rtol=2e-4)
    assert np.all(lasso(params["W"], Y, post.mean) <= best + 1e-8 * (Y**2).sum(axis=1))
    np.testing.assert_allclose(post.mean, theirs, atol=0.05)
    np.testing.assert_allclose(post.reconstruction, post.mean @ params["W"].T, atol=1e-10)
    np.testing.assert_array_equal(post.map_state, post.mean)
    assert np.isnan(post.probabilities).all()


def test_the_log_joint_is_that_of_the_definition(case, backend):
    model, params, Y = case
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64")
    joint = np.array([model.log_joint(params, y[None], s[None])[0, 0] for y, s in zip(Y, post.mean, strict=True)])
    np.testing.assert_allclose(post.log_evidence, joint, rtol=1e-10)
    elsewhere = np.array(
        [model.log_joint(params, y[None], 1.01 * s[None])[0, 0] for y, s in zip(Y, post.mean, strict=True)]
    )
    assert np.all(elsewhere <= joint + 1e-6)


def test_float32_finds_the_same(case, backend):
    model, params, Y = case
    loose = SC(D=12, H=24, tol=1e-5)
    post = gem.posterior(loose, params, Y, backend=backend, dtype="float32")
    exact = gem.posterior(model, params, Y, backend="numpy", dtype="float64")
    best, found = (lasso(params["W"], Y, p.mean) for p in (exact, post))
    assert np.all(found - best <= 3e-5 * (Y**2).sum(axis=1))


def test_the_free_energy_never_falls(case, backend, world):
    model, _, Y = case
    params = model.init_params(Y, seed=1)
    energies = []
    for _ in range(15):
        params, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", comm=world)
        energies.append(info.free_energy)
        np.testing.assert_allclose(np.linalg.norm(params["W"], axis=0), 1, rtol=1e-12)
    slack = model.tol * (Y**2).sum() / params["sigma"] ** 2
    assert np.all(np.diff(energies) >= -slack)
    assert energies[-1] > energies[0] + 10


def test_a_column_turned_alone_is_at_its_minimum():
    """Small rotations of any column, the others held, raise the squared error."""
    rng = np.random.default_rng(2)
    s = rng.laplace(size=(200, 5))
    y = s @ rng.standard_normal((5, 8)) + rng.standard_normal((200, 8))
    W = turned_fields(y.T @ s, s.T @ s, np.linalg.qr(rng.standard_normal((8, 5)))[0])
    best = ((y - s @ W.T) ** 2).sum()
    for h in range(5):
        for _ in range(20):
            moved = W.copy()
            moved[:, h] += 1e-2 * rng.standard_normal(8)
            moved[:, h] /= np.linalg.norm(moved[:, h])
            assert ((y - s @ moved.T) ** 2).sum() > best - 1e-6


@pytest.mark.filterwarnings("ignore:Objective did not converge")
def test_learned_fields_are_as_good_as_those_of_dictionary_learning(backend):
    rng = np.random.default_rng(3)
    true = rng.standard_normal((16, 20))
    true /= np.linalg.norm(true, axis=0)
    s = 4 * rng.laplace(size=(600, 20)) * (rng.random((600, 20)) < 0.1)
    Y = s @ true.T + 0.1 * rng.standard_normal((600, 16))
    model = SC(D=16, H=20, penalty=0.5)
    params = model.init_params(Y, seed=0)
    for _ in range(60):
        params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float32")
    s = gem.posterior(model, params, Y, backend=backend).mean
    peer = DictionaryLearning(
        20,
        alpha=0.5,
        max_iter=60,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        transform_alpha=0.5,
        random_state=0,
    )
    code = peer.fit_transform(Y)
    ours, theirs = lasso(params["W"], Y, s, 0.5).mean(), lasso(peer.components_.T, Y, code, 0.5).mean()
    assert ours < 1.03 * theirs
    assert np.mean(s != 0) < 1.2 * np.mean(code != 0)
    overlap = np.abs(true.T @ params["W"]).max(axis=1)
    assert np.mean(overlap > 0.95) > 0.7


def test_batches_do_not_matter(case, backend):
    """A data point ends its search when its own gap is small, not when the last one of its batch does."""
    _, params, Y = case
    model = SC(D=12, H=24, tol=1e-2)
    whole, *others = (
        gem.em_step(model, params, Y, backend=backend, dtype="float64", batch=b)[0]["W"] for b in (120, 1, 7)
    )
    for other in others:
        np.testing.assert_allclose(other, whole, atol=1e-6)


def test_a_larger_penalty_is_sparser_and_annealing_the_likelihood_is_one(case, backend):
    model, params, Y = case
    mean = {
        T: gem.posterior(model, params, Y, backend=backend, dtype="float64", T=T, anneal_prior=False).mean
        for T in (1.0, 3.0)
    }
    assert np.count_nonzero(mean[3.0]) < 0.8 * np.count_nonzero(mean[1.0])
    larger = {**params, "b": params["b"] / 3}
    expected = gem.posterior(model, larger, Y, backend=backend, dtype="float64").mean
    np.testing.assert_allclose(mean[3.0], expected, atol=1e-9)


@pytest.mark.parametrize("T", [1.0, 2.0])
def test_codes_that_were_not_found_are_told(case, T, backend, caplog):
    """Of how many data points: from the definition of the gap."""
    _, params, Y = case
    model, options = SC(D=12, H=24, iterations=11, tol=1e-3), {"backend": backend, "dtype": "float64", "T": T}
    s, penalty = gem.posterior(model, params, Y, **options).mean, T * params["sigma"] ** 2 / params["b"]
    rest = Y - s @ params["W"].T
    shrunk = rest * np.minimum(1, penalty / np.abs(rest @ params["W"]).max(axis=1))[:, None]
    primal = (rest**2).sum(axis=1) / 2 + penalty * np.abs(s).sum(axis=1)
    gap = primal - ((Y**2).sum(axis=1) - ((Y - shrunk) ** 2).sum(axis=1)) / 2
    far = gap > model.tol * (Y**2).sum(axis=1)
    assert far.mean() > 0.1  # there is something to tell
    said = f"the codes of {far.mean():.1%} of the data points were not found to tol = 0.001 within iterations = 11"
    _, info = gem.em_step(model, params, Y, **options)
    assert [note.split(":")[0] for note in info.notes] == [said]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [said]
    assert not gem.em_step(SC(D=12, H=24, iterations=2000, tol=1e-3), params, Y, **options)[1].notes


def with_latent_5_never_active(params, Y):
    """Its field is a dimension that is always zero."""
    W = np.vstack([params["W"], np.zeros((1, 24))])
    W[:, 5] = 0
    W[-1, 5] = 1
    return SC(D=13, H=24), W, np.hstack([Y, np.zeros((120, 1))])


def test_a_latent_that_is_never_active_keeps_its_field_and_says_so(case, backend):
    _, params, Y = case
    model, W, Y = with_latent_5_never_active(params, Y)
    new, info = gem.em_step(model, {**params, "W": W}, Y, backend=backend)
    np.testing.assert_array_equal(new["W"][:, 5], W[:, 5])
    assert "latent 5 was never active: its field was kept" in info.notes


def test_a_latent_that_is_never_active_begins_anew_on_request(case):
    _, params, Y = case
    model, W, Y = with_latent_5_never_active(params, Y)
    kept, _ = gem.em_step(model, {**params, "W": W}, Y, backend="numpy")
    new, info = gem.em_step(model, {**params, "W": W}, Y, backend="numpy", reseed=True)
    assert info.notes[-1].startswith("latent 5 was dead and re-seeded beside latent ")
    others = np.arange(24) != 5
    np.testing.assert_array_equal(new["W"][:, others], kept["W"][:, others])
    np.testing.assert_allclose(new["W"][:, 5] @ new["W"][:, int(info.notes[-1].split()[-1])], np.sqrt(0.5), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(new["W"], axis=0), 1, rtol=1e-12)
    _, info = gem.em_step(model, new, Y, backend="numpy", reseed=True)
    assert not info.notes


def test_nan_is_refused_with_row_and_column(case, backend):
    _, params, Y = case
    Y = Y.copy()
    Y[40, 3] = np.nan
    with pytest.raises(gem.DataError, match="row 40, column 3"):
        gem.em_step(SC(D=12, H=24, iterations=10), params, Y, backend=backend)


def test_generated_data_have_the_prior_and_the_noise_they_should(case):
    model, params, _ = case
    Y, s = model.generate_data(params, 20_000, seed=1)
    np.testing.assert_allclose(np.abs(s).mean(), params["b"], rtol=0.01)
    np.testing.assert_allclose((Y - s @ params["W"].T).std(), params["sigma"], rtol=0.01)
    np.testing.assert_array_equal(model.generate_data(params, 10, seed=1, start=5000)[0], Y[5000:5010])


def test_bad_settings_are_refused():
    for bad, match in (({"penalty": 0.0}, "penalty"), ({"tol": 0.0}, "tol"), ({"iterations": 0}, "iterations")):
        with pytest.raises(gem.ConfigError, match=match):
            SC(D=2, H=2, **bad)
    with pytest.raises(gem.DataError, match="equal"):
        SC(D=2, H=2).init_params(np.ones((5, 2)))


def test_data_whose_squares_float32_cannot_hold_are_refused():
    """Their gaps were 0: the search stopped at once, and F was off by hundreds of nats in silence."""
    Y = np.random.default_rng(0).normal(size=(100, 3))
    for stored in (np.float32(1e-25) * Y.astype(np.float32), 1e-25 * Y):
        with pytest.raises(gem.DataError, match="use dtype='float64', or rescale"):
            gem.EM(SC(3, 3), stored, gem.Annealing(2), backend="numpy", dtype="float32").run()
    F, exact = (
        gem.EM(SC(3, 3), 1e-16 * Y, gem.Annealing(3), backend="numpy", dtype=dtype).run().history["free_energy"][-1]
        for dtype in ("float32", "float64")
    )
    assert abs(F - exact) < 1e-2
