"""A Shard is one rank's slab of a Source, as floats, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from gem.checks import whole_number
from gem.data.precision import less
from gem.data.source import Source
from gem.errors import ConfigError, DataError

MARKED = "give the model missing=True for NaN that marks gaps"
PRINTED = 16  # rows of each part that a fingerprint is taken of
ALIKE, ROUNDING = 1e-3, 1e-12  # how far sums may differ, and deviations beside them
BLOCK = 16 * 2**20  # bytes read at once: long enough to stream from disk, short enough to hold a few


class Shard:
    """The rows [start, stop) of a source as floats: one rank's slab.

    A slab that fits is read once and kept; a larger one is streamed at every pass, a thread reading the next
    block of rows while the present one is used.

    Parameters
    ----------
    source : where the rows come from; it stays open and is the caller's to close.
    start, stop : global indices; an empty slab is fine (more ranks than data points).
    dtype : float32 or float64.
    batch : rows per batch.
    memory : bytes up to which the slab is kept.
    shift : (D,), what is taken from each column before it is rounded to `dtype`; None: nothing.

    Attributes
    ----------
    N, D : shape of the slab.
    start, stop, dtype, batch, shift : as given.
    resident : whether the slab is kept in memory.

    Raises
    ------
    ConfigError
        A slab outside the source, another dtype, a batch below 1.
    DataError
        The source cannot be read.
    """

    def __init__(
        self,
        source: Source,
        start: int,
        stop: int,
        dtype: Any,
        batch: int,
        memory: int = 256 * 2**20,
        shift: np.ndarray | None = None,
    ):
        if not 0 <= start <= stop <= source.shape[0]:
            raise ConfigError(f"rows [{start}, {stop}) are not in {source.name}, which has {source.shape[0]}")
        if dtype not in ("float32", "float64", np.float32, np.float64):
            raise ConfigError(f"dtype = {dtype!r}: choose float32 or float64")
        self.source = source
        self.start, self.stop = int(start), int(stop)
        self.N, self.D = self.stop - self.start, source.shape[1]
        self.dtype = np.dtype(dtype)
        self.batch, self.shift = whole_number("batch", batch), shift
        row = self.D * self.dtype.itemsize
        self._block = self.batch * max(1, BLOCK // (self.batch * row))  # rows; no batch straddles two blocks
        self.resident = self.N * row <= memory
        if self.resident:
            self._slab = self._read(self.start, self.stop)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return self.batches()

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order: (global index of the first row, (n, D) C-contiguous array); not to be edited."""
        for first, block in self._blocks():
            for offset in range(0, len(block), self.batch):
                yield first + offset, block[offset : offset + self.batch]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Those of the rows `indices` (global, ascending) that lie in the slab, in that order: (n, D) array.

        Raises
        ------
        ConfigError
            `indices` do not ascend.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if np.any(np.diff(indices) < 0):
            raise ConfigError("row indices must ascend: np.sort(indices)")
        mine = indices[(self.start <= indices) & (indices < self.stop)]
        if self.resident:
            return self._slab[mine - self.start]
        found = np.empty((len(mine), self.D), self.dtype)
        ends = np.flatnonzero(np.diff(mine, append=self.stop + 1) > 1) + 1  # a run of neighbours is one read
        for begin, end in pairwise([0, *ends]):
            run = mine[begin:end]
            found[begin:end] = self._read(run[0], run[-1] + 1)[run - run[0]]
        return found

    def _read(self, start: int, stop: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # what is no float32 becomes Inf, which is refused by row and column
            rows = self.source.read(start, stop)
            if self.shift is not None:
                rows = less(rows, self.shift)
            return np.ascontiguousarray(rows, dtype=self.dtype)  # copies only if it must

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        if self.resident:
            yield self.start, self._slab
            return
        starts = range(self.start, self.stop, self._block)
        spans = [(start, min(start + self._block, self.stop)) for start in starts]
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(self._read, *spans[0])
            for span, following in zip_longest(spans, spans[1:]):
                block = ahead.result()
                if following:
                    ahead = reader.submit(self._read, *following)
                yield span[0], block


def fingerprint(source: Source) -> list[float]:
    """Absolute sums of the first, middle and last rows, and of their deviations from the mean of these rows: they tell
    changed data from those a run began with, also where the data are far from 0 or have gaps.

    Sums, not a hash: whitened patches may differ by rounding from machine to machine.
    """
    N = source.shape[0]
    parts = [source.read(start, min(N, start + PRINTED)) for start in (0, N // 2, max(0, N - PRINTED))]
    return [float(np.abs(rows.astype(np.float64)).sum()) for rows in parts] + [_deviations(rows) for rows in parts]


def _deviations(rows: np.ndarray) -> float:
    """Σ |y − mean of its column|, of what is there."""
    with np.errstate(invalid="ignore", over="ignore"):  # Inf is refused elsewhere
        y = less(rows, np.nan_to_num(rows[0].astype(np.float64))).astype(np.float64)
        seen = np.isfinite(y)
        mean = np.where(seen, y, 0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
        return float(np.abs(np.where(seen, y - mean, 0)).sum())


def same_data(now: list[float], then: list[float]) -> bool:
    """Whether two fingerprints can be of the same data; that of an old run file has no deviations."""
    count = min(len(now), len(then))
    a, b = np.array(now[:count]), np.array(then[:count])
    rounding = ROUNDING * np.tile(np.nan_to_num(b[:3]), count // 3)
    return bool(np.all((np.abs(a - b) <= ALIKE * np.abs(b) + rounding) | (np.isnan(a) & np.isnan(b))))


def check_finite(Y: np.ndarray, first_row: int = 0, name: str = "data", missing: bool = False) -> None:
    """Refuse NaN and Inf.

    Parameters
    ----------
    Y : (n, D) array.
    first_row : global index of its first row, for the message.
    name : what the message calls the data.
    missing : whether NaN marks missing entries and is let through.

    Raises
    ------
    DataError
        Naming row and column of the first such value, the value, and how many there are.
    """
    bad = np.isinf(Y) if missing else ~np.isfinite(Y)
    if not bad.any():
        return
    row, column = np.unravel_index(bad.argmax(), bad.shape)
    raise DataError(
        f"{name}: {Y[row, column]} at row {first_row + row}, column {column}, the first of {bad.sum()} such "
        f"values in rows {first_row} to {first_row + len(Y) - 1}; drop these rows, "
        f"Y[np.isfinite(Y).all(axis=1)], or {MARKED}; if the file has no inf there, use dtype float64"
    )


@contextmanager
def telling_gaps(source: Source) -> Iterator[None]:
    """A refusal of NaN says what marks gaps in the file, if anything does: NaN is not what a user finds in it."""
    try:
        yield
    except DataError as error:
        if source.gaps and MARKED in str(error):
            raise DataError(
                f"{error}; {source.name} marks gaps by {source.gaps}, which are read as NaN: missing=True, or gem fit "
                "--missing, takes them as missing entries"
            ) from error
        raise
