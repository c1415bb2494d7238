"""The energies of explicit states of a discrete linear model: ‖y − Ws‖² by the Gram matrix."""

import numpy as np

from gem.kernels.bits import listed

TILE_BITS = 1 << 22  # looked at once


def linear_energies(
    N: int,
    b: np.ndarray,
    gram: np.ndarray,
    slope: np.ndarray,
    offset: np.ndarray,
    sets: np.ndarray,
    energies: np.ndarray,
) -> None:
    """E_1(s) = Σ_i (slope_i b_i + offset_i) − Σ_{i<j} gram_ij over the active latents: 0 for s = 0.

    Parameters
    ----------
    b : (N, H) array
        Wᵀy
    gram : (H, H) array
        WᵀW / σ²
    slope, offset : (H,) arrays
    sets : (N, M, W) uint32 array
        Words of 32 latents each: see `gem.kernels.bits`.
    energies : (N, M) array, out
    """
    H = len(slope)
    padded = np.zeros((H + 1, H + 1), gram.dtype)
    padded[:H, :H] = gram
    tile = max(1, TILE_BITS // (sets.shape[1] * H))
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        line = np.zeros((part.stop - start, H + 1), b.dtype)
        line[:, :H] = b[part] * slope + offset
        active = listed(sets[part], H)
        energy = np.take_along_axis(line, active.reshape(len(line), -1), axis=1).reshape(active.shape).sum(axis=-1)
        flat, out = active.reshape(-1, active.shape[-1]), energy.reshape(-1)
        for i in range(1, active.shape[-1]):
            some = np.flatnonzero(flat[:, i] < H)
            out[some] -= padded[flat[some, i, None], flat[some, :i]].sum(axis=-1)
        energies[part] = energy


def tile(**_: int) -> int:
    """A group of a GPU takes one data point, a state in each work-item."""
    return 1
