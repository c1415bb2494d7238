"""Where only the largest of the active causes is seen: what each state then sums up to, without taking it by itself.

Cause i is seen at d if it is on and all that are larger there are off. What is seen of it depends on the set of these
alone, and sums over sets of candidates take H' − 1 additions of tables, whatever γ, and lose no digits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

MAX_HPRIME = 12  # beyond, the tables outgrow what they save
TABLE_ELEMENTS = 1 << 20  # of one table


def pays(states: Any, D: int) -> bool:
    """Whether `seen` is faster than to combine the causes of each state: additions to its tables, or passes over D."""
    return bool(states.Hprime * (states.Hprime - 1) << states.Hprime >> 2 < 2 * states.S * D)


def larger(sizes: list[np.ndarray]) -> list[np.ndarray]:
    """For each candidate the set of those that come before it where sizes fall, the first of equals first.

    Parameters
    ----------
    sizes : list of H' arrays (n, D)

    Returns
    -------
    list of H' arrays (n, D), uint16
        A set of the others is a number of H' − 1 bits, that of the candidate itself left out.
    """
    masks = [np.full(size.shape, (1 << len(sizes)) - (2 << i), np.uint16) for i, size in enumerate(sizes)]
    for j, size in enumerate(sizes):
        for i in range(j):
            first = (sizes[i] >= size).view(np.uint8)
            masks[j] += np.multiply(first, 1 << i, dtype=np.uint16)
            masks[i] -= np.multiply(first, 1 << j, dtype=np.uint16)
    return [((mask >> (i + 1)) << i) | (mask & ((1 << i) - 1)) for i, mask in enumerate(masks)]


class Winners:
    """The weights of states, by set of candidates.

    Parameters
    ----------
    weights : (n, S) array
    states : gem.states.StateTable
    """

    def __init__(self, weights: np.ndarray, states: Any):
        self.Hprime = states.Hprime
        self._table = np.zeros((1 << states.Hprime, len(weights)), weights.dtype)  # n last: long additions
        self._table[states.masks] = weights.T

    def won(self, i: int, points: np.ndarray, before: np.ndarray) -> np.ndarray:
        """The weight of the states in which candidate i is the one seen, (points, D), from what `larger` gives."""
        with_i = self._table.reshape(-1, 2, 1 << i, self._table.shape[1])[:, 1, :, points]  # the points come first
        sums = _subset_sums(np.ascontiguousarray(with_i.reshape(len(points), -1).T))  # by the set of the others
        others = before ^ ((1 << (self.Hprime - 1)) - 1)
        return np.take(sums.ravel(), others * np.int64(len(points)) + np.arange(len(points))[:, None])


def seen(terms: Iterable[np.ndarray], states: Any, before: list[np.ndarray]) -> np.ndarray:
    """For each state the sum over d of the term of the candidate that is seen there, (n, S) float64.

    Parameters
    ----------
    terms : H' arrays (n, D)
        Of each candidate, where it is seen.
    states : gem.states.StateTable
    before : list of H' arrays (n, D)
        What `larger` gives.
    """
    n, Hprime = len(before[0]), states.Hprime
    table = np.zeros((1 << Hprime, n))
    size = 1 << (Hprime - 1)
    for i, (term, others) in enumerate(zip(terms, before, strict=True)):
        where = others * np.int64(n) + np.arange(n)[:, None]
        by_set = np.bincount(where.ravel(), term.ravel(), size * n).reshape(size, n)
        with_i = table.reshape(-1, 2, 1 << i, n)[:, 1]
        with_i += _subset_sums(by_set)[::-1].reshape(with_i.shape)  # none of the larger ones is on
    return table[states.masks].T


def _subset_sums(table: np.ndarray) -> np.ndarray:
    """At each set the sum over its subsets, in place: (2^k, n), the members of a set are the bits of its number."""
    for bit in range(len(table).bit_length() - 1):
        halves = table.reshape(-1, 2, (1 << bit) * table.shape[1])
        halves[:, 1] += halves[:, 0]
    return table
