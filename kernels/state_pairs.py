"""Second moments of explicit states, scattered into the H × H matrix of all latents."""

import numpy as np

from gem.kernels.bits import listed


def state_pairs(
    N: int, sets: np.ndarray, weights: np.ndarray, counts: np.ndarray, scale: float, sums: np.ndarray
) -> None:
    """sums[i, j] += 2⁴⁰ scale Σ_n counts[n] Σ_s weights[n, s] s_i s_j for i < j, as integers: see `pair_sums`.

    Parameters
    ----------
    sets : (N, S, W) uint32 array
    weights : (N, S) array
    counts : (N,) array
    scale : float
    sums : (H, H) int64 array, in and out
        Its upper triangle.
    """
    H = len(sums)
    row, state = np.nonzero(weights)
    each = weights[row, state] * counts[row]
    active = listed(sets[row, state], H)
    where, what = [], []
    for j in range(1, active.shape[-1]):
        some = np.flatnonzero(active[:, j] < H)
        where.append((active[some, :j] * H + active[some, j, None]).ravel())
        what.append(np.repeat(each[some], j))
    if where:
        total = np.bincount(np.concatenate(where), np.concatenate(what), H * H).reshape(H, H)
        sums += np.rint(total * (scale * 2.0**40)).astype(np.int64)


def walks(cpu: bool, **_: int) -> int:
    """On a CPU device every group reads all data points and owns some rows of the sums."""
    return int(cpu)


def tile(**_: int) -> int:
    """A group of a GPU takes one data point."""
    return 1
