"""Annealing: the value of each control parameter at each step of a run, and when the run may end before its last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from gem.checks import number, whole_number, yes_or_no
from gem.errors import ConfigError

Schedule = float | Sequence[tuple[float, float]]

DEFAULTS = {"T": 1.0, "Ncut": 0.0}
RANGES = {"T": (1.0, inf), "Ncut": (0.0, 1.0)}  # of others from 0 on
NOISE = "_noise"  # ends the names of all others; 0 by default
WINDOW = 5  # steps over which F must stand still


class Annealing:
    """Name → value at a step, immutable: linear between breakpoints, held at the ends.

    Parameters
    ----------
    steps : int
        Length of the run in EM steps.
    anneal_prior : bool
        Whether the prior, too, is raised to the power 1/T, and not the likelihood only (math.md, "the truncated
        posterior", says what that costs).
    reseed : bool
        Whether latents that explain less than one data point begin anew beside the most active one.
    until : float, optional
        End the run before its last step once it has settled: over the last WINDOW = 5 steps F / N has changed by less
        than `until` times its size (of at least 1 nat), while T was 1 and no schedule moved, nor will until the end.
        Without it all steps are done.
    **schedules : number or list of (position, value)
        A position is a step if it is an int, a fraction of the run (0 the first step, 1 the last) if it is a
        float. Known names: T (temperature, ≥ 1), Ncut (data selection, 0 to 1), and the name of a model's parameter
        with `_noise`: W_noise, pi_noise, mu_noise, ... (see `Model.perturb`; `EM` checks that the model has it).

    Raises
    ------
    ConfigError
        For an unknown name, a value out of its range, or breakpoints that do not ascend.

    Examples
    --------
    >>> anneal = Annealing(steps=101, T=[(0, 5.0), (0.8, 1.0)])
    >>> anneal[40]["T"], anneal[100]["T"]
    (3.0, 1.0)

    `Annealing.auto` leaves the schedules to the model.
    """

    def __init__(
        self,
        steps: int,
        *,
        anneal_prior: bool = False,
        reseed: bool = False,
        until: float | None = None,
        **schedules: Schedule,
    ):
        unknown = sorted(name for name in schedules if name not in DEFAULTS and not name.endswith(NOISE))
        if unknown:
            raise ConfigError(
                f"unknown annealing parameter {unknown[0]!r}: choose among {', '.join(DEFAULTS)}, and {NOISE} after "
                f"the name of a model's parameter, as in W{NOISE}"
            )
        self.steps = whole_number("steps", steps)
        self.by_model, self._known = False, True
        self.anneal_prior, self.reseed = yes_or_no("anneal_prior", anneal_prior), yes_or_no("reseed", reseed)
        above_0 = "a number above 0, such as 1e-6, or None"
        self.until = None if until is None else number("until", until, above_0, low=0.0, inside=True)
        self._schedules = {name: _points(name, s) for name, s in {**DEFAULTS, **schedules}.items()}
        self._curves = {
            name: curve(name, points, self.steps, *RANGES.get(name, (0.0, inf)))
            for name, points in self._schedules.items()
        }
        self._rest = max(self._at_rest(name) for name in self._curves)

    @classmethod
    def auto(cls, steps: int, *, until: float | None = None) -> Annealing:
        """Schedules that the model chooses, in the units of the data, once `EM` has the parameters to start from.

        Models of many latents begin at T = 1.5 and with noise on the fields that is held for half of the run, and end
        it with neither: `Truncated.schedules` says how much and why, math.md ("Annealing") what it was measured on.
        Mixtures and SC are not annealed. `EM.anneal`, and the run file, have the schedules as numbers, `by_model` True.

        Parameters
        ----------
        steps, until
            As in `Annealing`.

        Raises
        ------
        ConfigError
            As in `Annealing`.

        Examples
        --------
        >>> em = EM(model, "patches.npy", Annealing.auto(steps=100))  # doctest: +SKIP
        >>> em.anneal[0]["T"]                                         # doctest: +SKIP
        1.5
        """
        asked = cls(steps, until=until)
        asked.by_model, asked._known = True, False
        return asked

    def resolved(self, schedules: Mapping[str, Any], held: Iterable[str] = ()) -> Annealing:
        """Itself, or what `auto` left open filled in with the model's `schedules`, but for noise of what is `held`."""
        if self._known:
            return self
        still = {name + NOISE for name in held}
        moving = {name: schedule for name, schedule in schedules.items() if name not in still}
        chosen = type(self)(self.steps, until=self.until, **moving)
        chosen.by_model = True
        return chosen

    def _at_rest(self, name: str) -> float:
        """From which step on the parameter keeps its value until the last one; infinite for a T that is not 1 then."""
        (x, values), last = self._curves[name], self.steps - 1
        end = self[last][name]
        if name == "T" and end != 1:
            return inf
        moving = np.flatnonzero((x < last) & (values != end))
        return 0.0 if len(moving) == 0 else float(min([*x[moving[-1] + 1 :], last]))

    @property
    def at_rest(self) -> float:
        """From which step on, counted from 0, nothing moves any more and T is 1; infinite if that is never so."""
        return self._rest

    def settled(self, recent: Sequence[float], done: int) -> bool:
        """Whether a run may end now.

        Parameters
        ----------
        recent : sequence of float
            F / N of the last steps, in nats and in their order; the last WINDOW + 1 count.
        done : int
            Steps done.
        """
        window = recent[-WINDOW - 1 :]
        if self.until is None or len(window) <= WINDOW or done - len(window) < self._rest:
            return False
        return max(window) - min(window) < self.until * max(1.0, abs(window[-1]))

    def __getitem__(self, step: float) -> dict[str, float]:
        """The value of every parameter at `step`, or between two; held past the end.

        Raises
        ------
        ConfigError
            Of `auto`, before `EM` has given it to a model.
        """
        if not self._known:
            raise ConfigError("the schedules of Annealing.auto are the model's: see EM(model, data, anneal).anneal")
        return {name: float(np.interp(step, x, v)) for name, (x, v) in self._curves.items()}

    def ever(self, name: str) -> bool:
        """Whether the parameter leaves its default in this run."""
        return name in self._curves and bool(np.any(self._curves[name][1] != DEFAULTS.get(name, 0.0)))

    def compared(self, there: Annealing) -> tuple[dict[str, Any], dict[str, Any]]:
        """This and that of a run that is `there`, as far as this asks: `auto` takes what a model chose, or nothing."""
        here, stored = self.to_dict(), there.to_dict()
        asked_for = there.reseed or any(there.ever(name) for name in there._curves)
        if self._known or (asked_for and not there.by_model):
            return here, stored
        said = ("steps", "until")
        return {n: here[n] for n in said if n in here}, {n: stored[n] for n in said if n in stored}

    @property
    def noisy(self) -> list[str]:
        """The model's parameters that ever get noise."""
        return [name.removesuffix(NOISE) for name in self._curves if name.endswith(NOISE) and self.ever(name)]

    def __len__(self) -> int:
        return self.steps

    def __repr__(self) -> str:
        changed = {name: _plain(points) for name, points in self._schedules.items() if self.ever(name)}
        until = "" if self.until is None else f"until={self.until:g}, "
        if not self._known:
            return f"Annealing.auto(steps={self.steps}{', ' + until[:-2] if until else ''})"
        return f"Annealing(steps={self.steps}, anneal_prior={self.anneal_prior}, {until}{changed})"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the run file; `from_dict` gives it back."""
        if not self._known:
            return {"steps": self.steps, **({} if self.until is None else {"until": self.until}), "by_model": True}
        plain = {name: _plain(points) for name, points in self._schedules.items()}
        flags = {"anneal_prior": self.anneal_prior, **({"reseed": True} if self.reseed else {})}
        until = {} if self.until is None else {"until": self.until}
        chosen = {"by_model": True} if self.by_model else {}
        return {"steps": self.steps, **flags, **until, **chosen, **plain}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Annealing:
        """The inverse of `to_dict`. Where an old run file does not name `anneal_prior`, it was True."""
        settings = {"anneal_prior": True, **d}
        anneal = cls(**{name: value for name, value in settings.items() if name != "by_model"})
        anneal.by_model = yes_or_no("by_model", settings.get("by_model", False))
        anneal._known = not anneal.by_model or "T" in d
        return anneal


def curve(name: str, schedule: Any, steps: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the breakpoints of a schedule for a run of so many steps.

    Raises
    ------
    ConfigError
        If they do not ascend, or a value is not between `low` and `high`.
    """
    points = _points(name, schedule)
    x = np.array([p if isinstance(p, int) else p * (steps - 1) for p, _ in points], dtype=float)
    values = np.array([v for _, v in points])
    said = f"{name} = {_plain(points)}"
    if any(isinstance(p, float) and not 0 <= p <= 1 for p, _ in points):
        raise ConfigError(f"{said}: a float position is a fraction of the run, 0 to 1; use an int for a step")
    if len(x) == 0 or np.any(np.diff(x) < 0):
        raise ConfigError(f"{said}: the breakpoints must ascend (here at steps {x.tolist()})")
    if not np.all((values >= low) & (values <= high) & np.isfinite(values)):
        raise ConfigError(f"{said}: values must lie between {low:g} and {high:g}")
    return x, values


def _points(name: str, schedule: Any) -> list[tuple[int | float, float]]:
    """The breakpoints of a schedule as plain numbers: whole positions stay whole, they are steps."""
    wrong = ConfigError(f"{name} = {schedule!r} must be a number or a list of (position, value)")
    if isinstance(schedule, int | float | np.number):
        return [(0, float(schedule))]
    if isinstance(schedule, str):
        raise wrong
    try:
        pairs = [(p.item() if isinstance(p, np.generic) else p, float(v)) for p, v in schedule]
    except (TypeError, ValueError) as error:
        raise wrong from error
    if any(isinstance(p, bool) or not isinstance(p, int | float) for p, _ in pairs):
        raise wrong
    return pairs


def _plain(points: list[tuple[int | float, float]]) -> float | list[list[float]]:
    """As a user would write it: a number, where it is the same all along."""
    return points[0][1] if len(points) == 1 and points[0][0] == 0 else [list(point) for point in points]
