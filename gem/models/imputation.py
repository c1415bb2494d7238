"""Missing entries as latents: what their expectations add to the sums of a model that is linear in its latents."""

from __future__ import annotations

import numpy as np

from gem.kernels.impute import impute as impute_pairs
from gem.models.base import points
from gem.statistics import Layout, Statistics


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
    others = np.zeros((1, H, D))  # from what a latent is on with
    missing = observed.astype(np.float64)
    keep = np.ones(len(missing)) if weights is None else np.asarray(weights, dtype=np.float64)
    impute_pairs(len(missing), missing, np.ascontiguousarray(W.T, dtype=np.float64), candidates, pairs, keep, others)
    ys = W * (missing.T @ squares) + others[0].T
    return ys, float(sigma2 * missing.sum() + np.sum(W * ys))


def sums_of_gaps(D: int, H: int) -> Layout:
    """What the E-step leaves to `completed`: how many entries were observed, and sums over the others.

    `own` is Σ_n (1 − m_nd) ⟨s_h²⟩, and `others` Σ_n (1 − m_nd) Σ_k ⟨s_h s_k⟩ W_dk over the pairs of candidates.
    """
    return {"observed": (), "own": (D, H), "others": (H, D)}


def completed(sums: Statistics, W: np.ndarray, sigma2: float, scale: float | np.ndarray = 1.0) -> dict[str, np.ndarray]:
    """Σ y⟨s⟩ᵀ and Σ‖y‖² of all entries, from those of the observed ones, as in `impute`.

    Parameters
    ----------
    sums : Statistics
        With `sums_of_gaps`.
    W : (D, H) array
    sigma2 : float
    scale : float, or (H,) array
        Of a latent, where `others` is in other units.
    """
    ys = W * sums["own"] + sums["others"].T * scale
    yy = sigma2 * (points(sums) * len(W) - sums["observed"]) + np.sum(W * ys)
    return {"ys": sums["ys"] + ys, "yy": sums["yy"] + yy}
