"""Several tables as one, row after row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gem.data.source import Source
from gem.errors import DataError


class PartsSource(Source):
    """Tables of the same columns, one after the other.

    Raises
    ------
    DataError
        One with another number of columns, or other names of them: named.
    """

    def __init__(self, parts: Sequence[Source]):
        self._parts = list(parts)
        first = parts[0]
        usual = max({part.shape[1] for part in parts}, key=[part.shape[1] for part in parts].count)
        for part in parts:
            if part.shape[1] != usual:
                raise DataError(
                    f"{part.name} has {part.shape[1]} columns, the other parts of the table {usual}: leave it out, or "
                    "give it the same columns"
                )
            titles, other = getattr(part, "columns", None), getattr(first, "columns", None)
            if titles is not None and other is not None and titles != other:
                raise DataError(
                    f"{part.name} has the columns {', '.join(titles[:10])}, {first.name} {', '.join(other[:10])}: "
                    "parts of a table have the same ones in the same order"
                )
        self._begin = np.cumsum([0, *(part.shape[0] for part in parts)])
        names = [part.spec["data"] for part in parts if part.spec is not None]
        super().__init__(
            (int(self._begin[-1]), usual),
            np.result_type(*(part.dtype for part in parts)),
            f"{len(parts)} files, {first.name} first",
            {"data": names},
        )
        self.gaps = next((part.gaps for part in parts if part.gaps), "")

    def read(self, start: int, stop: int) -> np.ndarray:
        table = np.empty((stop - start, self.shape[1]), self.dtype)
        for part, begin in zip(self._parts, self._begin.tolist(), strict=False):
            low, high = max(start, begin), min(stop, begin + part.shape[0])
            if low < high:
                table[low - start : high - start] = part.read(low - begin, high - begin)
        return table

    def close(self) -> None:
        for part in self._parts:
            part.close()
