"""How a run ends, goes on, and is watched: more steps, F that fell, held-out data, callbacks on all ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import gem.run
from gem import EM, Annealing, em_step, posterior
from gem.cli import main
from gem.errors import ConfigError, DataError, RunFileError
from gem.falling import fall, must_rise
from gem.models import BSC, MCA, SC, TSC, MoG, MoP
from gem.notes import counted
from gem.run import run_step
from gem.store import read_run

MODEL = BSC(D=5, H=3)


def points(N: int = 61, seed: int = 1) -> np.ndarray:
    W = 3 * np.random.default_rng(0).normal(size=(5, 3))
    return MODEL.generate_data({"W": W, "pi": 0.3, "sigma": 0.8}, N, seed=seed)[0]


def fit(steps: int | Annealing = 8, model=MODEL, data=None, **options) -> EM:
    anneal = steps if isinstance(steps, Annealing) else Annealing(steps, T=[(0, 2.0), (5, 1.0)])
    return EM(model, points() if data is None else data, anneal, backend="numpy", dtype="float64", **options)


@pytest.fixture
def folder(world, tmp_path) -> Path:
    return world.bcast(tmp_path)


def assert_params(run: EM, whole: EM) -> None:
    assert run.step == whole.step
    for name, value in whole.params.items():
        np.testing.assert_array_equal(run.params[name], value, err_msg=name)


# More steps


@pytest.mark.parametrize("steps", [3, 8])
def test_a_finished_run_goes_on(world, folder, steps):
    """At the last values of its schedules; killed on the way, it ends where it was to end."""
    whole = fit(Annealing(steps + 6, T=[(0, 2.0), (5, 1.0)]), comm=world).run()
    fit(Annealing(steps, T=[(0, 2.0), (5, 1.0)]), comm=world, output=folder / "run.h5", checkpoint=2).run()
    run = EM.resume(folder / "run.h5", points(), comm=world, steps=6)
    assert (run.step, run.planned, run.reason) == (steps, steps + 6, None)
    loop = iter(run)
    for _ in range(4):
        next(loop)
    if world.rank == 0:
        shutil.copy(folder / "run.h5", folder / "killed.h5")
        found = read_run(folder / "run.h5")
        assert (found.finished, found.reason, found.planned) == (False, None, steps + 6)
    loop.close()
    killed = EM.resume(folder / "killed.h5", points(), comm=world)
    assert (killed.planned, killed.reason) == (steps + 6, None)
    for each in (killed, run):
        assert each.run().reason == "steps used up"
        assert_params(each, whole)
    found = read_run(folder / "killed.h5")
    assert (found.step, found.finished, found.planned) == (steps + 6, True, steps + 6)
    np.testing.assert_array_equal(found.history["free_energy"][steps:], whole.history["free_energy"][steps:])
    assert EM.resume(folder / "killed.h5", points(), comm=world).reason == "steps used up"  # and not less


def test_a_run_that_was_left_or_has_settled_goes_on_for_so_many_steps(tmp_path):
    settled = fit(Annealing(300, until=1e-4), output=tmp_path / "settled.h5").run()
    assert settled.reason == "settled"
    more = EM.resume(tmp_path / "settled.h5", points(), steps=9).run()
    assert (more.step, more.reason) == (settled.step + 9, "steps used up")
    left = fit(8, output=tmp_path / "left.h5")
    for _ in left:
        if left.step == 3:
            break
    more = EM.resume(tmp_path / "left.h5", points(), steps=2).run()
    assert more.step == read_run(tmp_path / "left.h5").step == 5
    assert_params(more, fit(Annealing(5, T=[(0, 2.0), (5, 1.0)])).run())
    with pytest.raises(ConfigError, match="steps = 0"):
        EM.resume(tmp_path / "left.h5", points(), steps=0)


def test_more_steps_and_other_data_from_the_shell(tmp_path, capsys):
    np.save(tmp_path / "x.npy", points())
    np.save(tmp_path / "other.npy", points(40, seed=5))
    command = f"--H 3 --backend numpy --dtype float64 -q -o {tmp_path}"
    assert main(f"fit bsc {tmp_path}/x.npy --steps 4 --T 1 {command}/a.h5".split()) == 0
    assert main(f"resume {tmp_path}/a.h5 --steps 3 -q".split()) == 0
    assert "a.h5: 7 steps, F/N" in capsys.readouterr().out
    assert_params(EM.resume(tmp_path / "a.h5"), fit(Annealing(7), data=str(tmp_path / "x.npy")).run())
    assert main(f"info {tmp_path}/a.h5".split()) == 0
    assert "7 of 7" in capsys.readouterr().out
    on_other = f"fit bsc {tmp_path}/other.npy --steps 2 --params {tmp_path}/a.h5 {command}/b.h5"
    assert main(on_other.split()) == 0
    params = read_run(tmp_path / "a.h5").params
    for _ in range(2):
        params, _ = em_step(MODEL, params, points(40, seed=5), backend="numpy", dtype="float64")
    np.testing.assert_array_equal(read_run(tmp_path / "b.h5").params["W"], params["W"])
    assert main([*on_other.split(), "--resume"]) == 0
    capsys.readouterr()
    assert main([*on_other.replace("/a.h5", "/b.h5").split(), "--resume"]) == 1
    assert "params = " in capsys.readouterr().err
    for model, words in (("bsc --H 2", "its model is BSC(D=5, H=3"), ("mca --H 3", "a run of BSC, not of MCA")):
        wrong = f"fit {model} {tmp_path}/x.npy --params {tmp_path}/a.h5 -q -o {tmp_path}/c.h5"
        assert main(wrong.split()) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "c.h5").exists()


# F that fell


def spoiling(step: int, by: float):
    """`run_step`, but after the given step (counted from 1) the centres are off."""
    steps = iter(range(1, 10**6))

    def attempt(*arguments):
        new, info, stop = run_step(*arguments)
        if next(steps) == step:
            name = "mu" if "mu" in new else "W"
            new = {**new, name: new[name] + by}
        return new, info, stop

    return attempt


@pytest.mark.parametrize("model", [MoG(D=5, K=3), MODEL, TSC(D=5, H=3)], ids=repr)
@pytest.mark.parametrize("until", [None, 1e-9])
def test_f_that_falls_is_told(world, folder, monkeypatch, model, until):
    """And ends a run that is to end when F stands still; on all ranks alike."""
    monkeypatch.setattr(gem.run, "run_step", spoiling(4, 5.0))
    run = fit(Annealing(9, until=until), model, comm=world, output=folder / "run.h5").run()
    F = run.history["free_energy"]
    assert F[3] > F[2]
    assert until or F[4] < F[3]  # the last one is told of what is left
    assert run.reason == ("steps used up" if until is None else "F fell at step 5")
    assert world.allgather(run.step) == [9 if until is None else 5] * world.size
    (note,) = [note for step, note in run.notes if step == 5 and "fell" in note]
    assert until or note.startswith(f"F fell at step 5, by {(F[3] - F[4]) / 61:.3g} nats")
    if world.rank == 0:
        found = read_run(folder / "run.h5")
        assert (found.reason, found.finished) == (run.reason, True)
        assert note in found.notes[4]
    world.bcast(None)
    assert EM.resume(folder / "run.h5", points(), comm=world).run().reason == run.reason
    assert "F fell" in "".join(told.what for told in counted(run.notes))


def test_only_what_must_rise_is_said_to_have_fallen():
    still, hot = Annealing(9), Annealing(9, T=[(0, 2.0), (4, 1.0)])
    rises = [t for t in range(9) if must_rise(MODEL, hot, t, False)]
    assert rises == [5, 6, 7, 8]  # the step before is at T = 1, too
    assert [t for t in range(9) if must_rise(MODEL, Annealing(9, pi_noise=[(0, 0.1), (3, 0.0)]), t, False)] == [
        *range(3, 9)
    ]
    assert not any(must_rise(MODEL, Annealing(9, Ncut=0.1), t, False) for t in range(9))
    assert not any(must_rise(MODEL, Annealing(9, reseed=True), t, False) for t in range(9))
    assert not must_rise(MODEL, still, 3, noted=True)
    for model, monotone in (
        (MoP(D=5, K=2), True),
        (MoG(D=5, K=2, covariance="full"), True),
        (BSC(D=5, H=4, Hprime=3, gamma=3), False),
        (BSC(D=5, H=4, Hprime=4, gamma=3), False),
        (MCA(D=5, H=3), False),
        (SC(D=5, H=3), False),
    ):
        assert must_rise(model, still, 3, False) is monotone
    for F in (-300.0, 2.0):
        for dtype, least in (("float32", 3.5e-4), ("float64", 1.5e-8)):
            assert fall(F, F - 0.9 * least * (abs(F) + 500), 100, 5, dtype) == 0
            assert fall(F, F - 1.1 * least * (abs(F) + 500), 100, 5, dtype) > 0
            assert fall(F, F + 1, 100, 5, dtype) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", [MoG(D=5, K=3, covariance="full"), MODEL], ids=repr)
def test_rounding_is_no_fall(model, dtype):
    run = EM(model, points(), Annealing(60), backend="numpy", dtype=dtype).run()
    assert not [note for _, note in run.notes if "fell" in note]


# Held-out data


@pytest.mark.parametrize("weighted", [False, True])
def test_held_out_data_are_told_of_the_parameters_beside_them(world, folder, weighted):
    """Those that a step began with, every third step, and what is left at the end; of each point once."""
    held, weights = points(37, seed=9), np.random.default_rng(0).uniform(0, 3, 61) if weighted else None
    options = {"comm": world, "weights": weights}
    run = fit(Annealing(8, W_noise=0.1), held_out=held, held_out_every=3, output=folder / "run.h5", **options)
    seen = []
    run.run(callbacks=[lambda info: seen.append(info.held_out)], on_all_ranks=True)
    plain = fit(Annealing(8, W_noise=0.1), **options).run()
    assert_params(run, plain)
    told = run.history["held_out"]
    assert (np.flatnonzero(np.isfinite(told)) + 1).tolist() == [3, 6, 8]
    np.testing.assert_array_equal(seen, told)
    for step in (3, 6, 8):
        params = run.params
        if step < 8:
            before = fit(Annealing(step - 1, W_noise=0.1), **options).run().params
            params = MODEL.perturb(before, {"W_noise": 0.1}, gem.run.generator(0, "noise", step - 1))
        wanted = posterior(MODEL, params, held, backend="numpy", dtype="float64").log_evidence.mean()
        np.testing.assert_allclose(told[step - 1], wanted, rtol=1e-12)
    if world.rank == 0:
        np.testing.assert_array_equal(read_run(folder / "run.h5").history["held_out"], told)
    assert "held_out" not in plain.history


def test_a_run_with_held_out_data_is_taken_up_and_ended(tmp_path):
    held = points(20, seed=9)
    whole = fit(9, held_out=held, held_out_every=2).run()
    run = fit(9, held_out=held, held_out_every=2, output=tmp_path / "run.h5", checkpoint=1)
    for _ in run:
        if run.step == 5:
            break
    with pytest.raises(RunFileError, match=r"held-out data of the run were an array in memory.*held_out="):
        EM.resume(tmp_path / "run.h5", points())
    with pytest.raises(RunFileError, match="held-out data have changed"):
        EM.resume(tmp_path / "run.h5", points(), held_out=held + 1)
    shutil.copy(tmp_path / "run.h5", tmp_path / "copy.h5")
    again = EM.resume(tmp_path / "copy.h5", points(), held_out=held).run()
    np.testing.assert_array_equal(again.history["held_out"], whole.history["held_out"])
    run.finish()
    wanted = posterior(MODEL, run.params, held, backend="numpy", dtype="float64").log_evidence.mean()
    np.testing.assert_allclose(read_run(tmp_path / "run.h5").history["held_out"][-1], wanted, rtol=1e-12)
    fit(2, output=tmp_path / "none.h5")
    with pytest.raises(RunFileError, match="had no held-out data"):
        EM.resume(tmp_path / "none.h5", points(), held_out=held)


def test_held_out_data_are_read_as_the_data_are(tmp_path):
    """Shifted, where float32 would lose their digits."""
    Y, held = (np.random.default_rng(seed).normal(size=(50, 2)) + 1e6 for seed in (1, 2))
    run = EM(MoG(D=2, K=2), Y, Annealing(4), backend="numpy", held_out=held).run()
    assert run._reading.shift is not None
    wanted = posterior(MoG(D=2, K=2), run.params, held, backend="numpy", dtype="float64").log_evidence.mean()
    np.testing.assert_allclose(run.history["held_out"][-1], wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"held_out": np.zeros((4, 6))}, ConfigError, r"held_out: the data have 6 dimensions, the model D = 5"),
        ({"held_out": np.full((4, 5), np.nan)}, DataError, r"held_out: .*nan at row 0"),
        ({"held_out": points(9), "held_out_every": 0}, ConfigError, "held_out_every = 0"),
        ({"held_out": "nowhere.npy"}, DataError, "held_out: .*nowhere.npy"),
    ],
)
def test_held_out_data_that_do_not_fit_are_refused(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        fit(3, output=tmp_path / "run.h5", **options)
    assert list(tmp_path.iterdir()) == []


def test_held_out_data_from_the_shell(tmp_path, capsys):
    np.save(tmp_path / "x.npy", points())
    np.save(tmp_path / "held.npy", points(30, seed=2))
    command = f"fit bsc {tmp_path}/x.npy --H 3 --steps 6 --backend numpy -q -o {tmp_path}/a.h5 --held-out "
    assert main(f"{command}{tmp_path}/held.npy --held-out-every 2".split()) == 0
    told = read_run(tmp_path / "a.h5").history["held_out"]
    assert np.isfinite(told).tolist() == [False, True] * 3
    assert f"held out {told[-1]:.6f}" in capsys.readouterr().out
    assert main(f"info {tmp_path}/a.h5".split()) == 0
    assert f"{told[-1]:.6g}" in capsys.readouterr().out
    assert main(f"{command}{tmp_path}/held.npy --held-out-every 2 --resume".split()) == 0
    for other in (f"{tmp_path}/held.npy", f"{tmp_path}/x.npy --held-out-every 2"):
        assert main(f"{command}{other} --resume".split()) == 1
        assert "held_out" in capsys.readouterr().err


def test_held_out_data_are_in_the_picture():
    from matplotlib.figure import Figure

    from gem import plot

    axes = Figure().add_subplot()
    history = {"free_energy": np.arange(4.0), "N": np.full(4, 2.0), "held_out": np.array([np.nan, 7, np.nan, 9])}
    plot.free_energy(axes, history)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["data", "held-out data"]
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[2, 7], [4, 9]])


# Callbacks on all ranks


def test_callbacks_on_all_ranks_may_end_the_run(world, folder):
    def stop(info):
        seen.append(run.step)
        if run.step == 4:
            run.finish()

    seen: list[int] = []
    run = fit(8, comm=world, output=folder / "run.h5")
    run.run(callbacks=[stop], on_all_ranks=True)
    assert seen == [1, 2, 3, 4]
    assert (run.step, run.reason) == (4, "ended by finish()")
    if world.rank == 0:
        assert read_run(folder / "run.h5").finished
