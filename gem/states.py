"""Truncated state spaces as tables: which states K_n holds, and how each grows out of its parent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb, lgamma

import numpy as np

from gem.errors import ConfigError

MAX_HPRIME = 32  # a state is the bit mask of an unsigned 32-bit integer
MAX_BYTES = (
    1 << 29
)  # of the matrix that the numpy kernels make of a table, in float64; while it is made, four times that


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
        If gamma > H', H' > 32, or the states are so many that their tables would not fit `MAX_BYTES`.
    """
    if not 1 <= gamma <= Hprime:
        raise ConfigError(f"gamma = {gamma} must lie between 1 and H' = {Hprime}: at most H' latents can be active")
    if Hprime > MAX_HPRIME:
        raise ConfigError(f"H' = {Hprime} is more than {MAX_HPRIME}: choose fewer candidates per data point")
    S = sum(comb(Hprime, g) for g in range(2, gamma + 1))
    size = 8 * S * (Hprime + comb(Hprime, 2))
    if size > MAX_BYTES:
        raise ConfigError(
            f"H' = {Hprime}, gamma = {gamma} give {S:,} states per data point, whose tables take {size / 1e9:,.1f} GB; "
            f"the limit is {MAX_BYTES / 1e9:.1f} GB: lower gamma or H'"
        )
    masks, parent, last = _grown(Hprime, gamma)
    active = masks[:, None] >> np.arange(Hprime, dtype=np.uint32) & np.uint32(1) == 1
    table = StateTable(Hprime=Hprime, gamma=gamma, active=active, masks=masks, parent=parent, last=last)
    for array in (table.active, table.masks, table.parent, table.last):
        array.setflags(write=False)
    return table


def _grown(Hprime: int, gamma: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks, parents and last members, size after size: a state has a child for every candidate above its last one."""
    last = np.arange(Hprime, dtype=np.int32)
    masks, rows = np.left_shift(np.uint32(1), last.astype(np.uint32)), -1 - last
    levels, total = [], 0
    for _ in range(2, gamma + 1):
        children = Hprime - 1 - last
        of = np.repeat(np.arange(len(last)), children)
        begins = np.cumsum(children) - children
        parent = rows[of]
        last = (last[of] + 1 + np.arange(len(of)) - begins[of]).astype(np.int32)
        masks = masks[of] | np.left_shift(np.uint32(1), last.astype(np.uint32))
        rows = np.arange(total, total + len(of), dtype=np.int32)
        levels.append((masks, parent, last))
        total += len(of)
    empty = (np.zeros(0, np.uint32), np.zeros(0, np.int32), np.zeros(0, np.int32))
    whole = [np.concatenate(arrays) for arrays in zip(*levels, strict=True)] or list(empty)
    return whole[0], whole[1], whole[2]


@lru_cache(maxsize=4)
def _indicators(table: StateTable, dtype: str) -> np.ndarray:
    i, j = table.pairs
    both = table.active[:, i] & table.active[:, j]
    return np.ascontiguousarray(np.concatenate([table.active, both], axis=1).T.astype(dtype))


def log_binomial(n: int, k: int) -> float:
    """Logarithm of the binomial coefficient C(n, k)."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
