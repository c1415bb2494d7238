"""Tables that come in bands of rows, as files store them compressed: each is unpacked once in a pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from threading import Lock

import numpy as np

from gem.data.source import Source, Spec, reading

BAND = 4 * 2**20  # bytes: thin chunks are read so many together
KEPT = 256 * 2**20  # bytes: a thicker band is not kept


class BandSource(Source):
    """A table in bands of rows, of which the last one read is kept: who reads in order unpacks each once.

    Parameters
    ----------
    shape, dtype, name, spec : as of a Source.
    rows : number of rows of each band, in order.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype, name: str, rows: Sequence[int], spec: Spec | None = None
    ):
        super().__init__(shape, dtype, name, spec)
        self._begin = np.array([0, *accumulate(rows)])
        self._kept: tuple[int, np.ndarray] | None = None
        self._lock = Lock()

    @abstractmethod
    def band(self, i: int) -> np.ndarray:
        """Band i, all its rows."""

    def read(self, start: int, stop: int) -> np.ndarray:
        table = np.empty((stop - start, self.shape[1]), self.dtype)
        with self._lock, reading(self.name):
            i = max(0, int(np.searchsorted(self._begin, start, side="right")) - 1)
            place = start
            while place < stop:
                begin, end = self._begin[i], min(int(self._begin[i + 1]), stop)
                table[place - start : end - start] = self._rows(i)[place - begin : end - begin]
                place, i = end, i + 1
        return table

    def _rows(self, i: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != i:
            self._kept = None  # two at a time would take twice the memory
            self._kept = i, self.band(i)
        return self._kept[1]


class SlicedSource(BandSource):
    """An array that is sliced as one in memory is, of a library that stores or computes it in chunks of rows.

    Parameters
    ----------
    array : with shape, dtype and slices of rows.
    chunks : rows of each chunk, or of every one.
    """

    def __init__(self, array: object, name: str, chunks: int | Sequence[int], spec: Spec | None = None):
        self._array = array
        shape, dtype = tuple(array.shape), np.dtype(array.dtype)  # type: ignore[attr-defined]
        if len(shape) != 2:
            chunks = 1  # refused below
        N, row = (shape[0], max(1, shape[1] * dtype.itemsize)) if len(shape) == 2 else (0, 1)
        super().__init__(shape, dtype, name, _bands(N, chunks, row), spec)
        self._direct = len(self._begin) > 1 and int(np.diff(self._begin).max()) * row > KEPT

    def band(self, i: int) -> np.ndarray:
        return self._slice(int(self._begin[i]), int(self._begin[i + 1]))

    def read(self, start: int, stop: int) -> np.ndarray:
        if not self._direct:
            return super().read(start, stop)
        with self._lock, reading(self.name):
            return self._slice(start, stop)

    def _slice(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self._array[start:stop], dtype=self.dtype)  # type: ignore[index]


def _bands(N: int, chunks: int | Sequence[int], row: int) -> list[int]:
    """Rows of each band: whole chunks, together at least BAND bytes where there are so many."""
    if isinstance(chunks, int):
        thick = max(1, chunks) * max(1, BAND // (row * max(1, chunks)))
        return [min(thick, N - begin) for begin in range(0, N, thick)]
    bands: list[int] = []
    for rows in chunks:
        if bands and bands[-1] * row < BAND:
            bands[-1] += rows
        else:
            bands.append(rows)
    return bands
