"""Held parameters, priors, and the best parameters of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import gem.run
from gem import EM, Annealing, em_step, posterior
from gem.cli import main
from gem.errors import ConfigError
from gem.models import BSC, DSC, GSC, MCA, PMCA, SC, TSC, MoG, MoP, NoisyOR
from gem.run import run_step
from gem.store import read_run

MODELS = [
    BSC(D=4, H=3),
    TSC(D=4, H=3),
    DSC(D=4, H=2, values=(0, 1, 2)),
    GSC(D=4, H=3),
    MCA(D=4, H=3),
    MoP(D=4, K=3),
    *(MoG(D=4, K=3, covariance=kind) for kind in ("diag", "spherical", "tied", "full")),
]


def start_of(model) -> dict[str, np.ndarray]:
    """Parameters far from each other, and from those of a symmetric start."""
    rng, params = np.random.default_rng(3), {}
    for name, shape in model.shapes.items():
        params[name] = {
            "W": lambda s: np.abs(rng.normal(2, 1, s)),
            "mu": lambda s: rng.normal(1, 1.5, s),
            "lam": lambda s: rng.uniform(1, 6, s),
            "cov": lambda s: np.broadcast_to(np.diag([2.0, 1.5, 1.0, 3.0]), s).copy(),
        }.get(name, lambda s: rng.uniform(0.5, 1.5, s))(shape)
    if model.parameters["pi"].domain == "distribution":
        params["pi"] = params["pi"] / params["pi"].sum()
    elif "pi" in params:
        params["pi"] = params["pi"] * 0.3
    return params


def data_of(model, N: int = 80) -> np.ndarray:
    return model.generate_data(start_of(model), N, seed=2)[0]


def step(model, params, Y, **options):
    return em_step(model, params, Y, backend="numpy", dtype="float64", **options)


def mask_of(model, name: str) -> np.ndarray:
    """Some of the entries: of fields and centres any, of a covariance those of one component."""
    shape = model.shapes[name]
    mask = np.zeros(shape, dtype=bool)
    if name == "cov" or not shape:
        mask[0 if len(shape) == 3 else ...] = True
    else:
        mask.reshape(-1)[::3] = True
    return mask


CASES = [(model, name) for model in MODELS for name in model.shapes]


def ids(case) -> str:
    return repr(case) if isinstance(case, str) else f"{case.name} {case.settings().get('covariance', '')}"


@pytest.mark.parametrize(("model", "name"), CASES, ids=ids)
@pytest.mark.parametrize("whole", [True, False])
def test_held_entries_stay_and_the_others_are_the_best_beside_them(model, name, whole):
    """Bit for bit; the M-step's F (its lower bound) falls if a free entry is moved either way, and EM only rises."""
    params, Y = start_of(model), data_of(model)
    mask = np.ones(model.shapes[name], dtype=bool) if whole else mask_of(model, name)
    new, _ = step(model, params, Y, hold=[name] if whole else {name: mask})
    np.testing.assert_array_equal(new[name][mask], params[name][mask])
    model.check(new)
    if model.name == "MCA":
        return
    assert_best(model, params, new, Y, {name: mask})
    F = [step(model, params, Y)[1].free_energy]
    for _ in range(6):
        params, info = step(model, params, Y, hold={name: mask})
        F.append(info.free_energy)
    assert np.diff(F[1:]).min() > -1e-9 * abs(F[0])


def bound(model, params, Y, old) -> float:
    """Σ_n Σ_s p(s | y_n, old) log p(s, y_n | params): what an M-step makes as large as it can."""
    if model.name == "GSC":
        return gsc_bound(model, params, Y, old)
    states = np.arange(model.K) if hasattr(model, "K") else all_states(model)
    joint = model.log_joint(old, Y, states)
    weights = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    return float((weights * model.log_joint(params, Y, states)).sum())


def all_states(model) -> np.ndarray:
    values = getattr(model, "all_values", (0.0, *model.values))
    return np.array(np.meshgrid(*[values] * model.H)).reshape(model.H, -1).T


def gsc_bound(model, params, Y, old) -> float:
    """The strengths are integrated: of the Gaussian posterior of z, for each set of active latents."""
    total, sets, joints = 0.0, all_states(model), []
    for s in sets:
        joints.append(model.log_joint(old, Y, s[None])[:, 0])
    weights = np.exp(np.array(joints) - np.logaddexp.reduce(joints, axis=0))
    for s, r in zip(sets, weights, strict=True):
        on = np.flatnonzero(s)
        W, W_new = old["W"][:, on], params["W"][:, on]
        cov = np.linalg.inv(W.T @ W / old["sigma"] ** 2 + np.diag(1 / old["psi"][on]))
        mean = (Y @ W / old["sigma"] ** 2 + old["mu"][on] / old["psi"][on]) @ cov
        var, psi = params["sigma"] ** 2, params["psi"][on]
        noise = ((Y - mean @ W_new.T) ** 2).sum(axis=1) + np.trace(W_new @ cov @ W_new.T)
        strength = ((mean - params["mu"][on]) ** 2 + np.diag(cov)) / psi + np.log(2 * np.pi * psi)
        prior = np.log(np.where(s, params["pi"], 1 - params["pi"])).sum()
        value = prior - (model.D * np.log(2 * np.pi * var) + noise / var + strength.sum(axis=1)) / 2
        total += float(r @ value)
    return total


def assert_best(model, old, new, Y, held) -> None:
    rng, top = np.random.default_rng(0), bound(model, new, Y, old)
    tied = model.settings().get("covariance") == "tied" and "mu" in held and not held["mu"].all()
    for name, value in new.items():
        if tied and name == "mu":
            continue  # of several centres with one covariance the best are found in more steps than one
        free = ~held.get(name, np.zeros(value.shape, dtype=bool))
        for _ in range(3):
            if not free.any():
                continue
            way = np.where(free, rng.normal(size=value.shape), 0)
            if name == "cov":
                way = np.where(free, (way + np.swapaxes(way, -1, -2)) / 2, 0)
            if model.parameters[name].domain == "distribution":
                way = np.where(free, way - way[free].mean(), 0)
            for sign in (1, -1):
                moved = {**new, name: value + sign * 1e-3 * way}
                assert bound(model, moved, Y, old) <= top + 1e-9 * abs(top), name


def test_the_free_part_of_a_distribution_shares_what_is_left():
    model = MoG(D=4, K=3)
    params, Y = start_of(model), data_of(model)
    new, _ = step(model, params, Y, hold={"pi": np.array([True, False, False])})
    free, _ = step(model, params, Y)
    assert new["pi"].sum() == pytest.approx(1, abs=1e-15)
    assert new["pi"][1] / new["pi"][2] == pytest.approx(free["pi"][1] / free["pi"][2], rel=1e-12)


@pytest.mark.parametrize("model", [MoG(D=2, K=2), BSC(D=2, H=2)], ids=ids)
def test_held_in_a_run_from_its_start_to_its_end(world, tmp_path, monkeypatch, model):
    """Also what is shifted, what has noise, and after it was taken up; each rank has the same."""

    def seen(*arguments):
        begun.append(arguments[1][name][mask])
        return run_step(*arguments)

    begun: list[np.ndarray] = []
    monkeypatch.setattr(gem.run, "run_step", seen)
    Y = np.random.default_rng(0).normal(size=(50, 2)) + (1e6 if model.name == "MoG" else 2)
    path = world.bcast(tmp_path) / "run.h5"
    name = "mu" if model.name == "MoG" else "W"
    mask = np.array([[True, False], [False, True]])
    anneal = Annealing(6, **{f"{name}_noise": 0.1})
    run = EM(model, Y, anneal, backend="numpy", hold={name: mask}, output=path, checkpoint=2, comm=world)
    start = run.params[name][mask]
    loop = iter(run)
    for _ in range(3):
        next(loop)
    if world.rank == 0:
        shutil.copy(path, path.with_name("copy.h5"))
    world.bcast(None)
    run.run()
    again = EM.resume(path.with_name("copy.h5"), Y, comm=world).run()
    np.testing.assert_array_equal(run.params[name][mask], start)
    np.testing.assert_array_equal(begun, begun[:1] * len(begun))
    np.testing.assert_array_equal(again.params[name], run.params[name])
    assert not np.array_equal(run.params[name][~mask], read_run(path).params[name][mask])


@pytest.mark.parametrize("hold", ["W", ["mu"], {"psi": np.array([True, False, False])}])
def test_the_scale_of_gsc_is_left_alone_where_a_part_of_it_is_held(hold):
    model = GSC(D=4, H=3)
    params = start_of(model)
    run = EM(model, data_of(model), Annealing(5), backend="numpy", params=params, hold=hold).run()
    for name, mask in run._hold.masks.items():
        np.testing.assert_array_equal(run.params[name][mask], params[name][mask])


@pytest.mark.parametrize(
    ("model", "hold", "words"),
    [
        (MODELS[0], ["sigmas"], "'sigmas' is no parameter of BSC: it has W, pi, sigma"),
        (MODELS[0], {"mu": True}, "'mu' is no parameter of BSC"),
        (MODELS[0], {"W": np.ones((3, 4), bool)}, r"mask of W must be .* shape \(4, 3\).* not bool of shape \(3, 4\)"),
        (MODELS[0], {"W": np.ones((4, 3))}, "not float64 of shape"),
        (MODELS[0], {"W": "yes"}, "the mask of W must be"),
        (MODELS[0], 3, "hold = 3 must be the names"),
        (MODELS[0], [3], r"hold = \[3\] must be the names"),
        (MoG(D=2, K=2, covariance="full"), {"cov": np.eye(2, dtype=bool)[None].repeat(2, 0)}, "of a covariance all"),
        (SC(D=4, H=3), {"W": np.eye(4, 3, dtype=bool)}, "one is held as a whole"),
    ],
)
def test_what_cannot_be_held_is_refused(model, hold, words):
    with pytest.raises(ConfigError, match=words):
        EM(model, np.random.default_rng(0).normal(size=(20, model.D)), Annealing(2), hold=hold)


def test_noise_on_what_is_held_is_refused():
    with pytest.raises(ConfigError, match="W_noise has nothing to act on: W is held"):
        EM(MODELS[0], data_of(MODELS[0]), Annealing(2, W_noise=0.1), hold="W,pi")


@pytest.mark.parametrize("model", [NoisyOR(D=4, H=3), PMCA(D=4, H=3), SC(D=4, H=3)], ids=ids)
def test_all_held_changes_nothing(model):
    Y = (np.random.default_rng(0).random((30, 4)) < 0.5).astype(float)
    params = model.init_params(Y)
    new, _ = step(model, params, Y, hold=list(model.shapes))
    for name, value in params.items():
        np.testing.assert_array_equal(new[name], value)


# A sparse prior


@pytest.mark.parametrize("kind", [MoG, MoP])
def test_alpha_is_the_mode_of_a_dirichlet_posterior(kind):
    plain = kind(D=4, K=3)
    params, Y = start_of(plain), data_of(plain)
    N = step(plain, params, Y)[0]["pi"] * 80
    for alpha in (0.2, 0.9, 1.0, 2.5):
        model = kind(D=4, K=3, alpha=alpha)
        assert kind(**model.settings()).alpha == alpha
        assert ("alpha" in model.settings()) == (alpha != 1)
        new, _ = step(model, params, Y)
        mass = np.maximum(N + alpha - 1, 0)
        np.testing.assert_allclose(new["pi"], mass / mass.sum(), rtol=1e-9)
    for wrong in (0, -1, "a", np.nan):
        with pytest.raises(ConfigError, match="alpha"):
            kind(D=4, K=3, alpha=wrong)


def test_a_sparse_prior_empties_components_for_good():
    rng = np.random.default_rng(0)
    Y = np.concatenate([rng.normal(-4, 1, (150, 2)), rng.normal(4, 1, (150, 2))])
    run = EM(MoG(D=2, K=6, alpha=-0.0 + 1e-9 + 1 - 0.999), Y, Annealing(2), backend="numpy").run()
    assert run.step == 2
    sparse = EM(MoG(D=2, K=6, covariance="spherical", alpha=0.001), Y, Annealing(300), backend="numpy").run()
    plain = EM(MoG(D=2, K=6, covariance="spherical"), Y, Annealing(300), backend="numpy").run()
    assert (sparse.params["pi"] > 1e-6).sum() <= (plain.params["pi"] > 1e-6).sum() == 6
    assert sparse.params["pi"].sum() == pytest.approx(1)


def test_alpha_from_the_shell(tmp_path, capsys):
    np.save(tmp_path / "x.npy", data_of(MODELS[-1]))
    command = f"fit mog {tmp_path}/x.npy --K 3 --alpha 2 --steps 3 --hold mu --backend numpy -q -o {tmp_path}/a.h5"
    assert main(command.split()) == 0
    run = read_run(tmp_path / "a.h5")
    assert run.config["settings"]["alpha"] == 2
    assert run.config["hold"] == {"mu": True}
    assert main([*command.split(), "--resume"]) == 0
    assert main([*command.replace("--hold mu", "--hold pi").split(), "--resume"]) == 1
    assert "hold = " in capsys.readouterr().err
    assert main(command.replace("--hold mu", "--hold nu --overwrite").split()) == 1
    assert "'nu' is no parameter of MoG" in capsys.readouterr().err


# The best so far

FALLING = Annealing(12, W_noise=[(0, 0.0), (6, 0.0), (7, 1.5), (8, 1.5)])  # good, then shaken


def falling(**options) -> EM:
    model = BSC(D=4, H=3)
    return EM(model, data_of(model), FALLING, backend="numpy", dtype="float64", **options)


def test_a_best_f_that_is_not_the_last_is_told(world, tmp_path):
    run = falling(comm=world, output=world.bcast(tmp_path) / "run.h5").run()
    F = run.history["free_energy"]
    best = int(np.argmax(F)) + 1
    assert best < run.step
    assert run.best == (best, F.max())
    (note,) = [note for t, note in run.notes if t == 12 and note.startswith("F was larger")]
    assert f"{F.max() / 80:.6g} per data point of the parameters that step {best} began with" in note
    rising = EM(MODELS[0], data_of(MODELS[0]), Annealing(5), backend="numpy").run()
    assert not [note for _, note in rising.notes if "larger" in note]


@pytest.mark.parametrize("options", [{"keep_best": True}, {"keep": "best"}, {"keep_best": True, "keep": "last"}])
@pytest.mark.parametrize("killed", [None, 4, 9])
def test_a_run_may_end_with_its_best_parameters(world, tmp_path, options, killed):
    folder = world.bcast(tmp_path)
    plain, run = falling(comm=world).run(), falling(comm=world, output=folder / "run.h5", checkpoint=1, **options)
    if killed:
        loop = iter(run)
        for _ in range(killed):
            next(loop)
        if world.rank == 0:
            shutil.copy(folder / "run.h5", folder / "copy.h5")
        loop.close()
        run = EM.resume(folder / "copy.h5", data_of(MODELS[0]), comm=world)
    run.run()
    F = plain.history["free_energy"]
    best = int(np.argmax(F)) + 1
    wanted = falling(comm=world)
    for _ in wanted:
        if wanted.step == best - 1:
            break
    np.testing.assert_array_equal(run.params["W"], wanted.params["W"])
    found = posterior(MODELS[0], run.params, data_of(MODELS[0]), backend="numpy", dtype="float64").log_evidence.sum()
    np.testing.assert_allclose([run.history["free_energy"][-1], F.max()], found, rtol=1e-12)
    np.testing.assert_array_equal(run.history["free_energy"][:-1], F[:-1])
    assert any(note.startswith("F was the largest") for _, note in run.notes)
    path: Path = folder / ("copy.h5" if killed else "run.h5")
    if world.rank == 0:
        np.testing.assert_array_equal(read_run(path).params["W"], run.params["W"])
        assert read_run(path).best[0] == best


def test_finish_ends_with_the_best_parameters_too(tmp_path):
    run = falling(keep_best=True, output=tmp_path / "run.h5", checkpoint=1)
    for _ in run:
        if run.step == 9:
            break
    last = run.params["W"]
    run.finish()
    assert not np.array_equal(run.params["W"], last)
    np.testing.assert_array_equal(read_run(tmp_path / "run.h5").params["W"], run.params["W"])
