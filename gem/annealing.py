"""Annealing: the value of each control parameter at each step of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gem.errors import ConfigError

Schedule = float | Sequence[tuple[float, float]]

DEFAULTS = {"T": 1.0, "Ncut": 0.0, "W_noise": 0.0, "pi_noise": 0.0, "sigma_noise": 0.0}


class Annealing:
    """Name → value at a step, immutable: linear between breakpoints, held at the ends.

    Parameters
    ----------
    steps : int
        Length of the run in EM steps.
    anneal_prior : bool
        Whether the prior, too, is raised to the power 1/T (math: "the truncated posterior").
    **schedules : number or list of (position, value)
        A position is a step if it is an int, a fraction of the run (0 the first step, 1 the last) if it is a
        float. Known names: T (temperature, ≥ 1), Ncut (data selection, 0 to 1), W_noise, pi_noise, sigma_noise.

    Raises
    ------
    ConfigError
        For an unknown name, a value out of its range, or breakpoints that do not ascend.

    Examples
    --------
    >>> anneal = Annealing(steps=101, T=[(0, 5.0), (0.8, 1.0)])
    >>> anneal[40]["T"], anneal[100]["T"]
    (3.0, 1.0)
    """

    def __init__(self, steps: int, *, anneal_prior: bool = True, **schedules: Schedule):
        if not isinstance(steps, int | np.integer) or steps < 1:
            raise ConfigError(f"steps = {steps!r} must be a whole number, at least 1")
        unknown = sorted(set(schedules) - set(DEFAULTS))
        if unknown:
            raise ConfigError(f"unknown annealing parameter {unknown[0]!r}: choose among {', '.join(DEFAULTS)}")
        self.steps = int(steps)
        self.anneal_prior = bool(anneal_prior)
        self._schedules = {**DEFAULTS, **schedules}
        self._points = {name: self._parse(name, s) for name, s in self._schedules.items()}

    def _parse(self, name: str, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
        points: Sequence[tuple[float, float]] = (
            [(0, float(schedule))] if isinstance(schedule, int | float | np.number) else schedule
        )
        try:
            where = [float(p) if isinstance(p, int | np.integer) else p * (self.steps - 1) for p, _ in points]
            x, values = np.array(where, dtype=float), np.array([v for _, v in points], dtype=float)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} = {schedule!r} must be a number or a list of (position, value)") from error
        if any(isinstance(p, float) and not 0 <= p <= 1 for p, _ in points):
            raise ConfigError(
                f"{name} = {schedule!r}: a float position is a fraction of the run, 0 to 1; use an int for a step"
            )
        if len(x) == 0 or np.any(np.diff(x) < 0):
            raise ConfigError(f"{name} = {schedule!r}: the breakpoints must ascend (here at steps {list(x)})")
        low, high = {"T": (1.0, np.inf), "Ncut": (0.0, 1.0)}.get(name, (0.0, np.inf))
        if not np.all((values >= low) & (values <= high) & np.isfinite(values)):
            raise ConfigError(f"{name} = {schedule!r}: values must lie between {low:g} and {high:g}")
        return x, values

    def __getitem__(self, step: int) -> dict[str, float]:
        """The value of every parameter at `step`, held past the end."""
        return {name: float(np.interp(step, x, v)) for name, (x, v) in self._points.items()}

    def __len__(self) -> int:
        return self.steps

    def __repr__(self) -> str:
        changed = {k: v for k, v in self._schedules.items() if v != DEFAULTS[k]}
        return f"Annealing(steps={self.steps}, anneal_prior={self.anneal_prior}, {changed})"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the run file; `Annealing(**d)` gives it back."""
        plain = {
            name: [[p.item() if isinstance(p, np.generic) else p, float(v)] for p, v in s]
            if isinstance(s, Sequence)
            else float(s)
            for name, s in self._schedules.items()
        }
        return {"steps": self.steps, "anneal_prior": self.anneal_prior, **plain}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Annealing:
        """The inverse of `to_dict`."""
        return cls(**d)
