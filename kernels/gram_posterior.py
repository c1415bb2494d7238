"""The truncated posterior of discrete linear models: ‖y − Ws‖² by the Gram matrix, D out of the inner loop."""

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from gem.kernels.weights import settled_exp

LANES = 32  # on a GPU
TILE_ELEMENTS = 1 << 18  # energies held at once: N × |K_n| is never formed


def gram_posterior(
    N: int,
    b: np.ndarray,
    gram: np.ndarray,
    norms: np.ndarray,
    slope: np.ndarray,
    offset: np.ndarray,
    values: np.ndarray,
    candidates: np.ndarray,
    beta: float,
    shift: np.ndarray,
    log_evidence: np.ndarray,
    pairs: np.ndarray,
    squares: np.ndarray,
    counts: np.ndarray,
    full: np.ndarray,
    *,
    states: Any,
    MASKED: int = 0,
) -> None:
    """Weigh every state of K_n and take the posterior's first and second moments.

    E_1(s) = Σ_i (s_i slope_i b_i + offset_i(s_i)) − Σ_{i<j} s_i s_j gram_ij over the active latents, 0 for s = 0;
    the annealed energy is E_T(s) = beta E_1(s) + Σ_i shift(s_i), and q ∝ exp(E_T).

    Parameters
    ----------
    b : (N, H) array
        In: Wᵀy. Out: ⟨s⟩ under q.
    gram : (H, H) array
        WᵀW / σ². If MASKED, (N, H'(H'−1)/2): that of each data point's candidates i < j, over what was observed.
    norms : (N, H) array, used if MASKED
        ‖W_h‖² / σ² over what was observed: s_h² norms_h / 2 is taken off E_1(s), not yet in `offset`.
    slope : (H,) array
    offset : (V, H) array
        For each value that a latent takes when it is not 0.
    values : (V,) array
    candidates : (N, H') int32 array, ascending
    beta : float
    shift : (V,) array
        beta = 1, shift = 0: not annealed.
    log_evidence : (N,) array, out
        log Σ_{s ∈ K_n} exp E_1(s).
    pairs : (N, H'(H'−1)/2) array, out
        ⟨s_i s_j⟩ under q for the pairs i < j of candidates, lexicographic.
    squares : (N, H) array, out, used if V > 1
        ⟨s_h²⟩.
    counts : (N, V) array, out, used if V > 1
        The mean number of latents at each value.
    full : (N,) array, out
        1 where γ latents are active in the state of the largest E_1, else 0.
    states : gem.states.StateTable
    """
    V = len(values)
    weigher = _Weigher(states, tuple(values.tolist()), beta, shift, b.dtype)
    tile = max(1, TILE_ELEMENTS // max(1, weigher.features.shape[1], V * b.shape[1]))
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        single = b[part, None] * (values[:, None] * slope) + offset
        if MASKED:
            single -= values[:, None] ** 2 / 2 * norms[part, None]
            coupling = gram[part]
        else:
            coupling = gram[candidates[part][:, weigher.i], candidates[part][:, weigher.j]]
        log_evidence[part], pairs[part], full[part] = weigher(single, coupling, candidates[part])
        b[part] = np.einsum("nvh,v->nh", single, values) if V > 1 else values[0] * single[:, 0]
        if V > 1:
            squares[part] = np.einsum("nvh,v->nh", single, values**2)
            counts[part] = single.sum(axis=2)


class _Weigher:
    """The states of several candidates, and what weighs them."""

    def __init__(self, states: Any, values: tuple[float, ...], beta: float, shift: np.ndarray, dtype: np.dtype):
        self.i, self.j = states.pairs
        self.features, numbers = _choices(states, values, str(dtype))
        self.beta, self.shift = dtype.type(beta), shift
        self.shifts = shift @ numbers
        self.annealed = beta != 1 or bool(shift.any())
        self.largest = (
            int(np.argmax(numbers.sum(axis=0) == states.gamma)) if states.gamma > 1 else None
        )  # of γ: the last

    def __call__(
        self, single: np.ndarray, coupling: np.ndarray, candidates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log evidence, pairs, and whether the most probable state has γ latents on.

        `single` (n, V, H) holds the singletons' energies and becomes their probabilities.
        """
        n, V, _ = single.shape
        chosen = np.broadcast_to(candidates[:, None], (n, V, candidates.shape[1]))
        mine = np.take_along_axis(single, chosen, axis=2)
        multi = np.concatenate([mine.reshape(n, -1), -coupling], axis=1) @ self.features
        most = None if self.largest is None else multi[:, self.largest :].max(axis=1)
        if self.annealed:
            _, evidence, peak = _weigh(single.copy(), multi.copy())
            single *= self.beta
            single += self.shift[:, None]
            multi *= self.beta
            multi += self.shifts
        total, log_total, top = _weigh(single, multi)
        if not self.annealed:
            evidence, peak = log_total, top
        moments = multi @ self.features.T
        scale = 1 / total[:, None]
        single *= scale[:, None]
        moments *= scale
        alone = mine[0].size
        mine = np.take_along_axis(single, chosen, axis=2) + moments[:, :alone].reshape(mine.shape)
        np.put_along_axis(single, chosen, mine, axis=2)
        return evidence, moments[:, alone:], peak > 0 if most is None else most >= peak


@lru_cache(maxsize=8)
def _choices(states: Any, values: tuple[float, ...], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Every active set with every choice of values: what its energy is a sum of, and how many latents have a value.

    Returns
    -------
    (V H' + H'(H'−1)/2, S) array
        1 where candidate i is at value v, row after row of values; below, s_i s_j of the pairs i < j.
    (V, S) array
    """
    at = [np.array(list(product(range(len(values)), repeat=g)), dtype=int) for g in range(states.gamma + 1)]
    rows = []
    for active in states.active:
        choices = at[active.sum()]
        row = np.full((len(choices), states.Hprime), -1)
        row[:, active] = choices
        rows.append(row)
    number = np.concatenate([*rows, np.empty((0, states.Hprime), int)])  # of the value, −1 where it is 0
    on = np.array([number == v for v in range(len(values))])
    s = np.append(values, 0.0)[number]
    i, j = states.pairs
    features = np.concatenate([*on.swapaxes(1, 2), (s[:, i] * s[:, j]).T])
    return np.ascontiguousarray(features, dtype=dtype), on.sum(axis=2).astype(dtype)


def _weigh(single: np.ndarray, multi: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies to unnormalised weights, in place; their sum, the log of the true sum, and the largest energy, or 0.

    The zero state's energy is 0.
    """
    top = np.maximum(single.max(axis=(1, 2)), 0)
    if multi.shape[1]:
        np.maximum(top, multi.max(axis=1), out=top)
    for energies in (single.reshape(len(single), -1), multi):
        np.subtract(energies, top[:, None], out=energies)
        settled_exp(energies)
    total = single.sum(axis=(1, 2)) + multi.sum(axis=1) + np.exp(-top)
    return total, np.log(total) + top, top
