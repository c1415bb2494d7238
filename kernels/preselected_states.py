"""The states of preselected latents, written out."""

import numpy as np

from gem.kernels.bits import packed


def preselected_states(N: int, candidates: np.ndarray, masks: np.ndarray, sets: np.ndarray, *, H: int) -> None:
    """In state m of a data point those candidates are on whose bits are in masks[m].

    Parameters
    ----------
    candidates : (N, H') int32 array
    masks : (M,) uint32 array
    sets : (N, M, W) uint32 array, out
    """
    bits = masks[:, None] >> np.arange(candidates.shape[1], dtype=np.uint32) & 1
    active = np.zeros((N, len(masks), H), np.uint8)
    active[np.arange(N)[:, None, None], np.arange(len(masks))[:, None], candidates[:, None]] = bits
    sets[...] = packed(active)


def tile(**_: int) -> int:
    """A group of a GPU takes one data point."""
    return 1
