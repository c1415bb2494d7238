"""Whether F fell where EM cannot let it fall: numbers have broken down, or a model's equations are wrong."""

from __future__ import annotations

import numpy as np

from gem.annealing import NOISE, Annealing
from gem.models import Model


def must_rise(model: Model, anneal: Annealing, step: int, noted: bool) -> bool:
    """Whether the F that this step, counted from 0, begins with cannot be below that of the step before.

    So it is of `Model.monotone` models at T = 1, on all data, without noise between the two, and where the step before
    `noted` nothing: no constraint was active.
    """
    if step == 0 or noted or not model.monotone or anneal.reseed:
        return False
    before, now = anneal[step - 1], anneal[step]
    still = all(settings["T"] == 1 and settings["Ncut"] == 0 for settings in (before, now))
    return still and not any(now[name + NOISE] for name in anneal.noisy)


def fall(before: float, now: float, N: float, D: int, dtype: str) -> float:
    """By how much F fell, in nats per data point; 0 if it rose, or fell by no more than rounding."""
    # half of the digits: data a long way from 0, in narrow components, may cost that many and nothing be wrong
    rounding = float(np.finfo(dtype).eps) ** 0.5 * (max(abs(before), abs(now)) + N * D)
    return (before - now) / N if before - now > rounding else 0.0


def note_of_fall(step: int, by: float, model: Model) -> str:
    """The note on it."""
    return (
        f"F fell at step {step}, by {by:.3g} nats per data point: EM of {model.name} lets it only rise, so numbers "
        "have lost their digits: choose dtype='float64', or rescale the data"
    )
