"""The single-cause log joint of spike-and-slab latents, integrated over their strengths."""

import numpy as np

LANES = 32  # latents, and points one after the other


def spike_slab_scores(N: int, b: np.ndarray, norms: np.ndarray, latents: np.ndarray, scores: np.ndarray) -> None:
    """scores = offset + ½ ((b + pull)² / (1 + norms) − log(1 + norms)); units as in `spike_slab`.

    Parameters
    ----------
    b : (N, H) array
    norms : (H,) array, or (N, H) where entries of the data are missing
    latents : (4, H) array
        Its first rows are pull and offset.
    scores : (N, H) array, out
    """
    pull, offset = latents[:2]
    pivot = 1 + norms
    np.add(b, pull, out=scores)
    scores *= scores
    scores *= 0.5 / pivot
    scores += offset - 0.5 * np.log(pivot)
