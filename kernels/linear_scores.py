"""Scores of linear models' latents where entries are missing: what a field explains of what was observed."""

import numpy as np


def linear_scores(
    N: int,
    b: np.ndarray,
    norms: np.ndarray,
    slope: np.ndarray,
    offset: np.ndarray,
    values: np.ndarray,
    scores: np.ndarray,
    *,
    COSINE: int,
) -> None:
    """The score of each latent, for `preselect`: of the latent by itself, its log joint, or if COSINE the cosine.

    Parameters
    ----------
    b, norms : (N, H) arrays
        Wᵀy and ‖W_h‖² / σ², over what was observed of each data point.
    slope : (H,) array
    offset : (V, H) array
    values : (V,) array
        As in `gram_posterior`.
    scores : (N, H) array, out
        max_v v (slope_h b_h − v norms_h / 2) + offset[v, h]; b_h / √norms_h, or 0 where that is 0, if COSINE.
    """
    if COSINE:
        scores[...] = 0
        np.divide(b, np.sqrt(norms), out=scores, where=norms > 0)
        return
    scores[...] = -np.inf
    for v, line in zip(values, offset, strict=True):
        np.fmax(scores, v * (slope * b - v / 2 * norms) + line, out=scores)
