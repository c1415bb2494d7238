"""Where of the active causes the largest alone is seen: the weight of the states in which each of them is the one.

Cause i is seen at d if it is on and all that are larger there are off. So its weight is a sum over the subsets of a
set of candidates; such sums over all 2^(H'−1) sets take H' − 1 additions of tables, whatever γ, and lose no digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

MAX_HPRIME = 12  # beyond, the tables outgrow what they save


def won(weights: np.ndarray, states: Any, sizes: list[np.ndarray]) -> Iterator[np.ndarray]:
    """For each candidate the weight of the states in which it is the largest, (n, D); of equals the first one is.

    Parameters
    ----------
    weights : (n, S) array
    states : gem.states.StateTable
    sizes : list of H' arrays (n, D)
    """
    n, Hprime = len(weights), states.Hprime
    table = np.zeros((n, 1 << Hprime), weights.dtype)
    table[:, states.masks] = weights
    first = (np.arange(n) << (Hprime - 1))[:, None]
    for i, larger in enumerate(_larger(sizes)):
        with_i = table.reshape(n, -1, 2, 1 << i)[:, :, 1].copy().reshape(n, -1)  # by the set of the others
        others = ~larger & ((1 << Hprime) - 1)
        others = ((others >> (i + 1)) << i) | (others & ((1 << i) - 1))  # the set's number without its bit i
        yield np.take(_subset_sums(with_i).ravel(), others + first)


def _subset_sums(table: np.ndarray) -> np.ndarray:
    """At each set the sum over its subsets, in place: (n, 2^k), the members of a set are the bits of its number."""
    for bit in range(table.shape[1].bit_length() - 1):
        halves = table.reshape(len(table), -1, 2, 1 << bit)
        halves[:, :, 1] += halves[:, :, 0]
    return table


def _larger(sizes: list[np.ndarray]) -> list[np.ndarray]:
    """For each candidate the bits of those that come before it where sizes fall, the first of equals first."""
    masks = [np.full(size.shape, (1 << len(sizes)) - (2 << i), np.uint16) for i, size in enumerate(sizes)]
    for j, size in enumerate(sizes):
        for i in range(j):
            first = (sizes[i] >= size).view(np.uint8)
            masks[j] += np.multiply(first, 1 << i, dtype=np.uint16)
            masks[i] -= np.multiply(first, 1 << j, dtype=np.uint16)
    return masks
