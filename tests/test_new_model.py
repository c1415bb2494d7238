"""A new mixture is a class and a line: this one does what every model must do (CONTRIBUTING.md, adding a model)."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from scipy.stats import geom

import gem
from gem.cli import main
from gem.errors import DataError
from gem.models.mixture_kernel import KernelMixture
from gem.models.mixtures import Mixture
from gem.models.parameters import Parameter, Params
from gem.store import read_run
from gem.summary import Summary


# begin of the model
class Geometric(Mixture):
    """Mixture of geometric distributions, of counts: p(y) = Σ_k π_k Π_d p_kd (1 − p_kd)^y_d, of mean (1 − p) / p.

    Model parameters are ``pi`` (K,) and ``mean`` (K, D).
    """

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"pi": self.proportions, "mean": Parameter((self.K, self.D), "positive", "centres", latents=0)}

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        super().check_data(Y, start)
        for row, column in np.argwhere((Y < 0) | (np.floor(Y) < Y)):
            raise DataError(f"data: {Y[row, column]} at row {start + row}, column {column} is no count")

    def begin(self, centres: np.ndarray, var: np.ndarray, summary: Summary) -> Params:
        return {"mean": np.maximum((centres + summary.mean) / 2, self.reg)}

    def draw(self, params: Params, k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.geometric(1 / (1 + params["mean"][k])) - 1.0

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        log_p = -np.log1p(params["mean"][states])
        log_q = np.log(params["mean"][states]) + log_p
        seen = ~np.isnan(Y)
        return np.where(seen, Y, 0) @ log_q.T + seen @ log_p.T

    def update(self, mean, old, moments, idle, step, notes):
        if np.any(mean < self.reg):
            notes.append(f"{np.sum(mean < self.reg)} means held at reg = {self.reg:g}")
        return {"mean": np.maximum(mean, self.reg)}


# end of the model


class OnDevices(KernelMixture, Geometric):
    """The same with a kernel: what a component takes from the log joint, in C and in numpy."""

    fragment = "family_of_a_contributor.geometric"

    def coefficients(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mean = params["mean"]
        per_count, besides = np.log1p(1 / mean), np.log1p(mean)
        if self.missing:
            return mean, np.concatenate([per_count, besides]), np.zeros(self.K)
        return mean, per_count, -besides.sum(axis=1)


IN_C = """
#define BASE 0
#define SECOND 0
DEVICE wide cost(wide y, real mu, fine P) { return P * y; }
DEVICE wide whole(wide q, fine P) { return q; }
DEVICE vec second(vec y, vec x) { return x; }
"""
IN_NUMPY = """
BASE, SECOND = False, False
def cost(y, mu, P): return P * y
def whole(q, P): return q
"""


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A package of somebody else's, with the two texts of a family."""
    folder = tmp_path / "family_of_a_contributor"
    folder.mkdir()
    for name, text in (("__init__.py", ""), ("geometric.py", IN_NUMPY), ("geometric.h", IN_C)):
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize("missing", [False, True])
def test_a_family_of_ones_own_runs_on_devices(missing, backend):
    Y = data(200, missing)
    host, model = (kind(D=D, K=K, missing=missing) for kind in (Geometric, OnDevices))
    for T in (1.0, 2.5):
        wanted, told = gem.em_step(host, TRUTH, Y, T=T, backend="numpy", **EXACT)
        found, info = gem.em_step(model, TRUTH, Y, T=T, backend=backend, **EXACT)
        assert info.free_energy == pytest.approx(told.free_energy, rel=1e-12)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9)
    r = gem.posterior(model, TRUTH, Y, backend=backend, **EXACT).mean
    np.testing.assert_allclose(r, gem.posterior(host, TRUTH, Y, backend="numpy", **EXACT).mean, atol=1e-12)


@pytest.fixture(autouse=True)
def enrolled(monkeypatch):
    """The one line, and its undoing."""
    monkeypatch.setitem(gem.models.MODELS, "geometric", Geometric)


K, D = 3, 4
TRUTH = {"pi": np.array([0.5, 0.3, 0.2]), "mean": np.array([[1, 20, 1, 20], [20, 1, 0.5, 2], [0.2, 2, 30, 30.0]])}
EXACT = {"dtype": "float64"}


@pytest.fixture
def model():
    return Geometric(D=D, K=K)


def data(N, missing=False):
    Y, _ = Geometric(D=D, K=K).generate_data(TRUTH, N, seed=2)
    if missing:
        Y[np.random.default_rng(0).random(Y.shape) < 0.2] = np.nan
    return Y


def joint(params, Y):
    """By scipy, not by the model."""
    p = 1 / (1 + params["mean"])
    return np.log(params["pi"]) + np.nansum(geom.logpmf(Y[:, None] + 1, p), axis=2)


def learned(model, Y, steps=40, **options):
    params, energies = model.init_params(Y, seed=1), []
    for _ in range(steps):
        params, info = gem.em_step(model, params, Y, **options)
        energies.append(info.free_energy)
    return params, np.array(energies)


def test_it_is_made_by_name():
    model = gem.models.make("geometric", {"D": D, "K": K, "missing": True})
    assert repr(model) == "Geometric(D=4, K=3, reg=1e-06, missing=True)"


@pytest.mark.parametrize("missing", [False, True])
def test_evidence_and_responsibilities_are_those_of_the_definition(missing, backend):
    model, Y = Geometric(D=D, K=K, missing=missing), data(200, missing)
    exact = joint(TRUTH, Y)
    np.testing.assert_allclose(model.log_joint(TRUTH, Y, np.arange(K)), exact, rtol=1e-10)
    for T, whole in ((1.0, False), (2.5, False), (2.5, True)):
        found = gem.posterior(model, TRUTH, Y, backend=backend, T=T, anneal_prior=whole, reconstruct=True, **EXACT)
        np.testing.assert_allclose(found.log_evidence, logsumexp(exact, axis=1), rtol=1e-10)
        annealed = exact / T + (0 if whole else (1 - 1 / T) * np.log(TRUTH["pi"]))
        r = np.exp(annealed - logsumexp(annealed, axis=1, keepdims=True))
        np.testing.assert_allclose(found.mean, r, atol=1e-12)
        np.testing.assert_allclose(found.reconstruction, r @ TRUTH["mean"], rtol=1e-10)
    _, info = gem.em_step(model, TRUTH, Y, backend=backend, **EXACT)
    assert info.free_energy == pytest.approx(logsumexp(exact, axis=1).sum(), rel=1e-12)


def test_the_m_step_is_the_mean_that_each_component_explains(model, backend):
    Y = data(200)
    r = np.exp(joint(TRUTH, Y) - logsumexp(joint(TRUTH, Y), axis=1, keepdims=True))
    new, _ = gem.em_step(model, TRUTH, Y, backend=backend, **EXACT)
    np.testing.assert_allclose(new["pi"], r.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(new["mean"], r.T @ Y / r.sum(axis=0)[:, None], rtol=1e-10)


@pytest.mark.parametrize("missing", [False, True])
def test_free_energy_never_falls_and_what_generated_the_data_is_learned(missing, backend, world):
    found, F = learned(
        Geometric(D=D, K=K, missing=missing), data(3000, missing), backend=backend, comm=world, dtype="float32"
    )
    assert np.diff(F).min() >= -1e-9 * abs(F[0])
    assert F[-1] > F[0] + 1
    rows, columns = linear_sum_assignment(np.abs(np.log(found["mean"][:, None] / TRUTH["mean"])).sum(axis=2))
    np.testing.assert_allclose(found["mean"][rows], TRUTH["mean"][columns], rtol=0.2, atol=0.1)
    np.testing.assert_allclose(found["pi"][rows], TRUTH["pi"][columns], atol=0.03)


def test_a_weight_is_so_many_rows_and_batches_do_not_matter(model, backend):
    Y = data(60)
    weights = np.random.default_rng(7).integers(0, 4, 60)
    start = model.init_params(Y)
    whole, info = gem.em_step(model, start, np.repeat(Y, weights, axis=0), backend=backend, T=1.5, **EXACT)
    for batch in (1, 7, 60):
        new, told = gem.em_step(model, start, Y, backend=backend, T=1.5, weights=weights, batch=batch, **EXACT)
        assert told.free_energy == pytest.approx(info.free_energy, rel=1e-12)
        for name, value in whole.items():
            np.testing.assert_allclose(new[name], value, rtol=1e-10)


def test_an_empty_component_begins_anew(model, backend):
    Y = data(300)
    start = {**TRUTH, "mean": TRUTH["mean"].copy()}
    start["mean"][2] = 1e300
    new, info = gem.em_step(model, start, Y, backend=backend, **EXACT)
    assert info.notes == ["component 2 was empty and re-seeded beside component 0"]
    model.check(new)
    _, later = gem.em_step(model, new, Y, backend=backend, **EXACT)
    assert later.free_energy > info.free_energy
    assert not later.notes


@pytest.mark.parametrize(("bad", "says"), [(0.5, "is no count"), (-1, "is no count"), (np.nan, "nan"), (np.inf, "inf")])
def test_what_it_cannot_explain_is_refused_with_row_and_column(model, bad, says, backend):
    Y = data(100)
    Y[37, 2] = bad
    for do in (gem.em_step, gem.posterior):
        with pytest.raises(DataError, match=f"(?i){says}.*") as refused:
            do(model, TRUTH, Y, backend=backend, batch=10)
        assert "row 37, column 2" in str(refused.value)


def test_runs_are_recorded_and_taken_up_and_have_a_command(model, tmp_path):
    Y = data(300)
    em = gem.EM(model, Y, gem.Annealing(steps=4, pi_noise=0.1), output=tmp_path / "run.h5", seed=1, checkpoint=2)
    for step, _ in enumerate(em, 1):
        if step == 2:
            break
    wanted = gem.EM.resume(tmp_path / "run.h5", Y).run().params["mean"]
    np.save(tmp_path / "Y.npy", Y)
    options = ["--K=3", "--steps=4", "--pi-noise=0.1", "--seed=1", "-q", "-o", str(tmp_path / "again.h5")]
    assert main(["fit", "geometric", str(tmp_path / "Y.npy"), *options]) == 0
    np.testing.assert_array_equal(read_run(tmp_path / "again.h5").params["mean"], wanted)
