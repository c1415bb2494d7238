"""The best parameters of a run so far, where F may fall: truncated states are chosen anew in each step."""

from __future__ import annotations

from math import inf

import numpy as np


class Best:
    """The largest F of a run, and where it was.

    Attributes
    ----------
    free_energy : float
        −inf as long as no step is done.
    step : int
        The step, counted from 1, that began with those parameters.
    params : dict of arrays, or None
        These, if they are kept.
    """

    def __init__(self, keep: bool):
        self._keep = keep
        self.free_energy, self.step = -inf, 0
        self.params: dict[str, np.ndarray] | None = None

    def see(self, free_energy: float, step: int, params: dict[str, np.ndarray] | None) -> bool:
        """Take them in if they are better; whether they are."""
        if not free_energy > self.free_energy:
            return False
        self.free_energy, self.step = free_energy, step
        self.params = params if self._keep else None
        return True

    def told(self, last: float, N: float, kept: bool) -> str:
        """The note on it, at the end of a run, whose F is `last` there."""
        per_point = f"{self.free_energy / N:.6g} per data point of the parameters that step {self.step} began with"
        if kept:
            return f"F was the largest, {per_point}: the run ends with these (it came to {last / N:.6g})"
        return (
            f"F was larger, {per_point}, than at the end, {last / N:.6g}: keep_best=True (gem fit --keep-best) ends a "
            "run with its best parameters"
        )
