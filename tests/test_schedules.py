"""Annealing.auto: the schedules that a model chooses, what a run keeps of them, and that they find what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gem
from benchmarks.bars import fit
from gem import cli
from gem.annealing import WINDOW, Annealing
from gem.models import BSC, DSC, GSC, MCA, MMCA, PMCA, SC, TSC, MoG, MoP, NoisyOR
from gem.store import read_run

D, H, N = 9, 4, 60
GAUSSIAN = [BSC(D, H), TSC(D, H), DSC(D, H, values=[-2, 0, 1]), GSC(D, H), MCA(D, H), MMCA(D, H)]
CAUSES = [*GAUSSIAN, PMCA(D, H), NoisyOR(D, H)]
OTHERS = [MoG(D, 3), MoP(D, 3), SC(D, H)]


def data(model, scale=1.0):
    rng = np.random.default_rng(0)
    if model.name == "NoisyOR":
        return (rng.random((N, D)) < 0.4).astype(float)
    return scale * rng.poisson(3.0, (N, D))


def resolved(model, steps, until=None, scale=1.0):
    start = model.init_params(data(model, scale))
    return Annealing.auto(steps, until=until).resolved(model.schedules(start))


def by_name(model):
    return model.name


@pytest.mark.parametrize("steps", [1, 2, 20, 100, 501])
@pytest.mark.parametrize("model", CAUSES, ids=by_name)
def test_the_last_step_is_plain_em(model, steps):
    """T = 1, no noise, all data."""
    anneal = resolved(model, steps)
    last = anneal[steps - 1]
    assert last.pop("T") == 1
    assert set(last) == {"Ncut", "W_noise"}
    assert not any(last.values())
    if steps > 2:
        assert anneal[0]["T"] > 1
        assert anneal[0]["W_noise"] > 0


@pytest.mark.parametrize("model", CAUSES, ids=by_name)
def test_a_run_can_settle_before_it_ends(model):
    anneal = resolved(model, 100, until=1e-6)
    first = next(done for done in range(1, 101) if anneal.settled([-3.0] * done, done))
    assert all(anneal[t] == anneal[99] for t in range(first - WINDOW - 1, 100))
    assert anneal[first - WINDOW - 3] != anneal[99]
    assert first < 95


@pytest.mark.parametrize("model", GAUSSIAN, ids=by_name)
def test_noise_is_in_the_units_of_the_data(model):
    small, large = resolved(model, 10), resolved(model, 10, scale=1000.0)
    assert large[0]["T"] == small[0]["T"]
    assert large[0]["W_noise"] == pytest.approx(1000 * small[0]["W_noise"])


@pytest.mark.parametrize("model", [BSC(D, H), TSC(D, H), MCA(D, H), MMCA(D, H), PMCA(D, H), NoisyOR(D, H)], ids=by_name)
def test_noise_moves_the_log_joint_as_much_in_all_models(model):
    """By so many nats: the root mean square of what it adds to log p(y | latent 0 alone), to first order."""
    start = {**model.init_params(data(model)), "W": np.full((D, H), 0.4 if model.name == "NoisyOR" else 3.0)}
    size, small = resolved(model, 10)[0]["W_noise"], 1e-4
    if model.name in ("PMCA", "NoisyOR"):
        size = model.schedules(start)["W_noise"][0][1]
    alone = np.eye(H)[:1]
    changes = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        moved = model.perturb(start, {"W_noise": small * size}, rng)
        if model.name in ("BSC", "TSC"):
            Y = start["W"][:, 0] + start["sigma"] * rng.standard_normal((200, D))
        else:
            Y = model.observe(start, np.repeat(model.combined(start, alone), 200, axis=0), rng)
        changes.append(model.log_likelihood(moved, Y, alone) - model.log_likelihood(start, Y, alone))
    nats = {"NoisyOR": 3.5, "MCA": 2.5, "MMCA": 2.5}.get(model.name, 2.0)
    assert np.sqrt(np.mean(np.square(changes))) / small == pytest.approx(nats, rel=0.15)


def test_noise_of_latents_that_are_not_1():
    """It is multiplied by their size: of DSC by the root mean square of `values`."""
    one, three = (resolved(DSC(D, H, values=[0, v]), 10)[0]["W_noise"] for v in (1.0, 3.0))
    assert three == pytest.approx(one / 3)


@pytest.mark.parametrize("model", OTHERS, ids=by_name)
def test_mixtures_and_sc_are_not_annealed(model):
    Y = data(model)
    auto, plain = (gem.EM(model, Y, anneal, backend="numpy").run() for anneal in (Annealing.auto(4), Annealing(4)))
    assert auto.anneal.by_model
    for name, value in plain.params.items():
        np.testing.assert_array_equal(auto.params[name], value)


def test_what_is_open_until_there_is_a_model():
    asked = Annealing.auto(7, until=1e-3)
    assert (len(asked), asked.until, repr(asked)) == (7, 1e-3, "Annealing.auto(steps=7, until=0.001)")
    with pytest.raises(gem.ConfigError, match=r"schedules of Annealing\.auto are the model's"):
        asked[0]
    assert repr(Annealing.from_dict(asked.to_dict())) == repr(asked)
    given = Annealing(7, T=2.0)
    assert given.resolved({"T": 3.0}) is given
    with pytest.raises(gem.ConfigError, match="steps"):
        Annealing.auto(0)


@pytest.mark.parametrize("model", [BSC(D, H), MoG(D, 3)], ids=by_name)
def test_a_run_that_is_taken_up_keeps_its_schedules(model, tmp_path):
    Y, anneal = data(model), Annealing.auto(12)
    whole = gem.EM(model, Y, anneal, backend="numpy", output=tmp_path / "whole.h5").run()
    begun = gem.EM(model, Y, anneal, backend="numpy", output=tmp_path / "run.h5", checkpoint=5)
    for _ in zip(range(7), begun, strict=False):
        pass
    resumed = gem.EM.resume(tmp_path / "run.h5", Y)
    assert resumed.anneal.by_model
    assert [resumed.anneal[t] for t in range(12)] == [whole.anneal[t] for t in range(12)]
    resumed.run()
    for name, value in whole.params.items():
        np.testing.assert_array_equal(resumed.params[name], value)
    assert resumed.history["T"].tolist() == whole.history["T"].tolist()
    stored = read_run(tmp_path / "run.h5").config["annealing"]
    assert stored["by_model"] is True
    assert Annealing(**{k: v for k, v in stored.items() if k != "by_model"})[3] == whole.anneal[3]  # plain numbers


def test_what_is_held_gets_no_noise(tmp_path):
    model, path = BSC(D, H), tmp_path / "run.h5"
    run = gem.EM(model, data(model), Annealing.auto(4), backend="numpy", hold=["W"], output=path).run()
    assert run.anneal.noisy == []
    assert run.anneal[0]["T"] > 1
    np.testing.assert_array_equal(run.params["W"], model.init_params(data(model), 0)["W"])
    assert gem.EM.resume(path, data(model)).anneal.to_dict() == run.anneal.to_dict()
    some = {"W": np.arange(D * H).reshape(D, H) % 2 == 0}
    assert gem.EM(model, data(model), Annealing.auto(4), backend="numpy", hold=some).anneal.noisy == ["W"]


@pytest.mark.parametrize(("name", "seed"), [("bsc", 2), ("mmca", 0)])
def test_all_bars_by_default(name, seed):
    """Where EM at T = 1 finds fewer."""
    steps, points = 50, 500
    assert fit(name, seed, points, ("--steps", str(steps), "--backend", "numpy")) == 10
    assert fit(name, seed, points, ("--steps", str(steps), "--backend", "numpy", "--T", "1")) < 10


@pytest.fixture
def gem_fit(tmp_path, monkeypatch):
    """`gem fit bsc` with these flags, in a folder of its own: the annealing in its run file, or None if refused."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", data(OTHERS[0]))

    def fitted(output, flags):
        status = cli.main(f"fit bsc x.npy --H {H} --backend numpy -q -o {output}.h5 {flags}".split())
        return None if status else read_run(f"{output}.h5").config["annealing"]

    return fitted


def test_the_default_of_gem_fit(gem_fit):
    model = BSC(D, H)
    chosen = Annealing.auto(100).resolved(model.schedules(model.init_params(np.load("x.npy"))))
    assert Annealing.from_dict(gem_fit("a", "")).to_dict() == chosen.to_dict()
    assert gem_fit("b", "--steps 3 --until 1e-3")["by_model"]
    Path("c.toml").write_text("[annealing]\nT = 1.0\n")
    for name, flags in enumerate(("--T 1", "--Ncut 0", "--W-noise 0", "--reseed", "--anneal-prior", "--config c.toml")):
        assert "by_model" not in gem_fit(name, f"--steps 2 {flags}"), flags
    assert "by_model" not in gem_fit("on", "--steps 2 --params a.h5")


def test_a_job_that_is_started_again_takes_its_schedules_up(gem_fit, capsys):
    began = gem_fit("run", "--steps 3 --until 1e-3")
    assert gem_fit("run", "--steps 3 --until 1e-3 --resume") == began
    assert gem_fit("run", "--steps 4 --until 1e-3 --resume") is None
    assert gem_fit("run", "--steps 3 --until 1e-3 --T 1 --resume") is None
    err = capsys.readouterr().err
    assert "is a run with other settings: steps = 4 (there: 3). Give" in err
    assert "T = 1.0 (there: [[0, 1.5], [0.8, 1.0]])" in err
    plain = gem_fit("plain", "--steps 2 --T 1")  # as begun by a gem that did not anneal of its own accord
    assert gem_fit("plain", "--steps 2 --resume") == plain
    for flags in ("--T 2", "--reseed"):
        gem_fit("other", f"--steps 2 {flags} --overwrite")
        assert gem_fit("other", "--steps 2 --resume") is None
