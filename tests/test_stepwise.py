"""Stepwise EM: which rows make a minibatch, what a step makes of it, and that a run is the same however it is cut."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import gem
from gem.cli import main
from gem.data import ArraySource, Deal, Dealt
from gem.errors import ConfigError, DataError
from gem.models import BSC, GSC, MCA, SC, TSC, MoG, MoP, NoisyOR
from gem.stepwise import Carry, Rate
from gem.store import read_run
from tests.test_sample_weights import together


@pytest.mark.parametrize(("N", "size"), [(1000, 128), (1000, 5000), (7, 3), (4097, 4096), (100_000, 4096), (5, 1)])
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_row_is_dealt_out_once(N, size, ranks):
    """To minibatches of about the size asked for, of which each rank takes an equal part; no rank changes which."""
    deal = Deal.of(N, size, seed=4)
    whole = [np.concatenate([np.arange(*run) for run in deal.runs(b, 0, 1)]) for b in range(len(deal))]
    assert np.array_equal(np.sort(np.concatenate(whole)), np.arange(N))
    assert max(map(len, whole)) <= max(N / len(deal) + 256, 1.5 * size)
    for b, rows in enumerate(whole):
        parts = [[x for run in deal.runs(b, r, ranks) for x in range(*run)] for r in range(ranks)]
        assert [row for part in parts for row in part] == rows.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    source = ArraySource(np.arange(N * 2.0).reshape(N, 2))
    for rank in range(ranks):
        dealt = Dealt(source, deal, rank, ranks)
        for b in range(len(deal)):
            mine = [x for run in deal.runs(b, rank, ranks) for x in range(*run)]
            read = dealt.read(*dealt.edges[b : b + 2])
            assert read[:, 0].tolist() == [2.0 * row for row in mine]


def test_rows_that_lie_together_come_apart():
    """Data sorted by class: each minibatch has some of all."""
    deal = Deal.of(10_000, 1000, seed=0)
    for b in range(len(deal)):
        rows = np.concatenate([np.arange(*run) for run in deal.runs(b, 0, 1)])
        assert len(np.unique(rows // 2000)) == 5
    assert sorted(deal.order(0, 1)) == list(range(10))
    assert not np.array_equal(deal.order(0, 1), deal.order(0, 2))


def test_one_minibatch_of_all_rows_has_them_in_order():
    assert Deal.of(1000, 1000, 3).runs(0, 0, 1) == [(0, 1000)]


def test_rates():
    assert [Rate("t^-0.6", 3)(0.5, t) for t in (0, 1, 9)] == [1.0, 2**-0.6, 10**-0.6]
    line = Rate([(0, 1.0), (1.0, 0.2)], 5)
    np.testing.assert_allclose([line(0, 0), line(2, 7), line(4, 9)], [1.0, 0.6, 0.2])
    assert Rate(0.3, 5)(2, 2) == 0.3


@pytest.mark.parametrize("rate", ["t^-0.5", "t^-1.2", "fast", 0, 1.5, [(0, 1), (0.5, -1)], None])
def test_rates_are_refused(rate):
    with pytest.raises(ConfigError, match="rate"):
        Rate(rate, 10)


def test_a_carry_is_arrays():
    carry = Carry({"counts": np.arange(3.0), "first": np.ones((2, 2))}, 7, 3, {"gem.N": 12.0}, 40.0)
    again, params = Carry.of(carry.arrays({"pi": np.array(0.5)}))
    assert params == {"pi": 0.5}
    assert (again.updates, again.done, again.heard, again.N) == (7, 3, {"gem.N": 12.0}, 40.0)
    assert all(np.array_equal(again.moments[name], value) for name, value in carry.moments.items())


# -- runs -----------------------------------------------------------------------------------------------------------

GSC_MODEL = GSC(D=8, H=5, Hprime=4, gamma=2)
BSC_MODEL = BSC(D=8, H=5, Hprime=4, gamma=2)
MODELS = {
    "bsc": BSC_MODEL,
    "gsc": GSC_MODEL,
    "tsc-missing": TSC(D=8, H=4, Hprime=3, gamma=2, missing=True),
    "mca": MCA(D=8, H=4, Hprime=3, gamma=2),
    "noisyor": NoisyOR(D=8, H=4, Hprime=3, gamma=2),
    "sc": SC(D=8, H=5, tol=1e-2),
    "mog-full": MoG(D=8, K=3, covariance="full"),
    "mop": MoP(D=8, K=3),
}
NUMPY = {"backend": "numpy", "dtype": "float64"}
ANNEALED = gem.Annealing(steps=3, T=[(0, 2.0), (1.0, 1.0)], W_noise=[(0, 0.1), (1.0, 0.0)])


def data(model, N=600, seed=1):
    """Clusters, in numbers of the kind that the model explains."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.uniform(1, 9, (3, model.D))[rng.integers(3, size=N)]).astype(float)
    if model.name == "NoisyOR":
        return (counts > 4).astype(float)
    if model.name == "MoP":
        return counts
    return counts + 0.1 * rng.standard_normal(counts.shape)


def same(a, b, **how):
    for name, value in a.items():
        (np.testing.assert_allclose if how else np.testing.assert_array_equal)(b[name], value, err_msg=name, **how)


@pytest.mark.parametrize("name", MODELS)
def test_one_minibatch_of_all_data_at_rate_one_is_em(name):
    """Bit for bit, with annealing, noise and data selection."""
    model, Y = MODELS[name], data(MODELS[name])
    selection = {"Ncut": [(0, 0.0), (1.0, 0.5)]} if model.truncates else {}
    anneal = gem.Annealing(3, T=[(0, 2.0), (1.0, 1.0)], **selection)
    whole = gem.EM(model, Y, anneal, **NUMPY).run()
    stepwise = gem.EM(model, Y, anneal, minibatch=len(Y), rate=1.0, **NUMPY).run()
    same(whole.params, stepwise.params)
    assert np.array_equal(whole.history["free_energy"], stepwise.history["free_energy"])
    assert [note for _, note in whole.notes] == [note for _, note in stepwise.notes]


@pytest.mark.parametrize("name", MODELS)
def test_minibatches_reach_in_few_passes_what_em_reaches_in_many(name):
    model, Y = MODELS[name], data(MODELS[name])
    whole = gem.EM(model, Y, gem.Annealing(20), **NUMPY).run().history["free_energy"]
    few = gem.EM(model, Y, gem.Annealing(6), minibatch=60, rate=[(0, 1.0), (1.0, 0.05)], **NUMPY).run()
    found = few.history["free_energy"][-1]
    assert found > whole[-1] - 0.03 * abs(whole[-1])  # another optimum may be as good
    assert found > whole[3] + 0.1 * (whole[-1] - whole[3]) - 0.02 * abs(whole[3])


@pytest.mark.parametrize("name", ["bsc", "mog-full", "noisyor"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ranks_make_no_difference_to_minibatches(name, weighted):
    model, Y = MODELS[name], data(MODELS[name], N=101)
    options = {"weights": np.random.default_rng(0).random(101) * 3} if weighted else {}
    options |= {"minibatch": 20, "params": model.init_params(Y), **NUMPY}
    alone = gem.EM(model, Y, gem.Annealing(2), **options).run()
    for em in together(3, lambda comm: gem.EM(model, Y, gem.Annealing(2), comm=comm, **options).run()):
        same(alone.params, em.params, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(em.history["free_energy"], alone.history["free_energy"], rtol=1e-10)


@pytest.mark.parametrize("name", ["gsc", "mog-full"])
def test_a_weight_is_so_many_rows_of_a_minibatch(name):
    """One minibatch, as the rows of several would come in other company."""
    model, Y = MODELS[name], data(MODELS[name], N=60)
    weights = np.arange(60) % 3
    options = {"rate": [(0, 1.0), (1.0, 0.5)], "params": model.init_params(Y), **NUMPY}
    one = gem.EM(model, Y, gem.Annealing(3), weights=weights, minibatch=60, **options).run()
    two = gem.EM(model, np.repeat(Y, weights, axis=0), gem.Annealing(3), minibatch=60, **options).run()
    same(two.params, one.params, rtol=1e-9, atol=1e-12)


def test_data_that_do_not_stay_give_the_same(monkeypatch, backend):
    model, Y = BSC_MODEL, data(BSC_MODEL)
    options = {"backend": backend, "minibatch": 100, "seed": 3}
    stay = gem.EM(model, Y, gem.Annealing(2), **options).run()
    monkeypatch.setattr(gem.stepwise, "KEPT_BYTES", 0)
    same(stay.params, gem.EM(model, Y, gem.Annealing(2), **options).run().params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bsc", "mog-full"])
def test_a_run_that_is_killed_within_a_pass_goes_on_there(name, tmp_path, monkeypatch):
    model, Y = MODELS[name], data(MODELS[name])
    anneal = ANNEALED if name == "bsc" else gem.Annealing(3)
    options = {"minibatch": 60, "seed": 5, **NUMPY}
    whole = gem.EM(model, Y, anneal, **options).run()
    path, calls, run = tmp_path / "run.h5", [], gem.em.expect

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 14:  # the fourth minibatch of the second pass
            raise KeyboardInterrupt
        return run(*arguments)

    em = gem.EM(model, Y, anneal, output=path, checkpoint_seconds=1e-9, **options)
    monkeypatch.setattr(gem.em, "expect", killed)
    with pytest.raises(KeyboardInterrupt):
        em.run()
    monkeypatch.setattr(gem.em, "expect", run)
    stored = read_run(path)
    assert stored.step == 1
    assert int(stored.carry["done"]) == 3
    again = gem.EM.resume(path, Y).run()
    same(whole.params, again.params)
    assert np.array_equal(whole.history["free_energy"], again.history["free_energy"])
    assert len(calls) >= 14


def test_sigterm_within_a_pass_ends_the_run_there(tmp_path, monkeypatch):
    """After the minibatch at hand, which is stored."""
    path, run, calls = tmp_path / "run.h5", gem.em.expect, []
    Y = data(BSC_MODEL)
    options = {"minibatch": 60, "seed": 5, **NUMPY}
    whole = gem.EM(BSC_MODEL, Y, gem.Annealing(3), **options).run()

    def terminated(*arguments):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(*arguments)

    monkeypatch.setattr(gem.em, "expect", terminated)
    em = gem.EM(BSC_MODEL, Y, gem.Annealing(3), output=path, **options).run()
    monkeypatch.setattr(gem.em, "expect", run)
    assert em.stopped
    assert (em.step, len(calls)) == (0, 5)
    assert int(read_run(path).carry["done"]) == 5
    same(whole.params, gem.EM.resume(path, Y).run().params)


def test_the_row_that_is_refused_is_that_of_the_data():
    Y = data(BSC_MODEL)
    Y[417, 3] = np.inf
    with pytest.raises(DataError, match="at row 417, column 3"):
        gem.EM(BSC_MODEL, Y, gem.Annealing(2), minibatch=50, params=BSC_MODEL.init_params(Y[:400]), **NUMPY).run()


def test_settings_of_minibatches_are_refused():
    Y = data(BSC_MODEL)
    with pytest.raises(ConfigError, match="give minibatch"):
        gem.EM(BSC_MODEL, Y, gem.Annealing(2), rate=0.5)
    with pytest.raises(ConfigError, match="minibatch"):
        gem.EM(BSC_MODEL, Y, gem.Annealing(2), minibatch=0)
    with pytest.raises(ConfigError, match="keep_best"):
        gem.EM(BSC_MODEL, Y, gem.Annealing(2), minibatch=100, keep_best=True)


def test_held_parameters_stay_in_minibatches():
    Y = data(BSC_MODEL)
    em = gem.EM(BSC_MODEL, Y, gem.Annealing(2), minibatch=60, hold=["sigma"], **NUMPY)
    start = em.params["sigma"].copy()
    assert em.run().params["sigma"] == start
    em.partial(Y[:50])
    assert em.params["sigma"] == start


# -- data that come once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bsc", "mog-full"])
def test_chunks_of_a_stream_are_learned_from_as_they_come(name, tmp_path):
    model, Y = MODELS[name], data(MODELS[name], N=3000)
    em = gem.EM(model, Y[:300], gem.Annealing(1), output=tmp_path / "run.h5", **NUMPY)
    before = gem.em_step(model, em.params, Y, **NUMPY)[1].free_energy
    for start in range(0, 3000, 300):
        info = em.partial(Y[start : start + 300])
        assert info.N == 300
    assert (em.step, em._carry.N) == (10, 3000)
    after = gem.em_step(model, em.params, Y, **NUMPY)[1].free_energy
    settled = gem.EM(model, Y, gem.Annealing(30), **NUMPY).run().history["free_energy"][-1]
    assert after > settled - 0.2 * (settled - before)
    em.finish()
    assert read_run(tmp_path / "run.h5").step == 10


def test_a_stream_after_a_run_remembers_what_the_run_was_on():
    """A chunk of other data moves a mixture by no more than its share."""
    model, Y = MODELS["mog-full"], data(MODELS["mog-full"])
    em = gem.EM(model, Y, gem.Annealing(10), rate=None, **NUMPY).run()
    old = em.params["mu"]
    em.partial(Y[:6] + 100)
    moved = np.abs(em.params["mu"] - old).max()
    assert 0 < moved < 100
    assert em._carry.N == 606


def test_what_is_refused_is_not_learned():
    em = gem.EM(BSC_MODEL, data(BSC_MODEL), gem.Annealing(1), **NUMPY)
    old = {name: value.copy() for name, value in em.params.items()}
    with pytest.raises(DataError, match="row 1, column 2"):
        em.partial(np.where(np.arange(16).reshape(2, 8) == 10, np.nan, 1.0))
    same(old, em.params)
    assert em.step == 0


def test_the_command_line_learns_from_minibatches(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Y = data(BSC_MODEL)
    np.save("x.npy", Y)
    fit = [
        "fit",
        "bsc",
        "x.npy",
        "--H",
        "5",
        "--steps",
        "2",
        "--minibatch",
        "60",
        "--rate",
        "0=1,1=0.1",
        "--backend",
        "numpy",
        "--dtype",
        "float64",
        "-q",
    ]
    assert main(fit) == 0
    model = BSC(D=8, H=5)
    same(
        gem.EM(model, Y, gem.Annealing.auto(2), minibatch=60, rate=[(0, 1.0), (1, 0.1)], **NUMPY).run().params,
        read_run("run.h5").params,
    )
    assert main([*fit, "--resume"]) == 0
    capsys.readouterr()
    assert main([*fit, "--resume", "--minibatch", "70"]) == 1
    assert "minibatch = 70 (there: 60)" in capsys.readouterr().err


def test_the_best_of_several_seeds_in_minibatches_is_that_of_its_seed(tmp_path):
    Y = data(BSC_MODEL)
    options = {"minibatch": 60, **NUMPY}
    best = gem.EM.best_of(3, BSC_MODEL, Y, gem.Annealing(3), short=1, output=tmp_path / "run.h5", **options)
    alone = gem.EM(BSC_MODEL, Y, gem.Annealing(3), seed=best.seed, **options).run()
    same(alone.params, best.params)
    same(alone.params, read_run(tmp_path / "run.h5").params)


def test_minibatches_say_nothing_of_where_they_lie(backend, caplog):
    """A line for each of them would hide all others."""
    with caplog.at_level("INFO", "gem"):
        gem.EM(BSC_MODEL, data(BSC_MODEL), gem.Annealing(2), minibatch=100, backend=backend).run()
    assert not [line for line in caplog.messages if "stay" in line or "streamed" in line or "in place" in line]
