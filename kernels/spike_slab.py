"""The truncated posterior of spike-and-slab latents: binary switches, Gaussian strengths that are integrated out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gem.kernels.weights import settled_exp

TILE_ELEMENTS = 1 << 16  # energies held at once: N × |K_n| is never formed
LANES = 32  # a data point in each


def spike_slab(
    N: int,
    b: np.ndarray,
    gram: np.ndarray,
    norms: np.ndarray,
    latents: np.ndarray,
    candidates: np.ndarray,
    beta: float,
    mean: np.ndarray,
    log_evidence: np.ndarray,
    square: np.ndarray,
    pairs: np.ndarray,
    full: np.ndarray,
    *,
    states: Any,
    MASKED: int,
) -> None:
    """Weigh every state of K_n, its strengths integrated out, and take the posterior's first and second moments.

    Strengths are measured in prior standard deviations, u_h = z_h / √ψ_h, and fields in those of the noise,
    V_h = W_h √ψ_h / σ. With A = 1 + V_sᵀV_s and r = V_sᵀy / σ + pull_s of the active latents,
    E(s) = Σ_i offset_i + ½ (rᵀA⁻¹r − log|A|), 0 for s = 0; the posterior of u is N(A⁻¹r, A⁻¹), and
    q ∝ exp(beta E(s) + Σ_i shift_i).

    Parameters
    ----------
    b : (N, H) array
        In: Vᵀy / σ. Out: ⟨s_h u_h⟩ spread_h.
    gram : (H, H) array
        VᵀV; with MASKED (N, H'(H'−1)/2), the couplings of each data point's candidates.
    norms : (H,) array
        Its diagonal; with MASKED (N, H).
    latents : (4, H) array
        The rows pull, offset, spread, shift.
    candidates : (N, H') int32 array, ascending
    beta : float
        beta = 1, shift = 0: not annealed.
    mean : (N, H) array
        In: the energies of the singletons (`spike_slab_scores`). Out: ⟨s⟩.
    log_evidence : (N,) array, out
        log Σ_{s ∈ K_n} exp E(s).
    square : (N, H) array, out
        ⟨s_h (u_h − pull_h)²⟩.
    pairs : (N, H'(H'−1)/2) array, out
        ⟨s_i u_i s_j u_j⟩ of the pairs i < j of candidates, lexicographic.
    full : (N,) array, out
        1 where γ latents are active in the state of the largest E, else 0.
    states : gem.states.StateTable
    """
    pull, offset, spread, shift = latents
    sizes = levels(states)
    i, j = states.pairs
    tile = max(1, TILE_ELEMENTS // max(1, states.S))
    annealed = beta != 1 or shift.any()
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        chosen = candidates[part]
        norm = norms[part] if MASKED else norms
        pivot = 1 + norm
        field = b[part] + pull
        coupling = gram[part] if MASKED else gram[chosen[:, i], chosen[:, j]]

        def of_candidates(rows: np.ndarray, chosen: np.ndarray = chosen) -> np.ndarray:
            """(H', n), of a (n, H) or (H,) array"""
            whole = np.broadcast_to(rows, (len(chosen), len(pull)))
            return np.ascontiguousarray(np.take_along_axis(whole, chosen, axis=1).T)

        multiples = _eliminate(
            sizes, of_candidates(pivot), of_candidates(field), np.ascontiguousarray(coupling.T), of_candidates(offset)
        )
        single = mean[part]
        several = np.concatenate([level.energy for level in multiples])
        weighed = _weigh(single.copy(), several.copy()) if annealed else _weigh(single, several)
        total, log_evidence[part], peak = weighed
        full[part] = multiples[-1].energy.max(axis=0) >= peak if states.gamma > 1 else peak > 0
        if annealed:
            single *= single.dtype.type(beta)
            single += shift
            several *= several.dtype.type(beta)
            several += states.active.astype(several.dtype) @ of_candidates(shift)
            total, _, _ = _weigh(single, several)
        several /= total
        single /= total[:, None]

        u = field / pivot
        square[part] = single * (1 / pivot + (u - pull) ** 2)
        b[part] = single * u
        s, su, suu, pairs[part] = _moments(sizes, multiples, several, of_candidates(pull))
        rows = np.arange(len(chosen))[:, None]
        single[rows, chosen] += s
        b[part][rows, chosen] += su
        square[part][rows, chosen] += suu
        b[part] *= spread


@dataclass(frozen=True, eq=False)
class Level:
    """The S states of k active candidates, as index arrays.

    Attributes
    ----------
    active : (S, k)
        The candidates, ascending.
    parent : (S,)
        The number, on the level before, of the state without the last of them.
    pairs : list of (S,)
        The pairs of the last candidate with each of the others.
    """

    active: np.ndarray
    parent: np.ndarray
    pairs: list[np.ndarray]


@lru_cache(maxsize=32)
def levels(states: Any) -> list[Level]:
    """The states of 2, 3, … candidates, level by level: a state follows its parent."""
    number = np.zeros((states.Hprime, states.Hprime), dtype=np.intp)
    number[states.pairs] = np.arange(len(states.pairs[0]))
    sizes = states.active.sum(axis=1)
    found = []
    first = None  # number of the first state of the level before
    for k in range(2, states.gamma + 1):
        rows = np.flatnonzero(sizes == k)
        active = np.nonzero(states.active[rows])[1].reshape(-1, k)
        parent = states.parent[rows]
        parent = -1 - parent if first is None else parent - first
        found.append(Level(active, parent, [number[active[:, a], active[:, -1]] for a in range(k - 1)]))
        first = rows[0] if len(rows) else 0
    return found


@dataclass(frozen=True)
class Factors:
    """Of the states of a level: the rows of the Cholesky factor and of its inverse, x = L⁻¹ r, and the energies."""

    rows: list[list[np.ndarray]]
    roots: list[np.ndarray]
    x: list[np.ndarray]
    energy: np.ndarray


def _eliminate(
    sizes: list[Level], pivot: np.ndarray, field: np.ndarray, coupling: np.ndarray, offset: np.ndarray
) -> list[Factors]:
    """A Cholesky factor gets one more row with each level; arrays are (candidates, pairs or states; data points)."""
    root = 1 / np.sqrt(pivot)
    x = field * root
    level = Factors([[]], [root], [x], offset + (x * x - np.log(pivot)) / 2)
    found = [Factors([], [], [], np.empty((0, field.shape[1]), field.dtype))]
    for size in sizes:
        last, k = size.active[:, -1], size.active.shape[1]
        rows = [[column[size.parent] for column in row] for row in level.rows]
        roots = [root[size.parent] for root in level.roots]
        x = [value[size.parent] for value in level.x]
        new: list[np.ndarray] = []
        rest, remaining = pivot[last], field[last]
        for a in range(k - 1):
            column = coupling[size.pairs[a]]
            for c in range(a):
                column -= new[c] * rows[a][c]
            column *= roots[a]
            rest -= column * column
            remaining -= column * x[a]
            new.append(column)
        np.maximum(rest, 1, out=rest)  # what is left of a matrix ≥ 1 is ≥ 1, whatever rounding says
        roots.append(1 / np.sqrt(rest))
        x.append(remaining * roots[-1])
        energy = level.energy[size.parent] + offset[last] + (x[-1] * x[-1] - np.log(rest)) / 2
        level = Factors([*rows, new], roots, x, energy)
        found.append(level)
    return found


def _weigh(single: np.ndarray, several: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies (n, H), (S, n) to weights, in place; their sum, the log of the true sum, and the largest energy, or 0.

    The zero state's energy is 0.
    """
    top = np.maximum(single.max(axis=1), 0)
    if len(several):
        np.maximum(top, several.max(axis=0), out=top)
    single -= top[:, None]
    several -= top
    for energies in (single, several):
        settled_exp(energies)
    total = single.sum(axis=1) + several.sum(axis=0) + np.exp(-top)
    return total, np.log(total) + top, top


def _moments(
    sizes: list[Level], multiples: list[Factors], weights: np.ndarray, pull: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sums over the states of several candidates of s, s u, s (u − pull)², (n, H') each, and of the pairs' products."""
    Hprime, n = pull.shape
    sums = np.zeros((3, Hprime, n), weights.dtype)
    pairs = np.zeros((Hprime * (Hprime - 1) // 2, n), weights.dtype)
    first = 0
    for size, level in zip(sizes, multiples[1:], strict=True):
        weight = weights[first : first + len(size.active)]
        first += len(size.active)
        inverse = _invert(level)
        k = size.active.shape[1]
        u = [sum(inverse[c][a] * level.x[c] for c in range(a, k)) for a in range(k)]
        for a in range(k):
            active = size.active[:, a]
            to = _indicator(active, Hprime, weights.dtype)
            variance = sum(inverse[c][a] ** 2 for c in range(a, k))
            sums[0] += to @ weight
            sums[1] += to @ (weight * u[a])
            sums[2] += to @ (weight * (variance + (u[a] - pull[active]) ** 2))
            for i in range(a):
                covariance = sum(inverse[c][a] * inverse[c][i] for c in range(a, k))
                number = active - size.active[:, i] - 1 + size.active[:, i] * (2 * Hprime - size.active[:, i] - 1) // 2
                pairs += _indicator(number, len(pairs), weights.dtype) @ (weight * (covariance + u[a] * u[i]))
    return sums[0].T, sums[1].T, sums[2].T, pairs.T


def _invert(level: Factors) -> list[list[np.ndarray]]:
    """The rows of the inverse of every state's Cholesky factor."""
    inverse: list[list[np.ndarray]] = []
    for a, root in enumerate(level.roots):
        row = [-root * sum(level.rows[a][c] * inverse[c][i] for c in range(i, a)) for i in range(a)]
        inverse.append([*row, root])
    return inverse


def _indicator(numbers: np.ndarray, size: int, dtype: np.dtype) -> np.ndarray:
    """(size, S): 1 where a state's number says so; a product with it adds up the states of equal number."""
    return (np.arange(size)[:, None] == numbers).astype(dtype)
