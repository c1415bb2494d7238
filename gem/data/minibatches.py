"""Minibatches: the rows of a data set dealt out in blocks, by a seed: the number of ranks changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gem.data.source import Source
from gem.philox import generator

BLOCKS = 16  # of neighbouring rows in a minibatch, about, if it has so many: rows that lie together are often alike
LONGEST = 256  # rows of a block: enough to stream from a disk


@dataclass(frozen=True)
class Deal:
    """Which blocks of rows make each minibatch; the same on all ranks.

    Attributes
    ----------
    N : int
        Rows of all data.
    block : int
        Rows of a block; the last one may be shorter.
    blocks : list of int arrays
        The blocks of each minibatch, ascending.
    """

    N: int
    block: int
    blocks: list[np.ndarray]

    @classmethod
    def of(cls, N: int, size: int, seed: int) -> Deal:
        """Minibatches of about `size` rows, equally long but for a block; one that holds all rows has them in order.

        Each has a block from every part of the data, so that data in some order are in none here.
        """
        count = max(1, round(N / size))
        block = max(1, min(LONGEST, -(-N // (count * BLOCKS))))
        total = -(-N // block)
        count, rng = min(count, total), generator(seed, "deal")
        parts = [np.arange(first, min(first + count, total)) for first in range(0, total, count)]
        owner = np.concatenate([rng.permutation(count)[: len(part)] for part in parts])
        return cls(N, block, [np.flatnonzero(owner == number) for number in range(count)])

    def __len__(self) -> int:
        return len(self.blocks)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of the minibatches in a pass over the data, shuffled anew for each."""
        return generator(seed, "order", epoch).permutation(len(self))

    def runs(self, number: int, rank: int, ranks: int) -> list[tuple[int, int]]:
        """The rows [start, stop) that one of so many ranks takes of a minibatch: an equal part of it, in order."""
        starts = self.blocks[number] * self.block
        stops = np.minimum(starts + self.block, self.N)
        ends = np.cumsum(stops - starts)
        first, last = int(ends[-1]) * rank // ranks, int(ends[-1]) * (rank + 1) // ranks
        begins = ends - (stops - starts)
        low = starts + np.clip(first - begins, 0, stops - starts)
        high = starts + np.clip(last - begins, 0, stops - starts)
        return _joined([(int(a), int(b)) for a, b in zip(low, high, strict=True) if a < b])


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same rows in as few runs as there can be."""
    found: list[tuple[int, int]] = []
    for start, stop in runs:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


class Dealt(Source):
    """One rank's rows of a source, minibatch after minibatch: row 0 is the first of minibatch 0.

    Attributes
    ----------
    edges : (minibatches + 1,) int array
        Where each minibatch begins, and the last one ends.
    original : Source
    """

    def __init__(self, source: Source, deal: Deal, rank: int, ranks: int):
        runs = [deal.runs(number, rank, ranks) for number in range(len(deal))]
        counts = [sum(stop - start for start, stop in part) for part in runs]
        self.edges = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        self._runs = np.array([run for part in runs for run in part], dtype=np.int64).reshape(-1, 2)
        self._begins = np.concatenate([[0], np.cumsum(self._runs[:, 1] - self._runs[:, 0])])
        super().__init__((max(1, int(self.edges[-1])), source.shape[1]), source.dtype, source.name, source.spec)
        self.gaps, self.original = source.gaps, source

    def read(self, start: int, stop: int) -> np.ndarray:
        parts = [self.original.read(a, b) for a, b in self.places(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [self.original.read(0, 0)])

    def places(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The rows of the source that are rows [start, stop) here, run after run."""
        first = int(np.searchsorted(self._begins, start, side="right")) - 1
        for run, begin in zip(self._runs[first:], self._begins[first:], strict=False):
            if begin >= stop:
                return
            low, high = max(start, begin) - begin, min(stop, begin + run[1] - run[0]) - begin
            if low < high:
                yield int(run[0] + low), int(run[0] + high)
