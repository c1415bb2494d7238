"""Truncated state spaces as tables: which states K_n holds, and how each grows out of its parent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import lgamma

import numpy as np

from gem.errors import ConfigError

MAX_HPRIME = 32  # a state is the bit mask of an unsigned 32-bit integer
MAX_STATES = 1 << 22


@dataclass(frozen=True, eq=False)
class StateTable:
    """The multi-cause states over H' candidates: every subset with 2 to gamma members, by size, then lexicographic.

    A state is its parent (the same set without its last, highest member) and one more latent, so energies
    and maxima can be carried from parent to child. Singletons and the empty state are not in the table.

    Attributes
    ----------
    Hprime, gamma : int
    active : (S, Hprime) bool array
        Which candidates are on.
    masks : (S,) uint32 array
        The same as bits, candidate i at bit i.
    parent : (S,) int32 array
        Row of the parent state, or −1 − i where the parent is the singleton of candidate i.
    last : (S,) int32 array
        The highest active candidate.
    """

    Hprime: int
    gamma: int
    active: np.ndarray
    masks: np.ndarray
    parent: np.ndarray
    last: np.ndarray

    @property
    def S(self) -> int:
        """Number of states in the table."""
        return len(self.masks)

    def indicators(self, dtype: str) -> np.ndarray:
        """The (H' + H'(H'−1)/2, S) matrix telling which candidates, and which pairs i < j, are on in a state."""
        return _indicators(self, dtype)

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Index arrays (i, j) of the pairs i < j of candidates, lexicographic."""
        return np.triu_indices(self.Hprime, 1)


@lru_cache(maxsize=32)
def state_table(Hprime: int, gamma: int) -> StateTable:
    """Tabulate the states with 2 to `gamma` of `Hprime` candidates active.

    Raises
    ------
    ConfigError
        If gamma > H', H' > 32, or the table would hold more than 2²² states.
    """
    if not 1 <= gamma <= Hprime:
        raise ConfigError(f"gamma = {gamma} must lie between 1 and H' = {Hprime}: at most H' latents can be active")
    if Hprime > MAX_HPRIME:
        raise ConfigError(f"H' = {Hprime} is more than {MAX_HPRIME}: choose fewer candidates per data point")
    sizes = [round(np.exp(log_binomial(Hprime, g))) for g in range(2, gamma + 1)]
    if sum(sizes) > MAX_STATES:
        raise ConfigError(
            f"H' = {Hprime}, gamma = {gamma} give {sum(sizes):,} states per data point: lower one of them"
        )
    sets = [c for g in range(2, gamma + 1) for c in combinations(range(Hprime), g)]
    index = {c: n for n, c in enumerate(sets)} | {(i,): -1 - i for i in range(Hprime)}
    active = np.zeros((len(sets), Hprime), dtype=bool)
    for n, c in enumerate(sets):
        active[n, list(c)] = True
    bits = np.left_shift(np.uint64(1), np.arange(Hprime, dtype=np.uint64))
    table = StateTable(
        Hprime=Hprime,
        gamma=gamma,
        active=active,
        masks=(active @ bits if sets else np.zeros(0)).astype(np.uint32),
        parent=np.array([index[c[:-1]] for c in sets], dtype=np.int32),
        last=np.array([c[-1] for c in sets], dtype=np.int32),
    )
    for array in (table.active, table.masks, table.parent, table.last):
        array.setflags(write=False)
    return table


@lru_cache(maxsize=4)
def _indicators(table: StateTable, dtype: str) -> np.ndarray:
    i, j = table.pairs
    both = table.active[:, i] & table.active[:, j]
    return np.ascontiguousarray(np.concatenate([table.active, both], axis=1).T.astype(dtype))


def log_binomial(n: int, k: int) -> float:
    """Logarithm of the binomial coefficient C(n, k)."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
