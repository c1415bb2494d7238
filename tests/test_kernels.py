"""Every kernel against its numpy twin: both schedules, both precisions, odd sizes. CASES enrols a new one."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import backends, missing

import gem
from gem.backends import _device
from gem.backends._numpy import NumpyBackend
from gem.errors import BackendError
from gem.kernels import source
from gem.kernels.__main__ import FRAGMENTS
from gem.kernels.bits import packed, words
from gem.kernels.mixture import NOTES
from gem.sets.first import first_states
from gem.states import state_table

pytestmark = pytest.mark.serial  # one device at a time: ranks change nothing here
TOLERANCE = {"float64": 1e-10, "float32": 2e-4}
SUMS = 10  # the argument of mixtures with a row for each group
ROOM = 8  # and the one with a tile for each
GROUP_SUMS = {
    "mixture": SUMS,
    "mixture_full": SUMS,
    "causes": 15,
    "column_sums": 2,
    "point_sums": 10,
    "sparse_product": 2,
    "impute": 5,
}


@dataclass
class Case:
    """A call of a kernel: `out` names the positions of the arguments it writes."""

    N: int
    arguments: list[Any]
    out: tuple[int, ...]
    constants: dict[str, int] = field(default_factory=dict)
    states: Any = None
    fragment: str | None = None
    exact: tuple[int, ...] = ()  # arguments in float64 whatever the backend's type


def squared_norms(rng, N, D):
    return Case(N, [rng.standard_normal((N, D)), np.zeros(N)], (1,), {"D": D})


def check_rows(rng, N, D):
    Y = (rng.random((N, D)) < 0.5).astype(float)
    bad = np.flatnonzero(rng.random(N) < 0.5)
    Y[bad, rng.integers(D, size=len(bad))] = rng.choice([np.nan, -1, 0.5, np.inf, 2], len(bad))
    return Case(N, [Y, np.zeros(N)], (1,), {"D": D})


def preselect(rng, N, H, Hprime, V):
    b = np.round(rng.standard_normal((N, H)), 1)  # rounded: many scores are equal
    b[rng.random((N, H)) < 0.1] = -np.inf
    slope, offset = np.ones((V, H)), rng.integers(0, 2, (V, H)).astype(float)
    constants = {"H": H, "HPRIME": Hprime, "VALUES": V}
    return Case(N, [b, slope, offset, np.zeros((N, Hprime), np.int32)], (3,), constants)


def gram_posterior(rng, N, H, Hprime, gamma, T, values=(1.0,), masked=0):
    W, V = rng.standard_normal((2 * H, H)), len(values)
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    pairs = np.zeros((N, Hprime * (Hprime - 1) // 2))
    arguments = [
        3 * rng.standard_normal((N, H)),
        rng.standard_normal(pairs.shape) if masked else W.T @ W / 4,
        rng.uniform(0, 3, (N, H)),
        rng.uniform(0.5, 1, H),
        rng.standard_normal((V, H)) - 1,
        np.array(values),
        candidates,
        1 / T,
        np.zeros(V) if T == 1 else rng.standard_normal(V) / 3,
        np.zeros(N),
        pairs,
        np.zeros((N, H)),
        np.zeros((N, V)),
        np.zeros(N),
    ]
    constants = {"H": H, "HPRIME": Hprime, "GAMMA": gamma, "ANNEAL": int(T != 1), "VALUES": V, "MASKED": masked}
    return Case(N, arguments, (0, 9, 10, 11, 12, 13), constants, state_table(Hprime, gamma))


def split_missing(rng, N, D):
    Y = rng.standard_normal((N, D))
    Y[rng.random((N, D)) < 0.4] = np.nan
    return Case(N, [Y, np.zeros((N, D)), np.zeros((N, D))], (1, 2), {"D": D})


def linear_scores(rng, N, H, V, cosine):
    norms = rng.uniform(0, 9, (N, H)) * (rng.random((N, H)) < 0.8)
    lines = [rng.uniform(0.5, 1, H), rng.standard_normal((V, H)), rng.standard_normal(V)]
    constants = {"H": H, "VALUES": V, "COSINE": cosine}
    return Case(N, [3 * rng.standard_normal((N, H)), norms, *lines, np.zeros((N, H))], (5,), constants)


def masked_gram(rng, N, D, H, Hprime):
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    observed = (rng.random((N, D)) < 0.6).astype(float)
    couplings = np.zeros((N, Hprime * (Hprime - 1) // 2))
    return Case(N, [observed, rng.standard_normal((H, D)), candidates, couplings], (3,), {"D": D, "HPRIME": Hprime})


def impute(rng, N, D, H, Hprime):
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    observed = (rng.random((N, D)) < 0.6).astype(float)
    observed[rng.random(N) < 0.3] = 1
    pairs, weights = rng.random((N, Hprime * (Hprime - 1) // 2)), (rng.random(N) < 0.7).astype(float)
    arguments = [observed, rng.standard_normal((H, D)), candidates, pairs, weights, np.zeros((1, H, D))]
    return Case(N, arguments, (0, 5), {"D": D, "H": H, "HPRIME": Hprime})


def strength_squares(rng, N, H):
    latents = rng.uniform(0.5, 2, (4, H))
    return Case(N, [*rng.standard_normal((2, N, H)), latents, rng.random((N, H))], (3,), {"H": H})


def pair_sums(rng, N, H, Hprime):
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    pairs = rng.random((N, Hprime * (Hprime - 1) // 2))
    weights = (rng.random(N) < 0.7).astype(float)
    return Case(N, [candidates, pairs, weights, 0.5, np.zeros((H, H), np.int64)], (4,), {"H": H, "HPRIME": Hprime})


def accumulate(rng, N, rows, kind):
    values = np.round(rng.standard_normal((rows, N)) * 2**30).astype(np.int64) if kind == 2 else rng.random((rows, N))
    total = rng.random(N + 5)
    constants = {"COLUMNS": source.twin("accumulate").columns(N, rows), "KIND": kind}
    return Case(N, [values, rows, 0.5, 1e-3, 3, total], (5,), constants, exact=(0, 5) if kind == 1 else (5,))


def point_sums(rng, N, parts, weighted):
    arrays = [*rng.standard_normal((3, N)), *rng.standard_normal(6)]
    weights = (rng.random(N) < 0.7).astype(float)
    return Case(N, [*arrays, weights, np.zeros(1)], (10,), {"PARTS": parts, "WEIGHTED": weighted})


def column_sums(rng, N, H):
    weights = (rng.random(N) < 0.7).astype(float)
    return Case(N, [rng.standard_normal((N, H)), weights, np.zeros((1, H))], (2,), {"H": H})


def sparse_product(rng, N, D, H):
    B = rng.standard_normal((N, H)) * (rng.random((N, H)) < 0.1)
    return Case(N, [rng.standard_normal((N, D)), B, np.zeros((1, H, D))], (2,), {"D": D, "H": H})


def scale_rows(rng, N, H):
    return Case(N, [rng.standard_normal((N, H)), (rng.random(N) < 0.5).astype(float)], (0,), {"H": H})


def mixture(rng, N, D, K, T, missing=0, fragment="mixture_gaussian", stages=15):
    mu, shift = 2 * rng.standard_normal((K, D)), np.zeros(K) if T == 1 else rng.standard_normal(K) / 5
    Y = mu[rng.integers(K, size=N)] + rng.standard_normal((N, D))
    P = rng.uniform(0.5, 2, (K, D) if fragment == "mixture_gaussian" else (K, 1)) * np.ones((K, D))
    if missing:
        Y[rng.random(Y.shape) < 0.3] = np.nan
        P = np.concatenate([P, -np.log(P / (2 * np.pi)) / 2])
    arguments = [Y, mu, P, rng.standard_normal(K), 1 / T, shift, (rng.random(N) < 0.8).astype(float)]
    arguments += [np.zeros(N), np.zeros((1, K + NOTES, 1)), np.zeros((N, K)), np.zeros((1, K + 2 * K * D)), 1e-6]
    constants = {"D": D, "K": K, "MISSING": missing, "STAGES": stages, "ANNEAL": int(T != 1)}
    return Case(N, arguments, (7, 9, SUMS), constants, fragment=fragment)


def mixture_full(rng, N, D, K, tied, T):
    case = mixture(rng, N, D, K, T)
    root = rng.standard_normal((K, D, D)) / np.sqrt(D)
    full = root @ np.swapaxes(root, 1, 2) + 0.5 * np.eye(D)
    full = np.swapaxes(np.linalg.cholesky(full[:, ::-1, ::-1]), 1, 2)[:, ::-1, ::-1] + np.triu(full, 1)  # R, P above it
    case.arguments[2] = full[0] if tied else full
    case.arguments[SUMS] = np.zeros((1, K + K * D + case.arguments[2].size))
    mu = case.arguments[1] = case.arguments[1].astype(np.float32).astype(float)  # nu fits it in either precision
    R = np.tril(case.arguments[2].astype(np.float32).astype(float))
    case.arguments[2] = R + np.triu(np.swapaxes(R, -1, -2) @ R, 1)  # numpy takes P, the twin R
    case.arguments.append((mu - mu[0]) @ np.tril(case.arguments[2]).T if tied else np.zeros((1, 1)))
    case.exact = (12,)
    case.constants.pop("MISSING")
    case.constants["TIED"], case.fragment = tied, None
    return case


LOG_JOINT = (2, 3)  # arguments of mixture that come in float64 where counts are large


def counts(rng, N, D, K, T, missing, size, stages=15):
    """A mixture of Poisson distributions."""
    rates = size * rng.uniform(0.2, 2, (K + 1, D))
    Y = rng.poisson(rates[rng.integers(K, size=N)]).astype(float)
    case = mixture(rng, N, D, K, T, fragment="mixture_poisson", stages=stages)
    log_rates = np.log(rates[:K] / rates[K])
    if missing:
        Y[rng.random(Y.shape) < 0.3] = np.nan
        log_rates = np.concatenate([log_rates, rates[:K] - rates[K]])
    case.arguments[:3] = Y, rates, log_rates
    case.arguments[SUMS] = np.zeros((1, K + K * D))
    case.constants["MISSING"] = missing
    if size > 1000:  # in float32 the log joint would be noise
        case.constants |= {"LARGE": 1}
        case.arguments[1] = rates.astype(np.float32).astype(float)
        case.exact = LOG_JOINT
    return case


def spike_slab_scores(rng, N, H, masked):
    norms = rng.uniform(0, 9, (N, H) if masked else H)
    arguments = [3 * rng.standard_normal((N, H)), norms, rng.standard_normal((4, H)), np.zeros((N, H))]
    return Case(N, arguments, (3,), {"H": H, "MASKED": masked})


def spike_slab(rng, N, H, Hprime, gamma, T, masked, strong=1):
    V = rng.standard_normal((2 * H, H)) / 2
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    gram = V.T @ V
    norms, couplings = np.diag(gram), gram
    if masked:
        i, j = np.triu_indices(Hprime, 1)
        norms, couplings = np.tile(norms, (N, 1)), gram[candidates[:, i], candidates[:, j]]
    latents = rng.standard_normal((4, H)) - np.array([[0], [1], [0], [0]])
    latents[3] *= T != 1
    out = np.zeros(N), np.zeros((N, H)), np.zeros((N, Hprime * (Hprime - 1) // 2)), np.zeros(N)
    b, energy = 3 * strong * rng.standard_normal((N, H)), np.zeros((N, H))  # strong: states of many are far ahead
    source.twin("spike_slab_scores").spike_slab_scores(N, b, norms, latents, energy)
    arguments = [b, couplings, norms, latents, candidates, 1 / T, energy, *out]
    constants = {"H": H, "HPRIME": Hprime, "GAMMA": gamma, "ANNEAL": int(T != 1), "MASKED": masked}
    return Case(N, arguments, (0, 6, 7, 8, 9, 10), constants, state_table(Hprime, gamma))


def cause_scores(rng, N, D, H, missing):
    observed = (rng.random((N, D)) < 0.7).astype(float) if missing else np.ones((1, 1))
    arguments = [rng.standard_normal((N, D)), observed, rng.standard_normal((D, H)), np.zeros((N, H))]
    return Case(N, arguments, (3,), {"D": D, "H": H, "MISSING": missing})


def causes(rng, N, D, H, Hprime, gamma, fragment, T=1.0, missing=0):
    """A model of causes, whose singletons' energies are whatever b says."""
    Y, W, settings = rng.standard_normal((N, D)), rng.standard_normal((H, D)), np.array([-0.5, 0, 0, 0])
    how, noise = fragment.split("+")
    if noise == "bernoulli":
        Y, W, settings = (rng.random((N, D)) < 0.3).astype(float), rng.uniform(0.02, 5, (H, D)), np.eye(4)[0]
    elif noise == "poisson":
        Y, W, settings = rng.poisson(2, (N, D)).astype(float), rng.uniform(0.3, 5, (H, D)), np.array([1, 0.3, 0, 0])
    elif noise == "gamma":
        Y, W, settings = rng.gamma(2, 1, (N, D)), rng.uniform(0.2, 5, (H, D)), np.array([1.5, 0.3, 0, 0])
    if how == "maximum":
        W = np.abs(W)
        settings[1] = 0.0 if noise == "gaussian" else 0.3
    elif how == "smooth_maximum":
        rho, signs = 1 / (1 - 1 / T) if T > 1 else 21, 1 - D % 2
        W = np.copysign(rng.uniform(0.5, 3, (H, D)), W if signs else 1) * rho
        settings = np.array([-0.5, 1 / rho, 4, signs])
    observed = (rng.random((N, D)) < 0.6).astype(float)
    states = state_table(Hprime, gamma)
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    many = 0 if noise == "gaussian" else D
    latents = [rng.standard_normal(H) - many, rng.standard_normal(H)]
    latents.append(np.zeros(H) if T == 1 else rng.standard_normal(H) / 3)
    weights = (rng.random(N) < 0.8).astype(float)
    arguments = [Y * observed if missing else Y, observed, rng.standard_normal((N, H)), W, *latents, settings]
    arguments += [candidates, 1 / T, weights, np.zeros(N), np.zeros(N), np.zeros((N, H)), np.zeros((N, D))]
    arguments += [np.zeros((1, 2, H, D)), np.zeros(N)]
    constants = {"D": D, "H": H, "HPRIME": Hprime, "GAMMA": gamma, "MANY": states.S, "ANNEAL": int(T != 1)}
    constants |= {"MISSING": missing, "STATS": 1, "RECONSTRUCT": 1}
    return Case(N, arguments, (2, 11, 12, 13, 14, 15, 16), constants, states, fragment)


def lasso(rng, N, H, sweeps):
    """To the minimum, which is the same whatever the order; or one sweep, after which only those of s = 0 are found."""
    W, Y = rng.standard_normal((8 * H, H)), rng.standard_normal((N, 8 * H))
    Y[rng.random(N) < 0.3] *= 1e-3
    gram = W.T @ W
    arguments = [Y @ W, (Y**2).sum(axis=1), np.pad(gram, ((0, 0), (0, -H % 32))), 1 / np.diag(gram)]
    arguments += [0.8 * np.sqrt(8 * H), 0.3, 0.0, sweeps, np.zeros((N, H)), np.zeros(N), np.zeros(N)]
    return Case(N, arguments, (8, 9) if sweeps > 1 else (10,), {"H": H, "PITCH": H + -H % 32})


def explicit(rng, N, H, count):
    """Random states of binary latents as words, the sizes of their kernels, and keys of random numbers."""
    active = rng.random((N, count, H)) < min(0.5, 3 / H)
    return (
        packed(active),
        {"H": H, "WORDS": words(H), "COUNT": count},
        rng.integers(2**32, size=(N, 2), dtype=np.uint32),
    )


def linear_energies(rng, N, H, count):
    W, (sets, sizes, _) = rng.standard_normal((2 * H, H)), explicit(rng, N, H, count)
    lines = [3 * rng.standard_normal((N, H)), W.T @ W / 4, rng.uniform(0.5, 1, H), rng.standard_normal(H)]
    return Case(N, [*lines, sets, np.zeros((N, count))], (5,), sizes)


def keep_best(rng, N, H, count, new, last):
    """The first data points have come to this step; some found states are kept ones, or the same as others."""
    first = first_states(rng.integers(2**32, size=(N, 2), dtype=np.uint32), count, H)
    found, sizes, _ = explicit(rng, N, H, new)
    found[:, : new // 3] = first[:, rng.integers(count, size=new // 3)]
    found[:, -(new // 4) :] = found[:, : new // 4]
    energies = [np.round(rng.standard_normal((N, m)), 2) for m in (new, count)]  # rounded: some are equal
    age = np.where(np.arange(N) < N // 4, 3, 2).astype(np.int32)
    sizes = {"WORDS": sizes["WORDS"], "COUNT": count, "NEW": new}
    arguments = [3, last, found, energies[0], first, energies[1], age, np.ones(N)]
    return Case(N, arguments, (4, 5, 6, 7), sizes)


def weigh_states(rng, N, H, count, T):
    sets, sizes, _ = explicit(rng, N, H, count)
    energies = 9 * rng.standard_normal((N, count))
    out = [np.zeros(N), np.zeros((N, count)), np.ones((N, H))]
    return Case(N, [sets, energies, 1 / T, 1 - 1 / T, *out], (4, 5, 6), sizes)


def state_pairs(rng, N, H, count):
    sets, sizes, _ = explicit(rng, N, H, count)
    weights = rng.dirichlet(np.ones(count), N) * (rng.random((N, count)) < 0.7)
    return Case(N, [sets, weights, 2 * rng.random(N), 0.5, np.zeros((H, H), np.int64)], (4,), sizes)


def evolve(rng, N, H, count, parents, children, mutation, fit):
    pool, sizes, keys = explicit(rng, N, H, count)
    made = np.zeros((N, parents * children, sizes["WORDS"]), np.uint32)
    sizes |= {"PARENTS": parents, "CHILDREN": children, "MUTATION": mutation, "FIT": fit}
    energies = 5 * rng.standard_normal((N, count)) * (np.arange(N) > 0)[:, None]  # of the first point all are 0
    return Case(N, [7, 1, 2.5, keys, pool, energies, made], (6,), sizes)


def sample_states(rng, N, H, count, prior):
    _, sizes, keys = explicit(rng, N, H, count)
    mean = np.where(rng.random((N, H)) < 0.3, rng.random((N, H)), 0)
    return Case(
        N,
        [7, 1 / H if H > 1 else 0.5, keys, mean, np.zeros((N, count, words(H)), np.uint32)],
        (4,),
        {**sizes, "PRIOR": prior},
    )


def preselected_states(rng, N, H, Hprime):
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    masks = rng.integers(2**Hprime, size=20, dtype=np.uint32)
    sizes = {"H": H, "WORDS": words(H), "HPRIME": Hprime, "COUNT": 20}
    return Case(N, [candidates, masks, np.zeros((N, 20, words(H)), np.uint32)], (2,), sizes)


CASES = {
    "linear_energies": [(linear_energies, a) for a in ((1, 1, 1), (37, 30, 20), (9, 70, 130))],
    "keep_best": [(keep_best, a) for a in ((1, 3, 4, 6, 1), (37, 30, 20, 25, 1), (9, 70, 130, 200, 0))],
    "weigh_states": [(weigh_states, a) for a in ((1, 1, 1, 1.0), (37, 30, 20, 1.0), (9, 70, 130, 2.5))],
    "state_pairs": [(state_pairs, a) for a in ((1, 2, 1), (37, 30, 20), (9, 70, 130))],
    "evolve": [
        (evolve, (*a, mutation, fit))
        for a, mutation, fit in (
            ((1, 2, 4, 2, 1), 0, 1),
            ((37, 30, 20, 5, 9), 0, 1),
            ((9, 70, 130, 10, 9), 0, 0),
            ((37, 30, 20, 5, 9), 1, 1),
            ((9, 70, 130, 10, 9), 1, 1),
            ((4, 1, 2, 2, 3), 1, 1),
            ((37, 30, 20, 5, 4), 2, 1),
            ((9, 70, 130, 10, 9), 2, 0),
        )
    ],
    "sample_states": [(sample_states, a) for a in ((1, 1, 4, 2), (37, 30, 20, 7), (9, 70, 130, 130), (5, 40, 9, 0))],
    "preselected_states": [(preselected_states, a) for a in ((1, 1, 1), (37, 30, 8), (9, 70, 12))],
    "squared_norms": [(squared_norms, a) for a in ((1, 1), (37, 20), (130, 33))],
    "check_rows": [(check_rows, a) for a in ((1, 1), (37, 20), (130, 33))],
    "preselect": [
        (preselect, a) for a in ((1, 1, 1, 1), (37, 30, 8, 1), (50, 33, 5, 3), (9, 300, 12, 1), (5, 32, 32, 2))
    ],
    "gram_posterior": [
        (gram_posterior, (*a, T))
        for a in ((1, 1, 1, 1), (37, 30, 8, 5), (50, 33, 5, 4), (7, 8, 8, 1), (12, 40, 12, 3), (4, 40, 32, 2))
        for T in (1.0, 2.5)
    ]
    + [
        (gram_posterior, (*a, T, values, masked))
        for a, values, masked in (
            ((37, 30, 8, 3), (-1.0, 1.0), 0),
            ((21, 12, 5, 4), (0.5, -1.0, 2.0), 1),
            ((20, 9, 4, 3), (2.0,), 1),
            ((3, 5, 1, 1), (1.0, 2.0), 1),
        )
        for T in (1.0, 2.5)
    ]
    + [(gram_posterior, (3, 24, 20, 4, 2.5))],
    "split_missing": [(split_missing, a) for a in ((1, 1), (37, 20))],
    "linear_scores": [(linear_scores, a) for a in ((1, 1, 1, 0), (37, 20, 3, 0), (37, 20, 1, 1))],
    "masked_gram": [(masked_gram, a) for a in ((1, 1, 2, 2), (37, 20, 30, 8), (19, 70, 20, 13), (3, 5, 2, 1))],
    "impute": [(impute, a) for a in ((1, 1, 1, 1), (37, 20, 9, 4), (150, 40, 12, 8))],
    "strength_squares": [(strength_squares, a) for a in ((1, 1), (37, 20))],
    "pair_sums": [(pair_sums, a) for a in ((1, 2, 2), (37, 30, 8), (300, 10, 5))],
    "column_sums": [(column_sums, a) for a in ((1, 1), (37, 30), (300, 16), (90, 3), (60, 40), (20, 200))],
    "accumulate": [
        (accumulate, a) for a in ((1, 300, 1), (300, 1, 0), (130, 7, 1), (3, 90, 0), (37, 1, 2), (30, 20, 1))
    ],
    "point_sums": [(point_sums, a) for a in ((1, 1, 0), (300, 2, 1), (37, 3, 1), (1000, 3, 0))],
    "sparse_product": [(sparse_product, a) for a in ((1, 1, 1), (37, 20, 30), (100, 64, 33))],
    "cause_scores": [(cause_scores, a) for a in ((1, 1, 1, 0), (37, 20, 70, 1), (21, 33, 16, 0), (30, 5, 200, 0))],
    "causes": [
        (causes, (*a, fragment, *b))
        for fragment in FRAGMENTS["causes"]
        for a, b in (((1, 1, 1, 1, 1), ()), ((37, 20, 30, 6, 4), (2.5,)), ((9, 35, 8, 8, 8), (1.0, 1)))
    ]
    + [(causes, (7, 140, 9, 5, 2, "maximum+gaussian")), (causes, (5, 3, 40, 32, 2, "maximum+gaussian", 2.5))]
    + [(causes, (3, 5, 24, 20, 4, "noisyor+bernoulli", 2.5, 1)), (causes, (7, 40, 24, 20, 4, "maximum+poisson", 2.5))]
    + [(causes, (3, 600, 9, 3, 3, how, 1.0, 1)) for how in ("magnitude+gaussian", "noisyor+bernoulli")],
    "scale_rows": [(scale_rows, a) for a in ((1, 1), (37, 30))],
    "spike_slab_scores": [(spike_slab_scores, a) for a in ((1, 1, 0), (37, 30, 0), (40, 33, 1))],
    "spike_slab": [
        (spike_slab, a)
        for a in (
            *((1, 1, 1, 1, 1.0, 0), (37, 30, 8, 5, 2.5, 0), (50, 33, 5, 4, 1.0, 1), (7, 8, 8, 1, 2.5, 0)),
            *((12, 40, 12, 3, 1.0, 0), (4, 40, 32, 2, 2.5, 1), (3, 24, 20, 4, 2.5, 0)),
            *((40, 30, 8, 4, 1.0, 0, 6), (20, 12, 8, 8, 1.5, 1, 6)),
        )
    ],
    "lasso": [(lasso, a) for a in ((1, 1, 9), (37, 30, 99), (50, 33, 99), (5, 200, 99), (37, 30, 1))],
    "mixture": [
        (mixture, a)
        for a in (
            *((1, 1, 1, 1.0), (37, 20, 5, 1.0), (300, 3, 50, 2.0), (100, 70, 140, 2.0), (100, 5, 4, 2.0, 1)),
            *((70, 33, 9, 1.0, 0, "mixture_spherical"), (90, 18, 3, 1.0, 1)),
        )
    ]
    + [(counts, a) for a in ((1, 1, 1, 1.0, 0, 1), (37, 20, 5, 2.0, 0, 5), (100, 17, 9, 1.0, 1, 10))]
    + [(counts, a) for a in ((37, 5, 3, 1.0, 0, 10**7), (20, 17, 2, 2.0, 1, 10**5))],
    "mixture_full": [
        (mixture_full, a)
        for a in (
            (50, 7, 4, 0, 1.0),
            (9, 130, 3, 0, 2.0),
            (60, 17, 3, 1, 2.0),
            (80, 40, 6, 0, 1.0),
            (70, 37, 5, 1, 1.0),
        )
    ],
}

ALL = [(name, n) for name, cases in CASES.items() for n in range(len(cases))]


def test_every_kernel_has_a_twin_and_a_case():
    assert source.names() == sorted(CASES)
    for name in source.names():
        assert callable(getattr(source.twin(name), name))


def devices():
    """Backends whose kernels are compiled: all but numpy, whose twins they are held to; OpenCL in both schedules."""
    return backends(numpy=(), opencl=("opencl-vectors", "opencl-items"))


def device(kind, dtype):
    try:
        if "-" not in kind:
            return gem.backends.select(kind, dtype)
        from gem.backends._opencl import OpenCLBackend

        return OpenCLBackend(dtype, schedule="cpu" if kind == "opencl-vectors" else "gpu")
    except BackendError as error:
        missing(kind.partition("-")[0], str(error))


def run(backend, name, case, dtype):
    """What the kernel leaves in its output arguments; group sums added up."""
    kernel = backend.kernel(name, states=case.states, fragment=case.fragment, **case.constants)
    arguments = []
    for position, argument in enumerate(case.arguments):
        if not isinstance(argument, np.ndarray):
            arguments.append(argument)
        elif position == GROUP_SUMS.get(name):
            kind = backend.dtype if name == "sparse_product" else backend.acc
            arguments.append(backend.empty((kernel.groups(case.N), *argument.shape[1:]), kind))
        elif position == ROOM and name in ("mixture", "mixture_full"):
            tiles = max(kernel.groups(case.N), -(-case.N // kernel.tile))
            arguments.append(backend.empty((tiles, argument.shape[1], kernel.tile)))
        elif position in case.exact:
            arguments.append(backend.to_device(argument.copy(), np.float64))
        else:
            arguments.append(
                backend.to_device(argument.astype(dtype) if argument.dtype.kind == "f" else argument.copy())
            )
    with np.errstate(all="ignore"):
        kernel(case.N, *arguments)
    out = [backend.to_host(arguments[position]) for position in case.out]
    return [o.sum(axis=0) if p == GROUP_SUMS.get(name) else o for o, p in zip(out, case.out, strict=True)]


def plain(dtype):
    """The twins as they are, where the numpy backend has a faster form."""
    backend = NumpyBackend(dtype)
    backend.tuned = False
    return backend


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", list(devices()))
@pytest.mark.parametrize(("name", "number"), ALL, ids=str)
def test_parity(name, number, kind, dtype):
    make, arguments = CASES[name][number]
    backend = device(kind, dtype)
    case = make(np.random.default_rng(number), *arguments)
    assert_same(name, dtype, *(run(b, name, case, dtype) for b in (backend, plain(dtype))))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "number"), [key for key in ALL if hasattr(source.twin(key[0]), "tuned")], ids=str)
def test_what_numpy_runs_is_its_twin(name, number, dtype):
    make, arguments = CASES[name][number]
    case = make(np.random.default_rng(number), *arguments)
    assert_same(name, dtype, *(run(b, name, case, dtype) for b in (NumpyBackend(dtype), plain(dtype))))


@pytest.mark.parametrize("kind", list(backends(numpy=(), opencl=("opencl-items",))))
@pytest.mark.parametrize("number", [2, 3, 4, 9])
def test_stages_of_a_mixture_one_by_one(number, kind):
    """As a GPU takes them: several groups share a tile, and its room lies in global memory between them."""
    make, arguments = CASES["mixture"][number]
    backend, case = device(kind, "float64"), make(np.random.default_rng(number), *arguments)
    kernels = [
        backend.kernel("mixture", fragment=case.fragment, **{**case.constants, "STAGES": stage})
        for stage in (1, 2, 8, 4)
    ]
    given = [backend.to_device(a.copy()) if isinstance(a, np.ndarray) else a for a in case.arguments]
    given[ROOM] = backend.empty((kernels[0].groups(case.N), case.arguments[ROOM].shape[1], kernels[0].tile))
    given[SUMS] = backend.empty((kernels[-1].groups(case.N), case.arguments[SUMS].shape[1]))
    for kernel in kernels:
        kernel(case.N, *given)
    found = [backend.to_host(given[position]) for position in case.out]
    assert_same(
        "mixture", "float64", [*found[:2], found[2].sum(axis=0)], run(plain("float64"), "mixture", case, "float64")
    )


def assert_same(name, dtype, found, wanted):
    for f, w in zip(found, wanted, strict=True):
        if w.dtype.kind == "u":
            np.testing.assert_array_equal(f, w)
        elif w.dtype.kind == "i":
            np.testing.assert_allclose(f, w, rtol=0, atol=0 if name == "preselect" else 2**40 * TOLERANCE[dtype])
        else:
            scale = max(1.0, float(np.abs(w).max(initial=0, where=np.isfinite(w))))
            np.testing.assert_allclose(f, w, rtol=0, atol=TOLERANCE[dtype] * scale)


WORDS = """
DEVICE real spread(LANES_PARAM vec x) { return highest(x) + highest(-x); }

KERNEL void words(int N, GLOBAL const real *x, GLOBAL const int *index, GLOBAL real *out, GLOBAL int *flags)
{
    LANES_BEGIN;
    for (int start = WARP * WIDTH; start < N; start += WARPS * WIDTH) {
        const int count = N - start < WIDTH ? N - start : WIDTH;
        lanes mine = {(vec)(0)};
        EACH_LANE(r, count)
            MINE(mine, r) = x[index[start + r]];
        for (int r = 0; r < count; r++) {
            const vec row = vload_row(count, -1, x + start, 0);
            const acc sum = total(VACC(NUMBERS < count ? row : (vec)(0)));
            SET(mine, r, AT(mine, r) + (real)sum + spread(LANES_ARG row));
            const int bits = BITS(row < AT(mine, r) / 10), some = SOMEWHERE(row > 2);
            ONCE flags[start + r] = bits << 1 | some;
        }
        vstore_row(vexp(-fabs(mine.v) / 10), count, out + start, 0);
        MEET();
        EACH_LANE(r, count)
            out[start + count - 1 - r] += r;
    }
}
"""


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("N", [1, 32, 300])
@pytest.mark.parametrize("kind", list(devices()))
def test_words_of_lanes(kind, N, dtype):
    backend = device(kind, dtype)
    width = 64 // backend.dtype.itemsize if kind == "opencl-vectors" else 32
    group = {"opencl-vectors": 1, "opencl-items": 32}.get(kind, 128)
    plan = _device.Schedule(width, group, group, groups=2)
    assert plan.rows(N) == (8 if group == 128 else 2)
    text = (source.FOLDER / "gem.h").read_text() + WORDS
    built = backend.build("words", text, {**plan.defines, **backend._types})
    rng = np.random.default_rng(1)
    x, index = rng.standard_normal(N), rng.integers(N, size=N).astype(np.int32)
    x = x.astype(dtype).astype(float)
    given = [backend.to_device(x), backend.to_device(index), backend.empty((N,)), backend.empty((N,), np.int32)]
    backend.launch(built, plan, N, tuple(given))
    wanted, flags = np.empty(N), np.empty(N, int)
    for start in range(0, N, width):
        row = x[start : start + width]
        padded = np.append(row, [-1.0] * (width - len(row)))
        mine = x[index[start : start + width]] + row.sum() + (padded.max() - padded.min())
        wanted[start : start + width] = np.exp(-abs(mine) / 10) + np.arange(len(row))[::-1]
        bits = (padded[None] < mine[:, None] / 10) @ 2 ** np.arange(width)
        flags[start : start + width] = bits << 1 | (padded > 2).any()
    np.testing.assert_allclose(backend.to_host(given[2]), wanted, rtol=1e-5 if dtype == "float32" else 1e-12)
    np.testing.assert_array_equal(backend.to_host(given[3]), flags.astype(np.int32))


@pytest.mark.parametrize("kind", list(devices()))
def test_the_same_bits_on_every_run(kind):
    make, arguments = CASES["pair_sums"][2]
    backend = device(kind, "float32")
    case = make(np.random.default_rng(3), *arguments)
    first = run(backend, "pair_sums", case, "float32")[0]
    for _ in range(5):
        np.testing.assert_array_equal(run(backend, "pair_sums", case, "float32")[0], first)


@pytest.mark.parametrize("kind", list(devices()))
def test_a_kernel_that_does_not_build_names_file_and_line(kind, monkeypatch, tmp_path):
    backend = device(kind, "float32")
    for name in ("gem.h", "scale_rows.c"):
        (tmp_path / name).write_text((source.FOLDER / name).read_text())
    text = (
        (tmp_path / "scale_rows.c")
        .read_text()
        .replace("const real weight = weights[n];", "const real weight = nothing;")
    )
    (tmp_path / "scale_rows.c").write_text(text)
    line = next(n for n, t in enumerate(text.splitlines(), 1) if "nothing" in t)
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    with pytest.raises(BackendError, match=rf"scale_rows\.c[:(]{line}[:)]?(.|\n)*nothing"):
        backend.kernel("scale_rows", H=4)


@pytest.mark.parametrize("kind", list(devices()))
def test_an_array_of_another_backend_is_refused(kind):
    kernel = device(kind, "float32").kernel("scale_rows", H=4)
    with pytest.raises(BackendError, match="argument 0 of kernel scale_rows"):
        kernel(3, np.zeros((3, 4), np.float32), np.ones(3, np.float32))


SOME = [(name, n) for name, cases in CASES.items() for n in range(len(cases)) if n % 3 == 1 or n == len(cases) - 1]


PLAIN, UBSAN = "-O0", "-O0 -fsanitize=undefined"  # of g++, which takes most of the time: with -O1 the sanitizer 7 times


@pytest.mark.long
@pytest.mark.parametrize("what", ["kernels", "models", "ubsan"])
def test_cuda_branch_runs_on_the_host(what):
    """Rungs 3 and 4: kernels, golden vectors and the backend's own tests under CuPy on the CPU.

    In float32, which OpenCL shows at every size, some sizes of each kernel and model.
    """
    from test_golden import ONE_OF_EACH, golden

    if what == "kernels":
        left = [f"test_kernels.py::test_parity[{name}-{n}-cuda-float32]" for name, n in ALL if (name, n) not in SOME]
        on_the_host("test_kernels.py", without=left, order="fwd")
        on_the_host("test_kernels.py", wanted="cuda and not host and not float32", order="rand")  # the same programs
    elif what == "models":
        left = [f"test_golden.py::test_golden[cuda-{name}-float32]" for name in golden.NAMES if name not in ONE_OF_EACH]
        on_the_host("test_devices.py", "test_golden.py", "test_totals.py", without=left)
    else:
        some = [f"test_kernels.py::test_parity[{name}-{n}-cuda-float64]" for name, n in SOME]
        on_the_host(*some, flags=UBSAN)


def on_the_host(*chosen, without=(), wanted="cuda and not host", order="fwd", flags=PLAIN):
    """Run tests under CuPy on the CPU."""
    from cupy_on_cpu import build as harness

    try:
        interpreter, environment = harness.build(), harness.env()
    except harness.BuildError as error:
        missing("cuda", str(error))
    environment |= {"CUSHIM_ORDER": order, "GEM_REQUIRE": "cuda", "FAKECUDA_CXXFLAGS": flags}
    left = [f"--deselect=tests/{test}" for test in without]
    done = subprocess.run(
        [interpreter, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-k", wanted, *left]
        + [f"tests/{test}" for test in chosen],
        env={**os.environ, **environment},
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]
    assert "runtime error" not in done.stderr, done.stderr[-2000:]
