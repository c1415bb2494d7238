"""A run: what it records, what its noise depends on, and that an interruption neither loses nor changes a step."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import gem.em
import gem.run
from benchmarks.scaling import unlaunched
from gem import EM, Annealing, em_step, posterior
from gem.annealing import WINDOW
from gem.backends import select
from gem.data import ArraySource, Shard
from gem.em import Info
from gem.errors import ConfigError, DataError, RunFileError
from gem.models import BSC, SC, MoG, MoP, NoisyOR
from gem.models.linear import LinearEStep
from gem.notes import counted
from gem.philox import generator
from gem.run import run_step
from gem.store import load_params, read_run
from gem.termination import Termination

MODEL = BSC(D=9, H=6, Hprime=4, gamma=3)
STEPS = 12
ANNEAL = Annealing(  # everything moves, so that a step taken up at the wrong place shows
    steps=STEPS,
    T=[(0, 3.0), (0.8, 1.0)],
    Ncut=[(0.2, 0.0), (0.9, 0.8)],
    W_noise=[(0, 0.3), (1.0, 0.05)],
    pi_noise=0.1,
    sigma_noise=0.1,
)


def points(N: int = 401) -> np.ndarray:
    """N is odd, so that the ranks' slabs differ in size."""
    W = 3 * np.random.default_rng(0).normal(size=(9, 6))
    return MODEL.generate_data({"W": W, "pi": 0.3, "sigma": 0.8}, N, seed=1)[0]


def fit(data, anneal=ANNEAL, model=MODEL, **options) -> EM:
    return EM(model, data, anneal, **{"backend": "numpy", "dtype": "float64", "seed": 3, **options})


@pytest.fixture
def folder(world, tmp_path) -> Path:
    """One folder for all ranks: rank 0's."""
    return world.bcast(tmp_path)


def assert_same(run: EM, whole: EM) -> None:
    """Bit for bit, but for the seconds."""
    assert run.step == whole.step
    for name, value in whole.params.items():
        np.testing.assert_array_equal(run.params[name], value, err_msg=name)
    assert set(run.history) == set(whole.history)
    for name in set(whole.history) - {"seconds"}:
        np.testing.assert_array_equal(run.history[name], whole.history[name], err_msg=name)
        assert run.history[name].dtype == whole.history[name].dtype
    assert run.notes == whole.notes


def assert_file_holds(path: Path, run: EM, steps: int) -> None:
    """The file stands at `steps`, and its rows are those of a run that did all steps."""
    found = read_run(path)
    assert found.step == steps
    for name in set(found.history) - {"seconds"}:
        np.testing.assert_array_equal(found.history[name], run.history[name][:steps], err_msg=name)
    if steps == run.step:
        np.testing.assert_array_equal(found.params["W"], run.params["W"])


def die_after(steps: int, run: EM, path: Path, copy: Path) -> None:
    """Do some steps, and take the run file as a process that dies there would leave it."""
    loop = iter(run)
    for _ in range(steps):
        next(loop)
    if run.comm.rank == 0:
        shutil.copy(path, copy)
    loop.close()


# What it does and records


def test_run_is_the_chain_of_its_steps(world):
    Y = points()
    run = fit(Y, comm=world).run()
    params = MODEL.init_params(Y, seed=3, comm=world)
    for t in range(STEPS):
        now = ANNEAL[t]
        noisy = MODEL.perturb(params, now, generator(3, "noise", t))
        params, info = em_step(
            MODEL, noisy, Y, backend="numpy", dtype="float64", T=now["T"], Ncut=now["Ncut"], comm=world
        )
        if t + 1 < STEPS:
            assert run.history["free_energy"][t] == info.free_energy
        assert run.history["N_use"][t] == info.N_use
    for name, value in params.items():
        np.testing.assert_array_equal(run.params[name], value, err_msg=name)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_last_free_energy_is_that_of_the_parameters_beside_it(steps, world, folder):
    """Also where the last step was not at T = 1, had noise, and left data points out."""
    anneal = Annealing(steps=steps, T=1.5, Ncut=0.3, W_noise=0.1)
    run = fit(points(), anneal, comm=world, output=folder / "run.h5").run()
    wanted = posterior(MODEL, run.params, points(), backend="numpy", dtype="float64").log_evidence.sum()
    np.testing.assert_allclose(run.history["free_energy"][-1], wanted, rtol=1e-12)
    if world.rank == 0:
        found = read_run(folder / "run.h5")
        assert found.history["free_energy"][-1] == run.history["free_energy"][-1]
        np.testing.assert_array_equal(found.params["W"], run.params["W"])


def test_a_gamma_that_is_short_is_told_at_the_end(world, folder):
    """Once, of the parameters that are left; not where no larger one is possible, or none is needed."""
    Y, _ = MODEL.generate_data({"W": 9 * np.eye(9)[:, :6], "pi": 0.4, "sigma": 1.0}, 200, seed=1)
    start = {"W": 9 * np.eye(9)[:, :6] + 1, "pi": 0.4, "sigma": 1.0}
    for gamma, Hprime, words in ((1, 4, "raise gamma"), (2, 2, "raise gamma and Hprime"), (6, 6, None)):
        model, path = BSC(D=9, H=6, Hprime=Hprime, gamma=gamma), folder / f"{gamma}.h5"
        run = fit(Y, Annealing(3), model, params=start, comm=world, output=path).run()
        best = posterior(model, run.params, Y, backend="numpy", dtype="float64", top=1).map_state
        share = np.mean(np.count_nonzero(best, axis=1) == gamma)
        assert run.history["share_at_gamma"][-1] == share
        told = [(step, note) for step, note in run.notes if note.startswith("gamma")]
        said = f"gamma = {gamma} is short: {share:.1%} of the data points"
        assert bool(told) == bool(words)
        assert all(step == 3 and note.startswith(said) and note.endswith(words) for step, note in told)
        if world.rank == 0:
            assert read_run(path).history["share_at_gamma"][-1] == share


def test_notes_are_counted_by_kind():
    notes = [(1, "latent 5 was dead"), (1, "pi = 1e-11 was held"), (2, "latent 7 was dead"), (4, "latent 7 was dead")]
    assert counted(notes) == [
        ("steps 1 to 4", "3 × latent 7 was dead (the last of them)"),
        ("step 1", "pi = 1e-11 was held"),
    ]
    assert counted([(2, "no"), (3, "no")]) == [("steps 2 to 3", "2 × no")]


def test_history(world):
    run = fit(points(), comm=world)
    assert (run.step, run.history, run.notes) == (0, {}, [])
    run.run()
    assert run.step == STEPS
    assert not run.stopped
    assert set(run.history) == {"free_energy", "N", "N_use", "T", "Ncut", "seconds", "share_at_gamma"}
    assert all(values.shape == (STEPS,) for values in run.history.values())
    for name in ("T", "Ncut"):
        np.testing.assert_array_equal(run.history[name], [ANNEAL[t][name] for t in range(STEPS)])
    assert (run.history["N"] == 401).all()
    np.testing.assert_array_equal(run.history["N_use"] < 401, run.history["Ncut"] > 0)
    assert (run.history["seconds"] > 0).all()


def test_free_energy_rises_without_annealing(world):
    history = fit(points(), Annealing(steps=8), model=BSC(D=9, H=6, Hprime=6, gamma=6), comm=world).run().history
    assert (np.diff(history["free_energy"]) > 0).all()


def test_notes_name_their_step_counted_from_1(world, folder):
    params = MODEL.init_params(points(), seed=0, comm=world)
    params["W"][:, 5] = 1e6  # a field this large never explains a data point
    run = fit(points(), Annealing(steps=2), params=params, comm=world, output=folder / "run.h5").run()
    assert run.notes == [(step, "latent 5 was never active: its field was kept") for step in (1, 2)]
    if world.rank == 0:
        assert read_run(folder / "run.h5").notes == [[note] for _, note in run.notes]
    assert params["W"][0, 5] == 1e6
    assert_same(EM.resume(folder / "run.h5", points(), comm=world), run)


def test_iterating_is_running(world):
    loop = fit(points(), comm=world)
    infos = list(loop)
    assert_same(loop, fit(points(), comm=world).run())
    np.testing.assert_array_equal([info.free_energy for info in infos], loop.history["free_energy"])
    assert list(loop) == []  # it is done


def test_other_models_run(tmp_path):
    model, anneal = MoG(D=9, K=3, covariance="full"), Annealing(steps=STEPS, T=[(0, 3.0), (0.8, 1.0)], pi_noise=0.1)
    whole = fit(points(), anneal, model, output=tmp_path / "whole.h5").run()
    begun = fit(points(), anneal, model, output=tmp_path / "run.h5", checkpoint=5)
    die_after(5, begun, tmp_path / "run.h5", tmp_path / "c")
    assert_same(EM.resume(tmp_path / "c", points()).run(), whole)


@pytest.mark.parametrize(
    ("model", "option", "words"),
    [
        (MoG(D=9, K=2), {"Ncut": 0.5}, "MoG truncates nothing"),
        (SC(D=9, H=3), {"Ncut": 0.5}, "SC truncates nothing"),
        (MoG(D=9, K=2), {"reseed": True}, "reseed: MoG re-seeds its empty components by itself"),
    ],
)
def test_a_step_refuses_what_a_model_could_only_ignore(model, option, words):
    with pytest.raises(ConfigError, match=words):
        em_step(model, model.init_params(points()), points(), **option)


@pytest.mark.parametrize("name", ["pi", "mu", "var"])
def test_noise_of_any_parameter(name):
    model, start = MoG(D=9, K=2), {"seed": 5}
    noisy, plain = (
        fit(points(), Annealing(steps=1, **noise), model, **start).run().params
        for noise in ({f"{name}_noise": 0.1}, {})
    )
    assert not np.array_equal(noisy[name], plain[name])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seed": 1.5}, r"seed = 1\.5 must be a whole number"),
        ({"seed": "a"}, "seed = 'a'"),
        ({"seed": 2**63}, "seed = 9223372036854775808"),
        ({"model": MoG(D=9, K=2)}, "W_noise has nothing to act on: MoG has the parameters pi, mu, var"),
        (
            {"model": MoG(D=9, K=2, covariance="full"), "anneal": Annealing(steps=1, cov_noise=0.1)},
            "may be none; of MoG pi, mu may have it",
        ),
        ({"anneal": Annealing(steps=1, V_noise=0.1)}, "V_noise has nothing to act on: BSC has the parameters W, pi"),
        ({"model": MoG(D=9, K=2), "anneal": Annealing(steps=1, Ncut=0.1)}, "MoG truncates nothing"),
        ({"model": SC(D=9, H=2), "anneal": Annealing(steps=1, Ncut=0.1)}, "SC truncates nothing"),
        (
            {"model": MoG(D=9, K=2), "anneal": Annealing(steps=1, reseed=True)},
            "reseed: MoG re-seeds its empty .* by it",
        ),
        ({"checkpoint": 0}, "checkpoint = 0 .*at least 1"),
        ({"checkpoint": "a"}, "checkpoint = 'a'"),
        ({"batch": 0}, "batch = 0"),
        ({"model": BSC(D=8, H=6)}, "9 dimensions, the model D = 8"),
        ({"params": {"W": np.ones((9, 6)), "pi": 0.5}}, "sigma is missing"),
    ],
)
def test_wrong_settings_leave_no_file_behind(tmp_path, wrong, words):
    with pytest.raises(ConfigError, match=words):
        fit(points(), output=tmp_path / "run.h5", **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "params"),
    [(NoisyOR(D=9, H=3), None), (MoP(D=9, K=3), None), (BSC(D=9, H=6), "own")],
    ids=["no binary data", "no counts", "NaN beside given parameters"],
)
def test_a_run_is_not_replaced_by_one_whose_data_are_refused(tmp_path, model, params):
    Y, path = points().copy(), tmp_path / "run.h5"
    fit(Y, Annealing(steps=1), output=path).run()
    before = path.read_bytes()
    if params:
        params, Y[3, 2] = model.init_params(Y), np.nan
    with pytest.raises(DataError, match=r"at row \d+, column \d+"):
        EM(model, Y, Annealing(steps=1), params=params, output=path, overwrite=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_run_file(tmp_path, overwrite):
    with pytest.raises(RunFileError, match=r"is a folder: give the run file a name in it, such as .*run\.h5"):
        fit(points(), output=tmp_path, overwrite=overwrite)


def test_numpy_integers_are_whole_numbers(tmp_path):
    numbers = {name: np.int64(5) for name in ("seed", "checkpoint", "batch")}
    fit(points(), Annealing(steps=np.int64(1)), output=tmp_path / "run.h5", **numbers).run()
    assert read_run(tmp_path / "run.h5").seed == 5


# Noise


def noise_of(monkeypatch, data=None, **options) -> list[dict[str, np.ndarray]]:
    """What the steps of a run begin with when each of them gives the parameters `start` back: start and noise."""

    def give_back(model, noisy, *_):
        seen.append(noisy)
        return start, Info(free_energy=0.0, N=1, N_use=1, T=1.0, Ncut=0.0, seconds=1.0), False

    seen: list[dict[str, np.ndarray]] = []
    start = {"W": np.zeros((9, 6)), "pi": np.array(0.4), "sigma": np.array(1.0)}
    with monkeypatch.context() as patch:
        patch.setattr(gem.run, "run_step", give_back)
        fit(points(100) if data is None else data, params=start, **options).run()
    return seen


def equal(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> bool:
    return all(np.array_equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


def test_noise_depends_on_seed_and_step_alone(monkeypatch, world):
    noise = noise_of(monkeypatch)
    for same in ({"data": points(57)}, {"dtype": "float32"}, {"batch": 3}, {"comm": world}):
        assert equal(noise_of(monkeypatch, **same), noise), same
    assert not equal(noise_of(monkeypatch, seed=4), noise)
    constant = Annealing(steps=4, W_noise=0.3, pi_noise=0.1, sigma_noise=0.1)
    steps = noise_of(monkeypatch, anneal=constant)
    for name in ("W", "pi", "sigma"):
        assert len({step[name].tobytes() for step in steps}) == 4, name


# Taken up again


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [0, 1, 7, 11])
def test_resumed_run_has_the_numbers_of_one_in_a_piece(world, folder, dtype, steps):
    if world.rank == 0:
        np.save(folder / "x.npy", points())
    data = world.bcast(str(folder / "x.npy"))
    whole = fit(data, dtype=dtype, comm=world, output=folder / "whole.h5", checkpoint=3).run()
    run = fit(data, dtype=dtype, comm=world, output=folder / "run.h5", checkpoint=3)
    die_after(steps, run, folder / "run.h5", folder / "copy.h5")
    resumed = EM.resume(folder / "copy.h5", comm=world)
    assert resumed.step == steps // 3 * 3
    assert_same(resumed.run(), whole)
    if world.rank == 0:
        found, expected = read_run(folder / "copy.h5"), read_run(folder / "whole.h5")
        assert found.finished
        assert found.config == expected.config
        for name in whole.params:
            ours, theirs = (load_params(folder / file, name) for file in ("copy.h5", "whole.h5"))
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_resumed_run_has_the_numbers_of_one_in_a_piece_on_every_backend(backend, tmp_path):
    """Batches are given: a device's own choice is that of the machine."""
    for dtype in ("float32", "float64"):
        options = {"backend": backend, "dtype": dtype, "batch": 70, "checkpoint": 3}
        whole = fit(points(), **options).run()
        run = fit(points(), output=tmp_path / "run.h5", overwrite=True, **options)
        die_after(7, run, tmp_path / "run.h5", tmp_path / "copy.h5")
        resumed = EM.resume(tmp_path / "copy.h5", points())
        assert resumed.step == 6
        assert_same(resumed.run(), whole)


def test_resumed_again_and_again(tmp_path):
    whole = fit(points()).run()
    path = tmp_path / "0.h5"
    run = fit(points(), output=path, checkpoint=1)
    for k in range(4):
        die_after(2, run, tmp_path / f"{k}.h5", tmp_path / f"{k + 1}.h5")
        run = EM.resume(tmp_path / f"{k + 1}.h5", points())
    assert run.step == 8
    assert_same(run.run(), whole)


def test_resumed_with_other_ranks_it_differs_by_rounding(world, folder, tmp_path):
    anneal = Annealing(steps=6, T=2.0, W_noise=0.1)
    whole = fit(points(), anneal, comm=world).run()
    run = fit(points(), anneal, comm=world, output=folder / "run.h5", checkpoint=3)
    die_after(3, run, folder / "run.h5", folder / "copy.h5")
    world.bcast(None)  # rank 0 has made the copy
    alone = EM.resume(shutil.copy(folder / "copy.h5", tmp_path / "alone.h5"), points()).run()
    for name, value in whole.params.items():
        np.testing.assert_allclose(alone.params[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_each_rank_returns_to_its_device_and_batch(world, folder, monkeypatch):
    def note(asked, *arguments):
        seen.append(asked)
        return select("numpy", *arguments)

    def batch_of(run):
        return run.comm.allgather(run._batch)

    seen = []
    backend = select("numpy", "float64", world)
    monkeypatch.setattr(backend, "name", f"numpy:{world.rank}")  # as if each rank had a device of its own
    run = fit(points(), backend=backend, comm=world, batch=20 + world.rank, output=folder / "run.h5")
    monkeypatch.setattr(gem.run, "select", note)
    assert batch_of(EM.resume(folder / "run.h5", points(), comm=world)) == batch_of(run)
    assert seen.pop() == f"numpy:{world.rank}"
    other = EM.resume(folder / "run.h5", points(), backend="numpy", comm=world)
    assert seen.pop() == "numpy"
    assert min(batch_of(other)) > 20 + world.size  # another backend chooses anew


def test_finished_run_stays_as_it_is(tmp_path):
    whole = fit(points(), output=tmp_path / "run.h5").run()
    before = (tmp_path / "run.h5").stat()
    assert_same(EM.resume(tmp_path / "run.h5", points()).run(), whole)
    after = (tmp_path / "run.h5").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # not even written anew


def test_run_on_an_array_wants_it_again(tmp_path):
    whole = fit(points()).run()
    die_after(4, fit(points(), output=tmp_path / "run.h5"), tmp_path / "run.h5", tmp_path / "copy.h5")
    with pytest.raises(RunFileError, match=r"copy\.h5: the run was on an array in memory.*resume\(path, data\)"):
        EM.resume(tmp_path / "copy.h5")
    for other in (points()[:400], points()[:, :8]):
        with pytest.raises(RunFileError, match=rf"shape \[401, 9\], these are \[{other.shape[0]}, {other.shape[1]}\]"):
            EM.resume(tmp_path / "copy.h5", other)
    assert_same(EM.resume(tmp_path / "copy.h5", points()).run(), whole)


def test_data_that_changed_since_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", points())
    fit(tmp_path / "x.npy", output=tmp_path / "run.h5")
    np.save(tmp_path / "x.npy", points(57))
    with pytest.raises(RunFileError, match=r"shape \[401, 9\], these are \[57, 9\]"):
        EM.resume(tmp_path / "run.h5")
    (tmp_path / "x.npy").unlink()
    with pytest.raises(DataError, match=r"cannot read .*x\.npy"):
        EM.resume(tmp_path / "run.h5")


# Ended before its last step

SETTLING = {"T": [(0, 3.0), (4, 1.0)], "Ncut": [(3, 0.2), (5, 0.0)], "W_noise": [(0, 0.3), (6, 0.0)]}


def settling(steps: int = 80, until: float | None = 1e-6) -> Annealing:
    return Annealing(steps=steps, until=until, **SETTLING)


def test_a_run_ends_once_it_has_settled(world, folder):
    """On all ranks alike, with the numbers of a run of so many steps; its F then stood still, and before it did not."""
    run = fit(points(), settling(), comm=world, output=folder / "run.h5").run()
    assert world.allgather((run.step, run.reason)) == [(run.step, "settled")] * world.size
    assert 6 + WINDOW < run.step < 80
    assert_same(run, fit(points(), settling(run.step, None), comm=world).run())
    F = fit(points(), settling(until=None), comm=world).run().history["free_energy"] / 401
    spread = [np.ptp(F[t - WINDOW : t + 1]) / abs(F[t]) for t in range(6 + WINDOW, run.step)]
    assert spread[-1] < 1e-6 <= min(spread[:-1])
    if world.rank == 0:
        found = read_run(folder / "run.h5")
        assert (found.step, found.finished, found.reason) == (run.step, True, "settled")
    again = EM.resume(folder / "run.h5", points(), comm=world)
    assert again.reason == "settled"
    assert_same(again.run(), run)


def test_a_resumed_run_settles_at_the_same_step(world, folder):
    """Wherever it was killed: before the steps that count, among them, or when it had settled but was not finished."""
    whole = fit(points(), settling(), comm=world).run()
    run, killed = fit(points(), settling(), comm=world, output=folder / "run.h5", checkpoint=1), {}
    loop = iter(run)
    while run.step < whole.step:
        next(loop)
        if whole.step - run.step in (12, 4, 1, 0):
            killed[run.step] = folder / f"{run.step}.h5"
            if world.rank == 0:
                shutil.copy(folder / "run.h5", killed[run.step])
    world.bcast(None)  # rank 0 has made the copies
    for step, path in killed.items():
        resumed = EM.resume(path, points(), comm=world)
        assert (resumed.step, resumed.reason) == (step, None if step < whole.step else "settled")
        assert_same(resumed.run(), whole)
        if world.rank == 0:
            found = read_run(path)
            assert (found.step, found.finished, found.reason) == (whole.step, True, "settled")
    loop.close()


def test_a_hot_run_never_settles():
    """However little F moves: at T = 1 the same run would."""
    for T, reason in ((1.0, "settled"), (1.0001, "steps used up")):
        run = fit(points(), Annealing(steps=20, T=T, until=0.5))
        assert run.reason is None
        assert (run.run().reason, run.step == 20) == (reason, reason != "settled")


def test_why_a_run_was_stopped_is_in_its_file(tmp_path):
    run = fit(points(), output=tmp_path / "run.h5", checkpoint=4)
    for _ in run:
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
    assert run.reason == read_run(tmp_path / "run.h5").reason == "stopped by SIGTERM"
    again = EM.resume(tmp_path / "run.h5", points())
    assert (again.reason, again.run().reason, read_run(tmp_path / "run.h5").reason) == (None, *["steps used up"] * 2)


def left_at(step: int, **options) -> EM:
    """A run whose loop was left."""
    run = fit(points(), **options)
    for _ in run:
        if run.step == step:
            break
    return run


@pytest.mark.parametrize("checkpoint", [1, 100])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_loop_that_was_left_can_be_ended(world, folder, checkpoint, resumed):
    """Its last row, which may be on the disk, then tells the F of the parameters that are left."""
    anneal = Annealing(steps=50, T=[(0, 3.0), (20, 1.0)], Ncut=0.2)
    run = left_at(5, anneal=anneal, comm=world, output=folder / "run.h5", checkpoint=checkpoint)
    world.bcast(None)  # rank 0 has left it, too
    assert run.reason is None
    run = EM.resume(folder / "run.h5", points(), comm=world) if resumed else run
    assert run.finish() is run
    whole = fit(points(), Annealing(steps=5, T=[(0, 3.0), (20, 1.0)], Ncut=0.2), comm=world).run()
    assert_same(run, whole)
    assert run.reason == "ended by finish()"
    if world.rank == 0:
        found = read_run(folder / "run.h5")
        assert (found.finished, found.reason) == (True, "ended by finish()")
        assert_file_holds(folder / "run.h5", whole, 5)
    assert_same(run.run(), whole)  # it is over
    assert_same(EM.resume(folder / "run.h5", points(), comm=world).run(), whole)


def test_finish_within_the_loop_ends_it():
    run = fit(points())
    for info in run:
        assert info.N == 401
        if run.step == 5:
            run.finish()
    assert_same(run, left_at(5).finish())


def test_finish_leaves_a_run_that_is_over_as_it_is(tmp_path, monkeypatch):
    whole = fit(points()).run()
    run = left_at(STEPS, output=tmp_path / "run.h5")  # at its last step, which had its closing E-step
    assert_same(run.finish(), whole)
    assert (run.reason, read_run(tmp_path / "run.h5").finished) == ("steps used up", True)
    with pytest.raises(ConfigError, match="no step of the run is done"):
        fit(points()).finish()


def test_a_full_disk_at_the_end_can_be_put_right(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    run = left_at(5, output=tmp_path / "run.h5")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunFileError, match="has no space"):
            run.finish()
    assert not read_run(tmp_path / "run.h5").finished
    run.finish()
    assert read_run(tmp_path / "run.h5").finished
    assert_file_holds(tmp_path / "run.h5", run, 5)


# Callbacks


def test_callbacks_get_each_step_on_rank_0(world):
    def note(info):
        seen.append((run.step, info.free_energy))
        return True  # means nothing

    def note_more(info):
        assert len(seen) == run.step  # after the other one
        more.append(info)

    seen, more = [], []
    run = fit(points(), comm=world)
    run.run(callbacks=[note, note_more])
    assert_same(run, fit(points(), comm=world).run())
    told = list(enumerate(run.history["free_energy"], start=1))
    assert seen == (told if world.rank == 0 else [])
    assert len(more) == len(seen)


@pytest.mark.parametrize("failure", [ValueError("of the caller"), KeyboardInterrupt(), SystemExit(0)])
def test_an_exception_in_a_callback_loses_no_step(tmp_path, failure):
    def fails(info):
        if run.step == 5:
            raise failure

    whole = fit(points()).run()
    run = fit(points(), output=tmp_path / "run.h5")
    with pytest.raises(type(failure)):
        run.run(callbacks=[fails])
    assert_file_holds(tmp_path / "run.h5", whole, 5)
    assert_same(run.run(), whole)


@pytest.mark.parametrize("wrong", [print, [print, 3], 7, "ab"])
def test_what_is_no_list_of_functions_is_refused(wrong):
    run = fit(points())
    with pytest.raises(ConfigError, match=r"callbacks = .*must be a list of functions"):
        run.run(callbacks=wrong)
    assert run.step == 0


def test_a_callback_cannot_finish_what_other_ranks_go_on_with():
    run = fit(points())
    with pytest.raises(ConfigError, match=r"finish\(\) is for all ranks"):
        run.run(callbacks=[lambda info: run.finish()])
    assert (run.step, run.reason) == (1, None)
    run.finish()  # outside it can


CALLED = """
    import sys
    import numpy as np
    from gem import EM, Annealing
    from gem.models import BSC

    def called(info):
        if run.step == 4:
            {failure}

    Y = np.random.default_rng(0).normal(size=(20, 4))
    run = EM(BSC(D=4, H=3), Y, Annealing(steps=9), backend="numpy", comm="world", output=sys.argv[1])
    run.run(callbacks=[called])
"""


@pytest.mark.serial
@pytest.mark.parametrize(
    ("failure", "said"), [("raise ValueError('of the caller')", "of the caller"), ("sys.exit()", "exit status 1")]
)
def test_a_callback_that_fails_keeps_no_rank_waiting(tmp_path, mpiexec, failure, said):
    script = textwrap.dedent(CALLED).format(failure=failure)
    process = child("-c", script, tmp_path / "run.h5", launcher=(mpiexec, "-n", "2"))
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "gem: rank 0: " in err
    assert said in err
    assert read_run(tmp_path / "run.h5").step == 4


# Interrupted


def failing_at(step: int, failure: BaseException):
    """`run_step`, but the given step (counted from 1) fails."""
    steps = iter(range(1, STEPS + 1))

    def attempt(*arguments):
        if next(steps) == step:
            raise failure
        return run_step(*arguments)

    return attempt


@pytest.mark.parametrize("failure", [DataError("spoiled"), RuntimeError("a defect"), KeyboardInterrupt()])
@pytest.mark.parametrize("go", [EM.run, list])
def test_an_exception_loses_no_step(tmp_path, monkeypatch, failure, go):
    whole = fit(points()).run()
    run = fit(points(), output=tmp_path / "run.h5")
    with monkeypatch.context() as patch:
        patch.setattr(gem.run, "run_step", failing_at(5, failure))
        with pytest.raises(type(failure)):
            go(run)
    assert run.step == 4
    assert_file_holds(tmp_path / "run.h5", whole, 4)
    shutil.copy(tmp_path / "run.h5", tmp_path / "copy.h5")
    assert_same(EM.resume(tmp_path / "copy.h5", points()).run(), whole)
    assert_same(run.run(), whole)  # nor does the object
    assert_file_holds(tmp_path / "run.h5", whole, STEPS)


class Rotting(ArraySource):
    """Data with a NaN in a late row, once they are rotten."""

    rotten = False

    def read(self, start, stop):
        rows = super().read(start, stop).copy()
        if self.rotten and start <= 390 < stop:
            rows[390 - start, 2] = np.nan
        return rows


def test_data_that_turn_bad_in_the_midst_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gem.em, "Shard", partial(Shard, memory=0))  # streamed at every step
    monkeypatch.setattr("gem.data.shard.BLOCK", 100 * 9 * 8)
    whole = fit(points(), batch=50).run()
    data = Rotting(points())
    run = fit(data, batch=50, output=tmp_path / "run.h5")
    loop = iter(run)
    for _ in range(5):
        next(loop)
    data.rotten = True
    with pytest.raises(DataError, match=r"nan at row 390, column 2.*drop these rows"):
        next(loop)
    assert_file_holds(tmp_path / "run.h5", whole, 5)
    assert_same(EM.resume(tmp_path / "run.h5", points()).run(), whole)


def test_leaving_the_loop_loses_no_step(tmp_path):
    whole = fit(points()).run()
    run = fit(points(), output=tmp_path / "run.h5")
    for _ in run:
        if run.step == 5:
            break
    assert_file_holds(tmp_path / "run.h5", whole, 5)
    assert_same(run.run(), whole)
    assert_file_holds(tmp_path / "run.h5", whole, STEPS)


def test_full_disk_can_be_put_right(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    whole = fit(points()).run()
    run = fit(points(), output=tmp_path / "run.h5", checkpoint=4)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(RunFileError, match=r"has no space.*gem resume"):
            run.run()
    assert_file_holds(tmp_path / "run.h5", whole, 0)
    assert_same(run.run(), whole)
    assert_file_holds(tmp_path / "run.h5", whole, STEPS)


def test_sigterm_on_any_rank_ends_all_after_the_same_step(world, folder, monkeypatch):
    def terminated(*arguments):
        if world.rank == world.size - 1 and run.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_step(*arguments)

    whole = fit(points(), comm=world).run()
    before = signal.getsignal(signal.SIGTERM)
    run = fit(points(), comm=world, output=folder / "run.h5")
    with monkeypatch.context() as patch:
        patch.setattr(gem.run, "run_step", terminated)
        run.run()
    assert run.stopped
    assert run.step == 5  # the step in which the signal came: its reduction carries the word to all ranks
    assert signal.getsignal(signal.SIGTERM) is before
    if world.rank == 0:
        assert_file_holds(folder / "run.h5", whole, 5)
        assert not read_run(folder / "run.h5").finished
        shutil.copy(folder / "run.h5", folder / "copy.h5")
    assert_same(EM.resume(folder / "copy.h5", points(), comm=world).run(), whole)
    assert_same(run.run(), whole)
    assert not run.stopped


@pytest.mark.parametrize("Ncut", [0.0, 0.5])
def test_sigterm_amid_the_e_step_ends_the_run_after_that_very_step(world, folder, monkeypatch, Ncut):
    """One rank gets it when it is done with its first batch: the step goes on, and is the last one."""
    rest = LinearEStep.sums

    def signalled(e_step, *arguments):
        if world.rank == world.size - 1 and run.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return rest(e_step, *arguments)

    run = fit(points(), Annealing(steps=STEPS, Ncut=Ncut), comm=world, output=folder / "run.h5", batch=30)
    monkeypatch.setattr(LinearEStep, "sums", signalled)
    run.run()
    assert (run.step, run.stopped) == (3, True)
    if world.rank == 0:
        assert (read_run(folder / "run.h5").step, read_run(folder / "run.h5").finished) == (3, False)


def test_sigterm_in_the_last_step_is_too_late_to_stop(tmp_path, monkeypatch):
    def terminated(*arguments):
        if run.step == STEPS - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_step(*arguments)

    run = fit(points(), output=tmp_path / "run.h5")
    monkeypatch.setattr(gem.run, "run_step", terminated)
    run.run()
    assert not run.stopped
    assert read_run(tmp_path / "run.h5").finished


@pytest.mark.parametrize("fails", [False, True])
def test_sigterm_does_not_kill_the_last_checkpoint(tmp_path, monkeypatch, fails):
    def terminated(*arguments):
        if fails and run.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("a defect")
        if not fails:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_step(*arguments)

    def terminated_again(_):
        os.kill(os.getpid(), signal.SIGTERM)

    run = fit(points(), output=tmp_path / "run.h5")
    monkeypatch.setattr(gem.run, "run_step", terminated)
    monkeypatch.setattr("os.fsync", terminated_again)
    with Termination() as outer:  # stands for the default handler, which would kill the process here
        with pytest.raises(RuntimeError) if fails else nullcontext():
            run.run()
        assert not outer.is_set()
    assert read_run(tmp_path / "run.h5").step == run.step == 1


def test_runs_outside_the_main_thread():
    run = fit(points(57))
    thread = threading.Thread(target=run.run)
    thread.start()
    thread.join()
    assert run.step == STEPS


# Progress


def test_progress_lines(capsys):
    fit(points(57), Annealing(steps=3)).run(progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "3/3"]  # the second follows the first within 5 s
    assert all("F/N" in line and "points/s" in line and "s left" in line for line in lines)


def test_progress_on_a_terminal_shows_notes(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich: as if on a terminal
    monkeypatch.setenv("COLUMNS", "200")
    params = MODEL.init_params(points(57), seed=0)
    params["W"][:, 5] = 1e6
    fit(points(57), Annealing(steps=3), params=params).run(progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "step 1: latent 5 was never active" in shown


def test_silent_by_default(capsys):
    fit(points(57)).run()
    assert capsys.readouterr() == ("", "")


# Killed: real processes


def child(*command: str | Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A Python process that does not take itself for a rank of the test's own MPI job."""
    line = [*launcher, sys.executable, *map(str, command)]
    return subprocess.Popen(line, env=unlaunched(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


LONG = Annealing(steps=150, T=[(0, 3.0), (0.8, 1.0)], Ncut=[(0.2, 0.0), (0.9, 0.8)], W_noise=[(0, 0.3), (1.0, 0.0)])
FLAGS = "--H 6 --Hprime 4 --gamma 3 --steps 150 --T 0=3,0.8=1 --Ncut 0.2=0,0.9=0.8 --W-noise 0=0.3,1.0=0 --seed 3"
FLAGS += " --backend numpy"


def whole_run(folder: Path, **options) -> EM:
    """The uninterrupted run on the data that the children get, x.npy."""
    np.save(folder / "x.npy", points())
    return fit(str(folder / "x.npy"), LONG, **options).run()


@pytest.mark.long
@pytest.mark.serial
def test_killed_at_random_moments_and_resumed(tmp_path):
    path, wait = tmp_path / "run.h5", random.Random(0)
    whole = whole_run(tmp_path)
    start = ["fit", "bsc", tmp_path / "x.npy", "-o", path, *FLAGS.split(), "--dtype", "float64", "--checkpoint", "1"]
    reached = [0]
    for command in (start, ["resume", path], ["resume", path]):
        process = child("-m", "gem.cli", *command, "-q")
        while not path.exists() or read_run(path).step <= reached[-1]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(wait.uniform(0, 0.1))
        process.kill()
        process.communicate()
        reached.append(read_run(path).step)
    assert reached == sorted(set(reached))
    assert reached[-1] < len(LONG), "the run was over before it was killed: the test shows nothing"
    assert_same(EM.resume(path).run(), whole)


def terminate(process: subprocess.Popen[str], whom: Path | None = None) -> tuple[int, str]:
    """SIGTERM once the loop has begun, to the child or to whom that file names; exit status and messages."""
    seen = ""
    while "step 1/" not in seen:
        line = process.stderr.readline()
        assert line, f"it ended before its first step: {seen}"
        seen += line
    os.kill(int(whom.read_text()) if whom else process.pid, signal.SIGTERM)
    return process.wait(20), seen + "".join(process.communicate())


@pytest.mark.serial
def test_terminated_and_resumed(tmp_path):
    path = tmp_path / "run.h5"
    whole = whole_run(tmp_path, dtype="float32")
    status, said = terminate(child("-m", "gem.cli", "fit", "bsc", tmp_path / "x.npy", "-o", path, *FLAGS.split()))
    assert status == 143, said
    reached = read_run(path).step
    assert 0 < reached < len(LONG)
    assert f"stopped by SIGTERM after step {reached}: continue with gem resume {path}" in said
    assert f"stopped by SIGTERM after {reached} of 150 steps, F/N = " in said
    assert "Traceback" not in said
    assert_same(EM.resume(path).run(), whole)


RANK = """
    import os, sys
    from pathlib import Path
    from mpi4py import MPI
    from gem.cli import main
    Path(sys.argv.pop(1), f"pid{MPI.COMM_WORLD.rank}").write_text(str(os.getpid()))
    sys.exit(main())
"""


def done(process: subprocess.Popen[str]) -> str:
    """What a child said that had to succeed."""
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, out + err
    return out


@pytest.mark.long
@pytest.mark.serial
def test_terminated_under_mpi_and_resumed(tmp_path, mpiexec):
    two = (mpiexec, "-n", "2")
    np.save(tmp_path / "x.npy", points())
    fit_to = (
        "-c",
        textwrap.dedent(RANK),
        tmp_path,
        "fit",
        "bsc",
        tmp_path / "x.npy",
        *FLAGS.split(),
        "--steps",
        "80",
        "-o",
    )
    done(child(*fit_to, tmp_path / "whole.h5", launcher=two))
    for whom in ("rank 1", "launcher"):
        path = tmp_path / f"{whom}.h5"
        process = child(*fit_to, path, launcher=two)
        status, said = terminate(process, tmp_path / "pid1" if whom == "rank 1" else None)
        assert status == 143, said
        reached = read_run(path).step
        assert 0 < reached < 80
        assert said.count(f"stopped by SIGTERM after step {reached}: continue with gem resume {path}") == 1
        done(child("-m", "gem.cli", "resume", path, "-q", launcher=two))
        assert read_run(path).finished
        for name in ("W", "pi", "sigma"):
            ours, theirs = load_params(path, name), load_params(tmp_path / "whole.h5", name)
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


FAILING = """
    import sys
    import numpy as np
    import gem.run
    from gem import EM, Annealing
    from gem.models import BSC

    def attempt(*arguments):
        if run.comm.rank == int(sys.argv[3]) and run.step == 4:
            {failure}
        return run_step(*arguments)

    run_step, gem.run.run_step = gem.run.run_step, attempt
    Y = np.random.default_rng(0).normal(size=(20, 4))
    run = EM(BSC(D=4, H=3), Y, Annealing(steps=9), backend="numpy", comm="world", output=sys.argv[1])
    run.run() if sys.argv[2] == "run" else list(run)
"""


@pytest.mark.serial
@pytest.mark.parametrize(
    ("failure", "go", "rank", "said"),
    [
        ("raise RuntimeError('a defect')", "run", "0", "a defect"),
        ("raise RuntimeError('a defect')", "list", "0", "a defect"),
        ("raise KeyboardInterrupt", "run", "1", "rank 1: interrupted"),
        ("sys.exit(3)", "run", "0", "rank 0: exit status 3"),
        ("sys.exit('no licence')", "list", "1", "rank 1: no licence"),
    ],
)
def test_a_rank_that_fails_in_a_step_keeps_nobody_waiting(tmp_path, mpiexec, failure, go, rank, said):
    script = textwrap.dedent(FAILING).format(failure=failure)
    process = child("-c", script, tmp_path / "run.h5", go, rank, launcher=(mpiexec, "-n", "2"))
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0
    assert said in err
    if rank == "0":  # no step is lost
        assert read_run(tmp_path / "run.h5").step == 4


IN_THE_LOOP = """
    import sys
    import numpy as np
    from gem import EM, Annealing
    from gem.models import BSC

    Y = np.random.default_rng(0).normal(size=(20, 4))
    run = EM(BSC(D=4, H=3), Y, Annealing(steps=9), backend="numpy", comm="world", output=sys.argv[1])
    hook = sys.excepthook
    for info in run:
        if run.step == 4 and run.comm.rank == int(sys.argv[2]):
            {failure}
    assert sys.excepthook is hook
    print("done", run.step)
"""


@pytest.mark.serial
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    ("failure", "said"),
    [("raise RuntimeError('a defect of the caller')", "a defect of the caller"), ("raise KeyboardInterrupt", "inter")],
)
def test_an_exception_in_the_body_of_the_loop_keeps_nobody_waiting(tmp_path, mpiexec, failure, said, rank):
    script = textwrap.dedent(IN_THE_LOOP).format(failure=failure)
    process = child("-c", script, tmp_path / "run.h5", rank, launcher=(mpiexec, "-n", "2"))
    _, err = process.communicate(timeout=20)
    assert process.returncode != 0
    assert f"gem: rank {rank}: " in err
    assert said in err
    if rank == "0":
        assert read_run(tmp_path / "run.h5").step == 4


@pytest.mark.serial
@pytest.mark.parametrize(
    ("rank", "leaves", "end", "status"),
    [
        ("0", "break", "status = main()", 1),  # its program goes on, and the others' cannot
        ("1", "return 3", "status = main(); sys.exit(status)", 3),
        ("0", "return 3", "sys.exit(main())", 3),  # looked up before there is a loop
        ("1", "sys.exit(4)", "main()", 4),
        ("0", "raise SystemExit(5)", "main()", 5),
        ("1", "sys.exit()", "main()", 1),
    ],
)
def test_a_rank_that_leaves_the_loop_on_its_own_ends_the_job(tmp_path, mpiexec, rank, leaves, end, status):
    script = textwrap.dedent(IN_THE_LOOP).format(failure=leaves)
    head, _, body = script.partition("for info in run:")
    body = "def main():\n    for info in run:" + body.replace("\n", "\n    ").partition("assert")[0] + f"\n{end}\n"
    process = child("-c", head + body, tmp_path / "run.h5", rank, launcher=(mpiexec, "-n", "2"))
    _, err = process.communicate(timeout=30)
    assert process.returncode == status, err
    assert f"rank {rank} left the loop over the steps after step 4" in err
    if rank == "0":
        assert read_run(tmp_path / "run.h5").step >= 4


@pytest.mark.serial
@pytest.mark.parametrize(("body", "step"), [("pass", 9), ("break", 4)])
def test_loops_that_all_ranks_leave_alike_end_well(tmp_path, mpiexec, body, step):
    script = textwrap.dedent(IN_THE_LOOP).replace(" and run.comm.rank == int(sys.argv[2])", "").format(failure=body)
    if body == "break":  # the hooks stay: a generator cannot tell this from an exception
        script = script.replace("assert sys.excepthook is hook", "")
    process = child("-c", script, tmp_path / "run.h5", "0", launcher=(mpiexec, "-n", "2"))
    assert done(process).splitlines() == [f"done {step}"] * 2


def test_changed_data_are_not_taken_up(tmp_path):
    np.save(tmp_path / "data.npy", points())
    fit(str(tmp_path / "data.npy"), output=tmp_path / "run.h5").run()
    np.save(tmp_path / "data.npy", points() * 3 + 7)
    with pytest.raises(RunFileError, match="data have changed"):
        EM.resume(tmp_path / "run.h5")


def test_a_run_does_not_take_the_place_of_data(tmp_path):
    np.save(tmp_path / "data.npy", points())
    before = (tmp_path / "data.npy").read_bytes()
    for data in (str(tmp_path / "data.npy"), points()):
        with pytest.raises((ConfigError, RunFileError), match="choose another name"):
            fit(data, output=tmp_path / "data.npy", overwrite=True)
    assert (tmp_path / "data.npy").read_bytes() == before


def test_the_run_file_tells_the_machine(tmp_path):
    fit(points(), Annealing(steps=1), output=tmp_path / "run.h5").run()
    machine = read_run(tmp_path / "run.h5").machine
    assert {"host", "platform", "processor", "cores", "python", "gem", "numpy", "h5py", "backend", "dtype"} <= set(
        machine
    )


def test_sigterm_ends_a_for_loop_too(tmp_path):
    em = fit(points(), output=tmp_path / "run.h5", checkpoint=100)
    for info in em:
        assert info.N == 401
        if em.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
    assert (em.step, em.stopped) == (5, True)
    assert read_run(tmp_path / "run.h5").step == 5
    assert_same(EM.resume(tmp_path / "run.h5", points()).run(), fit(points()).run())
