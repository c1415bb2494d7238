"""Bᵀ A for a B that is mostly 0: the data weighted by posterior means, where most of these are."""

import numpy as np


def sparse_product(N: int, A: np.ndarray, B: np.ndarray, sums: np.ndarray) -> None:
    """Bᵀ A, in parts.

    Parameters
    ----------
    A : (N, D) array
    B : (N, H) array
    sums : (1, H, D) array, out
        A part for each group that takes part, here one.
    """
    np.matmul(B.T, A, out=sums[0])


def walks(cpu: bool, D: int, H: int, **_: int) -> int:
    """The sums of a group."""
    return H * D
