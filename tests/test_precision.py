"""What float32 would lose, and does not: covariances that are nearly singular, data far from 0 beside their spread."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.stats import poisson

import gem
from benchmarks.accuracy import DENSITY_ASKED, density_errors, near_singular
from gem.data import ArraySource, Reading, Shard, Survey, fingerprint, same_data
from gem.errors import DataError, RunFileError
from gem.models import BSC, MoG, MoP
from gem.parallel import communicator
from gem.store import read_run
from gem.summary import summarize


@pytest.mark.parametrize("D", [7, 70])
@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_float32_loses_the_root_of_the_condition(covariance, D, backend):
    """By products with the inverse covariance the log density would be off by several nats."""
    error, possible = density_errors(covariance, D, backend)
    assert error <= DENSITY_ASKED * possible


def test_moments_of_a_tied_covariance_that_is_nearly_singular():
    """On numpy they are taken of whitened data: the M-step's covariance is as good as the factor, too."""
    cov, Y = near_singular(7)
    params = {"pi": [1.0], "mu": np.zeros((1, 7)), "cov": cov}
    new, _ = gem.em_step(MoG(7, 1, "tied", reg=0), params, Y, dtype="float32", backend="numpy")
    exact = np.cov(Y.T, bias=True)
    ratio = np.linalg.eigvals(np.linalg.solve(exact, new["cov"]))
    np.testing.assert_allclose(ratio, 1, rtol=0.01)


# -- data that float32 would round away ------------------------------------------------------------------------


def stamps(N: int = 1000, where: float = 1.7e9, sd: float = 30.0) -> np.ndarray:
    """Two correlated columns, a long way from 0 beside their spread."""
    return where + np.random.default_rng(0).normal(0, sd, (N, 2)) @ [[1, 0.5], [0, 1]]


@pytest.mark.parametrize(("covariance", "dtype"), [("diag", "auto"), ("full", "auto"), ("tied", "float32")])
def test_far_data_of_a_mixture_are_shifted(covariance, dtype, backend, caplog):
    Y = stamps()
    right = np.cov(Y.T, bias=True)
    with caplog.at_level(logging.INFO, "gem"):
        em = gem.EM(MoG(2, 1, covariance), Y, gem.Annealing(3), backend=backend, dtype=dtype).run()
    assert em.backend.dtype == np.float32
    np.testing.assert_allclose(em.params["mu"][0], Y.mean(axis=0), atol=1e-3)
    spread = np.diag(em.params["var"][0]) if covariance == "diag" else em.params["cov"].reshape(2, 2)
    np.testing.assert_allclose(spread, np.diag(np.diag(right)) if covariance == "diag" else right, rtol=1e-5)
    assert [note for _, note in em.notes if "columns 0, 1 were shifted by 1700000000" in note] == [em.notes[0][1]]
    assert "shifted" in caplog.text
    assert "1.7e+09 with a spread of 30" in caplog.text


def test_a_step_and_the_posterior_shift_as_a_run_does():
    """Of the same model in float64: nothing shows but the type's own rounding."""
    Y = stamps()
    Y[::7, 0] = np.nan
    model = MoG(2, 2, missing=True)
    params = model.init_params(Y)
    new, info = gem.em_step(model, params, Y)
    exact, reference = gem.em_step(model, params, Y, dtype="float64")
    np.testing.assert_allclose(new["mu"], exact["mu"], atol=1e-3)
    np.testing.assert_allclose(new["var"], exact["var"], rtol=1e-5)
    assert abs(info.free_energy - reference.free_energy) < 1e-2
    assert "shifted" in info.notes[0]
    assert not reference.notes
    found = gem.posterior(model, new, Y, reconstruct=True, top=1)
    wanted = gem.posterior(model, new, Y, reconstruct=True, top=1, dtype="float64")
    np.testing.assert_allclose(found.log_evidence, wanted.log_evidence, atol=1e-3)
    np.testing.assert_allclose(found.reconstruction, wanted.reconstruction, atol=1e-2)
    np.testing.assert_array_equal(found.map_state, wanted.map_state)


def test_other_models_take_float64_or_refuse():
    Y = stamps(200, 1e6, 1e-2)
    model = BSC(2, 3)
    em = gem.EM(model, Y, gem.Annealing(2), backend="numpy").run()
    assert em.backend.dtype == np.float64
    assert "float64, because columns 0, 1 have values to 1e+06 with a spread of" in em.notes[0][1]
    params, info = gem.em_step(model, em.params, Y)
    exact, _ = gem.em_step(model, em.params, Y, dtype="float64")
    np.testing.assert_array_equal(params["W"], exact["W"])
    assert info.notes[0] == em.notes[0][1]
    for do in (gem.em_step, gem.posterior):
        with pytest.raises(DataError, match=r"choose dtype='auto' or 'float64'"):
            do(model, em.params, Y, dtype="float32")
    with pytest.raises(DataError, match=r"steps of 0\.0625"):
        gem.EM(model, Y, gem.Annealing(1), dtype="float32", backend="numpy")


def test_large_counts_are_float64_for_poissons():
    Y = np.random.default_rng(0).poisson(3e7, (100, 2))
    em = gem.EM(MoP(2, 1), Y, gem.Annealing(2), backend="numpy").run()
    assert em.backend.dtype == np.float64
    assert "whole numbers to 3.0" in em.notes[0][1]


COLUMNS = {  # dtype, whether there is a shift, a word of the note; of a model that can be shifted
    "near 0": (lambda rng: rng.normal(size=500), "float32", False, ""),
    "years": (lambda rng: 2000 + 10 * rng.normal(size=500), "float32", False, ""),
    "constant": (lambda rng: np.full(500, 1e8 + 0.3), "float32", False, ""),
    "constant but for rounding": (lambda rng: 0.3 + 1e-17 * rng.normal(size=500), "float32", False, ""),
    "rounded already": (lambda rng: (1e8 + rng.normal(size=500)).astype("f4").astype("f8"), "float32", False, ""),
    "far": (lambda rng: 1e8 + rng.normal(size=500), "float32", True, "shifted by 100000000"),
    "far and narrow": (lambda rng: 1e12 + 1e-2 * rng.normal(size=500), "float32", True, "steps of"),
    "integers": (lambda rng: rng.integers(0, 2**24, 500), "float32", False, ""),
    "integers beyond 2^24": (lambda rng: rng.integers(2**25, 2**25 + 99, 500) | 1, "float32", True, "shifted by 335"),
    "the same as floats": (lambda rng: (rng.integers(2**25, 2**25 + 99, 500) | 1) * 1.0, "float32", True, "shifted"),
    "identifiers": (lambda rng: rng.integers(0, 2**40, 500), "float64", False, "whole numbers to 1.0"),
    "nanoseconds": (lambda rng: 17 * 10**17 + rng.integers(0, 10**6, 500), "float32", True, "steps of 1.37e+11"),
    "unsigned": (lambda rng: np.uint64(2**63) + rng.integers(0, 10**6, 500).astype("u8"), "float32", True, "shifted"),
    "extended": (lambda rng: 1e8 + 1e-5 * rng.normal(size=500).astype(np.longdouble), "float32", True, "shifted"),
    "beyond float32": (lambda rng: 1e39 * rng.normal(size=500), "float64", False, "beyond the largest of float32"),
    "large": (lambda rng: 1e30 * rng.normal(size=500), "float64", False, "too large for squares"),
    "tiny": (lambda rng: 1e-25 * rng.normal(size=500), "float64", False, "too close for squares"),
    "an outlier": (lambda rng: np.append(rng.normal(size=499), 1e9), "float32", False, ""),
    "far, with an outlier": (lambda rng: np.append(1e8 + rng.normal(size=499), 1.0001e8), "float32", True, "1e+08"),
    "far, with one farther": (lambda rng: np.append(1e8 + rng.normal(size=499), 1e9), "float64", False, "1e+08 with"),
    "close": (lambda rng: 1e-17 * rng.normal(size=500), "float64", False, "too close for squares"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_a_column_needs(kind):
    make, dtype, shifts, words = COLUMNS[kind]
    column = make(np.random.default_rng(1))
    reading = read_as(column[:, None], "auto", True)
    assert (reading.dtype, reading.shift is not None) == (dtype, shifts)
    assert words in " ".join(reading.notes)
    shard = Shard(ArraySource(column[:, None]), 0, 500, reading.dtype, 500, shift=reading.shift)
    ((_, found),) = shard
    if shifts:  # what is left differs as the column itself does
        exact = column - column[0]
        exact = (exact.view(np.int64) if column.dtype.kind == "u" else exact).astype(float)
        middle = np.sort(np.abs(exact - np.median(exact)))[len(exact) // 2]
        np.testing.assert_allclose(np.ravel(found - found[0]), exact, atol=1e-3 * middle, rtol=1e-6)


def read_as(Y: np.ndarray, asked: str, movable: bool) -> Reading:
    survey = Survey(ArraySource(Y), 0, len(Y))
    survey.finish()
    return survey.reading(asked, movable, communicator(None))


def test_integers_that_no_float_tells_apart_are_refused():
    Y = 10**18 + np.random.default_rng(0).integers(0, 500, (100, 1))
    with pytest.raises(DataError, match="float64 has steps of 128: subtract a constant"):
        read_as(Y, "auto", False)


@pytest.mark.parametrize("asked", ["auto", "float32", "float64"])
def test_a_centre_that_float64_cannot_hold_is_refused(asked):
    """A shift keeps the data, but μ + c would be rounded by more than they spread, and F fall in silence."""
    for Y in (2**60 + np.arange(300)[:, None], np.longdouble(1e15) + np.random.default_rng(0).normal(size=(300, 1))):
        with pytest.raises(DataError, match="subtract a constant"):
            gem.EM(MoG(1, 2), Y, gem.Annealing(1), dtype=asked)


def test_a_column_without_spread_stays_so_in_float64():
    """Its rounding is no spread that the floor could follow: F fell by thousands of nats as it came and went."""
    rng = np.random.default_rng(0)
    Y = rng.normal(size=(300, 3)) + 9 * rng.integers(3, size=(300, 1))
    for constant in (7.3, -0.1, 1e5 / 3):
        Y[:, 1] = constant
        for covariance in ("diag", "full", "tied", "spherical"):
            em = gem.EM(MoG(3, 3, covariance), Y, gem.Annealing(8), dtype="float64", backend="numpy", seed=1).run()
            F = em.history["free_energy"]
            assert np.diff(F).min() > -1e-9 * abs(F[-1])


def test_a_survey_counts_each_row_once_and_only_its_own():
    Y = np.random.default_rng(0).normal(size=(1000, 2))
    Y[:100] += 1e9
    survey = Survey(ArraySource(Y), 100, 900)
    survey.read(0, 50)  # another rank's
    survey.read(500, 600)  # not in order
    assert not survey.complete
    survey.read(90, 400)
    survey.read(350, 500)
    survey.finish()
    assert survey.complete
    assert survey.reading("auto", True, communicator(None)) == Reading("float32")


@pytest.mark.parametrize("lossy", [False, True])
def test_streamed_data_are_looked_at_as_they_are_read(lossy, monkeypatch):
    """One pass if nothing is lost; else that one, one to measure, and one that counts."""
    Y = stamps() if lossy else stamps(where=0)
    model, passes = MoG(2, 1), []
    params = model.init_params(Y)
    wanted, _ = gem.em_step(model, params, Y)
    monkeypatch.setattr(Shard.__init__, "__defaults__", (0, None))  # nothing is kept in memory
    read = ArraySource.read
    monkeypatch.setattr(ArraySource, "read", lambda self, a, b: passes.append(b - a) or read(self, a, b))
    new, info = gem.em_step(model, params, Y)
    assert sum(passes) == (3000 if lossy else 1000)
    assert any("shifted" in note for note in info.notes) == lossy
    for name, value in wanted.items():
        np.testing.assert_array_equal(new[name], value)


def test_a_shift_is_part_of_the_run(world, tmp_path_factory):
    """Taken up again, on any number of ranks, the numbers are those of a run that was never interrupted."""
    Y = stamps(301)
    path = world.bcast(str(tmp_path_factory.mktemp("shift") / "run.h5"))
    model, anneal = MoG(2, 2, "full"), gem.Annealing(6)
    whole = gem.EM(model, Y, anneal, backend="numpy", comm=world).run()
    begun = gem.EM(model, Y, anneal, backend="numpy", comm=world, output=path)
    for _ in begun:
        if begun.step == 3:
            break
    resumed = gem.EM.resume(path, Y, comm=world).run()
    for name, value in whole.params.items():
        np.testing.assert_array_equal(resumed.params[name], value)
    assert resumed.notes == whole.notes
    alone = gem.EM(model, Y, anneal, backend="numpy").run()
    np.testing.assert_allclose(whole.params["mu"], alone.params["mu"], rtol=1e-12)
    if world.rank == 0:
        run = read_run(path)
        assert run.config["dtype"] == "float32"
        np.testing.assert_array_equal(run.config["shift"], [1.7e9, 1.7e9])
        np.testing.assert_array_equal(run.params["mu"], whole.params["mu"])


def test_a_run_file_without_a_shift_keeps_its_type(tmp_path, monkeypatch):
    """As those of earlier versions: float32, whatever the data."""
    Y = stamps(100)
    monkeypatch.setattr(gem.run, "fingerprint", lambda source: fingerprint(source)[:3])  # as they did
    em = gem.EM(MoG(2, 1), Y.astype(np.float32), gem.Annealing(3), backend="numpy", output=tmp_path / "run.h5")
    next(iter(em))
    em._save()
    resumed = gem.EM.resume(tmp_path / "run.h5", Y)
    resumed.run()
    assert resumed.backend.dtype == np.float32
    assert not resumed.notes


@pytest.mark.parametrize("shift", [[1.0], "far", [float("nan"), 0.0], [[1.0, 2.0]], None])
def test_a_shift_that_is_none_is_refused(shift):
    with pytest.raises(RunFileError, match="its shift of the data"):
        Reading.stored("run.h5", {"dtype": "float32", "shape": [9, 2], "shift": shift}, movable=True)
    with pytest.raises(RunFileError, match="its shift of the data"):
        Reading.stored("run.h5", {"dtype": "float32", "shape": [9, 2], "shift": [1.0, 2.0]}, movable=False)


@pytest.mark.parametrize(("rate", "ratio"), [(1e4, 1.01), (1e7, 1.01), (1e7, 3.0), (3e7, 1.001)])
def test_evidence_of_large_counts_in_float32(rate, ratio, backend):
    """The terms of log Poisson(y; λ) are as large as y: in float32 their difference would be off by nats."""
    rng = np.random.default_rng(0)
    lam = rate * np.array([[1.0, 1.0], [ratio, ratio]]) * rng.uniform(0.5, 1.0, 2)
    Y = rng.poisson(lam[rng.integers(2, size=200)]).astype(np.float32).astype(np.float64)
    params = {"pi": np.array([0.3, 0.7]), "lam": lam}
    joint = np.log(params["pi"]) + poisson.logpmf(Y[:, None], lam).sum(axis=2)
    right = np.logaddexp.reduce(joint, axis=1)
    found = gem.posterior(MoP(2, 2), params, Y, backend=backend, dtype="float32")
    np.testing.assert_allclose(found.log_evidence, right, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.mean, np.exp(joint - right[:, None]), rtol=0, atol=1e-4)
    assert found.log_evidence.dtype == np.float64
    new, info = gem.em_step(MoP(2, 2), params, Y, backend=backend, dtype="float32")
    exact, reference = gem.em_step(MoP(2, 2), params, Y, backend="numpy", dtype="float64")
    np.testing.assert_allclose(new["lam"], exact["lam"], rtol=1e-6)
    assert abs(info.free_energy - reference.free_energy) < 1e-2


def test_moments_of_far_data_whose_first_row_is_not_there():
    Y = stamps()
    Y[:200, 0] = np.nan
    found = summarize(Shard(ArraySource(Y), 0, 1000, "float64", 64), Y.shape[1], communicator(None), missing=True)
    np.testing.assert_allclose(found.var, np.nanvar(Y - 1.7e9, axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.mean - 1.7e9, np.nanmean(Y - 1.7e9, axis=0), atol=1e-5)


@pytest.mark.parametrize("change", ["far", "small", "gaps"])
def test_a_run_is_not_resumed_on_other_data(change, tmp_path):
    """Also where sums of absolute values hardly differ: far from 0, in small units, with gaps."""
    rng = np.random.default_rng(0)
    Y, other = rng.normal(size=(2, 200, 3))
    if change == "gaps":
        Y[[0, 100, -1], 1] = other[[0, 100, -1], 1] = np.nan
        other *= 50
    Y, other = (
        (1e9 + Y, 1e9 + other) if change == "far" else (1e-12 * Y, 1e-12 * other) if change == "small" else (Y, other)
    )
    path = tmp_path / "run.h5"
    em = gem.EM(MoG(3, 2, missing=change == "gaps"), Y, gem.Annealing(3), backend="numpy", output=path)
    next(iter(em))
    em._save()
    with pytest.raises(RunFileError, match="the data have changed"):
        gem.EM.resume(path, other)
    assert gem.EM.resume(path, Y + 0).run().step == 3


def test_fingerprints_of_old_run_files_and_of_rounded_data():
    Y = np.random.default_rng(0).normal(size=(50, 4))
    now = fingerprint(ArraySource(Y))
    assert same_data(now, now[:3])
    assert same_data(fingerprint(ArraySource(Y.astype(np.float32))), now)
    assert not same_data(fingerprint(ArraySource(Y[::-1] * 2)), now)
