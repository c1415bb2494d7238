"""Couplings of candidates where entries are missing: every data point has a Gram matrix of its own."""

import numpy as np

TILE_ELEMENTS = 1 << 18  # fields gathered at once: N × H' × D is never formed
PIECE = 32  # entries that a GPU holds in local memory at a time: masked_gram.c


def masked_gram(
    N: int, observed: np.ndarray, fields: np.ndarray, candidates: np.ndarray, couplings: np.ndarray
) -> None:
    """couplings[n, ij] = Σ_d observed[n, d] fields[c_i, d] fields[c_j, d] for the pairs i < j of candidates.

    Parameters
    ----------
    observed : (N, D) array of 0 and 1
    fields : (H, D) array
        Wᵀ; W/σ gives couplings in units of the noise.
    candidates : (N, H') int32 array
    couplings : (N, H'(H'−1)/2) array, out
        Lexicographic.
    """
    Hprime = candidates.shape[1]
    i, j = np.triu_indices(Hprime, 1)
    tile = max(1, TILE_ELEMENTS // (Hprime * fields.shape[1]))
    for start in range(0, N, tile):
        part = slice(start, start + tile)
        chosen = fields[candidates[part]]
        gram = (chosen * observed[part, None, :]) @ chosen.swapaxes(1, 2)
        couplings[part] = gram[:, i, j]


def local_reals(HPRIME: int, **_: int) -> int:
    """Local memory a data point takes on a GPU: a piece of its candidates' fields."""
    return HPRIME * (PIECE + 1)
