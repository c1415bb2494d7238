"""Sufficient statistics: named float64 sums over one flat buffer, so that a step needs one reduction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

Layout = Mapping[str, tuple[int, ...]]
HOUSE = "gem."  # begins the names of what every step sums, whatever its model: no model's own name does
FREE_ENERGY, N_ALL, N_USE, STOP = (HOUSE + name for name in ("free_energy", "N", "N_use", "stop"))


@dataclass(frozen=True)
class Sum:
    """What a batch adds to a statistic: `scale` times the sum over the rows of a device array.

    Attributes
    ----------
    rows : device array (groups, *shape) or (*shape), `shape` that of the statistic
        A row for each group of work-items that had a part in it.
    scale : float
    """

    rows: Any
    scale: float = 1.0


Names = str | tuple[str, ...]  # of a statistic, or of several that follow each other in the layout
Sums = Mapping[Any, Any]  # Names → a host number or array, a device array, a Sum, or a list of these


class Statistics(Mapping[str, np.ndarray]):
    """Named sums, each a view into `buffer`.

    Parameters
    ----------
    layout : mapping of name to shape
        Order matters: it is the order in the buffer, the same on every rank.
    buffer : (size,) float64 array, optional
        Zeros if not given.
    """

    def __init__(self, layout: Layout, buffer: np.ndarray | None = None):
        self.layout = dict(layout)
        size = sum(prod(shape) for shape in self.layout.values())
        self.buffer = np.zeros(size) if buffer is None else buffer
        if self.buffer.shape != (size,) or self.buffer.dtype != np.float64:
            raise ValueError(f"the layout needs {size} float64 values, got {self.buffer.shape} {self.buffer.dtype}")
        self._views: dict[str, np.ndarray] = {}
        self._places: dict[str, slice] = {}
        start = 0
        for name, shape in self.layout.items():
            self._places[name] = slice(start, start + prod(shape))
            self._views[name] = self.buffer[start : start + prod(shape)].reshape(shape)
            start += prod(shape)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __add__(self, other: Statistics) -> Statistics:
        if list(self.layout.items()) != list(other.layout.items()):
            raise ValueError("statistics of different layouts cannot be added")
        return Statistics(self.layout, self.buffer + other.buffer)

    def but(self, layout: Layout, **changed: np.ndarray) -> Statistics:
        """Statistics of this layout: of the same values, but for those that are given."""
        new = Statistics(layout)
        for name in layout:
            new[name][...] = changed[name] if name in changed else self[name]
        return new

    def place(self, names: Names) -> slice:
        """Where in the buffer a statistic lies, or several that follow each other."""
        if isinstance(names, str):
            return self._places[names]
        order = list(self.layout)
        first = order.index(names[0])
        if tuple(order[first : first + len(names)]) != names:
            raise ValueError(f"{', '.join(names)} do not follow each other in the layout {', '.join(order)}")
        return slice(self._places[names[0]].start, self._places[names[-1]].stop)

    def add(self, names: Names, value: np.ndarray | float, scale: float = 1.0) -> None:
        """Add `scale` times the value's sum over its rows in place, in float64 whatever its dtype."""
        mine = self.buffer[self.place(names)]
        rows = np.asarray(value).reshape(-1, mine.size)
        if mine.size == 1:  # a plain sum is much faster than one over an axis
            mine += scale * rows.sum(dtype=np.float64)
        else:
            mine += scale * (rows[0].astype(np.float64) if len(rows) == 1 else rows.sum(axis=0, dtype=np.float64))
