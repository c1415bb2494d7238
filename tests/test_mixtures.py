"""Mixtures of Gaussians: numerics that go wrong elsewhere, and what happens at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

import gem
from gem.models import MoG
from gem.models.mixtures import kmeans_plusplus

COVARIANCES = ("diag", "spherical", "tied", "full")


def blobs(N, D, K, seed, distance=6.0):
    rng = np.random.default_rng(seed)
    return distance * rng.standard_normal((K, D))[rng.integers(K, size=N)] + rng.standard_normal((N, D))


def variances(params, D):
    if "cov" in params:
        return np.diagonal(np.atleast_3d(params["cov"].T).T, axis1=-2, axis2=-1)
    return np.broadcast_to(params["var"].reshape(len(params["var"]), -1), (len(params["var"]), D))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_float32_is_safe_far_from_zero(covariance, mean, backend):
    """scikit-learn issue 30382: variances collapse or turn negative in float32."""
    Y = (mean + np.random.default_rng(0).standard_normal((20_000, 3))).astype(np.float32)
    model = MoG(D=3, K=2, covariance=covariance)
    params = model.init_params(Y, seed=0)
    for _ in range(30):
        params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float32")
        assert variances(params, 3).min() > 0.1
    pooled = variances(params, 3).T @ params["pi"] if covariance != "tied" else variances(params, 3)[0]
    pooled = pooled + ((params["mu"] - mean) ** 2).T @ params["pi"]  # law of total variance
    np.testing.assert_allclose(pooled, 1, rtol=0.02)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_component_has_the_moments_of_the_data_in_float32(covariance, backend):
    Y = (1e4 + np.random.default_rng(1).standard_normal((50_000, 2)) * [1.0, 1.0]).astype(np.float32)
    model = MoG(D=2, K=1, covariance=covariance)
    params, _ = gem.em_step(model, model.init_params(Y), Y, backend=backend, dtype="float32")
    exact = Y.astype(np.float64)
    np.testing.assert_allclose(params["mu"][0], exact.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(variances(params, 2).mean(), exact.var(axis=0).mean(), rtol=1e-4)


def test_far_apart_components_of_unit_variance_in_float32(backend):
    """Squares about a common centre would need 2e-9 relative precision here: the kernel must notice."""
    rng = np.random.default_rng(2)
    Y = (np.where(rng.random((4000, 1)) < 0.5, -2e4, 2e4) + rng.standard_normal((4000, 2))).astype(np.float32)
    model = MoG(D=2, K=2)
    params = {"pi": np.full(2, 0.5), "mu": np.array([[-2e4, -2e4], [2e4, 2e4]]), "var": np.ones((2, 2))}
    for _ in range(3):
        params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float32")
    np.testing.assert_allclose(params["var"], 1, rtol=0.1)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_same_steps_as_scikit_learn(covariance, backend, world):
    Y = blobs(600, 3, 4, seed=3)
    model = MoG(D=3, K=4, covariance=covariance, reg=0)
    params = model.init_params(Y, seed=1)
    name = "var" if "var" in params else "cov"
    theirs = GaussianMixture(
        4, covariance_type=covariance, reg_covar=0, max_iter=30, tol=0, weights_init=params["pi"],
        means_init=params["mu"], precisions_init=1 / params[name] if name == "var" else np.linalg.inv(params[name]),
    )  # fmt: skip
    with pytest.warns(Warning, match="converge"):
        theirs.fit(Y)
    for _ in range(30):
        params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64", comm=world)
    np.testing.assert_allclose(params["pi"], theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(params["mu"], theirs.means_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(params[name], theirs.covariances_, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_an_empty_component_is_reseeded_and_reported(covariance, backend):
    Y = blobs(300, 2, 2, seed=4)
    model = MoG(D=2, K=3, covariance=covariance)
    params = model.init_params(Y, seed=0)
    params["mu"][2] = 1e5
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    assert len(info.notes) == 1
    assert "component 2 was empty" in info.notes[0]
    assert np.all(np.abs(new["mu"]) < 50)
    np.testing.assert_allclose(new["pi"].sum(), 1)
    assert gem.em_step(model, new, Y, backend=backend, dtype="float64")[1].notes == []


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_covariance_floor_holds(covariance, backend):
    """Two points that are equal make a component whose variance would be zero."""
    Y = np.concatenate([blobs(100, 2, 1, seed=5), np.full((50, 2), 40.0)])
    model = MoG(D=2, K=2, covariance=covariance, reg=1e-3)
    params = model.init_params(Y, seed=0)
    for _ in range(20):
        params, info = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    smallest = np.linalg.eigvalsh(params["cov"]).min() if "cov" in params else params["var"].min()
    if covariance == "tied":
        assert smallest > 0.1  # the pooled covariance is no smaller than the spread-out component's share
    else:
        np.testing.assert_allclose(smallest, 1e-3, rtol=1e-9)
        assert any("reg" in note for note in info.notes)


def test_kmeans_plusplus_takes_one_point_of_each_far_cluster():
    rng = np.random.default_rng(6)
    centres = 100 * np.arange(8)[:, None] * np.ones(2)
    rows = np.repeat(centres, 50, axis=0) + rng.standard_normal((400, 2))
    mu, nearest = kmeans_plusplus(rows, 8, rng)
    assert sorted(np.rint(mu[:, 0] / 100).astype(int)) == list(range(8))
    assert np.abs(rows - mu[nearest]).max() < 20


def test_equal_points_do_not_break_the_start():
    mu, _ = kmeans_plusplus(np.zeros((5, 2)), 3, np.random.default_rng(0))
    np.testing.assert_array_equal(mu, np.zeros((3, 2)))


def test_bad_settings_are_refused():
    for bad, match in (
        ({"K": 0}, "K = 0"),
        ({"K": 2, "covariance": "round"}, "diag, spherical, tied, full"),
        ({"K": 2, "reg": -1.0}, "reg"),
    ):
        with pytest.raises(gem.ConfigError, match=match):
            MoG(D=2, **bad)
    with pytest.raises(gem.DataError, match="smaller K"):
        MoG(D=2, K=5).init_params(np.random.default_rng(0).random((3, 2)))
