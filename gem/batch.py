"""A Batch is what an E-step gets at a time: some data points, how often each counts, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray, cupy.ndarray or pyopencl.array.Array: what a backend's `to_device` gave


@dataclass(frozen=True)
class Batch:
    """Data points on a device, as `Backend.map` gives them.

    Attributes
    ----------
    start : int
        Global row of the first.
    Y : (n, D) device array
        Not to be written to.
    weights : (n,) device array
        How often each data point counts: 1, the weight that a user gave it, or what the data selection left of that.
    counts : (n,) float64 host array, or None
        The same on the host; None where all are 1.
    notes : dict of device arrays
        What was computed only from `Y`, such as ‖y‖²: kept as long as the batch is, so from step to step if it stays
        on its device.
    memory : dict of device arrays (n, ...)
        What a model keeps for each data point from step to step (`gem.memory`), written in place by the E-step.
    home : mapping of name to host array, or None
        Where `memory` is brought back to once the batch is done; None: it stays with the batch.
    """

    start: int
    Y: Array
    weights: Array
    counts: np.ndarray | None = None
    notes: dict[str, Array] = field(default_factory=dict)
    memory: dict[str, Array] = field(default_factory=dict)
    home: Mapping[str, np.ndarray] | None = None

    @property
    def n(self) -> int:
        """Data points."""
        return int(self.Y.shape[0])

    @property
    def total(self) -> float:
        """The sum of the weights."""
        return float(self.n if self.counts is None else self.counts.sum())
