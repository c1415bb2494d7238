"""What every model must do. A new one is enrolled by one line in MODELS."""

from __future__ import annotations

import re
from itertools import combinations, product

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import gem
from gem.models import BSC, DSC, GSC, MCA, MMCA, PMCA, SC, TSC, MoG, MoP, NoisyOR
from gem.models.truncated import Truncated

MODELS = {
    "bsc": lambda exact: BSC(D=12, H=6, Hprime=6 if exact else 4, gamma=6 if exact else 3),
    "bsc-missing": lambda exact: BSC(D=12, H=6, Hprime=6 if exact else 4, gamma=6 if exact else 3, missing=True),
    "tsc": lambda exact: TSC(D=12, H=4, Hprime=4 if exact else 3, gamma=4 if exact else 2),
    "dsc": lambda exact: DSC(D=12, H=4, Hprime=4 if exact else 3, gamma=4 if exact else 2, values=(0, 1, 2)),
    "gsc": lambda exact: GSC(D=12, H=6, Hprime=6 if exact else 4, gamma=6 if exact else 3),
    "mog-diag": lambda exact: MoG(D=3, K=4, covariance="diag"),
    "mog-spherical": lambda exact: MoG(D=3, K=4, covariance="spherical"),
    "mog-tied": lambda exact: MoG(D=3, K=4, covariance="tied"),
    "mog-full": lambda exact: MoG(D=3, K=4, covariance="full"),
    "mop": lambda exact: MoP(D=3, K=4),
    "mca": lambda exact: MCA(D=12, H=5, Hprime=5 if exact else 3, gamma=5 if exact else 2),
    **{
        f"mca-{noise}": lambda exact, noise=noise: MCA(
            D=12, H=5, Hprime=5 if exact else 3, gamma=5 if exact else 2, noise=noise, background=0.02
        )
        for noise in ("bernoulli", "exponential", "gamma")
    },
    "mmca": lambda exact: MMCA(D=12, H=5, Hprime=5 if exact else 3, gamma=5 if exact else 2),
    "noisyor": lambda exact: NoisyOR(D=12, H=5, Hprime=5 if exact else 3, gamma=5 if exact else 2),
    "pmca": lambda exact: PMCA(D=12, H=5, Hprime=5 if exact else 3, gamma=5 if exact else 2),
    "sc": lambda exact: SC(D=12, H=6, penalty=0.5, tol=1e-9, iterations=2000),
}

APPROXIMATE = {"MCA", "MMCA", "PMCA"}  # when winners change with W, F may fall a little
# The new fields are best for the winners of the old ones (maximal causes), or one step of a fixed-point iteration
# (noisy-OR): the expected log joint is stationary where they come to rest, not at each step.
FIXED_POINT = {"mca", "mca-bernoulli", "mca-exponential", "mca-gamma", "mmca", "noisyor", "pmca"}
INTEGRATED = {"gsc"}  # strengths are integrated out of log_joint: test_spike_slab.py has what is particular to them
CONTINUOUS = {"sc"}  # there are no states to enumerate, ŝ is a maximum: test_sparse.py has what is particular to it


def truth(model, seed=1):
    """Parameters far enough from special cases."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in model.shapes.items():
        if name == "pi" and shape:
            params[name] = rng.dirichlet(np.full(shape[0], 5.0))
        elif name == "pi":
            params[name] = np.array(0.3)
        elif model.parameters[name].domain == "probability":
            params[name] = rng.uniform(0.02, 0.9, shape) ** 2
        elif model.parameters[name].domain == "nonnegative":
            params[name] = 6 * rng.random(shape)
        elif name == "cov":
            root = rng.standard_normal((*shape[:-1], shape[-1])) / 2
            params[name] = root @ np.swapaxes(root, -1, -2) + 0.2 * np.eye(shape[-1])
        elif name == "lam":
            params[name] = rng.uniform(1, 20, shape)
        elif model.parameters[name].domain in ("positive", "deviation"):
            params[name] = rng.uniform(0.5, 1.0, shape)
        else:
            params[name] = 3 * rng.standard_normal(shape)
    return params


def states(model):
    """Every state of the model: vectors of latents, or components."""
    if not isinstance(model, Truncated):
        return np.arange(model.K)
    return np.array(list(product([0, *model.values], repeat=model.H)))


COMBINED = {  # causes, (S, D, H), to what is seen of them, (S, D); else they are added
    "MCA": lambda x: x.max(axis=2),
    "MMCA": lambda x: np.take_along_axis(x, np.abs(x).argmax(axis=2)[..., None], axis=2)[..., 0],
    "NoisyOR": lambda x: 1 - np.prod(1 - x, axis=2),
    "PMCA": lambda x: x.max(axis=2),
}


def predict(model, params, s):
    """E[y | s], (S, D)."""
    if s.ndim == 1:
        return params["lam" if "lam" in params else "mu"][s]
    combined = COMBINED.get(model.name, lambda x: x.sum(axis=2))(s[:, None, :] * params["W"])
    return np.maximum(combined, getattr(model, "background", None) or -np.inf)


def log_sum(x):
    top = x.max(axis=1)
    return top + np.log(np.exp(x - top[:, None]).sum(axis=1))


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


@pytest.fixture(params=[name for name in MODELS if name not in CONTINUOUS])
def make_countable(request):
    return MODELS[request.param]


@pytest.fixture(params=[name for name in MODELS if name not in INTEGRATED | CONTINUOUS])
def make_discrete(request):
    return MODELS[request.param]


@pytest.fixture(params=[name for name in MODELS if name not in INTEGRATED | CONTINUOUS | FIXED_POINT])
def make_smooth(request):
    return MODELS[request.param]


def test_every_model_is_enrolled():
    assert {make(True).name.lower() for make in MODELS.values()} == set(gem.models.MODELS)


def test_evidence_and_mean_are_those_of_the_definition(make_countable, backend):
    model = make_countable(True)
    params = truth(model)
    Y, _ = model.generate_data(params, 50, seed=2)
    s = states(model)
    joint = model.log_joint(params, Y, s)
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", T=1.7, anneal_prior=True)
    np.testing.assert_allclose(post.log_evidence, log_sum(joint), rtol=1e-10)
    q = np.exp(joint / 1.7 - log_sum(joint / 1.7)[:, None])
    np.testing.assert_allclose(post.mean, q if s.ndim == 1 else q @ s, atol=1e-9)


def test_annealing_the_likelihood_alone(make_countable, backend):
    model = make_countable(True)
    params = truth(model)
    Y, _ = model.generate_data(params, 50, seed=2)
    s = states(model)
    joint = model.log_joint(params, Y, s)
    prior = model.log_prior(params, s)
    annealed = (joint - prior) / 3 + prior
    q = np.exp(annealed - log_sum(annealed)[:, None])
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", T=3.0)
    np.testing.assert_allclose(post.mean, q if s.ndim == 1 else q @ s, atol=1e-9)
    np.testing.assert_allclose(post.log_evidence, log_sum(joint), rtol=1e-10)


@pytest.mark.parametrize(("gamma", "option"), [(1, {}), (2, {"T": 1.7, "Ncut": 0.5, "batch": 20})], ids=[1, 2])
@pytest.mark.parametrize("name", [name for name in MODELS if isinstance(MODELS[name](False), Truncated)])
def test_the_share_of_points_at_gamma_is_that_of_their_most_probable_states(name, gamma, option, backend):
    """Of all points at T = 1, whatever the step's temperature and selection, by enumeration of K_n."""
    settings = MODELS[name](False).settings() | {"H": 6, "Hprime": 4, "gamma": gamma}
    model = gem.models.make(MODELS[name](False).name, settings)
    params = truth(model)
    if model.parameters["pi"].domain == "distribution":
        params["pi"] = np.array([0.6, 0.2, 0.2])
    Y, _ = model.generate_data(params, 70, seed=2)
    asked = {"backend": backend, "dtype": "float64"}
    best = gem.posterior(model, params, Y, top=1, **asked).map_state
    share = np.mean(np.count_nonzero(best, axis=1) == gamma)
    assert 0 < share < 1
    assert gem.em_step(model, params, Y, **asked, **option)[1].share_at_gamma == share


def test_free_energy_never_falls(make, backend, world):
    model = make(True)
    Y, _ = model.generate_data(truth(model), 400, seed=3)
    params = model.init_params(Y, seed=1)
    energies = []
    for _ in range(25):
        params, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", comm=world)
        energies.append(info.free_energy)
    allowed = 3e-3 if model.name in APPROXIMATE else 1e-9
    assert np.all(np.diff(energies) >= -allowed * np.abs(energies[0]))
    assert energies[-1] > energies[0] + 1


def test_the_truth_is_a_fixed_point_of_much_data(make_countable, backend, world):
    model = make_countable(True)
    params = truth(model)
    Y, _ = model.generate_data(params, 40_000, seed=4)
    new = params
    for _ in range(2):
        new, _ = gem.em_step(model, new, Y, backend=backend, dtype="float64", comm=world)
    for name, value in params.items():
        np.testing.assert_allclose(new[name], value, atol=0.05 * max(1, np.abs(value).max()), err_msg=name)


def test_m_step_is_a_stationary_point(make_smooth, backend):
    """The numerical gradient of the expected log joint, at the new parameters, vanishes along the model's domain."""
    model = make_smooth(True)
    old = {name: value * 1.1 if name in ("mu", "W") else value for name, value in truth(model).items()}
    Y, _ = model.generate_data(truth(model), 300, seed=5)
    new, _ = gem.em_step(model, old, Y, backend=backend, dtype="float64")
    s = states(model)
    joint = model.log_joint(old, Y, s)
    q = np.exp(joint - log_sum(joint)[:, None])

    def expected(params):
        return float((q * model.log_joint(params, Y, s)).sum())

    best = expected(new)
    rng = np.random.default_rng(6)
    for name, value in new.items():
        e = rng.standard_normal(value.shape)
        if name == "pi" and value.shape:
            e = value * (e - value @ e)
        if name == "cov":
            e = (e + np.swapaxes(e, -1, -2)) / 2
        h = 1e-4
        moved = [expected({**new, name: value + sign * h * e}) for sign in (1, -1)]
        slope, curvature = (moved[0] - moved[1]) / 2, (moved[0] + moved[1]) / 2 - best
        assert curvature < 0, name
        assert abs(slope) < 0.02 * abs(curvature), name


@pytest.mark.parametrize("name", sorted(FIXED_POINT))
def test_where_the_fixed_point_comes_to_rest_the_free_energy_is_stationary(name):
    """The numerical gradient of Σ log p(y) vanishes along all parameters that are not held at a bound.

    In each dimension fields are apart: where two are equal, Σ log p(y) of maximal causes has a kink.
    """
    model = MODELS[name](True)
    params = truth(model)
    if name != "noisyor":
        rng = np.random.default_rng(1)
        ranks = rng.permuted(np.tile(np.arange(1.0, model.H + 1), (model.D, 1)), axis=1)
        params["W"] = 2 * ranks * (rng.choice([-1, 1], ranks.shape) if name == "mmca" else 1)
        if name.startswith("mca-"):  # of noise that is as large as its mean, or between 0 and 1: farther apart
            params["W"] = 1 / (1 + np.exp(7.5 - 2.5 * ranks)) if name == "mca-bernoulli" else 4**ranks
    Y, _ = model.generate_data(params, 200, seed=5)
    for _ in range(300 if name == "noisyor" else 100):
        params, _ = gem.em_step(model, params, Y, backend="numpy", dtype="float64")
    s, rng = states(model), np.random.default_rng(6)

    def free_energy(params):
        return float(log_sum(model.log_joint(params, Y, s)).sum())

    best = free_energy(params)
    for key, value in params.items():
        low = {"noisyor": 1e-5, "mmca": -np.inf, "mca": 0}.get(name, getattr(model, "background", None))
        high = 1 - 1e-5 if name in ("noisyor", "mca-bernoulli") else np.inf
        free = (value > low) & (value < high) if key == "W" else True
        step = 1e-4 * np.where(free, value * rng.standard_normal(value.shape), 0)
        moved = [free_energy({**params, key: value + sign * step}) for sign in (1, -1)]
        slope, curvature = (moved[0] - moved[1]) / 2, (moved[0] + moved[1]) / 2 - best
        assert curvature < 0, key
        assert abs(slope) < 0.02 * abs(curvature), key


def test_batches_and_dtype_do_not_matter(make, backend):
    """Points one by one, in odd parts, in whole; all of them, and, where states are truncated, those selected."""
    model = make(False)
    Y, _ = model.generate_data(truth(model), 60, seed=7)
    start = model.init_params(Y, seed=2)
    cuts = (0.0, 0.5, 0.9) if isinstance(model, Truncated) else (0.0, 0.0)  # others have nothing to select by
    results = []
    for batch in (1, 7, 60):
        params = start
        for Ncut in cuts:
            params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float64", T=1.2, Ncut=Ncut, batch=batch)
        results.append(params)
    for other in results[1:]:
        for name, value in other.items():
            np.testing.assert_allclose(value, results[0][name], rtol=1e-9, atol=1e-9 * np.abs(value).max())


def test_top_states_and_reconstruction_are_those_of_the_definition(make_discrete, backend):
    model = make_discrete(True)
    params = truth(model)
    Y, _ = model.generate_data(params, 20, seed=2)
    s = states(model)
    joint = model.log_joint(params, Y, s)
    q = np.exp(joint - log_sum(joint)[:, None])
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", top=3, reconstruct=True)
    order = np.argsort(-q, axis=1)[:, :3]
    np.testing.assert_array_equal(post.states, s[order])
    np.testing.assert_array_equal(post.map_state, s[order[:, 0]])
    np.testing.assert_allclose(post.probabilities, np.take_along_axis(q, order, axis=1), atol=1e-9)
    np.testing.assert_allclose(post.reconstruction, q @ predict(model, params, s), atol=1e-8)


FIELDS = np.kron(np.eye(4), np.ones((3, 1))) * np.random.default_rng(1).uniform(6, 12, (12, 1))  # of 3 dimensions each
SIGNS = np.where(np.random.default_rng(0).random(FIELDS.shape) < 0.5, -1, 1)
SIZES = {"D": 12, "H": 4, "Hprime": 4, "gamma": 4}
EASY = {  # a model, its parameters, the temperature at the start
    "bsc": (BSC(**SIZES), {"W": FIELDS * SIGNS, "pi": 0.2, "sigma": 2}, 2),
    "tsc": (TSC(**SIZES), {"W": FIELDS * SIGNS, "pi": 0.2, "sigma": 2}, 2),
    "dsc": (DSC(**SIZES, values=(0, 1, 2)), {"W": FIELDS * SIGNS, "pi": [0.8, 0.1, 0.1], "sigma": 2}, 6),
    "gsc": (
        GSC(**SIZES),
        {"W": FIELDS * SIGNS, "pi": np.full(4, 0.2), "mu": np.ones(4), "psi": np.full(4, 0.1), "sigma": 2},
        10,
    ),
    "mca": (MCA(**SIZES), {"W": FIELDS, "pi": 0.2, "sigma": 2}, 6),
    "mmca": (MMCA(**SIZES), {"W": FIELDS * SIGNS, "pi": 0.2, "sigma": 2}, 6),
    "noisyor": (NoisyOR(**SIZES), {"W": np.where(FIELDS > 0, 0.9, 0.01), "pi": np.full(4, 0.2)}, 6),
    "pmca": (PMCA(**SIZES), {"W": np.maximum(FIELDS, 0.1), "pi": 0.2}, 6),
    "mog": (MoG(D=4, K=4), {"pi": np.full(4, 0.25), "mu": 6 * np.eye(4), "var": np.full((4, 4), 0.5)}, 1),
    "mop": (MoP(D=4, K=4), {"pi": np.full(4, 0.25), "lam": 2 + 20 * np.eye(4)}, 1),
}


@pytest.mark.parametrize("name", EASY)
def test_what_generated_the_data_is_learned_from_a_random_start(name):
    """Fields or centres, in any order, with the sign that data do not tell; then π."""
    model, params, hot = EASY[name]
    params = model.check(params)
    Y, _ = model.generate_data(params, 500, seed=3)
    found = model.init_params(Y, seed=int(isinstance(model, Truncated)))
    for T in (*np.linspace(hot, 1, 25), *[1.0] * 10):
        found, _ = gem.em_step(model, found, Y, backend="numpy", T=T, anneal_prior=False)

    def fields(params):
        strength = np.sqrt(params["psi"] + params["mu"] ** 2) if name == "gsc" else 1
        key = {"mog": "mu", "mop": "lam"}.get(name)
        return params[key] if key else (params["W"] * strength).T

    apart = np.abs(fields(found)[:, None] - fields(params)).max(axis=2)
    if name in ("tsc", "gsc"):
        apart = np.minimum(apart, np.abs(fields(found)[:, None] + fields(params)).max(axis=2))
    rows, columns = linear_sum_assignment(apart)
    assert apart[rows, columns].max() < 0.25 * np.abs(fields(params)).max()
    np.testing.assert_allclose(np.sort(found["pi"], axis=None), np.sort(params["pi"], axis=None), atol=0.05)


@pytest.mark.parametrize("scale", [0.5, 1e4])
def test_noisy_parameters_are_parameters(make, scale):
    """Each parameter by itself, and all of them: changed, and in its domain."""
    model = make(False)
    names = [name for name in model.shapes if name != "cov"]
    for chosen in ([], *([name] for name in names), names):
        noise = {f"{name}_noise": scale for name in chosen}
        noisy = model.perturb(truth(model), {"T": 2.0, **noise}, np.random.default_rng(0))
        model.check(noisy)
        for name, value in truth(model).items():
            assert np.array_equal(noisy[name], value) == (name not in chosen)
    if "cov" in model.shapes:
        with pytest.raises(gem.ConfigError, match="cov_noise"):
            model.perturb(truth(model), {"cov_noise": 0.1}, np.random.default_rng(0))


def test_arguments_are_not_edited(make, backend):
    model = make(False)
    Y, _ = model.generate_data(truth(model), 64, seed=8)
    params = model.init_params(Y, seed=0)
    before = {name: value.copy() for name, value in params.items()}, Y.copy()
    gem.em_step(model, params, Y, backend=backend, dtype="float64", Ncut=0.5 * isinstance(model, Truncated))
    gem.posterior(model, params, Y, backend=backend, dtype="float64")
    np.testing.assert_array_equal(Y, before[1])
    for name, value in params.items():
        np.testing.assert_array_equal(value, before[0][name])


def test_generated_data_do_not_depend_on_how_they_are_drawn(make):
    model = make(False)
    params = truth(model)
    whole = model.generate_data(params, 3000, seed=9)
    for start, stop in ((0, 10), (1000, 1100), (2047, 3000)):
        part = model.generate_data(params, stop - start, seed=9, start=start)
        for a, b in zip(part, whole, strict=True):
            np.testing.assert_array_equal(a, b[start:stop])
    assert not np.array_equal(model.generate_data(params, 10, seed=10)[0], whole[0][:10])


def test_init_params_do_not_depend_on_the_ranks(make, world):
    model = make(False)
    Y, _ = model.generate_data(truth(model), 500, seed=10)
    alone, shared = model.init_params(Y, seed=3), model.init_params(Y, seed=3, comm=world)
    for name, value in alone.items():
        np.testing.assert_allclose(shared[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "nan", "domain"])
def test_parameters_that_do_not_fit_are_refused(make, change):
    model = make(False)
    Y, _ = model.generate_data(truth(model), 30, seed=8)
    params = model.init_params(Y, seed=0)
    name = "pi" if "pi" in params else "b"
    if change == "missing":
        params.pop(name)
    elif change == "unknown":
        params["bias"] = np.zeros(3)
    elif change == "shape":
        params[name] = np.zeros(7)
    elif change == "nan":
        params[name] = params[name] * np.nan
    else:
        params[name] = -params[name]
    with pytest.raises(gem.ConfigError, match="bias" if change == "unknown" else name):
        gem.em_step(model, params, Y)


def test_truncated_posterior_enumerates_exactly_its_states(backend):
    """Brute force over K_n, candidate by candidate, only from the definition."""
    model = BSC(D=12, H=7, Hprime=4, gamma=3)
    params = truth(model)
    Y, _ = model.generate_data(params, 40, seed=11)
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64", T=1.5, anneal_prior=True)
    score = Y @ params["W"] / np.linalg.norm(params["W"], axis=0)
    for n in range(len(Y)):
        best = sorted(range(7), key=lambda h: -score[n, h])[:4]
        np.testing.assert_array_equal(post.candidates[n], sorted(best))
        K = [np.zeros(7), *np.eye(7)]
        K += [np.isin(np.arange(7), c).astype(float) for g in (2, 3) for c in combinations(best, g)]
        joint = model.log_joint(params, Y[n : n + 1], np.array(K))
        np.testing.assert_allclose(post.log_evidence[n], log_sum(joint)[0], rtol=1e-12)
        q = np.exp(joint / 1.5 - log_sum(joint / 1.5)[:, None])[0]
        np.testing.assert_allclose(post.mean[n], q @ np.array(K), atol=1e-12)


def test_equal_scores_prefer_the_higher_index(backend):
    model = BSC(D=3, H=5, Hprime=2, gamma=2)
    params = {"W": np.ones((3, 5)), "pi": 0.2, "sigma": 1.0}
    post = gem.posterior(model, params, np.ones((4, 3)), backend=backend)
    np.testing.assert_array_equal(post.candidates, [[3, 4]] * 4)


def test_data_selection_keeps_the_best_explained_points(backend, world):
    """A tenth of the points are outliers: with Ncut = 1 they are not in M, and π is corrected for the cut."""
    model = BSC(D=12, H=6, Hprime=5, gamma=2)
    params = {**truth(model), "pi": np.array(0.3)}
    Y, _ = model.generate_data(params, 1000, seed=12)
    A, B = model.truncation(params)
    post = gem.posterior(model, params, Y, backend=backend, dtype="float64")
    use = int(1000 * A)
    order = np.argsort(-post.log_evidence)[:use]
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float64", Ncut=1.0, comm=world)
    assert info.N_use == use
    activity = post.mean[order].sum() / (use * 6)
    np.testing.assert_allclose(new["pi"], activity * 0.3 * 6 * A / B, rtol=1e-10)
    alone, _ = gem.em_step(model, params, Y[np.sort(order)], backend=backend, dtype="float64")
    np.testing.assert_allclose(new["W"], alone["W"], rtol=1e-9, atol=1e-9)


def test_truncation_masses_by_brute_force():
    model = BSC(D=2, H=9, Hprime=4, gamma=3)
    s = np.array(list(product([0, 1], repeat=9)))
    size = s.sum(1)
    p = 0.2**size * 0.8 ** (9 - size)
    A, B = model.truncation({"pi": np.array(0.2)})
    np.testing.assert_allclose([A, B], [p[size <= 3].sum(), (p * size)[size <= 3].sum()], rtol=1e-12)


NOTHING = np.zeros((40, 3))  # data that no cause is needed for
NOISE = np.random.default_rng(0).standard_normal((40, 3))
TWO = {"D": 3, "H": 2, "Hprime": 2, "gamma": 2}
FAR = 60 * np.eye(3, 2)
EXACTLY = (np.random.default_rng(0).random((60, 2)) < 0.5) @ FAR.T  # data without noise
CONSTRAINTS = {  # a model, its parameters and data that drive one of them beyond its bound; what is to be said of it
    "bsc-pi": (BSC(**TWO), {"W": FAR, "pi": 0.1, "sigma": 1}, NOISE, r"pi = \S+ was held at 1e-10"),
    "tsc-pi": (TSC(**TWO), {"W": FAR, "pi": 0.1, "sigma": 1}, NOISE, r"pi = \S+ was held at 1e-10"),
    "dsc-pi": (
        DSC(**TWO, values=(0, 1, 2)), {"W": FAR, "pi": [0.8, 0.1, 0.1], "sigma": 1}, NOISE, r"2 of 3 pi were held",
    ),
    "gsc-pi": (
        GSC(**TWO), {"W": FAR / 20, "pi": [1e-10, 1e-10], "mu": [1, 1], "psi": [0.1, 0.1], "sigma": 1}, NOISE,
        r"2 of 2 pi were held in \[1e-10, 1\]",
    ),
    "mca-pi": (MCA(**TWO), {"W": FAR, "pi": 0.1, "sigma": 1}, NOISE, r"pi = \S+ was held at 1e-10"),
    "mmca-pi": (MMCA(**TWO), {"W": FAR, "pi": 0.1, "sigma": 1}, NOISE, r"pi = \S+ was held at 1e-10"),
    "pmca-pi": (PMCA(**TWO), {"W": 60 * np.ones((3, 2)), "pi": 0.1}, NOTHING, r"pi = \S+ was held at 1e-10"),
    "noisyor-pi": (NoisyOR(**TWO), {"W": np.full((3, 2), 0.9999), "pi": [1e-9, 0.1]}, NOTHING, "2 of 2 pi were held"),
    "mca-W": (MCA(**TWO), {"W": np.ones((3, 2)), "pi": 0.5, "sigma": 1}, NOTHING - 1, r"W were held in \[0, inf\]"),
    "pmca-W": (PMCA(**TWO), {"W": np.ones((3, 2)), "pi": 0.5}, NOTHING, r"W were held in \[0.1, inf\]"),
    "noisyor-W": (NoisyOR(**TWO), {"W": np.full((3, 2), 2e-5), "pi": [0.5, 0.5]}, NOTHING, "6 of 6 W were held"),
    "bsc-sigma": (BSC(**TWO), {"W": FAR, "pi": 0.5, "sigma": 0.1}, EXACTLY, "sigma was held"),
    "tsc-sigma": (TSC(**TWO), {"W": FAR, "pi": 0.5, "sigma": 0.1}, EXACTLY, "sigma was held"),
    "dsc-sigma": (DSC(**TWO, values=(0, 1)), {"W": FAR, "pi": [0.5, 0.5], "sigma": 0.1}, EXACTLY, "sigma was held"),
    "gsc-sigma": (
        GSC(**TWO), {"W": FAR, "pi": [0.5, 0.5], "mu": [1, 1], "psi": [1e-9, 1e-9], "sigma": 1e-6}, EXACTLY,
        "sigma was held",
    ),
    "gsc-psi": (
        GSC(**TWO), {"W": FAR, "pi": [0.5, 0.5], "mu": [1, 1], "psi": [1e-9, 1e-9], "sigma": 1e-3}, EXACTLY,
        "2 of 2 psi were held at the resolution",
    ),
    "mca-sigma": (MCA(**TWO), {"W": FAR, "pi": 0.5, "sigma": 0.1}, EXACTLY, "sigma was held"),
    "mmca-sigma": (MMCA(**TWO), {"W": FAR, "pi": 0.5, "sigma": 0.1}, EXACTLY, "sigma was held"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_an_active_constraint_is_held_and_reported(name):
    model, params, Y, says = CONSTRAINTS[name]
    new, info = gem.em_step(model, params, Y, backend="numpy", dtype="float32")
    assert any(re.search(says, note) for note in info.notes), info.notes
    model.check(new)
    again, _ = gem.em_step(model, new, Y, backend="numpy", dtype="float32")  # goes on from there
    model.check(again)


def test_a_dead_latent_keeps_its_field_and_says_so(backend):
    model = BSC(D=4, H=3, Hprime=2, gamma=2)
    W = np.array([[5.0, 0, 0], [0, 5, 0], [0, 0, 5], [0, 0, 0]])
    W[:, 2] = [0, 0, 0, 400.0]  # so far from all data that its posterior underflows
    params = {"W": W, "pi": 0.3, "sigma": 0.5}
    rng = np.random.default_rng(0)
    Y = (rng.random((200, 2)) < 0.3) @ W[:, :2].T + 0.5 * rng.standard_normal((200, 4))
    new, info = gem.em_step(model, params, Y, backend=backend, dtype="float64")
    np.testing.assert_array_equal(new["W"][:, 2], W[:, 2])
    assert info.notes == ["latent 2 was never active: its field was kept"]
    assert np.all(np.isfinite(new["W"]))


@pytest.mark.parametrize("name", ["tsc", "dsc", "gsc", "mca", "mmca", "noisyor", "pmca"])
def test_a_dead_latent_takes_after_the_most_active_one(name):
    """Of every model of many causes, on the numpy backend: latent 0 explains nothing, and learns again."""
    model = MODELS[name](True)
    params = truth(model)
    Y, _ = model.generate_data({**params, "pi": params["pi"] / 2} if name != "dsc" else params, 500, seed=3)
    params["W"][:, 0] = 1 - 1e-5 if name == "noisyor" else 1e4
    if params["pi"].shape == (model.H,):
        params["pi"][0] = 1e-10
    kept, _ = gem.em_step(model, params, Y, backend="numpy", dtype="float64")
    new, info = gem.em_step(model, params, Y, backend="numpy", dtype="float64", reseed=True)
    said = [note for note in info.notes if "re-seeded" in note]
    assert [note.split(" beside")[0] for note in said] == ["latent 0 was dead and re-seeded"]
    big = int(said[0].split()[-1])
    for key in (key for key, shape in model.shapes.items() if shape[-1:] == (model.H,)):
        np.testing.assert_array_equal(new[key][..., 1:], kept[key][..., 1:])
        assert key == "W" or new[key][0] == new[key][big]
    apart = np.abs(new["W"][:, 0] - new["W"][:, big])
    assert 0 < apart.max() < np.ptp(new["W"][:, big])
    for _ in range(5):
        new, info = gem.em_step(model, new, Y, backend="numpy", dtype="float64", reseed=True)
        assert not any("re-seeded" in note for note in info.notes)


def test_a_dead_latent_begins_anew_on_request():
    model = BSC(D=4, H=3, Hprime=2, gamma=2)
    W = 5 * np.eye(4, 3)
    W[:, 2] = [0, 0, 0, 400.0]
    params = {"W": W, "pi": 0.3, "sigma": 0.5}
    rng = np.random.default_rng(0)
    s = np.stack([rng.random(200) < 0.2, rng.random(200) < 0.4], axis=1)
    Y = s @ W[:, :2].T + 0.5 * rng.standard_normal((200, 4))
    kept, _ = gem.em_step(model, params, Y, dtype="float64")
    new, info = gem.em_step(model, params, Y, dtype="float64", reseed=True)
    np.testing.assert_array_equal(new["W"][:, :2], kept["W"][:, :2])
    assert info.notes[-1] == "latent 2 was dead and re-seeded beside latent 1"
    assert 0 < np.abs(new["W"][:, 2] - new["W"][:, 1]).max() < 10
    _, info = gem.em_step(model, new, Y, dtype="float64", reseed=True)
    assert not info.notes
    again = gem.Annealing.from_dict(gem.Annealing(steps=3, reseed=True).to_dict())
    assert again.reseed
    assert not gem.Annealing.from_dict(gem.Annealing(steps=3).to_dict()).reseed


def test_two_latents_that_are_always_on_together_stay_finite():
    from gem.models.linear import solve_fields

    rng = np.random.default_rng(1)
    s = (rng.random((100, 3)) < 0.4).astype(float)
    s[:, 2] = s[:, 1]
    W = rng.standard_normal((4, 3))
    y = s @ W.T + 0.1 * rng.standard_normal((100, 4))
    new = solve_fields(y.T @ s, s.T @ s, np.zeros((4, 3)))
    assert np.all(np.abs(new) < 10)
    best, *_ = np.linalg.lstsq(s, y, rcond=None)
    np.testing.assert_allclose(new @ s.T, (s @ best).T, atol=1e-9)
