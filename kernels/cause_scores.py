"""The score of maximal causes: how far each field by itself exceeds the data (Puertas et al., NIPS 2010)."""

import numpy as np

LANES = 32  # of a warp: see gem.h
TILE_ELEMENTS = 1 << 17


def cause_scores(
    N: int, Y: np.ndarray, observed: np.ndarray, W: np.ndarray, scores: np.ndarray, *, MISSING: int
) -> None:
    """scores = −Σ_d max(W[d, h], Y[n, d]), only over observed d if MISSING: −Σ_d max(W − Y, 0) less Σ_d Y.

    Parameters
    ----------
    Y, observed : (N, D) arrays
        `observed` is 0 or 1, if MISSING; any array otherwise.
    W : (D, H) array
    scores : (N, H) array, out
    """
    fields = np.ascontiguousarray(W.T)
    tile = max(1, TILE_ELEMENTS // len(W))
    larger = np.empty((min(N, tile), len(W)), Y.dtype)
    ones = np.full(len(W), -1, Y.dtype)
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        here = larger[: part.stop - start]
        for h, field in enumerate(fields):
            np.maximum(Y[part], field, out=here)
            scores[part, h] = -np.einsum("nd,nd->n", here, observed[part]) if MISSING else here @ ones
