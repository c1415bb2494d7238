"""Kept states (gem.sets): exact where all are kept, F that never falls, the same on all backends, batches and ranks."""

from __future__ import annotations

from argparse import Namespace
from functools import lru_cache

import numpy as np
import pytest
from conftest import missing

import gem
from benchmarks import sets as sets_benchmark
from gem import EM, Annealing, ConfigError, RunFileError
from gem.backends._numpy import NumpyBackend
from gem.cli import main
from gem.errors import BackendError
from gem.kernels.bits import packed, unpacked
from gem.kernels.philox import philox
from gem.models import BSC, TSC, make
from gem.sets import Evolve, Preselect, Sample, sets_of
from gem.sets.first import first_states, point_keys
from gem.store import read_run

D, H, N = 6, 5, 60
KINDS = {
    "randflip": Evolve(states=9, parents=4, children=3, generations=2),
    "rand": Evolve(states=9, parents=4, children=3, generations=1, selection="rand"),
    "sparseflip": Evolve(states=9, parents=4, children=3, generations=2, mutation="sparseflip"),
    "cross": Evolve(states=9, parents=4, generations=3, mutation="cross"),
    "sample": Sample(states=9, prior=5, marginal=6),
    "mix": Evolve(states=9, parents=4, children=3, generations=1, preselect=Preselect(4, 2)),
}


def problem(H=H, N=N, D=D):
    rng = np.random.default_rng(0)
    params = {"W": rng.standard_normal((D, H)), "pi": np.array(0.3), "sigma": np.array(0.6)}
    return params, BSC(D, H, Hprime=min(H, 5), gamma=min(H, 5)).generate_data(params, N, seed=1)[0]


def steps(model, params, Y, count, memory=None, **options):
    """So many E-steps with the same parameters: their Infos, and the last memory."""
    memory, told = memory or model.init_memory(Y, 3), []
    for _ in range(count):
        _, info, memory = gem.em_step(
            model, params, Y, memory=memory, **{"backend": "numpy", "dtype": "float64"} | options
        )
        told.append(info)
    return told, memory


@lru_cache(maxsize=2)
def opencl(schedule):
    try:
        from gem.backends._opencl import OpenCLBackend

        return OpenCLBackend("float64", schedule=schedule)
    except BackendError as error:
        missing("opencl", str(error))


def test_philox_gives_the_numbers_of_its_authors():
    """kat_vectors of Random123, 4x32-10."""
    known = {
        (0, 0, 0, 0, 0, 0): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        (2**32 - 1,) * 6: "408f276d 41c83b0e a20bc7c6 6d5451fd",
    }
    for (a, b, *counters), wanted in known.items():
        assert " ".join(f"{int(x):08x}" for x in philox(np.array([a, b], np.uint32), *counters)) == wanted


@pytest.mark.parametrize(("S", "H"), [(4, 2), (32, 5), (20, 10), (40, 70)])
def test_first_states_differ_and_belong_to_their_point(S, H):
    keys = point_keys(5, 0, 300)
    states = first_states(keys, S, H)
    active = unpacked(states, H)
    assert all(len({tuple(s) for s in some}) == S for some in active.tolist())
    assert not active[:, 0].any()
    np.testing.assert_array_equal(states[7:9], first_states(point_keys(5, 7, 2), S, H))
    np.testing.assert_array_equal(packed(active), states)
    if S < H:
        assert active.sum(axis=2).mean() == pytest.approx(1.3, abs=0.1)  # few of no latent, as all differ


@pytest.mark.parametrize("T", [1.0, 2.0])
@pytest.mark.parametrize("anneal_prior", [False, True])
def test_all_states_are_exact_em(T, anneal_prior):
    params, Y = problem()
    exact, kept = (
        BSC(D, H, Hprime=H, gamma=H),
        BSC(D, H, sets=Evolve(states=2**H, parents=4, children=3, generations=1)),
    )
    weights = np.arange(N) % 3
    options = {"backend": "numpy", "dtype": "float64", "T": T, "anneal_prior": anneal_prior, "weights": weights}
    wanted, told = gem.em_step(exact, params, Y, **options)
    found, same, _ = gem.em_step(kept, params, Y, memory=kept.init_memory(Y), **options)
    assert same.free_energy == pytest.approx(told.free_energy, rel=1e-12)
    assert same.replaced == 0
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-10)


def test_the_free_energy_of_two_points_by_hand():
    model = BSC(1, 2, sets=Sample(states=4, prior=1, marginal=1))
    params = {"W": np.ones((1, 2)), "pi": np.array(0.5), "sigma": np.array(1.0)}
    told, _ = steps(model, params, np.array([[0.0], [1.0]]), 1)
    assert told[0].free_energy / 2 == pytest.approx(-1.2947544126814916, rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_same_parameters_f_never_falls_and_nears_the_exact_one(kind):
    params, Y = problem()
    told, memory = steps(BSC(D, H, sets=KINDS[kind]), params, Y, 25)
    F = np.array([info.free_energy for info in told])
    exact = gem.em_step(BSC(D, H, Hprime=H, gamma=H), params, Y, backend="numpy", dtype="float64")[1].free_energy
    assert np.all(np.diff(F) >= 0)
    assert F[0] < exact
    states = unpacked(memory.arrays["states"], H)
    every = packed((np.arange(2**H)[:, None] >> np.arange(H)) & 1)
    joint = BSC(D, H).log_joint(params, Y, unpacked(every, H).astype(float))
    best = np.sort(joint, axis=1)[:, -9:]
    found = np.array([BSC(D, H).log_joint(params, Y[n : n + 1], s.astype(float))[0] for n, s in enumerate(states)])
    assert np.logaddexp.reduce(found, axis=1).sum() == pytest.approx(F[-1], rel=1e-9)
    assert np.logaddexp.reduce(best, axis=1).sum() - F[-1] < 0.02 * N  # the nine best of all 32
    assert told[0].replaced > 1 > told[-1].replaced


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["cpu", "gpu"])
def test_sets_are_the_same_on_devices_and_for_any_batch(kind, schedule):
    params, Y = problem(H=40)
    model = BSC(D, 40, sets=KINDS[kind])
    told, memory = steps(model, params, Y, 3)
    same, again = steps(model, params, Y, 3, backend=opencl(schedule), batch=20)
    assert same[-1].free_energy == pytest.approx(told[-1].free_energy, rel=1e-12)
    for name, array in memory.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_a_step_is_pure_and_its_part_is_not_done_twice():
    params, Y = problem()
    model = BSC(D, H, sets=KINDS["randflip"])
    memory = model.init_memory(Y, 3)
    before = memory.copy()
    (first,), after = steps(model, params, Y, 1, memory)
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(memory.arrays[name], array)
    half = memory.copy()  # as if half of the points had been done when memory ran out
    for name, array in after.arrays.items():
        half.arrays[name][::2] = array[::2]
    (again,), whole = steps(model, params, Y, 1, half)
    assert again.free_energy == first.free_energy
    for name, array in after.arrays.items():
        np.testing.assert_array_equal(whole.arrays[name], array)
    assert again.replaced == pytest.approx(first.replaced / 2, rel=0.5)


def test_ranks_have_the_sets_of_one(world):
    """Under mpiexec: those of all rows, of which each rank has its own."""
    params, Y = problem()
    model = BSC(D, H, sets=KINDS["mix"])
    told, alone = steps(model, params, Y, 2)
    memory = model.init_memory(Y, 3, world)
    same, mine = steps(model, params, Y, 2, memory, comm=world)
    start, stop = world.slab(N)
    np.testing.assert_array_equal(mine.arrays["states"], alone.arrays["states"][start:stop])
    assert same[-1].free_energy == pytest.approx(told[-1].free_energy, rel=1e-12)
    assert same[-1].replaced == pytest.approx(told[-1].replaced, rel=1e-12)


def test_streamed_and_halved_batches_bring_their_memory(monkeypatch):
    """As on a device with less memory than the data take, and where a batch then proves too large."""
    params, Y = problem()
    model = BSC(D, H, sets=KINDS["cross"])
    _, memory = steps(model, params, Y, 2)
    backend, empty = opencl("gpu"), opencl("gpu").empty
    monkeypatch.setattr(backend, "empty", lambda shape, dtype=None: _fails(empty, shape, dtype))
    for room in (0, 1 << 30):
        monkeypatch.setattr(backend, "room", lambda room=room: room)
        _, again = steps(model, params, Y, 2, backend=backend)
        assert backend.most == 30
        np.testing.assert_array_equal(again.arrays["states"], memory.arrays["states"])


def _fails(empty, shape, dtype):
    if len(shape) == 3 and shape[0] > 30:
        raise MemoryError("no room for new states of more than 30 points")
    return empty(shape, dtype)


def test_em_keeps_its_memory():
    params, Y = problem()
    model = BSC(D, H, sets=KINDS["randflip"])
    em = EM(model, Y, Annealing(steps=4), params=params, backend="numpy", dtype="float64", seed=3).run()
    memory = model.init_memory(Y, 3)
    for t in range(4):
        params, info, memory = gem.em_step(model, params, Y, memory=memory, backend="numpy", dtype="float64")
        assert em.history["replaced"][t] == info.replaced
    np.testing.assert_array_equal(params["W"], em.params["W"])
    assert np.all(np.diff(em.history["free_energy"]) > 0)


@pytest.mark.parametrize("how", ["killed", "left", "done"])
def test_a_run_is_taken_up_with_its_memory(how, tmp_path):
    """A process that is killed loses what came after the last checkpoint, here after step 4; a loop left, nothing."""
    params, Y = problem()
    model, options = BSC(D, H, sets=KINDS["randflip"]), {"backend": "numpy", "dtype": "float64", "seed": 3}
    whole = EM(model, Y, Annealing(steps=7), params=params, **options).run()
    path = tmp_path / "run.h5"
    steps = 5 if how == "done" else 7
    em = EM(model, Y, Annealing(steps=steps), params=params, output=path, checkpoint=2, **options)
    if how == "done":
        em.run()
        again = EM.resume(path, Y, steps=2)
    else:
        for _ in em:
            if em.step == 5:
                if how == "killed":
                    em._checkpoint_all = em._save = lambda due=False: None  # no time for anything
                break
        again = EM.resume(path, Y)
    assert again.step == (4 if how == "killed" else 5)
    again.run()
    np.testing.assert_array_equal(again.params["W"], whole.params["W"])
    np.testing.assert_array_equal(again._memory.arrays["states"], whole._memory.arrays["states"])
    assert again.history["replaced"][6] == whole.history["replaced"][6]
    assert [folder.name for folder in (tmp_path / "run.h5.memory").iterdir()] == ["7"]


def test_a_run_without_its_memory_is_refused(tmp_path):
    path = tmp_path / "run.h5"
    EM(BSC(D, H, sets=KINDS["sample"]), problem()[1], Annealing(steps=2), backend="numpy", output=path).run()
    (tmp_path / "run.h5.memory" / "2" / "keys.npy").unlink()
    with pytest.raises(RunFileError, match="copy that folder along"):
        EM.resume(path, problem()[1], steps=1)


def test_posterior_lists_the_kept_states():
    params, Y = problem()
    exact = gem.posterior(BSC(D, H, Hprime=H, gamma=H), params, Y, backend="numpy", dtype="float64", top=3)
    model = BSC(D, H, sets=Evolve(states=2**H, parents=2, children=2, generations=1))
    found = gem.posterior(model, params, Y, backend="numpy", dtype="float64", top=3, reconstruct=True)
    np.testing.assert_array_equal(found.states, exact.states)
    np.testing.assert_allclose(found.probabilities, exact.probabilities, atol=1e-12)
    np.testing.assert_allclose(found.mean, exact.mean, atol=1e-12)
    np.testing.assert_allclose(found.reconstruction, exact.mean @ params["W"].T, atol=1e-12)
    few = BSC(D, H, sets=KINDS["randflip"])
    by_itself = gem.posterior(few, params, Y, backend="numpy", dtype="float64")
    assert by_itself.log_evidence.sum() > exact.log_evidence.sum() - 0.05 * N
    _, memory = steps(few, params, Y, 2)
    given = gem.posterior(few, params, Y, backend="numpy", dtype="float64", memory=memory)
    np.testing.assert_array_equal(given.sets, memory.arrays["states"])


def test_settings_go_to_run_files_and_back():
    for sets in KINDS.values():
        model = BSC(D, H, sets=sets)
        again = make("bsc", model.settings())
        assert again.kept == sets_of(sets.plain()) == sets
        assert again.settings() == model.settings()
    assert BSC(D, H, sets=Preselect(4, 2)).settings() == BSC(D, H, Hprime=4, gamma=2).settings()
    assert BSC(D, 40, sets="evolve").kept == Evolve()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: BSC(4, 5, Hprime=3, sets=Evolve(states=4, parents=2, children=2)), "leave them out"),
        (lambda: BSC(4, 2, sets=Evolve(states=5, parents=2, children=2)), "there are 4"),
        (lambda: BSC(4, 8, sets="evolution"), "must be one of preselect, evolve, sample"),
        (lambda: BSC(4, 8, sets={"kind": "evolve", "genes": 3}), "there are states"),
        (lambda: BSC(4, 8, sets=Evolve(children=9)), "take fewer"),
        (lambda: BSC(4, 8, missing=True, sets=Sample()), "not there yet"),
        (lambda: TSC(4, 8, sets=Sample()), "TSC takes no sets yet"),
        (lambda: Evolve(states=3, parents=4), "more parents"),
        (lambda: Evolve(mutation="cross", children=3), "leave children out"),
        (lambda: Evolve(selection="best"), "fit, rand"),
        (lambda: Sample(prior=0, marginal=0), "no new state"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        wrong()


def test_a_memory_that_does_not_fit_is_refused():
    params, Y = problem()
    model, plain = BSC(D, H, sets=KINDS["sample"]), BSC(D, H)
    memory = model.init_memory(Y)
    other = BSC(D, H, sets=Sample(states=4)).init_memory(Y)
    for wrong, given, said in (
        (model, None, "init_memory"),
        (plain, memory, "keeps none"),
        (model, other, "another model"),
    ):
        with pytest.raises(ConfigError, match=said):
            gem.em_step(wrong, params, Y, memory=given, backend="numpy")
    with pytest.raises(ConfigError, match="rows 0 to 60"):
        gem.em_step(model, params, Y[1:], memory=memory, backend="numpy")
    for options in ({"minibatch": 20}, {"held_out": Y}):
        with pytest.raises(ConfigError, match="not there yet"):
            EM(model, Y, Annealing(steps=2), backend=NumpyBackend(), **options)
    with pytest.raises(ConfigError, match="truncates nothing"):
        gem.em_step(model, params, Y, memory=memory, Ncut=0.5, backend="numpy")


def test_the_command_line_and_info(tmp_path, capsys):
    data, path = tmp_path / "Y.npy", str(tmp_path / "run.h5")
    np.save(data, problem()[1])
    (tmp_path / "run.toml").write_text("[model]\nH = 12\n[sets]\nparents = 4\nchildren = 3\n")
    fit = ["fit", "bsc", str(data), "--steps", "3", "--backend", "numpy", "-q", "-o", path]
    kept = ["--config", str(tmp_path / "run.toml"), "--sets", "evolve", "--states", "20", "--preselect", "6,3"]
    assert main([*fit, *kept]) == 0
    assert "states of a point replaced" in capsys.readouterr().out
    settings = read_run(path).config["settings"]
    assert BSC(**settings).kept == Evolve(states=20, parents=4, children=3, preselect=Preselect(6, 3))
    assert main(["info", path]) == 0
    assert "92 bytes for each" in capsys.readouterr().out
    assert main(["resume", path, "--steps", "1", "-q"]) == 0
    assert main([*fit, "--H", "12", "--states", "20"]) != 0
    assert "of which sets" in capsys.readouterr().err


def test_the_benchmark_counts_joints():
    assert sets_benchmark.joints(Preselect(8, 4), 16) == 1 + 16 + 28 + 56 + 70
    assert sets_benchmark.joints(sets_benchmark.KINDS["mix: EVO, Preselect(6, 2)"], 16) == 32 + 6 + 15 + 20
    small = Namespace(side=3, N=30, joints=300, backend="numpy")
    steps, F, number, _ = sets_benchmark.run(Evolve(states=8, parents=2, children=2, generations=1), 0, small)
    assert (steps, 0 <= number <= 6, np.isfinite(F)) == (25, True, True)
