"""The truncated posterior on explicit states, from their energies."""

import numpy as np

from gem.kernels.bits import listed, unpacked
from gem.kernels.weights import settled_exp


def weigh_states(
    N: int,
    sets: np.ndarray,
    energies: np.ndarray,
    beta: float,
    shift: float,
    log_evidence: np.ndarray,
    weights: np.ndarray,
    mean: np.ndarray,
) -> None:
    """Log evidence at T = 1, and the annealed posterior: q ∝ exp(beta E + shift |s|), and ⟨s⟩ under it.

    Parameters
    ----------
    sets : (N, S, W) uint32 array
    energies : (N, S) array
    beta, shift : float
        1 and 0: not annealed.
    log_evidence : (N,) array, out
        log Σ exp E
    weights : (N, S) array, out
        q
    mean : (N, H) array, out
    """
    H = mean.shape[1]
    top = energies.max(axis=1)
    relative = energies - top[:, None]
    settled_exp(relative)
    log_evidence[:] = top + np.log(relative.sum(axis=1))
    annealed = energies * energies.dtype.type(beta)
    if shift != 0:
        annealed += energies.dtype.type(shift) * unpacked(sets, H).sum(axis=-1)
    annealed -= annealed.max(axis=1)[:, None]
    settled_exp(annealed)
    weights[:] = annealed / annealed.sum(axis=1)[:, None]
    row, state = np.nonzero(weights)
    active = listed(sets[row, state], H)
    place = (row[:, None] * (H + 1) + active).ravel()
    each = np.broadcast_to(weights[row, state][:, None], active.shape).ravel()
    mean[:] = np.bincount(place, each, N * (H + 1)).reshape(N, H + 1)[:, :H]


def tile(**_: int) -> int:
    """A group of a GPU takes one data point."""
    return 1


def local_reals(COUNT: int, **_: int) -> int:
    """Numbers in local memory."""
    return 2 * COUNT
