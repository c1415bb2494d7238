"""A Memory is what a run keeps for each data point from step to step, of the rows of one rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Memory:
    """Arrays with a row for each data point of a slab; E-steps write to them in place.

    A row goes with its data point: to the device if that stays there, and at each pass if it is streamed; it knows its
    own random numbers and the E-step that it has come to, so a part of a step that was done is not done twice.

    Attributes
    ----------
    start : int
        Global row of the first data point.
    arrays : dict of (n, ...) host arrays
    step : int
        E-steps done.
    """

    start: int
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    step: int = 0

    def rows(self, start: int, count: int) -> dict[str, np.ndarray]:
        """Views of the rows of so many data points from the global row `start` on."""
        at = start - self.start
        return {name: array[at : at + count] for name, array in self.arrays.items()}

    @property
    def n(self) -> int:
        """Data points."""
        return next((len(array) for array in self.arrays.values()), 0)

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def copy(self) -> Memory:
        """One that shares nothing with this."""
        return Memory(self.start, {name: array.copy() for name, array in self.arrays.items()}, self.step)
