"""Linear superposition: values of latents, missing entries. What all models must do is in test_conformance.py."""

from __future__ import annotations

import tracemalloc
from itertools import combinations, product

import numpy as np
import pytest

import gem
from gem.errors import DataError
from gem.models import BSC, DSC, GSC, MMCA, TSC, make
from gem.models.imputation import impute
from gem.models.linear import LinearEStep, cholesky_solve

KINDS = {
    "bsc": lambda missing=True, **sizes: BSC(**sizes, missing=missing),
    "tsc": lambda missing=True, **sizes: TSC(**sizes, missing=missing),
    "dsc": lambda missing=True, **sizes: DSC(**sizes, values=(-1, 2, 0, 0.5), missing=missing),
    "dsc-one": lambda missing=True, **sizes: DSC(**sizes, values=(2, 0), missing=missing),
}
PI = {"bsc": 0.3, "tsc": 0.4, "dsc": [0.1, 0.15, 0.6, 0.15], "dsc-one": [0.3, 0.7]}
EXACT = {"D": 8, "H": 4, "Hprime": 4, "gamma": 4}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def problem(kind, N, sizes, seed=0, share=0.3, **settings):
    """A model, parameters, data with a share of the entries missing, and the data as they were."""
    model = KINDS[kind](**sizes, **settings)
    rng = np.random.default_rng(seed)
    params = {"W": 2 * rng.standard_normal((model.D, model.H)), "pi": np.array(PI[kind]), "sigma": np.array(0.7)}
    whole, _ = model.generate_data(params, N, seed=seed)
    Y = whole.copy()
    Y[rng.random(Y.shape) < share] = np.nan
    return model, params, Y, whole


def log_sum(x):
    top = x.max()
    return top + np.log(np.exp(x - top).sum())


def every_state(model):
    return np.array(list(product([0, *model.values], repeat=model.H)))


def truncated_states(model, chosen):
    """K_n from its definition: the zero state, every singleton, up to γ active latents among the candidates."""
    rows = [np.zeros(model.H)]
    for g in range(1, model.gamma + 1):
        for active in combinations(range(model.H) if g == 1 else chosen, g):
            for values in product(model.values, repeat=g):
                rows.append(np.zeros(model.H))
                rows[-1][list(active)] = values
    return np.array(rows)


def scores(model, params, y):
    """math.md, of the observed part of one data point."""
    seen = np.isfinite(y)
    W = params["W"][seen]
    b, norms = y[seen] @ W, (W**2).sum(axis=0)
    if isinstance(model, BSC):
        return np.divide(b, np.sqrt(norms), out=np.zeros(model.H), where=norms > 0)
    log_p = np.log(model.probabilities(params)[1:])
    lines = [p + (2 * v * b - v**2 * norms) / (2 * params["sigma"] ** 2) for p, v in zip(log_p, model.values)]  # noqa: B905
    return np.max(lines, axis=0)


@pytest.mark.parametrize("anneal_prior", [True, False])
def test_posterior_given_the_observed_part(kind, backend, anneal_prior):
    """By brute force over K_n, from the density of what was observed, for random masks; one row is all missing."""
    model, params, Y, _ = problem(kind, 25, {"D": 7, "H": 6, "Hprime": 4, "gamma": 3})
    Y[3] = np.nan
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", T=1.5, anneal_prior=anneal_prior)
    variance = params["sigma"] ** 2
    for n, y in enumerate(Y):
        score = scores(model, params, y)
        chosen = sorted(sorted(range(6), key=lambda h: (-score[h], -h))[:4])
        np.testing.assert_array_equal(post.candidates[n], chosen)
        s, seen = truncated_states(model, chosen), np.isfinite(y)
        error = ((y[seen] - s @ params["W"][seen].T) ** 2).sum(axis=1)
        likelihood = -error / (2 * variance) - seen.sum() / 2 * np.log(2 * np.pi * variance)
        prior = model.log_prior(params, s)
        np.testing.assert_allclose(post.log_evidence[n], log_sum(prior + likelihood), rtol=1e-10, atol=1e-12)
        annealed = likelihood / 1.5 + prior / (1.5 if anneal_prior else 1)
        np.testing.assert_allclose(post.mean[n], np.exp(annealed - log_sum(annealed)) @ s, atol=1e-10)


def test_m_step_with_missing_entries_is_that_of_em(kind, backend):
    """The missing entries are latents: their expectations, state by state, in the sums of the complete-data M-step."""
    model, params, Y, _ = problem(kind, 60, EXACT)
    Y[5] = np.nan
    s = every_state(model)
    joint = model.log_joint(params, Y, s)
    q = np.exp(joint - np.array([log_sum(row) for row in joint])[:, None])
    y = np.where(np.isnan(Y)[:, None], s @ params["W"].T, Y[:, None])  # (N, S, D): E[y | s, observed]
    ys, ss = np.einsum("ns,nsd,sh->dh", q, y, s), np.einsum("ns,sh,sk->hk", q, s, s)
    W = ys @ np.linalg.inv(ss)
    error = np.einsum("ns,nsd->", q, (y - s @ W.T) ** 2) + np.isnan(Y).sum() * params["sigma"] ** 2
    new, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    np.testing.assert_allclose(new["W"], W, atol=1e-9)
    np.testing.assert_allclose(new["sigma"] ** 2, error / Y.size, rtol=1e-9)
    share = np.array([np.sum(q @ (s == v)) for v in getattr(model, "all_values", (0,))]) / (60 * model.H)
    np.testing.assert_allclose(new["pi"], share if model.name == "DSC" else 1 - share[0], atol=1e-10)


def test_free_energy_never_falls_with_missing_entries(kind, backend, world):
    model, _, Y, _ = problem(kind, 300, EXACT, seed=1)
    Y[7] = np.nan
    params = model.init_params(Y, seed=1, comm=world)
    energies = []
    for _ in range(25):
        params, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", comm=world)
        energies.append(info.free_energy)
    assert np.all(np.diff(energies) >= -1e-9 * np.abs(energies[0]))
    assert energies[-1] > energies[0] + 1


def test_batches_do_not_matter_where_entries_are_missing(kind, backend):
    model, params, Y, _ = problem(kind, 100, {"D": 7, "H": 6, "Hprime": 4, "gamma": 3})
    results = []
    for batch in (7, 100):
        new = params
        for Ncut in (0.0, 0.7, 1.0):
            new, _ = gem.em_step(model, new, Y, backend=backend, dtype="float64", T=1.2, Ncut=Ncut, batch=batch)
        results.append(new)
    for name, value in results[0].items():
        np.testing.assert_allclose(value, results[1][name], rtol=1e-9, atol=1e-9)


def test_nothing_missing_makes_no_difference(kind, backend):
    model, params, _, whole = problem(kind, 80, {"D": 7, "H": 6, "Hprime": 4, "gamma": 3})
    plain = KINDS[kind](D=7, H=6, Hprime=4, gamma=3, missing=False)
    for T in (1.0, 2.0):
        new, info = gem.em_step(model, params, whole, backend=backend, dtype="float64", T=T)
        wanted, reference = gem.em_step(plain, params, whole, backend=backend, dtype="float64", T=T)
        np.testing.assert_allclose(info.free_energy, reference.free_energy, rtol=1e-12)
        for name, value in wanted.items():
            np.testing.assert_allclose(new[name], value, rtol=1e-9, atol=1e-10)


def test_float32_is_close_where_entries_are_missing(kind, backend):
    model, params, Y, _ = problem(kind, 200, {"D": 19, "H": 12, "Hprime": 6, "gamma": 3})
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float32")
    wanted, reference = gem.em_step(model, params, Y, backend="numpy", dtype="float64")
    np.testing.assert_allclose(info.free_energy, reference.free_energy, rtol=1e-5)
    for name, value in wanted.items():
        np.testing.assert_allclose(new[name], value, rtol=0, atol=5e-4 * np.abs(value).max())


def test_what_is_missing_and_what_is_wrong(backend):
    model, params, Y, _ = problem("tsc", 30, {"D": 7, "H": 6, "Hprime": 4, "gamma": 3}, share=0.0)
    Y[11, 2] = np.nan
    gem.em_step(model, params, Y, backend=backend)
    with pytest.raises(gem.DataError, match="11"):
        gem.em_step(TSC(D=7, H=6, Hprime=4, gamma=3), params, Y, backend=backend)
    Y[12, 3] = np.inf
    with pytest.raises(gem.DataError, match="12"):
        gem.em_step(model, params, Y, backend=backend)


def test_reconstruction_fills_what_is_missing(kind, backend):
    model, params, Y, whole = problem(kind, 200, {**EXACT, "D": 20})
    post = gem.posterior(model, params, Y, backend=backend, reconstruct=True)
    missing = np.isnan(Y)
    error = np.mean((post.reconstruction - whole)[missing] ** 2)
    assert error < 1.5 * params["sigma"] ** 2 < whole.var() / 4


def test_imputation_by_brute_force():
    rng = np.random.default_rng(3)
    N, D, H, Hprime = 40, 5, 9, 4
    W, sigma2, weights = rng.standard_normal((D, H)), 0.3, rng.integers(0, 2, N) * 1.0
    observed = (rng.random((N, D)) < 0.6).astype(float)
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    squares, pairs = rng.random((N, H)), rng.random((N, 6))
    i, j = np.triu_indices(Hprime, 1)
    ys, yy = np.zeros((D, H)), 0.0
    for n in range(N):
        second = np.diag(squares[n])
        second[candidates[n][i], candidates[n][j]] = second[candidates[n][j], candidates[n][i]] = pairs[n]
        missing = weights[n] * (1 - observed[n])
        ys += missing[:, None] * (W @ second)
        yy += missing @ (sigma2 + np.einsum("dh,hk,dk->d", W, second, W))
    found = impute(W, sigma2, observed, squares, candidates, pairs, weights)
    np.testing.assert_allclose(found[0], ys, atol=1e-12)
    np.testing.assert_allclose(found[1], yy, rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "factor", "like", "pi"),
    [((0, 2), 2, "bsc", 0.3), ((1, 0, -1), 1, "tsc", 0.4)],
)
def test_one_engine(values, factor, like, pi, backend):
    """Fields half as long at values twice as large are the same model; so is DSC with TSC's values."""
    sizes = {"D": 8, "H": 5, "Hprime": 5, "gamma": 3}
    other = KINDS[like](missing=False, **sizes)
    params = {"W": np.random.default_rng(2).standard_normal((8, 5)), "pi": np.array(pi), "sigma": np.array(0.5)}
    Y, _ = other.generate_data(params, 90, seed=2)
    proportions = [1 - pi if v == 0 else pi / (len(values) - 1) for v in values]
    mine = {**params, "W": params["W"] / factor, "pi": np.array(proportions)}
    new, info = gem.em_step(DSC(**sizes, values=values), mine, Y, backend=backend, dtype="float64", T=1.5)
    wanted, reference = gem.em_step(other, params, Y, backend=backend, dtype="float64", T=1.5)
    np.testing.assert_allclose(info.free_energy, reference.free_energy, rtol=1e-12)
    np.testing.assert_allclose(factor * new["W"], wanted["W"], atol=1e-10)
    np.testing.assert_allclose(new["sigma"], wanted["sigma"], rtol=1e-10)
    np.testing.assert_allclose(1 - new["pi"][values.index(0)], wanted["pi"], rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e4, 1e9])
def test_the_size_of_the_values_does_not_matter(scale, dtype, backend):
    """Large and small values, fields as much smaller and larger: the sums of pairs neither overflow nor lose digits."""
    sizes = {"D": 8, "H": 6, "Hprime": 5, "gamma": 3}
    plain, scaled = (DSC(**sizes, values=(0, size, -2 * size)) for size in (1, scale))
    W = np.random.default_rng(2).standard_normal((8, 6))
    params = {"W": W, "pi": np.array([0.6, 0.2, 0.2]), "sigma": np.array(0.5)}
    Y, _ = plain.generate_data(params, 300, seed=2)
    wanted, _ = gem.em_step(plain, params, Y, backend="numpy", dtype="float64")
    new, _ = gem.em_step(scaled, {**params, "W": W / scale}, Y, backend=backend, dtype=dtype)
    tolerance = 1e-9 if dtype == "float64" else 2e-5
    np.testing.assert_allclose(new["W"] * scale, wanted["W"], atol=tolerance)
    np.testing.assert_allclose(new["sigma"], wanted["sigma"], rtol=tolerance)


@pytest.mark.parametrize("values", [(0, 0.1), (-0.1, 0, 0.1), (0, 1e-3, 10)])
def test_what_is_dead_does_not_depend_on_the_size_of_the_values(values):
    """Latents that explain a hundred data points each: Σ⟨s²⟩ is about 1 or less."""
    model = DSC(D=8, H=4, Hprime=4, gamma=3, values=values)
    pi = np.where(np.array(values) == 0, 0.8, 0.2 / (len(values) - 1))
    W = np.random.default_rng(2).standard_normal((8, 4)) / min(abs(v) for v in values if v)
    params = {"W": W, "pi": pi, "sigma": np.array(0.1)}
    Y, _ = model.generate_data(params, 500, seed=2)
    _, info = gem.em_step(model, params, Y, backend="numpy", dtype="float64", reseed=True)
    assert not info.notes


def test_a_dead_latent_leaves_the_probabilities_of_values_alone():
    """As many values as latents: `pi` is none of theirs."""
    model = DSC(D=6, H=3, Hprime=3, gamma=2, values=(0, 1, 2))
    params = {"W": 9 * np.eye(6, 3), "pi": np.array([0.6, 0.3, 0.1]), "sigma": np.array(0.5)}
    Y, _ = model.generate_data(params, 200, seed=1)
    params["W"][:, 2] = 1e4
    kept, _ = gem.em_step(model, params, Y, backend="numpy", dtype="float64")
    new, info = gem.em_step(model, params, Y, backend="numpy", dtype="float64", reseed=True)
    assert info.notes[-1].startswith("latent 2 was dead and re-seeded")
    np.testing.assert_array_equal(new["pi"], kept["pi"])


@pytest.mark.parametrize("values", [(0, 1), (0, 1e-3, 10)])
def test_two_steps_from_the_same_start_give_the_same_bits(values, backend):
    model = DSC(D=8, H=6, Hprime=5, gamma=3, values=values)
    W = np.random.default_rng(2).standard_normal((8, 6))
    params = {"W": W, "pi": np.full(len(values), 1 / len(values)), "sigma": np.array(0.5)}
    Y, _ = model.generate_data(params, 300, seed=2)
    one, other = (gem.em_step(model, params, Y, backend=backend, batch=64)[0] for _ in range(2))
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value)


def test_listing_states_takes_bounded_memory():
    """Of 1,000 data points, 121 singletons and 256 dimensions at once it would be 250 MB."""
    model = DSC(D=256, H=60, Hprime=4, gamma=2, values=(0, 1, 2))
    rng = np.random.default_rng(0)
    params = {"W": rng.standard_normal((256, 60)), "pi": np.array([0.9, 0.05, 0.05]), "sigma": np.array(1.0)}
    Y, _ = model.generate_data(params, 1000, seed=2)
    tracemalloc.start()
    post = gem.posterior(model, params, Y, backend="numpy", top=2)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert post.states.shape == (1000, 2, 60)
    assert most < 100e6


@pytest.mark.parametrize("missing", [False, True])
def test_data_selection_corrects_the_proportions(missing, backend):
    """The step sees only the selected points; the values other than 0 are scaled alike, 0 takes what is left."""
    sizes, share = {"D": 8, "H": 6, "Hprime": 5, "gamma": 2}, 0.3 if missing else 0.0
    model, params, Y, _ = problem("dsc", 400, sizes, share=share, missing=missing)
    A, B = model.truncation(params)
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", Ncut=1.0)
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64")
    chosen = Y[np.sort(np.argsort(-post.log_evidence)[: info.N_use])]
    plain, _ = gem.em_step(model, params, chosen, backend=backend, dtype="float64")
    others = [0, 1, 3]
    np.testing.assert_allclose(new["pi"][others], plain["pi"][others] * 0.4 * 6 * A / B, rtol=1e-9)
    np.testing.assert_allclose(new["pi"].sum(), 1, rtol=1e-12)
    for name in ("W", "sigma"):
        np.testing.assert_allclose(new[name], plain[name], atol=1e-9)


def test_a_value_that_never_occurs_keeps_a_chance():
    model = DSC(D=6, H=2, Hprime=2, gamma=2, values=(0, 1, 1000))
    params = {"W": 3 * np.eye(6)[:, :2], "pi": np.array([0.6, 0.3, 0.1]), "sigma": np.array(0.1)}
    Y, _ = BSC(D=6, H=2).generate_data({**params, "pi": 0.3}, 100, seed=1)
    new, info = gem.em_step(model, params, Y, backend="numpy", dtype="float64")
    assert 0 < new["pi"][2] < 1e-9
    assert any("pi" in note for note in info.notes)
    gem.em_step(model, new, Y, backend="numpy", dtype="float64")


@pytest.mark.parametrize("values", [(1, 2), (0,), (0, 1, 1), (0, np.inf), (0, np.nan), "abc", 3])
def test_values_that_make_no_model(values):
    with pytest.raises(gem.ConfigError, match="values"):
        DSC(D=3, H=2, values=values)


def test_settings_are_plain_and_complete():
    model = DSC(D=3, H=2, values=(-1, 0, 2), missing=True)
    assert model.settings()["values"] == [-1.0, 0.0, 2.0]
    again = make("dsc", model.settings())
    assert again.settings() == model.settings()
    assert again.shapes["pi"] == (3,)
    with pytest.raises(gem.ConfigError, match="add up to 1"):
        model.check({"W": np.ones((3, 2)), "pi": [0.5, 0.4, 0.3], "sigma": 1.0})


def test_generated_values_have_their_probabilities():
    model = DSC(D=2, H=3, values=(0.5, 0, -2))
    params = {"W": np.ones((2, 3)), "pi": np.array([0.2, 0.5, 0.3]), "sigma": np.array(1.0)}
    _, s = model.generate_data(params, 20_000, seed=4)
    np.testing.assert_allclose([np.mean(s == v) for v in model.all_values], params["pi"], atol=0.01)


def test_sums_over_many_points_keep_their_digits(backend):
    """In float32, in one batch and in many: a device must not add up long columns in its own type."""
    model = BSC(D=6, H=5, Hprime=5, gamma=3)
    rng = np.random.default_rng(0)
    params = {"W": 3 * rng.standard_normal((6, 5)), "pi": np.array(0.3), "sigma": np.array(1.0)}
    Y, _ = model.generate_data(params, N=200_000, seed=0)
    whole, _ = gem.em_step(model, params, Y, backend=backend, batch=200_000)
    parts, _ = gem.em_step(model, params, Y, backend=backend, batch=1000)
    for name, value in parts.items():
        np.testing.assert_allclose(whole[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max())


def test_pairs_keep_their_digits_beside_a_value_that_is_much_larger(backend):
    """In float64 the unit of fixed-point sums is that of the latents there are, not of the largest there may be."""
    model = DSC(D=6, H=5, Hprime=5, gamma=3, values=[0, 1, 1e5])
    rng = np.random.default_rng(0)
    params = {"W": rng.standard_normal((6, 5)), "pi": np.array([0.7, 0.3 - 1e-10, 1e-10]), "sigma": np.array(0.3)}
    Y, _ = DSC(D=6, H=5, values=[0, 1]).generate_data({**params, "pi": np.array([0.7, 0.3])}, N=5000, seed=0)
    wanted, _ = gem.em_step(model, params, Y, dtype="float64")
    found, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    np.testing.assert_allclose(found["W"], wanted["W"], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", [BSC, GSC, MMCA])
def test_evidence_that_float32_rounds_is_told(kind, backend):
    """Of data that lie far from 0 beside their noise: ‖y‖²/2σ² is all but cancelled by other terms."""
    rng = np.random.default_rng(0)
    model, W = kind(D=8, H=4), 3 * rng.normal(size=(8, 4))
    Y = (rng.random((500, 4)) < 0.3) @ W.T + rng.normal(size=(500, 8))
    for mean, dtype, told in ((10, "float32", False), (1000, "float32", True), (1000, "float64", False)):
        em = gem.EM(model, Y + mean, gem.Annealing(steps=8), backend=backend, dtype=dtype).run()
        assert any("log evidence of a data point is rounded by about 0." in note for _, note in em.notes) is told


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_that_are_not_finite_are_refused(dtype, backend, monkeypatch):
    """Whatever they come from: only the free energy may be a number still."""
    model = BSC(D=6, H=4)
    Y = np.random.default_rng(0).standard_normal((50, 6))
    sums = LinearEStep.sums
    monkeypatch.setattr(LinearEStep, "sums", lambda *args: {**sums(*args), "yy": [np.inf]})
    with pytest.raises(DataError, match="the sums over the data are not finite: use dtype='float64'"):
        gem.em_step(model, model.init_params(Y), Y, backend=backend, dtype=dtype)


@pytest.mark.parametrize("H", [1, 64, 65, 200])
def test_solved_by_blocks_of_the_cholesky_factor(H):
    rng = np.random.default_rng(H)
    root = rng.standard_normal((H, 2 * H))
    matrix, right = root @ root.T, rng.standard_normal((H, 7))
    found = cholesky_solve(np.linalg.cholesky(matrix), right)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("scale", "dtype"), [(1e4, "float32"), (1e8, "float64")])
def test_noise_far_below_the_signal(kind, scale, dtype, missing, backend):
    """W and σ by brute force, from the residuals of all states: squares of the data have no digit of σ² left."""
    rng = np.random.default_rng(0)
    model = KINDS[kind](**EXACT, missing=missing)
    params = {"W": scale * rng.standard_normal((8, 4)), "pi": np.array(PI[kind]), "sigma": np.array(1.0)}
    Y = model.generate_data(params, 60, seed=1)[0].astype(dtype)
    if missing:
        Y[rng.random(Y.shape) < 0.1] = np.nan
    params["W"] += 0.1 * rng.standard_normal((8, 4))
    states, seen = every_state(model), np.isfinite(Y)
    apart = np.where(seen[:, None], Y[:, None].astype(np.float64) - states @ params["W"].T, 0)  # 0: E[y_d] = W_d s
    joint = model.log_prior(params, states) - np.sum(apart**2, axis=2) / 2
    q = np.exp(joint - joint.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    change = np.linalg.solve(
        np.einsum("ns,sh,sk->hk", q, states, states), np.einsum("ns,nsd,sh->hd", q, apart, states)
    ).T
    squares = np.sum(q * np.sum((apart - states @ change.T) ** 2, axis=2)) + np.sum(~seen)
    new, _ = gem.em_step(model, params, Y, backend=backend, dtype=dtype)
    np.testing.assert_allclose(new["W"], params["W"] + change, rtol=1e-13, atol=1e-3)
    np.testing.assert_allclose(new["sigma"], np.sqrt(squares / Y.size), rtol=1e-3)


@pytest.mark.parametrize("Ncut", [0, 1])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", [*KINDS, "gsc"])
def test_sums_of_residuals_make_the_same_step(name, missing, Ncut, monkeypatch):
    """Of ordinary data, which lose nothing either way, in truncated states and with data selection."""
    rng = np.random.default_rng(0)
    sizes = {"D": 7, "H": 6, "Hprime": 4, "gamma": 3, "missing": missing}
    model = GSC(**sizes) if name == "gsc" else KINDS[name](**sizes)
    params = {"W": 2 * rng.standard_normal((7, 6)), "pi": np.array(PI.get(name, [0.3] * 6)), "sigma": np.array(0.7)}
    if name == "gsc":
        params |= {"mu": rng.standard_normal(6), "psi": rng.uniform(0.5, 2, 6)}
    Y, _ = model.generate_data(params, 200, seed=1)
    if missing:
        Y[rng.random(Y.shape) < 0.3] = np.nan
    params["W"] += 0.3 * rng.standard_normal((7, 6))
    steps = {}
    for residuals in (False, True):
        monkeypatch.setattr(type(model), "needs_residuals", lambda *args, answer=residuals: answer)
        steps[residuals], _ = gem.em_step(model, params, Y, dtype="float64", T=1.5, Ncut=Ncut)
    for key in params:
        np.testing.assert_allclose(steps[True][key], steps[False][key], rtol=1e-10, atol=1e-11)
