"""Preselection: the H' latents with the highest score for each data point (Lücke & Eggert, JMLR 11, 2010)."""

import numpy as np


def preselect(N: int, b: np.ndarray, slope: np.ndarray, offset: np.ndarray, candidates: np.ndarray) -> None:
    """The best H' columns by score max_v slope[v, h] b[n, h] + offset[v, h], ascending; of equals the higher index.

    Parameters
    ----------
    b : (N, H) array
    slope, offset : (V, H) arrays
    candidates : (N, H') int32 array, out
    """
    H, Hprime = b.shape[1], candidates.shape[1]
    score = np.empty_like(b)
    backwards = score[:, ::-1]  # argmax takes the first of equals: reversed, that is the higher index
    np.multiply(b, slope[0], out=backwards)
    backwards += offset[0]
    for v in range(1, len(slope)):
        np.maximum(backwards, b * slope[v] + offset[v], out=backwards)
    if not np.isfinite(score.min()):  # −inf is to mark what was taken; NaN counts as −inf
        np.fmax(score, np.finfo(score.dtype).min, out=score)
    rows = np.arange(N)
    for k in range(Hprime):  # H' passes of a vectorised argmax beat a partition for the H' in use
        best = score.argmax(axis=1)
        candidates[:, k] = best
        score[rows, best] = -np.inf
    np.subtract(H - 1, candidates, out=candidates)
    candidates.sort(axis=1)


def tile(**_: int) -> int:
    """A data point for each work-item of a group."""
    return 128
