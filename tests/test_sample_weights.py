"""Sample weights: weight 2 is the row twice, 0 the row left out; who is refused; what a run keeps of them."""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier, Thread

import numpy as np
import pytest

import gem
from examples import bootstrap
from gem import EM, Annealing, ConfigError, DataError, RunFileError, em_step
from gem.cli import main
from gem.data import ArraySource, Shard, load_weights, open_data
from gem.models import BSC, DSC, GSC, MCA, MMCA, PMCA, SC, TSC, MoG, MoP, NoisyOR
from gem.parallel import Communicator, communicator, heaviest, largest
from gem.store import read_run
from gem.summary import subsample, summarize

N, D = 40, 6
SIZES = {"D": D, "H": 5, "Hprime": 4, "gamma": 1}
MODELS = {
    "bsc": BSC(**SIZES),
    "bsc-missing": BSC(**SIZES, missing=True),
    "tsc": TSC(**SIZES),
    "dsc-missing": DSC(**SIZES, values=(0, 1, 2), missing=True),
    "gsc": GSC(**SIZES),
    "gsc-missing": GSC(**SIZES, missing=True),
    "mca-missing": MCA(**SIZES, missing=True),
    "mca-gamma-missing": MCA(**SIZES, missing=True, noise="gamma"),
    "mmca": MMCA(**SIZES),
    "noisyor": NoisyOR(**SIZES),
    "noisyor-missing": NoisyOR(**SIZES, missing=True),
    "pmca-missing": PMCA(**SIZES, missing=True),
    "sc": SC(D=D, H=5),
    "sc-unfound": SC(D=D, H=5, iterations=2),
    "mog-diag": MoG(D=D, K=3),
    "mog-tied": MoG(D=D, K=3, covariance="tied"),
    "mog-full-missing": MoG(D=D, K=3, covariance="full", missing=True),
    "mop-missing": MoP(D=D, K=3, missing=True),
}
WEIGHTS = np.random.default_rng(7).integers(0, 4, N)
EXACT = {"rtol": 1e-10, "atol": 1e-10}
BSC_MODEL = MODELS["bsc"]


def data(model):
    rng = np.random.default_rng(3)
    if isinstance(model, NoisyOR):
        Y = (rng.random((N, D)) < 0.4).astype(float)
    elif isinstance(model, PMCA | MoP):
        Y = rng.poisson(3, (N, D)).astype(float)
    elif getattr(model, "noise", None) == "gamma":
        Y = rng.gamma(3, 1, (N, D))
    else:
        Y = rng.standard_normal((N, D))
    if getattr(model, "missing", False):
        Y[rng.random((N, D)) < 0.2] = np.nan
    return Y


def start(model, Y):
    params = model.init_params(Y, seed=1)
    if "pi" in params and "H" in SIZES and not isinstance(model, MoG | MoP):  # so that γ leaves much out: M is small
        params["pi"] = np.array([0.4, 0.3, 0.3]) if isinstance(model, DSC) else np.full_like(params["pi"], 0.3)
    return params


def assert_same(one, other):
    for name in one[0]:
        np.testing.assert_allclose(one[0][name], other[0][name], **EXACT, err_msg=name)
    np.testing.assert_allclose(one[1].free_energy, other[1].free_energy, **EXACT)
    assert (one[1].N, one[1].N_use) == pytest.approx((other[1].N, other[1].N_use), rel=1e-12)
    assert one[1].share_at_gamma == pytest.approx(other[1].share_at_gamma, nan_ok=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_weight_is_so_many_rows(name, backend):
    model = MODELS[name]
    Y = data(model)
    twice, params = np.repeat(Y, WEIGHTS, axis=0), start(model, Y)
    selects = type(model).truncation is not gem.models.Model.truncation
    for Ncut in (0, 0.7)[: 1 + selects]:
        options = {"Ncut": Ncut, "T": 1.5, "backend": backend, "dtype": "float64"}
        rows = em_step(model, params, twice, batch=17, **options)
        weighted = em_step(model, params, Y, batch=9, weights=WEIGHTS, **options)
        assert len(twice) == weighted[1].N
        assert rows[1].notes == weighted[1].notes
        assert_same(rows, weighted)
    assert not selects or rows[1].N_use < rows[1].N


@pytest.mark.parametrize("name", ["bsc", "bsc-missing", "gsc", "gsc-missing"])
def test_a_weight_is_so_many_residuals(name):
    """Where σ is so small that the sums are of residuals."""
    model = MODELS[name]
    Y = data(model)
    params = {**start(model, Y), "sigma": np.array(1e-7)}
    options = {"backend": "numpy", "dtype": "float64", "T": 1e13}
    rows = em_step(model, params, np.repeat(Y, WEIGHTS, axis=0), **options)
    assert_same(rows, em_step(model, params, Y, weights=WEIGHTS, **options))


def test_float32_has_room_for_large_weights(backend):
    model = BSC(D=D, H=5, Hprime=4, gamma=3)
    Y = data(model)
    params = start(model, Y)
    one, _ = em_step(model, params, Y, backend=backend, dtype="float32")
    many, info = em_step(model, params, Y, backend=backend, dtype="float32", weights=np.full(N, 1e8))
    assert info.N == N * 1e8
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1 / N, 1e200])
def test_the_unit_of_weights_does_not_count(scale):
    """Weights that add up to 1 do not make every latent dead, nor every component empty, nor M empty."""
    for model in (BSC_MODEL, MODELS["mog-diag"]):
        Y = data(model)
        params = start(model, Y)
        more = {"Ncut": 0.7, "reseed": True} if model is BSC_MODEL else {}
        plain, info = em_step(model, params, Y, **more)
        scaled, told = em_step(model, params, Y, weights=np.full(N, scale), **more)
        told = replace(told, free_energy=told.free_energy / scale, N=told.N / scale, N_use=told.N_use / scale)
        assert told.notes == info.notes
        assert_same((plain, info), (scaled, told))


def test_without_weights_nothing_is_told_of_them():
    Y = data(BSC_MODEL)
    em = EM(BSC_MODEL, Y, Annealing(steps=1))
    assert "weights" not in em._config(open_data(Y))
    assert isinstance(em_step(BSC_MODEL, em.params, Y)[1].N, int)


def test_part_of_the_last_point_counts():
    values, weights = np.array([3.0, 1.0, 2.0, 2.0, 5.0]), np.array([0.5, 9.0, 2.0, 1.0, 0.0])
    np.testing.assert_allclose(heaviest(communicator(), values, weights, 3.0), [0.5, 0, 2, 0.5, 0])
    np.testing.assert_allclose(heaviest(communicator(), values, weights, 12.5), weights)
    mask = largest(communicator(), values, 3)
    np.testing.assert_array_equal(heaviest(communicator(), values, np.ones(5), 3.0), mask)


# -- ranks ----------------------------------------------------------------------------------------------------------


class Rank(Communicator):
    """One of several threads that exchange what they have at a barrier."""

    def __init__(self, rank, size, board, barrier):
        self.rank, self.size, self._board, self._barrier = rank, size, board, barrier

    def allgather(self, value):
        self._board[self.rank] = value
        self._barrier.wait()
        found = [self._board[rank] for rank in range(self.size)]
        self._barrier.wait()
        return found

    def allreduce(self, buffer):
        buffer[...] = sum(self.allgather(buffer.copy()))

    def bcast(self, value):
        return self.allgather(value)[0]

    def abort(self, status=1):
        self._barrier.abort()


def together(size, work):
    """What `work` gives to each of so many ranks, each a thread."""
    board, barrier, found = {}, Barrier(size, timeout=60), {}

    def one(rank):
        found[rank] = work(Rank(rank, size, board, barrier))

    threads = [Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


def test_ranks_make_no_difference():
    Y = data(BSC_MODEL)
    params = start(BSC_MODEL, Y)
    weights = np.random.default_rng(0).random(N) * 3
    weights[:14] = 0  # a rank without any
    alone = em_step(BSC_MODEL, params, Y, dtype="float64", Ncut=0.7, weights=weights)
    drawn, model = subsample_of(Y, weights, None), MODELS["mog-diag"]
    first = model.init_params(Y, weights=weights)

    def work(comm):
        step = em_step(BSC_MODEL, params, Y, backend="numpy", dtype="float64", Ncut=0.7, weights=weights, comm=comm)
        return step, subsample_of(Y, weights, comm), model.init_params(Y, weights=weights, comm=comm)

    for step, rows, began in together(3, work):
        assert_same(alone, step)
        np.testing.assert_array_equal(rows, drawn)
        for name in first:
            np.testing.assert_allclose(began[name], first[name], **EXACT)


def subsample_of(Y, weights, comm):
    return summarize(Y, D, communicator(comm), weights=weights).rows(9, np.random.default_rng(4))


# -- the initialisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_run_begins_with_the_weights(name):
    """Copies that lie beside each other are drawn by the same numbers: nothing is left to chance."""
    model = MODELS[name]
    Y = data(model)
    rows, weighted = model.init_params(np.repeat(Y, WEIGHTS, axis=0), 5), model.init_params(Y, 5, weights=WEIGHTS)
    for parameter in rows:
        np.testing.assert_allclose(weighted[parameter], rows[parameter], **EXACT)
    assert any(not np.allclose(value, weighted[parameter]) for parameter, value in model.init_params(Y, 5).items())


def test_what_is_drawn_follows_the_weights():
    """Of weights that are no whole numbers, too; what has weight 0 is never drawn."""
    Y = np.arange(4.0)[:, None] * np.ones((1, D))
    weights = np.array([0.0, 0.1, 0.3, 0.6])
    shard = Shard(ArraySource(Y), 0, 4, "float64", 4)
    counts = load_weights(weights, 4, communicator())
    drawn = [subsample(shard, 1000, 1, communicator(), np.random.default_rng(k), counts)[0, 0] for k in range(2000)]
    np.testing.assert_allclose(np.bincount(np.array(drawn, int), minlength=4) / 2000, weights, atol=0.04)


# -- what is refused ------------------------------------------------------------------------------------------------

GOOD = np.ones(N)


def wrong(at, value):
    weights = GOOD.copy()
    weights[at] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "error", "said"),
    [
        (wrong(13, -1), DataError, "-1.0 at row 13"),
        (wrong(5, np.nan), DataError, "nan at row 5"),
        (wrong(39, np.inf), DataError, "inf at row 39"),
        (np.ma.masked_equal(wrong(7, -9), -9), DataError, "nan at row 7"),
        (0 * GOOD, DataError, "all 40 are 0"),
        (GOOD[:-1], ConfigError, "39 of them for 40 data points, none for row 39"),
        (np.ones(N + 1), ConfigError, "41 of them for 40"),
        (np.ones((N, 2)), ConfigError, r"\(40, 2\)"),
        (np.array(1.0), ConfigError, r"\(\)"),
        (1.7e308 * GOOD, DataError, "add up to no number"),
        (1j * GOOD, DataError, "real numbers"),
        (["a"] * N, DataError, "real numbers"),
        ([[1.0], [1.0, 2.0]], DataError, "weights"),
    ],
)
def test_what_is_no_weight_is_refused(weights, error, said, tmp_path):
    Y = data(BSC_MODEL)
    for begin in (
        lambda: em_step(BSC_MODEL, start(BSC_MODEL, Y), Y, weights=weights),
        lambda: EM(BSC_MODEL, Y, Annealing(steps=1), weights=weights, output=tmp_path / "run.h5"),
        lambda: BSC_MODEL.init_params(Y, weights=weights),
    ):
        with pytest.raises(error, match=said):
            begin()
    assert not (tmp_path / "run.h5").exists()


def test_a_row_of_weight_0_is_looked_at_as_any_other():
    Y = data(BSC_MODEL)
    params = start(BSC_MODEL, Y)
    Y[3, 2] = np.nan
    for Ncut in (0, 0.7):
        with pytest.raises(DataError, match="row 3, column 2"):
            em_step(BSC_MODEL, params, Y, Ncut=Ncut, weights=wrong(3, 0))


# -- files, and runs that are taken up --------------------------------------------------------------------------------


def files(folder, weights):
    import h5py

    np.save(folder / "w.npy", weights)
    np.save(folder / "column.npy", weights[:, None])
    np.savez(folder / "w.npz", w=weights)
    np.savez_compressed(folder / "small.npz", w=weights, Y=np.ones((3, 2)))
    with h5py.File(folder / "w.h5", "w") as file:
        file["w"], file["Y"] = weights, np.ones((N, D))
    return [folder / "w.npy", folder / "column.npy", folder / "w.npz", f"{folder}/small.npz:w", f"{folder}/w.h5:/w"]


def test_weights_in_files_and_objects(tmp_path):
    import h5py
    import pandas

    weights = np.arange(N) / 4
    for given in [*files(tmp_path, weights), list(weights), pandas.Series(weights, index=weights[::-1]), WEIGHTS > -1]:
        found = load_weights(given, N, communicator())
        np.testing.assert_array_equal(found.values, 1 if given is not None and found.total == N else weights)
    with h5py.File(tmp_path / "w.h5") as file:
        np.testing.assert_array_equal(load_weights(file["w"], N, communicator()).values, weights)
    source = open_data(tmp_path / "column.npy")
    np.testing.assert_array_equal(load_weights(source, N, communicator()).values, weights)
    with pytest.raises(DataError, match="does not exist"):
        load_weights(tmp_path / "none.npy", N, communicator())
    with pytest.raises(DataError, match="row per data point"):  # of data (N,) is refused as before
        open_data(tmp_path / "w.npy")


def test_each_rank_reads_its_own(tmp_path, monkeypatch):
    from gem.data.numpy_files import NpySource

    read = []
    monkeypatch.setattr(
        NpySource, "read", lambda self, start, stop: read.append((start, stop)) or np.ones(stop - start)
    )
    np.save(tmp_path / "w.npy", GOOD)
    assert {found.total for found in together(4, lambda comm: load_weights(tmp_path / "w.npy", N, comm))} == {N}
    assert sorted(read) == [(0, 10), (10, 20), (20, 30), (30, 40)]


def test_a_run_is_the_chain_of_its_steps_and_is_taken_up(tmp_path):
    Y, weights = data(BSC_MODEL), np.random.default_rng(2).random(N)
    anneal = Annealing(steps=3, T=[(0, 2.0), (1.0, 1.0)], Ncut=[(0, 0.0), (1.0, 0.7)])
    np.save(tmp_path / "w.npy", weights)
    for given in (weights, tmp_path / "w.npy"):
        path = tmp_path / f"{'file' if isinstance(given, type(tmp_path)) else 'array'}.h5"
        whole = EM(BSC_MODEL, Y, anneal, weights=given).run()
        em = EM(BSC_MODEL, Y, anneal, weights=given, output=path, checkpoint=1)
        for _ in em:
            if em.step == 2:
                break
        np.testing.assert_allclose(em.history["N"], weights.sum())
        in_memory = isinstance(given, np.ndarray)
        if in_memory:
            with pytest.raises(RunFileError, match="give them again"):
                EM.resume(path, Y)
        with pytest.raises(RunFileError, match="weights have changed"):
            EM.resume(path, Y, weights[::-1])
        resumed = EM.resume(path, Y, weights if in_memory else None).run()
        _, last = em_step(
            BSC_MODEL, resumed.params, Y, weights=weights
        )  # what a run ends with is of its last parameters
        np.testing.assert_allclose(resumed.history["free_energy"][-1], last.free_energy, rtol=1e-6)
        for name in whole.params:
            np.testing.assert_array_equal(resumed.params[name], whole.params[name])
        np.testing.assert_array_equal(resumed.history["free_energy"], whole.history["free_energy"])
    short = EM(BSC_MODEL, Y, anneal, weights=weights)
    for _ in short:
        break
    _, last = em_step(BSC_MODEL, short.finish().params, Y, weights=weights)
    np.testing.assert_allclose(short.history["free_energy"], last.free_energy, rtol=1e-6)
    np.testing.assert_allclose(short.history["N"], weights.sum())
    plain = tmp_path / "plain.h5"
    EM(BSC_MODEL, Y, anneal, output=plain).run()
    assert "weights" not in read_run(plain).config
    with pytest.raises(RunFileError, match="had no weights"):
        EM.resume(plain, Y, weights)
    with pytest.raises(ConfigError, match="is the data file itself"):
        EM(BSC_MODEL, Y, anneal, weights=tmp_path / "w.npy", output=tmp_path / "w.npy", overwrite=True)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Y = data(BSC_MODEL)
    np.save("Y.npy", Y)
    files(tmp_path, WEIGHTS.astype(float))
    common = ["fit", "mog", "Y.npy", "--K", "2", "--steps", "2", "-q"]
    assert main([*common, "--weights", "w.h5:/w", "-o", "run.h5"]) == 0
    twice = EM(MoG(D=D, K=2), np.repeat(Y, WEIGHTS, axis=0), Annealing(steps=2)).run()
    np.testing.assert_allclose(read_run("run.h5").params["mu"], twice.params["mu"], rtol=1e-4, atol=1e-5)
    assert main([*common, "--weights", "w.h5:w", "-o", "run.h5", "--resume"]) == 0
    capsys.readouterr()
    for other in (["--weights", "w.npy"], []):
        assert main([*common, *other, "-o", "run.h5", "--resume"]) == 1
        assert "other settings: weights" in capsys.readouterr().err
    np.save("w.npy", wrong(11, -2))
    assert main([*common, "--weights", "w.npy", "-o", "other.h5"]) == 1
    assert "-2.0 at row 11" in capsys.readouterr().err


def test_the_bootstrap_gives_known_standard_errors(monkeypatch):
    monkeypatch.setenv("GEM_BACKEND", "numpy")
    measured, known = bootstrap.known_case(N=200, draws=100)
    np.testing.assert_allclose(measured, known, rtol=0.25)  # three standard errors of 100 draws, and of the data
