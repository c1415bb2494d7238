"""The truncated posterior of binary linear models: ‖y − Ws‖² by the Gram matrix, D out of the inner loop."""

from math import comb
from typing import Any

import numpy as np

TILE_ELEMENTS = 1 << 18  # energies held at once: N × |K_n| is never formed


def gram_posterior(
    N: int,
    b: np.ndarray,
    gram: np.ndarray,
    slope: np.ndarray,
    offset: np.ndarray,
    candidates: np.ndarray,
    beta: float,
    shift: float,
    log_evidence: np.ndarray,
    pairs: np.ndarray,
    *,
    states: Any,
) -> None:
    """Weigh every state of K_n and take the posterior's first and second moments.

    E_1(s) = Σ_i (slope_i b_i + offset_i) − Σ_{i<j} gram_ij over the active latents, 0 for s = 0;
    the annealed energy is E_T(s) = beta E_1(s) + shift |s|, and q ∝ exp(E_T).

    Parameters
    ----------
    b : (N, H) array
        In: Wᵀy. Out: ⟨s⟩ under q.
    gram : (H, H) array
        WᵀW / σ².
    slope, offset : (H,) arrays
    candidates : (N, H') int32 array, ascending
    beta, shift : float
        beta = 1, shift = 0: not annealed.
    log_evidence : (N,) array, out
        log Σ_{s ∈ K_n} exp E_1(s).
    pairs : (N, H'(H'−1)/2) array, out
        ⟨s_i s_j⟩ under q for the pairs i < j of candidates, lexicographic.
    states : gem.states.StateTable
    """
    indicators = states.indicators(str(b.dtype))
    b *= slope
    b += offset
    tile = max(1, TILE_ELEMENTS // max(1, indicators.shape[1]))
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        _tile(b[part], gram, candidates[part], beta, shift, log_evidence[part], pairs[part], states, indicators)


def _tile(
    single: np.ndarray,
    gram: np.ndarray,
    candidates: np.ndarray,
    beta: float,
    shift: float,
    log_evidence: np.ndarray,
    pairs: np.ndarray,
    states: Any,
    indicators: np.ndarray,
) -> None:
    """One tile of data points; `single` holds the singletons' energies and becomes ⟨s⟩."""
    Hprime = candidates.shape[1]
    i, j = states.pairs
    features = np.empty((len(single), len(indicators)), dtype=single.dtype)
    features[:, :Hprime] = np.take_along_axis(single, candidates, axis=1)
    np.negative(gram[candidates[:, i], candidates[:, j]], out=features[:, Hprime:])
    multi = features @ indicators

    log_evidence[:] = _weigh(single.copy(), multi.copy())[1] if (beta, shift) != (1, 0) else 0
    if (beta, shift) != (1, 0):
        single *= single.dtype.type(beta)
        single += single.dtype.type(shift)
        multi *= multi.dtype.type(beta)
        multi += multi.dtype.type(shift) * states.active.sum(axis=1, dtype=multi.dtype)
    total, log_total = _weigh(single, multi)
    if (beta, shift) == (1, 0):
        log_evidence[:] = log_total

    moments = multi @ indicators.T
    scale = 1 / total[:, None]
    single *= scale
    moments *= scale
    rows = np.arange(len(single))[:, None]
    single[rows, candidates] += moments[:, :Hprime]
    pairs[:] = moments[:, Hprime:]


def _weigh(single: np.ndarray, multi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies to unnormalised weights, in place; their sum and the log of the true sum (the zero state's is 0)."""
    top = np.maximum(single.max(axis=1), 0)
    if multi.shape[1]:
        np.maximum(top, multi.max(axis=1), out=top)
    for energies in (single, multi):
        np.subtract(energies, top[:, None], out=energies)
        np.exp(energies, out=energies)
    total = single.sum(axis=1) + multi.sum(axis=1) + np.exp(-top)
    return total, np.log(total) + top


def local_reals(HPRIME: int, GAMMA: int, **_: int) -> int:
    """Local memory a data point takes on a GPU: its states and the couplings of its candidates."""
    return sum(comb(HPRIME, g) for g in range(min(GAMMA, HPRIME) + 1)) + HPRIME * (HPRIME - 1) // 2
