"""Maximal causes analysis under Gaussian noise, exact and smooth: MCA and MMCA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.errors import ConfigError
from gem.models.base import Step, points
from gem.models.causes import Causes, CausesEStep, Expectation, Likelihood
from gem.models.estep import Evidence, squared_norms
from gem.models.parameters import Parameter, Params
from gem.models.truncated import held, log_odds, noise_level
from gem.statistics import Layout, Statistics
from gem.summary import Summary

LEAST_T = 1.05  # the temperature of the smooth maximum does not fall below


@dataclass(frozen=True)
class GaussianEStep(CausesEStep):
    """As in `CausesEStep`, and what the noise is told from."""

    def reference(self, batch: Batch, Y: Array) -> Evidence:
        notes = None if self.model.missing else batch.notes  # Y is the batch's own where nothing is missing
        norms = squared_norms(self.backend, self.tables.squared_norms, Y, notes)
        return Evidence(batch.n, [(norms, self.tables.likelihood.settings[0])])

    def statistics(self, batch: Batch, found: Expectation) -> dict[Any, Any]:
        norms, half = found.reference.parts[0]
        parts = {"fit": [(found.energy, 1.0), (norms, half)], "yy": [(norms, 1.0)]}
        if found.entries is not None:
            parts["observed"] = [(found.entries, 1.0)]
        weights = None if batch.counts is None else batch.weights
        more = {name: self.backend.point_sums(part, weights) for name, part in parts.items()}
        return {**super().statistics(batch, found), **more}


@dataclass(frozen=True)
class MaximumEStep(GaussianEStep):
    """As in `GaussianEStep`, but for the score: of MCA."""

    W: Array
    cause_scores: Kernel

    def scores(self, Y: Array, observed: Array, b: Array) -> Array:
        """How little the field exceeds the data: −Σ_d max(W_dh − y_d, 0), up to what no latent changes."""
        n = Y.shape[0]
        scores = self.backend.empty((n, self.model.H))
        self.cause_scores(n, Y, observed, self.W, scores)
        return scores


class GaussianCauses(Causes):
    """y_d = W̄_d(s) + ε, ε ~ N(0, σ²): the field of largest magnitude is seen, or a smooth version of it.

    Parameters
    ----------
    D, H, Hprime, gamma, missing
        As in `Truncated`.
    rho : None, "anneal" or float
        None: the exact maximum. A number > 1: the smooth maximum (Σ_h s_h W_dh^ρ)^(1/ρ). "anneal": the smooth
        maximum with ρ = 1 / (1 − 1/T), T the temperature of the step and at least 1.05 (ρ = 21).
    """

    fragment: ClassVar[str]  # of the exact maximum
    noisy: ClassVar[float] = 2.5  # more than for sums: a latent that others hide is moved by little of it
    e_step = GaussianEStep

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None = None,
        gamma: int | None = None,
        missing: bool = False,
        rho: float | str | None = None,
    ):
        super().__init__(D, H, Hprime, gamma, missing)
        number = isinstance(rho, int | float | np.number) and not isinstance(rho, bool)
        if not (rho is None or rho == "anneal" or (number and 1 < float(rho) < np.inf)):
            raise ConfigError(f"rho = {rho!r} must be None, 'anneal', or a number above 1")
        self.rho = float(rho) if number else rho  # type: ignore[arg-type]

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {**super().parameters, "sigma": Parameter((), "deviation", "noise")}

    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """Fields at the data's mean plus noise of half its spread; σ the data's standard deviation; π = 1/H."""
        data = summary.varied()
        noise = np.sqrt(data.var)[:, None] * rng.standard_normal((self.D, self.H)) / 2
        W = data.mean[:, None] + noise
        return {
            "W": np.abs(W) if self.field_domain == "nonnegative" else W,
            "pi": np.array(min(0.5, 1 / self.H)),
            "sigma": np.array(np.sqrt(data.var.mean())),
        }

    def sharpness(self, T: float) -> float | None:
        """ρ at a temperature; None: the exact maximum."""
        return 1 / (1 - 1 / max(T, LEAST_T)) if self.rho == "anneal" else self.rho  # type: ignore[return-value]

    def combined(self, params: Params, states: np.ndarray) -> np.ndarray:
        rho = self.sharpness(1.0)
        out = np.zeros((len(states), self.D))
        for h, field in enumerate(params["W"].T):  # latent by latent: nothing of size S × D × H is formed
            on = np.flatnonzero(states[:, h])
            if rho is None:
                out[on] = np.where(np.abs(field) > np.abs(out[on]), field, out[on])
            else:
                out[on] = _add_powers(out[on], field, rho)
        return out

    def observe(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return mean + params["sigma"] * rng.standard_normal(mean.shape)

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        mean = self.combined(params, states)
        seen = np.isfinite(Y)
        y = np.where(seen, Y, 0)
        squares = (y**2).sum(axis=1)[:, None] - 2 * y @ mean.T + seen @ (mean**2).T
        variance = params["sigma"] ** 2
        return -(squares / variance + seen.sum(axis=1)[:, None] * np.log(2 * np.pi * variance)) / 2

    def likelihood(self, params: Params, step: Step) -> Likelihood:
        W, precision = params["W"], float(1 / params["sigma"] ** 2)
        fragments, fields = f"{self.fragment}+gaussian", W
        settings: tuple[float, ...] = (-precision / 2,)
        rho = self.sharpness(step.T)
        if rho is not None:
            from gem.kernels.fragments.smooth_maximum import encode

            scale = float(1.01 * max(np.abs(W).max(), np.finfo(step.dtype).tiny) * self.gamma ** (1 / rho))
            fragments, fields = "smooth_maximum+gaussian", encode(W, scale, rho)
            settings = (*settings, 1 / rho, scale, float(W.min() < 0))
        return Likelihood(fragments, fields, settings, W * precision, -(W**2) * precision / 2, np.ones_like(W), W)

    def per_entry(self, params: Params) -> float:
        return float(-np.log(2 * np.pi * params["sigma"] ** 2) / 2)

    @property
    def layout(self) -> Layout:
        observed: Layout = {"observed": ()} if self.missing else {}
        return {**super().layout, "fit": (), "yy": (), **observed}

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """As in `Causes`, and Σ⟨‖y − W̄(s)‖²⟩ (a missing entry adds σ²), all of the W and σ the sums were found with."""
        # log p(y | s) less its constants is −‖y − W̄‖²/2σ², the energies hold the prior's log odds, too
        fit = sums["fit"] - log_odds(self.activities(params)) @ sums["s"]
        gaps = points(sums) * self.D - sums["observed"] if self.missing else 0.0
        sigma2 = params["sigma"] ** 2
        means = super().moments(sums, params, step)
        layout = {**means.layout, "residual": (), "yy": ()}
        return sums.but(layout, **{**means, "residual": np.asarray(gaps * sigma2 - 2 * sigma2 * fit)})

    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = Σ⟨A⟩y / Σ⟨A⟩, σ² = Σ⟨‖y − W̄(s; W_old)‖²⟩ / ND, π = Σ⟨|s|⟩ / NH, corrected for the data selection."""
        notes: list[str] = []
        entries = points(moments) * self.D
        variance, square = float(moments["residual"]) / entries, float(moments["yy"]) / entries
        sigma = noise_level(variance, square, 1, self.D, step, notes)
        W = self.weighted_means(moments, params["W"], notes)
        if self.field_domain == "nonnegative":
            W = held("W", W, 0, np.inf, notes)
        return {"W": W, "pi": self.common_pi(moments, params, step, notes), "sigma": sigma}, notes


class MCA(GaussianCauses):
    """Maximal causes analysis: y_d = max_h s_h W_dh + ε, W ≥ 0, s_h ∈ {0, 1} with p(s_h = 1) = π, ε ~ N(0, σ²).

    Lücke & Sahani, *Maximal Causes for Non-linear Component Extraction*, JMLR 9, 2008; Puertas, Bornschein, Lücke,
    *The Maximal Causes of Natural Scenes are Edge Filters*, NIPS 2010. Trained by Expectation Truncation.

    Settings as in `GaussianCauses`.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` () and ``sigma`` ().
    """

    field_domain = "nonnegative"
    fragment = "maximum"

    def score_offset(self, alone: np.ndarray) -> np.ndarray:
        """Nothing: the scores are not the products."""
        return np.zeros(self.H)

    def on(self, backend: Backend, params: Params, step: Step) -> MaximumEStep:
        scores = backend.kernel("cause_scores", D=self.D, H=self.H, MISSING=int(self.missing))
        return MaximumEStep(backend, self, self.tables(backend, params, step), backend.to_device(params["W"]), scores)


class MMCA(GaussianCauses):
    """Maximum magnitude causes analysis: y_d = W_dh* + ε, h* the active h with the largest |W_dh|.

    Bornschein, Henniges, Lücke, *Are V1 Simple Cells Optimized for Visual Occlusions? A Comparative Study*,
    PLoS Computational Biology 9, 2013. Trained by Expectation Truncation.

    Settings as in `GaussianCauses`.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` () and ``sigma`` ().
    """

    field_domain = "real"
    fragment = "magnitude"


def _add_powers(x: np.ndarray, field: np.ndarray, rho: float) -> np.ndarray:
    """z with sign(z)|z|^ρ = sign(x)|x|^ρ + sign(field)|field|^ρ; relative to the larger: no power overflows."""
    larger = np.where(np.abs(field) > np.abs(x), field, x)
    smaller = np.where(np.abs(field) > np.abs(x), x, field)
    ratio = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger != 0)
    return np.asarray(larger * (1 + np.sign(ratio) * np.abs(ratio) ** rho) ** (1 / rho))
