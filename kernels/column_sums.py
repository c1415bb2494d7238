"""Weighted sums over the data points, of each latent."""

import numpy as np

BLOCK = 1024  # rows that are summed in their own type


def column_sums(N: int, X: np.ndarray, weights: np.ndarray, sums: np.ndarray) -> None:
    """Σ_n weights[n] X[n, h], in parts.

    Parameters
    ----------
    X : (N, H) array
    weights : (N,) array
    sums : (1, H) float64 array, out
        A row for each group that takes part, here one.
    """
    sums[0] = 0
    for start in range(0, N, BLOCK):
        sums[0] += weights[start : start + BLOCK] @ X[start : start + BLOCK]


def walks(cpu: bool, H: int, **_: int) -> int:
    """The sums of a group."""
    return H
