"""Missing entries as latents: what their expectations add to the sums of a model that is linear in its latents."""

from __future__ import annotations

import numpy as np

TILE_ELEMENTS = 1 << 20  # of points × candidates × D that are held at once


def impute(
    W: np.ndarray,
    sigma2: float,
    observed: np.ndarray,
    squares: np.ndarray,
    candidates: np.ndarray,
    pairs: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Expectations of the missing entries, E[y_d s] = W_d⟨ssᵀ⟩ and E[y_d²] = σ² + W_d⟨ssᵀ⟩W_dᵀ, summed over the data.

    With m_nd = 1 where y_nd was observed, added to the sums of what was observed they make EM's exact M-step
    (docs/math.md, missing values). In float64, whatever the arguments are.

    Parameters
    ----------
    W : (D, H) array
    sigma2 : float
        σ², the variance of the noise.
    observed : (N, D) array of 0 and 1
    squares : (N, H) array
        ⟨s_h²⟩; of models with strengths, ⟨(s∘z)_h²⟩, and likewise below.
    candidates : (N, H') int array
    pairs : (N, H'(H'−1)/2) array
        ⟨s_i s_j⟩ of the candidates i < j, lexicographic; those of all other pairs are 0.
    weights : (N,) array, optional
        Of the data points (default: 1).

    Returns
    -------
    ys : (D, H) float64 array
        Σ_n (1 − m_nd) E[y_nd s_h].
    yy : float
        Σ_n Σ_d (1 − m_nd) E[y_nd²].
    """
    D, H = W.shape
    Hprime = candidates.shape[1]
    fields = np.ascontiguousarray(W.T, dtype=np.float64)
    concerned = np.flatnonzero(~observed.all(axis=1) & (True if weights is None else weights != 0))
    own, others = np.zeros((D, H)), np.zeros((H, D))  # from s_h itself, and from what it is on with
    total = 0.0
    i, j = np.triu_indices(Hprime, 1)
    tile = max(1, TILE_ELEMENTS // (Hprime * D))
    for start in range(0, len(concerned), tile):
        part = concerned[start : start + tile]
        missing = 1 - observed[part].astype(np.float64)
        if weights is not None:
            missing *= weights[part, None]
        total += missing.sum()
        own += missing.T @ squares[part].astype(np.float64)
        if len(i):
            second = np.zeros((len(part), Hprime, Hprime))
            second[:, i, j] = second[:, j, i] = pairs[part]
            expected = second @ fields[candidates[part]]
            expected *= missing[:, None, :]
            _add_rows(others, candidates[part].ravel(), expected.reshape(-1, D))
    ys = W * own + others.T
    return ys, float(sigma2 * total + np.sum(W * ys))


def _add_rows(out: np.ndarray, where: np.ndarray, rows: np.ndarray) -> None:
    """out[where[k]] += rows[k], of equal places all: sorted by place, a run at a time."""
    order = np.argsort(where, kind="stable")
    places, first = np.unique(where[order], return_index=True)
    out[places] += np.add.reduceat(rows[order], first, axis=0)
