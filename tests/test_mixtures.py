"""Mixtures: numerics that go wrong elsewhere, missing values, and what happens at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, poisson
from sklearn.mixture import GaussianMixture

import gem
from benchmarks.accuracy import COVARIANCES, far_data, far_error, far_steps, variances
from gem.models import MoG, MoP
from gem.models.seeding import kmeans_plusplus


def blobs(N, D, K, seed, distance=6.0):
    rng = np.random.default_rng(seed)
    return distance * rng.standard_normal((K, D))[rng.integers(K, size=N)] + rng.standard_normal((N, D))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_float32_is_safe_far_from_zero(covariance, mean, backend):
    """scikit-learn issue 30382: variances collapse or turn negative in float32."""
    Y = far_data(mean)
    for params in far_steps(covariance, Y, backend):
        assert variances(params, 3).min() > 0.1
    assert far_error(covariance, params, Y) <= 0.01


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


FAR_APART = {"diag": False, "diag with gaps": True, "spherical": False, "tied": False, "full": False}


@pytest.mark.parametrize(("dtype", "sd"), [("float64", 0.01), ("float32", 100.0)])
@pytest.mark.parametrize("case", FAR_APART)
def test_narrow_components_a_long_way_from_each_other(case, dtype, sd, backend):
    """About a common centre the squares of the data are 10⁷ to 10¹⁵ times as large as the variances."""
    rng = np.random.default_rng(0)
    Y = np.concatenate([rng.normal(0, sd, (50, 2)), rng.normal(1e6, sd, (70, 2))]).astype(dtype)
    if FAR_APART[case]:
        Y[::7, 1] = np.nan
    model = MoG(D=2, K=2, covariance=case.split()[0], missing=FAR_APART[case])
    em = gem.EM(model, Y, gem.Annealing(steps=6), backend=backend, dtype=dtype)
    for step in range(5):  # the first is from variances as wide as the data
        before = model.check(em.params)
        found = next(iter(em)).free_energy
        wanted = np.logaddexp.reduce(model.log_joint(before, Y.astype(float), np.arange(2)), axis=1).sum()
        assert found == pytest.approx(wanted, rel=1e-9 if dtype == "float64" else 1e-5), step
        if not FAR_APART[case]:  # that of an entry which is missing shrinks slowly
            np.testing.assert_allclose(variances(em.params, 2), sd**2, rtol=0.5)
    assert not em.notes


def test_gaps_of_narrow_components_a_long_way_from_each_other(backend):
    """A missing entry counts with its mean and variance, about whatever the sums are taken."""
    rng = np.random.default_rng(0)
    k = rng.integers(2, size=90)
    Y = np.where(rng.random((90, 3)) < 0.3, np.nan, np.array([0, 1e6])[k, None] + 0.01 * rng.standard_normal((90, 3)))
    params = {"pi": np.full(2, 0.5), "mu": np.array([[0.0] * 3, [1e6] * 3]), "var": np.full((2, 3), 1e-4)}
    new, _ = gem.em_step(MoG(D=3, K=2, missing=True), params, Y, backend=backend, dtype="float64")
    told = ~np.isnan(Y).all(axis=1)
    for c in range(2):
        r = np.where(told, k == c, 0.5)  # a point without entries is of either
        filled = np.where(np.isnan(Y), params["mu"][c], Y)
        mean = r @ filled / r.sum()
        np.testing.assert_allclose(new["mu"][c], mean, rtol=1e-12, atol=1e-6)
        var = r @ ((filled - mean) ** 2 + np.isnan(Y) * 1e-4) / r.sum()
        np.testing.assert_allclose(new["var"][c], var, rtol=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_components_that_become_narrow_at_once(covariance, backend):
    """Their variances say that float32 will do; those of the data do not."""
    rng = np.random.default_rng(0)
    Y = (np.where(np.arange(200)[:, None] % 2, 0, 1e6) + 10 * rng.standard_normal((200, 2))).astype(np.float32)
    spread = {"diag": np.full((2, 2), 1e9), "spherical": np.full(2, 1e9), "tied": np.eye(2) * 1e9}
    spread["full"] = np.tile(spread["tied"], (2, 1, 1))
    name = "var" if covariance in ("diag", "spherical") else "cov"
    params = {"pi": np.full(2, 0.5), "mu": np.array([[0.0, 0], [1e6, 1e6]]), name: spread[covariance]}
    new, _ = gem.em_step(MoG(D=2, K=2, covariance=covariance), params, Y, backend=backend, dtype="float32")
    np.testing.assert_allclose(variances(new, 2), 100, rtol=0.3)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_evidence_under_narrow_components_of_wide_data(covariance, backend):
    """Nothing is wrong with the moments, so that no digits lost there tell of it."""
    rng = np.random.default_rng(0)
    Y = np.where(np.arange(40)[:, None] % 2, 0, 1e6) + 100 * rng.standard_normal((40, 2))
    model = MoG(D=2, K=2, covariance=covariance)
    spread = {"diag": np.full((2, 2), 1e-4), "spherical": np.full(2, 1e-4), "tied": np.eye(2) * 1e-4}
    spread["full"] = np.tile(spread["tied"], (2, 1, 1))
    name = "var" if covariance in ("diag", "spherical") else "cov"
    params = {"pi": np.full(2, 0.5), "mu": np.array([[0.0, 0], [1e6, 1e6]]), name: spread[covariance]}
    wanted = np.logaddexp.reduce(model.log_joint(model.check(params), Y, np.arange(2)), axis=1)
    found = gem.posterior(model, params, Y, backend=backend, dtype="float64").log_evidence
    np.testing.assert_allclose(found, wanted, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_what_the_floor_of_variances_hides_is_not_computed_twice(covariance, dtype, monkeypatch):
    """Dimensions that are constant, everywhere or within a component, as pixels are: their variance is reg."""
    from gem.kernels import mixture_products as mixture

    walks, steps = [], []
    softmax, frame = mixture._softmax, mixture._frame
    monkeypatch.setattr(mixture, "_softmax", lambda *a: walks.append(0) or softmax(*a))
    monkeypatch.setattr(mixture, "_frame", lambda *a: steps.append(0) or frame(*a))
    rng = np.random.default_rng(0)
    Y = (rng.random((3, 6)) < 0.5)[rng.integers(3, size=300)] * rng.random((300, 6))
    Y[:, 2] = 0.1
    model = MoG(D=6, K=3, covariance=covariance)
    em = gem.EM(model, Y, gem.Annealing(steps=6), backend="numpy", dtype=dtype)
    for _ in range(3):
        next(iter(em))
    walks.clear()
    steps.clear()
    em.run()
    assert len(walks) == len(steps) > 0


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_one_value_that_is_far_from_all_others(covariance, backend):
    Y = np.random.default_rng(0).poisson(3, size=(60, 6)).astype(float)
    Y[13, 2] = 1e7
    model = MoG(D=6, K=3, covariance=covariance)
    em = gem.EM(model, Y, gem.Annealing(steps=7), backend=backend, dtype="float64")
    for _ in range(6):
        before = model.check(em.params)
        wanted = np.logaddexp.reduce(model.log_joint(before, Y, np.arange(3)), axis=1).sum()
        assert next(iter(em)).free_energy == pytest.approx(wanted, abs=1e-3)


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


def test_weights_add_up_to_one_when_components_begin_anew():
    """Empty is less than 10⁻³ data points, which is much where there are few: what such a component had must not go."""
    pi = np.array([0.5, 0.49996, 2e-5, 2e-5])
    new = {"pi": pi.copy(), "mu": np.zeros((4, 2)), "var": np.ones((4, 2))}
    new = MoG(D=2, K=4)._reseeded(new, 45 * pi, 20.0, notes := [])
    assert len(notes) == 2
    np.testing.assert_allclose(new["pi"].sum(), 1, rtol=1e-12)
    assert np.all(new["pi"][2:] > 0.1)


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reg", [0.0, 1e-6])
@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_dimensions_that_depend_on_each_other_leave_covariances_invertible(covariance, reg, dtype, backend):
    """At this scale any reg in the data's units vanishes in float64; units of the dimensions must not count."""
    x = np.random.default_rng(0).standard_normal((500, 1))
    Y = x * [1e6, 2e6, 1.0]
    model = MoG(D=3, K=2, covariance=covariance, reg=reg)
    params = model.init_params(Y, seed=0)
    for _ in range(12):
        params, info = gem.em_step(model, params, Y, backend=backend, dtype=dtype)
        cov = np.atleast_3d(params["cov"].T).T.reshape(-1, 3, 3)
        assert all(np.linalg.cholesky(c).shape == (3, 3) for c in cov)
    of = "" if covariance == "tied" else " of component 0"
    assert any(note.startswith(f"covariance{of} was held at") for note in info.notes)
    spread = np.einsum("k,kd->d", params["pi"], variances(params, 3)) if covariance == "full" else variances(params, 3)
    total = spread.reshape(-1, 3)[0] + params["pi"] @ (params["mu"] - params["pi"] @ params["mu"]) ** 2
    np.testing.assert_allclose(total, Y.var(axis=0), rtol=1e-5)


def test_scales_of_dimensions_are_no_dependence():
    rng = np.random.default_rng(1)
    Y = rng.standard_normal((400, 3)) * [1e-6, 1.0, 1e7]
    model = MoG(D=3, K=1, covariance="full", reg=0)
    new, info = gem.em_step(model, model.init_params(Y), Y, dtype="float64")
    np.testing.assert_allclose(new["cov"][0], np.cov(Y.T, bias=True), rtol=1e-6)
    assert info.notes == []


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_variance_that_vanishes_without_a_floor_is_refused(covariance):
    Y = np.concatenate([blobs(100, 2, 1, seed=5), np.full((50, 2), 40.0)])
    if covariance == "tied":
        Y[:, 1] = 3.0
    start = MoG(D=2, K=2, covariance=covariance).init_params(Y, seed=0)
    em = gem.EM(MoG(D=2, K=2, covariance=covariance, reg=0), Y, gem.Annealing(steps=20), params=start, dtype="float64")
    with pytest.raises(gem.DataError, match="set a floor"):
        em.run()


def test_kmeans_plusplus_takes_one_point_of_each_far_cluster():
    rng = np.random.default_rng(6)
    centres = 100 * np.arange(8)[:, None] * np.ones(2)
    rows = np.repeat(centres, 50, axis=0) + rng.standard_normal((400, 2))
    chosen, nearest = kmeans_plusplus(rows, 8, rng)
    mu = rows[chosen]
    assert sorted(np.rint(mu[:, 0] / 100).astype(int)) == list(range(8))
    assert np.abs(rows - mu[nearest]).max() < 20


def test_equal_points_do_not_break_the_start():
    chosen, nearest = kmeans_plusplus(np.zeros((5, 2)), 3, np.random.default_rng(0))
    assert chosen.shape == (3,)
    assert not nearest.any()


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
    with pytest.raises(gem.ConfigError, match="rates"):
        MoP(D=2, K=2, reg=0.0)


# -- counts --------------------------------------------------------------------------------------------------


def count_data(N, D, K, seed, size=20.0):
    rng = np.random.default_rng(seed)
    return rng.poisson(size * rng.uniform(0.1, 2, (K, D))[rng.integers(K, size=N)]).astype(float)


@pytest.mark.parametrize("size", [0.3, 20.0, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_counts_keep_their_evidence(size, dtype, backend):
    """log y! and y log λ are large and nearly cancel: scipy, in float64, tells how exact the sum is."""
    Y = count_data(200, 5, 3, seed=1, size=size)
    model = MoP(D=5, K=3)
    params = model.init_params(Y)
    joint = np.log(params["pi"]) + poisson.logpmf(Y[:, None, :], params["lam"]).sum(axis=2)
    exact = np.logaddexp.reduce(joint, axis=1)
    post = gem.posterior(model, params, Y, backend=backend, dtype=dtype)
    np.testing.assert_allclose(post.log_evidence, exact, rtol=1e-5 if dtype == "float32" else 1e-11, atol=1e-4)
    r = np.exp(joint - exact[:, None])
    np.testing.assert_allclose(post.mean, r, atol=2e-2 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("bad", [-1.0, 0.5])
def test_what_is_no_count_is_refused_with_row_and_column(bad, missing, backend):
    Y = count_data(300, 3, 2, seed=2)
    model = MoP(D=3, K=2, missing=missing)
    params = model.init_params(Y)
    Y[123, 1] = bad
    with pytest.raises(gem.DataError, match=f"{bad} at row 123, column 1 is no count"):
        gem.em_step(model, params, Y, backend=backend, batch=50)


def test_an_empty_component_of_counts_is_reseeded(backend):
    Y = count_data(300, 3, 2, seed=3)
    model = MoP(D=3, K=3)
    params = model.init_params(Y)
    params["lam"][1] = 1e5
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    assert "component 1 was empty" in info.notes[0]
    assert new["lam"].max() < 200
    assert gem.em_step(model, new, Y, backend=backend, dtype="float64")[1].notes == []


def test_rates_have_a_floor(backend):
    Y = count_data(300, 3, 2, seed=4)
    Y[:, 2] = 0
    model = MoP(D=3, K=2, reg=1e-3)
    new, info = gem.em_step(model, model.init_params(Y), Y, backend=backend, dtype="float64")
    np.testing.assert_allclose(new["lam"][:, 2], 1e-3, rtol=1e-12)
    assert info.free_energy < 0


# -- missing values ------------------------------------------------------------------------------------------

WITH_GAPS = {
    **{covariance: lambda c=covariance, **k: MoG(covariance=c, missing=True, **k) for covariance in COVARIANCES},
    "poisson": lambda **k: MoP(missing=True, **k),
}


@pytest.fixture(params=WITH_GAPS)
def gaps(request):
    """A model, data of which a third is missing, and the whole data."""
    rng = np.random.default_rng(7)
    if request.param == "poisson":
        whole = count_data(400, 4, 3, seed=7)
    else:
        root = rng.standard_normal((4, 4))
        whole = blobs(400, 4, 3, seed=7) @ root + 10
    Y = np.where(rng.random(whole.shape) < 0.3, np.nan, whole)
    Y[5] = np.nan  # a data point of which nothing is known
    return WITH_GAPS[request.param](D=4, K=3), Y, whole


def observed_joint(params, y):
    """log π_k p(y_o | k) of one data point, from scipy's densities of the marginals."""
    o = np.isfinite(y)
    if "lam" in params:
        return np.log(params["pi"]) + poisson.logpmf(y[o], params["lam"][:, o]).sum(axis=1)
    K, D = params["mu"].shape
    joint = np.log(params["pi"])
    for k in range(K if o.any() else 0):
        cov = np.diag(np.broadcast_to(params["var"][k], D)) if "var" in params else params["cov"]
        cov = cov[k] if cov.ndim == 3 else cov
        joint[k] += multivariate_normal.logpdf(y[o], params["mu"][k][o], cov[np.ix_(o, o)])
    return joint


def test_the_observed_part_alone_is_the_evidence(gaps, backend):
    model, Y, _ = gaps
    params = model.init_params(Y, seed=1)
    for _ in range(3):
        params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", top=1, T=2.0, anneal_prior=True)
    joint = np.array([observed_joint(params, y) for y in Y])
    np.testing.assert_allclose(post.log_evidence, np.logaddexp.reduce(joint, axis=1), rtol=1e-9, atol=1e-9)
    annealed = np.exp(joint / 2 - np.logaddexp.reduce(joint / 2, axis=1, keepdims=True))
    np.testing.assert_allclose(post.mean, annealed, atol=1e-8)
    np.testing.assert_array_equal(post.states[:, 0], joint.argmax(axis=1))


def test_a_step_with_gaps_is_that_of_their_expectations(gaps, backend):
    """One point, one component at a time: what is missing counts with its conditional mean and covariance."""
    model, Y, _ = gaps
    params = model.init_params(Y, seed=1)
    for _ in range(3):
        params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    joint = np.array([observed_joint(params, y) for y in Y])
    r = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    new, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    centre = "lam" if "lam" in params else "mu"
    filled = np.where(np.isnan(Y)[:, None], params[centre], Y[:, None])
    cov = np.zeros((*filled.shape, 4))
    for n, k in np.ndindex(*r.shape) if centre == "mu" else ():
        o, m = np.isfinite(Y[n]), np.isnan(Y[n])
        sigma = np.diag(np.broadcast_to(params["var"][k], 4)) if "var" in params else params["cov"]
        sigma = sigma[k] if sigma.ndim == 3 else sigma
        gain = np.linalg.solve(sigma[np.ix_(o, o)], sigma[np.ix_(o, m)]).T
        filled[n, k, m] += gain @ (Y[n] - params["mu"][k])[o]
        cov[n, k][np.ix_(m, m)] = sigma[np.ix_(m, m)] - gain @ sigma[np.ix_(o, m)]
    counts = r.sum(axis=0)
    means = np.einsum("nk,nkd->kd", r, filled) / counts[:, None]
    np.testing.assert_allclose(new[centre], means, rtol=1e-8, atol=1e-8)
    if centre == "mu":
        x = filled - means
        total = np.einsum("nk,nkij->kij", r, x[..., :, None] * x[..., None, :] + cov)
        each = total / counts[:, None, None]
        spread = {
            "full": each,
            "tied": total.sum(axis=0) / len(Y),
            "diag": np.diagonal(each, axis1=1, axis2=2),
            "spherical": np.trace(each, axis1=1, axis2=2) / 4,
        }[model.covariance]
        np.testing.assert_allclose(new["cov" if "cov" in new else "var"], spread, rtol=1e-7, atol=1e-8)


def test_free_energy_never_falls_with_missing_values(gaps, backend, world):
    model, Y, _ = gaps
    params = model.init_params(Y, seed=1)
    energies = []
    for _ in range(30):
        params, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", comm=world)
        energies.append(info.free_energy)
    assert np.all(np.diff(energies) >= -1e-9 * abs(energies[0]))
    assert energies[-1] > energies[0] + 1


def test_a_step_without_gaps_is_the_step_of_complete_data(gaps, backend):
    model, _, whole = gaps
    settings = {name: value for name, value in model.settings().items() if name != "missing"}
    complete = type(model)(**settings)
    params = complete.init_params(whole, seed=2)
    expected, before = gem.em_step(complete, params, whole, backend=backend, dtype="float64", T=1.5)
    found, after = gem.em_step(model, params, whole, backend=backend, dtype="float64", T=1.5)
    np.testing.assert_allclose(after.free_energy, before.free_energy, rtol=1e-12)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-8, atol=1e-9, err_msg=name)


def test_missing_values_are_refused_where_they_are_not_expected(backend):
    Y = blobs(100, 3, 2, seed=8)
    params = MoG(D=3, K=2).init_params(Y)
    Y[40, 2] = np.nan
    with pytest.raises(gem.DataError, match="row 40, column 2"):
        gem.em_step(MoG(D=3, K=2), params, Y, backend=backend)


def test_correlations_fill_gaps(backend):
    """With full covariances a missing entry is predicted from the others; a diagonal model knows only the mean."""
    rng = np.random.default_rng(9)
    whole = rng.standard_normal((2000, 1)) @ [[1.0, -2.0, 0.5]] + 0.1 * rng.standard_normal((2000, 3))
    gone = rng.random(whole.shape) < 0.2
    gone[gone.all(axis=1)] = False
    Y = np.where(gone, np.nan, whole)
    error = {}
    for covariance in ("full", "diag"):
        model = MoG(D=3, K=1, covariance=covariance, missing=True)
        params = model.init_params(Y)
        for _ in range(30):
            params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
        filled = gem.posterior(model, params, Y, backend=backend, dtype="float64", reconstruct=True).reconstruction
        error[covariance] = np.sqrt(np.mean((filled - whole)[gone] ** 2))
    np.testing.assert_allclose(params["mu"][0], 0, atol=0.1)
    assert error["full"] < 0.4
    assert error["diag"] > 1
