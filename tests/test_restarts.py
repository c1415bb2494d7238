"""Where runs begin, and the best of several seeds."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from test_run import child, done

import gem.restarts
from gem import EM, Annealing, posterior
from gem.cli import main
from gem.errors import ConfigError, RunFileError
from gem.models import BSC, DSC, GSC, MCA, SC, MoG, MoP, NoisyOR
from gem.restarts import best_of, rungs
from gem.store import load_params, read_run

MODEL = MoG(D=2, K=4)


def clusters(N: int = 90, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, 2))[np.arange(N) % 4] * 3 + rng.normal(size=(N, 2)) * 0.6


def fit(model=MODEL, data=None, steps: int | Annealing = 8, **options) -> EM:
    anneal = steps if isinstance(steps, Annealing) else Annealing(steps)
    return EM(model, clusters() if data is None else data, anneal, backend="numpy", dtype="float64", **options)


def restart(n: int, steps=8, model=MODEL, **options) -> EM:
    anneal = steps if isinstance(steps, Annealing) else Annealing(steps)
    return EM.best_of(n, model, clusters(), anneal, backend="numpy", dtype="float64", **options)


def assert_same(run: EM, whole: EM) -> None:
    for name, value in whole.params.items():
        np.testing.assert_array_equal(run.params[name], value, err_msg=name)
    np.testing.assert_array_equal(run.history["free_energy"], whole.history["free_energy"])


@pytest.fixture
def folder(world, tmp_path) -> Path:
    return world.bcast(tmp_path)


# Starts


@pytest.mark.parametrize("covariance", ["diag", "spherical", "tied", "full", "poisson"])
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_and_responsibilities_begin_where_they_say(world, covariance, weighted):
    """At each component's share, mean and spread, far from 0, too; those of each data point count as its weight."""
    Y, label = clusters() + 1e4, np.arange(90) % 4
    w = np.random.default_rng(1).integers(1, 4, 90).astype(float) if weighted else np.ones(90)
    if covariance == "poisson":
        Y, model = np.round(np.abs(clusters())), MoP(D=2, K=4)
    else:
        model = MoG(D=2, K=4, covariance=covariance)
    options = {"comm": world, "weights": w if weighted else None}
    params = fit(model, Y, start=label, **options).params
    each = [np.repeat(Y[label == k], w[label == k].astype(int), axis=0) for k in range(4)]
    within = np.array([np.cov(y.T, bias=True) for y in each])
    N = np.array([len(y) for y in each])
    wanted = {
        "pi": N / N.sum(),
        "mu": np.array([y.mean(axis=0) for y in each]),
        "lam": np.array([np.maximum(y.mean(axis=0), model.reg) for y in each]),
        "var": np.array([np.diag(c) for c in within]),
        "cov": within,
    }
    if covariance == "spherical":
        wanted["var"] = wanted["var"].mean(axis=1)
    if covariance == "tied":
        wanted["cov"] = np.einsum("k,kij->ij", N, within) / N.sum()
    for name, value in params.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)
    soft = np.eye(4)[label] * 0.5
    again = fit(model, Y, start=soft, **options).params
    for name, value in params.items():
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (MoG(D=2, K=2), MoG(D=2, K=5)),
        (MoG(D=2, K=2, covariance="tied"), MoG(D=2, K=3, covariance="tied")),
        (MoG(D=2, K=2, covariance="full"), MoG(D=2, K=4, covariance="full")),
        (BSC(D=2, H=2), BSC(D=2, H=3)),
        (DSC(D=2, H=2, values=(0, 1, 2)), DSC(D=2, H=5, values=(0, 1, 2))),
        (GSC(D=2, H=2), GSC(D=2, H=5)),
        (MCA(D=2, H=2), MCA(D=2, H=3)),
        (SC(D=2, H=2), SC(D=2, H=4)),
    ],
    ids=repr,
)
def test_a_smaller_run_begins_a_larger_one(tmp_path, small, large):
    """From its object or its file; what it explains the larger one explains after a few steps, too."""
    Y = np.abs(clusters())
    run = fit(small, Y, 6, output=tmp_path / "small.h5").run()
    begun = fit(large, Y, start=run)
    for other in (str(tmp_path / "small.h5"), tmp_path / "small.h5", read_run(tmp_path / "small.h5")):
        for name, value in fit(large, Y, start=other).params.items():
            np.testing.assert_array_equal(value, begun.params[name])
    if "W" in begun.params:
        W, W_small = begun.params["W"], run.params["W"]
        np.testing.assert_allclose(  # the lengths are those of the fields they come from
            np.unique(np.linalg.norm(W, axis=0).round(9)), np.unique(np.linalg.norm(W_small, axis=0).round(9))
        )
        assert len({tuple(w) for w in W.T}) == W.shape[1]
        if begun.params["pi" if "pi" in begun.params else "b"].shape == (W.shape[1],):
            assert begun.params["pi"].sum() == pytest.approx(run.params["pi"].sum())
    else:
        assert begun.params["pi"].sum() == pytest.approx(1)
        assert len(np.unique(begun.params["mu"], axis=0)) == large.K
    F = begun.run().history["free_energy"]
    assert F[-1] > run.history["free_energy"][-1] - 0.02 * abs(F[-1]) or small.name in ("MCA", "SC")


def test_a_function_gets_a_generator_of_the_seed():
    def start(rng):
        return {"pi": np.full(4, 0.25), "mu": rng.normal(size=(4, 2)), "var": np.ones((4, 2))}

    first, second = fit(start=start).params["mu"], fit(start=start, seed=1).params["mu"]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(fit(start=start).params["mu"], first)


@pytest.mark.parametrize(
    ("model", "start", "words"),
    [
        (MODEL, np.arange(89) % 4, r"shape \(89,\): labels must be \(90,\)"),
        (MODEL, np.ones((90, 3)), r"responsibilities \(90, 4\)"),
        (MODEL, np.arange(90) % 5, "the label 4 of data point 4 must be a whole number, 0 to K - 1 = 3"),
        (MODEL, np.arange(90) % 4 + 0.5, r"the label 0\.5 of data point 0"),
        (MODEL, np.arange(90) % 3, "no data point belongs to component 3"),
        (MODEL, np.where(np.arange(360).reshape(90, 4) == 9, -1.0, 1.0), "responsibilities of data point 2"),
        (MODEL, "labels of mine", "labels of mine"),
        (MODEL, {"pi": 3}, "start = .* must be labels"),
        (MODEL, lambda rng: [1], "the function gave list: let it give parameters, a dict"),
        (MODEL, lambda rng: {"pi": np.ones(4)}, "mu is missing"),
        (BSC(D=2, H=3), np.arange(90) % 3, "BSC has latents: give a function"),
    ],
)
def test_starts_that_do_not_fit_are_refused(tmp_path, model, start, words):
    with pytest.raises((ConfigError, gem.errors.DataError), match=words):
        fit(model, start=start, output=tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_grow_are_refused():
    small = fit(MoG(D=2, K=3))
    for model in (MoG(D=2, K=2), MoG(D=2, K=4, covariance="full"), MoP(D=2, K=4)):
        with pytest.raises(ConfigError, match=r"a run of MoG\(D=2, K=3.* cannot begin one of"):
            fit(model, np.round(np.abs(clusters())), start=small)
    with pytest.raises(ConfigError, match="params and start both"):
        fit(start=small, params=small.params)


def test_noisy_or_grows_within_its_bounds():
    Y = (np.random.default_rng(0).random((60, 4)) < 0.5).astype(float)
    small = fit(NoisyOR(D=4, H=2), Y, 3).run()
    assert fit(NoisyOR(D=4, H=4), Y, 3, start=small).run().step == 3


# Restarts


def test_the_best_seed_wins_with_the_numbers_of_its_own_run(world, folder):
    """Of all seeds' whole runs, where none is given up early; the file is that of the winner's run, and says so."""
    run = restart(5, 12, comm=world, share="data", output=folder / "best.h5", short=12, checkpoint=5, seed=3)
    alone = {seed: fit(steps=12, seed=seed, comm=world).run() for seed in range(3, 8)}
    F = {seed: each.history["free_energy"][-1] for seed, each in alone.items()}
    assert len({round(each, 6) for each in F.values()}) > 1, "all seeds find the same: this shows nothing"
    won = max(F, key=lambda seed: F[seed])
    assert (run.seed, run.reason, run.step) == (won, "steps used up", 12)
    assert_same(run, alone[won])
    assert {each.seed: each.free_energy for each in run.restarts} == F
    if world.rank == 0:
        found = read_run(folder / "best.h5")
        assert (found.seed, found.step, found.finished, found.reason) == (won, 12, True, "steps used up")
        told = found.config["restarts"]
        assert (told["n"], told["won"], told["seeds"], told["steps"]) == (5, won, [3, 4, 5, 6, 7], [12] * 5)
        assert told["free_energy"] == [F[seed] for seed in told["seeds"]]
    whole = fit(steps=12, seed=won, output=folder / "whole.h5", comm=world, checkpoint=5).run()
    assert_same(run, whole)
    if world.rank == 0:
        for name in whole.params:
            ours, theirs = (load_params(folder / file, name) for file in ("best.h5", "whole.h5"))
            np.testing.assert_array_equal(ours, theirs)
    world.bcast(None)
    again = EM.resume(folder / "best.h5", clusters(), comm=world)
    assert_same(again.run(), whole)


@pytest.mark.parametrize("share", ["seeds", "data"])
def test_short_runs_come_first(world, folder, share):
    """All get to the first rung, half of them to the second; on any number of ranks the seeds' own numbers."""
    run = restart(4, 16, comm=world, share=share, output=folder / "best.h5", keep=3, batch=30)
    assert rungs(Annealing(16), 4) == [6, 10]
    steps = [each.steps for each in run.restarts]
    assert sorted(steps) == [6, 6, 10, 16]
    comm = world if share == "data" else None
    alone = [fit(steps=16, seed=seed, comm=comm, batch=30).run().history["free_energy"] for seed in range(4)]
    for each in run.restarts:
        if each.steps < 16:
            assert each.free_energy == alone[each.seed][each.steps - 1]
    at_6 = sorted(range(4), key=lambda seed: -alone[seed][5])
    assert {each.seed for each in run.restarts if each.steps > 6} == set(at_6[:2])
    assert run.seed == max(at_6[:2], key=lambda seed: alone[seed][9])
    assert_same(run, fit(steps=16, seed=run.seed, comm=comm, batch=30).run())
    assert world.allgather(run.seed) == [run.seed] * world.size
    if world.rank == 0:
        found = read_run(folder / "best.h5")
        assert found.kept.tolist() == [0, 3, 6, 9, 12, 15, 16]
        np.testing.assert_array_equal(found.params["mu"], run.params["mu"])
    assert np.isfinite(posterior(MODEL, run.params, clusters()).log_evidence).all()


def test_rungs_are_where_nothing_moves_any_more():
    assert rungs(Annealing(100), 1) == []
    assert rungs(Annealing(100), 8) == [13, 26, 51]
    assert rungs(Annealing(100, T=[(0, 4.0), (0.5, 1.0)]), 4) == [56, 75]
    assert rungs(Annealing(100, T=2.0), 4) == [100, 100]  # never at rest: whole runs
    assert rungs(Annealing(100), 4, short=5) == [5, 22]


def test_ranks_share_seeds_where_the_data_are_small():
    class Group(gem.restarts.Communicator):
        size = 3
        allreduce = allgather = bcast = abort = None

    source = gem.data.open_data(clusters())
    shared = gem.restarts._shared
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "__abstractmethods__", frozenset())
        assert shared(None, 3, source, Group()) == "seeds"
        assert shared(None, 2, source, Group()) == "data"
        assert shared("data", 3, source, Group()) == "data"
        patch.setattr(gem.restarts, "SMALL", 100)
        assert shared(None, 3, source, Group()) == "data"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"params": {}}, "all 3 runs would begin with the same parameters"),
        ({"start": np.arange(90) % 4}, "all 3 runs would begin with the same parameters"),
        ({"trace": "trace.json"}, "a trace is of one run"),
        ({"share": "all"}, "share = 'all'"),
        ({"short": 9}, "short = 9 is more than the 8 steps"),
        ({"n": 0}, "n = 0"),
    ],
)
def test_restarts_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        best_of(options.pop("n", 3), MODEL, clusters(), Annealing(8), **options)


def test_a_run_file_before_one_seed_is_left_is_not_taken_up(tmp_path, monkeypatch, capsys):
    def dies(*arguments):
        raise KeyboardInterrupt

    np.save(tmp_path / "x.npy", clusters())
    command = f"fit mog {tmp_path}/x.npy --K 4 --steps 8 --backend numpy -q -o {tmp_path}/run.h5 --restarts 3".split()
    with monkeypatch.context() as patch:
        patch.setattr(gem.restarts, "_advance", dies)
        assert main(command) == 130
    with pytest.raises(RunFileError, match=r"restarts ended before one seed was left: begin again"):
        EM.resume(tmp_path / "run.h5")
    assert main(["info", str(tmp_path / "run.h5")]) == 0
    assert "3 seeds, none is left yet" in capsys.readouterr().out
    assert main([*command, "--resume"]) == 0
    out = capsys.readouterr().out
    assert out.count("F/N = ") == 4
    assert out.count(": the best one") == 1
    assert main(["info", str(tmp_path / "run.h5")]) == 0
    assert "seed 2: F/N" in capsys.readouterr().out
    assert main([*command, "--resume"]) == 0
    assert main([*command[:-1], "4", "--resume"]) == 1
    assert "restarts = 4 (there: 3)" in capsys.readouterr().err


def test_a_run_is_not_replaced_by_restarts_whose_data_are_refused(tmp_path):
    path = tmp_path / "run.h5"
    fit(output=path).run()
    before = path.read_bytes()
    with pytest.raises(RunFileError, match="exists"):
        restart(3, output=path)
    with pytest.raises(gem.errors.DataError, match="is no count"):
        EM.best_of(3, MoP(D=2, K=4), clusters(), Annealing(3), output=path, overwrite=True)
    assert path.read_bytes() == before
    np.save(tmp_path / "x.npy", clusters())
    with pytest.raises(ConfigError, match="is the data file itself"):
        EM.best_of(3, MODEL, str(tmp_path / "x.npy"), Annealing(3), output=tmp_path / "x.npy", overwrite=True)
    assert restart(3, output=path, overwrite=True).step == read_run(path).step == 8
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "x.npy"]


def test_the_winner_is_taken_up_after_a_kill(tmp_path, monkeypatch):
    whole = restart(3, 16)
    taken = []

    def copied(run, *arguments):
        poured(run, *arguments)
        shutil.copy(tmp_path / "run.h5", tmp_path / "copy.h5")
        taken.append(run.step)

    poured = gem.restarts._pour
    monkeypatch.setattr(gem.restarts, "_pour", copied)
    restart(3, 16, output=tmp_path / "run.h5")
    again = EM.resume(tmp_path / "copy.h5", clusters())
    assert again.step == taken[0] < 16
    assert_same(again.run(), whole)


TERMINATED = """
    import os, signal, sys
    import gem.restarts
    from gem.cli import main

    def advance(run, until):
        for _ in run:
            if run.seed == 1 and run.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            if run.step >= until:
                break
        return run.stopped
    gem.restarts._advance = advance
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.serial
def test_sigterm_among_short_runs(tmp_path):
    np.save(tmp_path / "x.npy", clusters())
    command = f"fit mog {tmp_path}/x.npy --K 4 --steps 40 --backend numpy -q -o {tmp_path}/run.h5 --restarts 3".split()
    process = child("-c", textwrap.dedent(TERMINATED), *command)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert "before one seed was left" in err
    assert read_run(tmp_path / "run.h5").step == 0


@pytest.mark.serial
def test_restarts_under_mpi(tmp_path, mpiexec):
    """Each rank has seeds of its own: the numbers are those without ranks."""
    np.save(tmp_path / "x.npy", clusters())
    command = f"fit mog {tmp_path}/x.npy --K 4 --steps 12 --backend numpy -q --batch 40 --restarts 5 -o".split()
    told = done(child("-m", "gem.cli", *command, tmp_path / "two.h5", launcher=(mpiexec, "-n", "2")))
    assert main([*command, str(tmp_path / "one.h5")]) == 0
    assert told.count("F/N = ") == 6
    two, one = (read_run(tmp_path / f"{name}.h5") for name in ("two", "one"))
    assert one.config["restarts"] == two.config["restarts"]
    np.testing.assert_array_equal(one.params["mu"], two.params["mu"])
