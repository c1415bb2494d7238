"""Second moments of pairs of candidates, scattered into the H × H matrix of all latents."""

import numpy as np

POINTS = 128  # of a group on GPUs, one for each work-item


def pair_sums(
    N: int, candidates: np.ndarray, pairs: np.ndarray, weights: np.ndarray, scale: float, sums: np.ndarray
) -> None:
    """sums[c_i, c_j] += 2⁴⁰ scale Σ_n weights[n] pairs[n, ij] for the pairs i < j: the upper triangle, as integers.

    Integers, because their sum does not depend on the order in which the groups of a device come to add. Σ_n of
    |scale weights[n] pairs[n, ij]| must stay below 2²³.

    Parameters
    ----------
    candidates : (N, H') int32 array, ascending
    pairs : (N, H'(H'−1)/2) array
    weights : (N,) array
    scale : float
    sums : (H, H) int64 array, in and out
    """
    H = len(sums)
    i, j = np.triu_indices(candidates.shape[1], 1)
    where = candidates[:, i] * np.int64(H) + candidates[:, j]
    values = pairs * weights[:, None]
    total = np.bincount(where.ravel(), values.ravel(), H * H).reshape(H, H)
    sums += np.rint(total * (scale * 2.0**40)).astype(np.int64)


def walks(cpu: bool, **_: int) -> int:
    """On a CPU device every group reads all data points and owns some rows of the sums."""
    return int(cpu)


def tile(**_: int) -> int:
    """On GPUs: few pairs leave no work to share."""
    return POINTS
