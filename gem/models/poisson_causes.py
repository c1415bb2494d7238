"""Maximal causes under Poisson noise: PMCA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lgamma

import numpy as np

from gem.backends.base import Array
from gem.batch import Batch
from gem.checks import number
from gem.models.base import Step
from gem.models.causes import Causes, CausesEStep, Likelihood, refuse
from gem.models.estep import Evidence
from gem.models.parameters import Params
from gem.models.truncated import held
from gem.statistics import Statistics
from gem.summary import Summary

TABLE = 1 << 14  # counts below are looked up


@dataclass(frozen=True)
class PoissonEStep(CausesEStep):
    """As in `CausesEStep`, but that log likelihoods are relative to the best rates: in float64 on the host.

    Of counts of 20,000 the terms are 10⁵ times as large as their sum.
    """

    model: PMCA

    def products(self, Y: Array, observed: Array) -> Array:
        """log p(y | only latent h is active) less that of the best rates, as the kernel's energies are relative."""
        host, known = self.backend.to_host, self.tables.likelihood
        y = host(Y).astype(np.float64)
        seen = host(observed).astype(np.float64) if self.model.missing else np.ones((1, self.model.D))
        best = _of_counts(self.model.best, y)[:, None]
        return self.backend.to_device(y @ known.slope + seen @ known.offset - best)

    def reference(self, batch: Batch, Y: Array) -> Evidence:
        """log p(y | the best rates) less the background of each entry; NaN where a row holds what is no count."""
        y = self.backend.to_host(Y).astype(np.float64)
        constant = _of_counts(lambda counts: self.model.best(counts) - _log_factorial(counts), y)
        return Evidence(batch.n, constant=constant)


class PMCA(Causes):
    """Poisson maximal causes: y_d ~ Poisson(λ_d), λ_d the largest W_dh of the active h, at least a `background`.

    Mousavi, Drefs, Hirschberger, Lücke, *Generic Unsupervised Optimization for a Latent Variable Model With
    Exponential Family Observables*, JMLR 24, 2023.

    Parameters
    ----------
    background : float
        The rate where no active cause exceeds it, > 0. Other settings as in `Truncated`.

    Notes
    -----
    Model parameters are ``W`` (D, H), rates, and ``pi`` ().
    """

    field_domain = "nonnegative"
    e_step = PoissonEStep
    offset_in_b = True

    unfit_for_pictures = "its data are counts"

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None = None,
        gamma: int | None = None,
        missing: bool = False,
        background: float = 0.1,
    ):
        super().__init__(D, H, Hprime, gamma, missing)
        self.background = number("background", background, "a positive rate", 0, inside=True)

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        super().check_data(Y, start)
        refuse(Y, ~np.isnan(Y) & ((Y < 0) | (np.floor(Y) != Y)), start, "is no count: PMCA explains whole numbers ≥ 0")

    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """Rates at the data's mean plus noise of half its spread; π = 1/H."""
        data = summary.varied()
        noise = np.sqrt(data.var)[:, None] * rng.standard_normal((self.D, self.H)) / 2
        W = np.maximum(np.abs(data.mean[:, None] + noise), self.background)
        return {"W": W, "pi": np.array(min(0.5, 1 / self.H))}

    def spread(self, params: Params) -> float:
        """The standard deviation of counts of these rates."""
        return float(np.sqrt(params["W"].mean()))

    def combined(self, params: Params, states: np.ndarray) -> np.ndarray:
        out = np.full((len(states), self.D), self.background)
        for h, field in enumerate(params["W"].T):
            on = np.flatnonzero(states[:, h])
            out[on] = np.maximum(out[on], field)
        return out

    def observe(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.poisson(mean).astype(np.float64)

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        mean, seen = self.combined(params, states), np.isfinite(Y)
        y = np.where(seen, Y, 0)
        return y @ np.log(mean).T - seen @ mean.T - _of_counts(_log_factorial, y)[:, None]

    def likelihood(self, params: Params, step: Step) -> Likelihood:
        W = np.maximum(params["W"], self.background)
        return Likelihood(
            "maximum+poisson", W, (1.0, self.background), np.log(W), self.background - W, np.ones_like(W), W
        )

    def best(self, y: np.ndarray) -> np.ndarray:
        """log p(y_d | the best rate) of each count, less log p(0 | background) and up to log y_d!"""
        rate = np.maximum(y, self.background)
        return np.asarray(y * np.log(rate) - (rate - self.background))

    def per_entry(self, params: Params) -> float:
        return -self.background

    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = Σ⟨A⟩y / Σ⟨A⟩, at least the background; π = Σ⟨|s|⟩ / NH, corrected for the data selection."""
        notes: list[str] = []
        W = held("W", self.weighted_means(moments, params["W"], notes), self.background, np.inf, notes)
        return {"W": W, "pi": self.common_pi(moments, params, step, notes)}, notes


def _log_factorial(counts: np.ndarray) -> np.ndarray:
    """log k! of each, (k,)."""
    return np.array([lgamma(count + 1) for count in counts])


def _of_counts(function: Callable[[np.ndarray], np.ndarray], y: np.ndarray) -> np.ndarray:
    """Σ_d function(y_nd) of whole numbers ≥ 0, (n,), by look-up, as many are equal; NaN where one is no count."""
    if not np.all((y >= 0) & (np.floor(y) == y) & (y < np.inf)):
        return np.full(len(y), np.nan)
    most = y.max(initial=0)
    if most < TABLE:
        return np.asarray(function(np.arange(most + 1))[y.astype(np.intp)].sum(axis=1))
    counts, which = np.unique(y, return_inverse=True)
    return np.asarray(function(counts)[which.reshape(y.shape)].sum(axis=1))
