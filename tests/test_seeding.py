"""How a mixture starts, what holds its variances, and what becomes of components that explain nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import gem
from benchmarks.accuracy import COVARIANCES, variances
from benchmarks.starts import all_found, grid
from gem.models import MoG, MoP
from gem.models.seeding import first_centres, kmeans_plusplus, rows_for

MIXED = np.array([1e-6, 1e3, 1e9])  # units of three columns


def clusters(seed, N=60):
    """(N, 3) points of three clusters in unlike directions, some of which are equal, and one far from all."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0, 0], [5, 0, 0], [0, 5, 5]])
    Y = centres[rng.integers(3, size=N)] + rng.standard_normal((N, 3))
    Y[:4], Y[4] = Y[5], 40
    return Y


def run(model, Y, params, steps, dtype="float64", backend="numpy"):
    """F of every step, the last parameters, and the notes."""
    energies, notes = [], []
    for _ in range(steps):
        params, info = gem.em_step(model, params, Y, backend=backend, dtype=dtype)
        energies.append(info.free_energy)
        notes.append(info.notes)
    return np.array(energies), params, notes


# -- seeding -------------------------------------------------------------------------------------------------


def test_all_of_25_blobs_are_found():
    assert sum(all_found(*grid(), seed) for seed in range(5)) >= 4


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_start_is_the_same_in_any_units(covariance):
    Y = clusters(0)
    for unit in (1e-9, 1e3, MIXED):
        scale = np.broadcast_to(unit, 3)
        if covariance == "spherical" and unit is MIXED:
            continue  # its one variance is a sum over dimensions
        model = MoG(D=3, K=4, covariance=covariance)
        one, other = model.init_params(Y, seed=1), model.init_params(Y * unit, seed=1)
        np.testing.assert_allclose(other["mu"], one["mu"] * scale, rtol=1e-9)
        np.testing.assert_allclose(variances(other, 3), variances(one, 3) * scale**2, rtol=1e-9)


def test_a_constant_column_and_equal_points_are_no_obstacle():
    Y = np.repeat([[1.0, 0.1], [2.0, 0.1]], 20, axis=0)
    for K in (1, 2, 5, 40):
        params = MoG(D=2, K=K).init_params(Y, seed=0)
        assert set(params["mu"][:, 0]) == {1.0, 2.0} or K == 1
        assert np.all(params["mu"][:, 1] == 0.1)
        assert np.all(params["var"] > 0)


def test_several_candidates_leave_less_than_one():
    rows = np.random.default_rng(0).standard_normal((500, 2)) + 10 * np.random.default_rng(1).integers(6, size=(500, 2))
    left = {}
    for candidates in (1, 5):
        found = [kmeans_plusplus(rows, 36, np.random.default_rng(seed), candidates) for seed in range(5)]
        left[candidates] = np.mean([((rows - rows[chosen][nearest]) ** 2).sum() for chosen, nearest in found])
        for chosen, nearest in found:
            distance = ((rows[:, None] - rows[chosen]) ** 2).sum(axis=2)
            np.testing.assert_allclose(distance.min(axis=1), distance[np.arange(500), nearest], atol=1e-9)
    assert left[5] < 0.8 * left[1]


def test_columns_that_tell_clusters_apart_count_for_more():
    """One of three columns has two clusters: in units of the whole spread the others drown it."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 3))
    rows[:200, 2] += 8
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    truth = np.arange(400) < 200
    good = sum(
        abs(np.corrcoef(first_centres(rows, 2, 400, np.random.default_rng(seed))[1], truth)[0, 1]) > 0.9
        for seed in range(10)
    )
    assert good >= 8


def test_seeding_takes_a_part_of_the_data_that_an_em_step_can_pay():
    assert rows_for(500, 3) == 500
    assert rows_for(10**7, 50) == 2000
    assert rows_for(10**7, 1000) == 40_000
    assert rows_for(30_000, 1000) == 15_000


# -- the floor -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_fit_in_small_units_is_that_in_larger_ones(covariance, dtype, backend):
    """1e-9 squared is far below any absolute floor; F changes only by the unit's Jacobian."""
    Y = clusters(1)[5:]
    unit = 1e-9 if covariance == "spherical" else np.array([1e-9, 1e-6, 1e-3])
    model = MoG(D=3, K=3, covariance=covariance)
    small, one = Y * unit, model.init_params(Y, seed=0)
    F, params, _ = run(model, Y, one, 12, dtype, backend)
    F_small, params_small, _ = run(model, small, model.init_params(small, seed=0), 12, dtype, backend)
    jacobian = len(Y) * np.log(np.broadcast_to(unit, 3)).sum()
    np.testing.assert_allclose(F_small + jacobian, F, rtol=1e-7 if dtype == "float64" else 2e-4)
    np.testing.assert_allclose(
        params_small["mu"] / unit, params["mu"], rtol=1e-6 if dtype == "float64" else 0.05, atol=0.05
    )


@pytest.mark.parametrize("covariance", ["diag", "spherical", "full"])
def test_the_floor_is_a_part_of_the_variance_of_the_data(covariance, backend):
    """Equal points have no spread: in small units the floor follows that of the data, in large ones it is 1e-6."""
    rng = np.random.default_rng(2)
    Y = np.concatenate([rng.standard_normal((60, 2)), np.full((20, 2), 9.0)])
    params = {"pi": np.full(2, 0.5), "mu": np.array([[0.0, 0], [9, 9]])}
    for unit, told in ((1.0, "held at reg = 1e-06"), (1e-6, "held at reg = 1e-06 of the variance of the data")):
        model = MoG(D=2, K=2, covariance=covariance)
        start = {**model.init_params(Y * unit), "pi": params["pi"], "mu": params["mu"] * unit}
        _, new, notes = run(model, Y * unit, start, 5, backend=backend)
        least = 1e-6 * np.minimum((Y * unit).var(axis=0), 1)
        np.testing.assert_allclose(
            variances(new, 2)[1], least.mean() if covariance == "spherical" else least, rtol=1e-6
        )
        assert notes[-1][0].endswith(told)
        given = MoG(D=2, K=2, covariance=covariance, reg=1e-6)
        _, new, notes = run(given, Y * unit, start, 1, backend=backend)
        assert variances(new, 2).min() > 0.99e-6
        assert notes[-1][0].endswith("held at reg = 1e-06")


def test_a_model_says_whether_its_floor_was_given():
    assert "reg" not in MoG(D=2, K=2).settings()
    assert MoG(D=2, K=2).reg == 1e-6
    for model in (MoG(D=2, K=2, reg=1e-6), MoG(D=2, K=2), MoP(D=2, K=2)):
        again = gem.models.make(model.name, model.settings())
        assert (again.settings(), again.reg) == (model.settings(), model.reg)
    assert MoG(D=2, K=2, reg=1e-6).settings()["reg"] == 1e-6


# -- components that explain nothing -------------------------------------------------------------------------


@pytest.mark.parametrize("K", [2, 4, 7])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_free_energy_never_falls_among_equal_and_lonely_points(covariance, K):
    for seed in range(2):
        Y = clusters(seed, N=30)
        model = MoG(D=3, K=K, covariance=covariance)
        F, _, notes = run(model, Y, model.init_params(Y, seed=seed), 40)
        assert np.diff(F).min() > -1e-9 * abs(F[0])
        assert not any("re-seeded" in note for step in notes[20:] for note in step)


def test_a_component_of_one_point_stays():
    """It has 1 − 1e-13 points; plain EM, from the same start and with the same floor, says what is right."""
    Y = np.append(np.random.default_rng(0).normal(0, 1, 30), 5.0)[:, None]
    model = MoG(D=1, K=2)
    start = model.init_params(Y, 0)
    F, _, notes = run(model, Y, start, 60)
    pi, mu, var = start["pi"], start["mu"], start["var"]
    for _ in range(60):
        joint = np.log(pi) + norm.logpdf(Y[:, None], mu, np.sqrt(var)).sum(axis=2)
        log_p = logsumexp(joint, axis=1, keepdims=True)
        r = np.exp(joint - log_p)
        pi, mu = r.mean(axis=0), r.T @ Y / r.sum(axis=0)[:, None]
        var = np.maximum(np.einsum("nk,nkd->kd", r, (Y[:, None] - mu) ** 2) / r.sum(axis=0)[:, None], model.reg)
    assert F[-1] == pytest.approx(log_p.sum(), abs=1e-6)
    assert not any("empty" in note for step in notes for note in step)


@pytest.mark.parametrize("covariance", [*COVARIANCES, "poisson"])
def test_a_component_that_begins_anew_costs_nothing(covariance):
    """F rises at every step all the same, and ends no lower than without that component."""
    for seed in range(3):
        Y = np.abs(np.rint(clusters(seed))) if covariance == "poisson" else clusters(seed)[5:]
        models = [MoP(D=3, K=K) if covariance == "poisson" else MoG(D=3, K=K, covariance=covariance) for K in (2, 3)]
        start = models[0].init_params(Y, seed=seed)
        centre = models[0].centre
        more = {name: value if name == "cov" and value.ndim == 2 else np.concatenate([value, value[:1]])
                for name, value in start.items()}  # fmt: skip
        more["pi"] = np.full(3, 1 / 3)
        more[centre][2] = 1e4
        less, _, _ = run(models[0], Y, start, 80)
        F, _, notes = run(models[1], Y, more, 80)
        assert "component 2 was empty and re-seeded" in notes[0][-1]
        assert np.diff(F).min() > -1e-9 * abs(less[0])
        assert F[-1] > less[-1] - 1e-3


def test_what_cannot_be_paid_for_does_not_begin_anew(backend):
    """EM has settled, so that F would fall: the component stays as it is, and the note tells."""
    Y = np.random.default_rng(3).standard_normal((80, 2))
    params = {"pi": np.array([1 - 1e-12, 1e-12]), "mu": np.array([Y.mean(axis=0), [300.0, 300.0]])}
    params["var"] = np.array([Y.var(axis=0), [1.0, 1.0]])
    new, info = gem.em_step(MoG(D=2, K=2), params, Y, backend=backend, dtype="float64")
    assert info.notes == ["component 1 is empty: no data point is explained by it"]
    np.testing.assert_array_equal(new["mu"][1], params["mu"][1])
    again, later = gem.em_step(MoG(D=2, K=2), new, Y, backend=backend, dtype="float64")
    assert later.free_energy == pytest.approx(info.free_energy, abs=1e-6)
    assert again["pi"][1] > 0
