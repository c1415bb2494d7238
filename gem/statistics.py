"""Sufficient statistics: named float64 sums over one flat buffer, so that a step needs one reduction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

Layout = Mapping[str, tuple[int, ...]]


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
        start = 0
        for name, shape in self.layout.items():
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

    def add(self, sums: Mapping[str, np.ndarray | float]) -> None:
        """Add one batch's sums in place, in float64 whatever their dtype."""
        for name, value in sums.items():
            self._views[name] += value
