"""Maximal causes analysis, exact and smooth, under any noise: MCA and MMCA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.errors import ConfigError
from gem.models.base import Step
from gem.models.causes import Causes, CausesEStep, Expectation, Likelihood, refuse
from gem.models.estep import Evidence, squared_norms
from gem.models.noises import NOISES, Gaussian, Noise, check_cell
from gem.models.parameters import Parameter, Params
from gem.models.truncated import held, log_odds
from gem.statistics import Layout, Statistics
from gem.summary import Summary

LEAST_T = 1.05  # the temperature of the smooth maximum does not fall below


@dataclass(frozen=True)
class GaussianEStep(CausesEStep):
    """As in `CausesEStep`, and what the noise is told from."""

    def reference(self, batch: Batch, Y: Array, observed: Array) -> Evidence:
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


@dataclass(frozen=True)
class RelativeEStep(CausesEStep):
    """As in `CausesEStep`, but that log likelihoods are relative to the best means: in float64 on the host.

    Of counts of 20,000 the terms are 10⁵ times as large as their sum.
    """

    model: MaximalCauses

    def products(self, batch: Batch, Y: Array, observed: Array) -> Array:
        """log p(y | only latent h is active) less that of the best means, as the kernel's energies are relative."""
        known, (y, seen) = self.tables.likelihood, self._host(Y, observed)
        best = self.model.of.best(self.tables.params, self._of_data(batch, Y, observed))
        return self.backend.to_device(y @ known.slope + seen @ known.offset - best[:, None])

    def reference(self, batch: Batch, Y: Array, observed: Array) -> Evidence:
        """log p(y | the best means) less what each entry has by itself; NaN where a row holds what is no datum."""
        rows = self._of_data(batch, Y, observed)
        return Evidence(batch.n, constant=self.model.of.constant(self.tables.params, rows))

    def statistics(self, batch: Batch, found: Expectation) -> dict[Any, Any]:
        sums = super().statistics(batch, found)
        if not self.model.of.layout:
            return sums
        weights = None if batch.counts is None else batch.weights
        logs = self._of_data(batch, found.Y, found.observed).sum(axis=0)
        sums["fit"] = self.backend.point_sums([(found.energy, 1.0)], weights)
        sums["logs"] = float(logs.sum() if batch.counts is None else logs @ batch.counts)
        sums["entries"] = batch.total * self.model.D
        if found.entries is not None:
            sums["entries"] = self.backend.point_sums([(found.entries, 1.0)], weights)
        return sums

    def _host(self, Y: Array, observed: Array) -> tuple[np.ndarray, np.ndarray]:
        """The data and their mask, in float64."""
        y = self.backend.to_host(Y).astype(np.float64)
        seen = self.backend.to_host(observed).astype(np.float64) if self.model.missing else np.ones((1, self.model.D))
        return y, seen

    def _of_data(self, batch: Batch, Y: Array, observed: Array) -> np.ndarray:
        """What `Noise.of_data` says: once for a batch, as no parameter changes it."""
        name = f"{self.model.of.name} {self.model.of.floor}"
        if name not in batch.notes:
            batch.notes[name] = self.model.of.of_data(*self._host(Y, observed))
        return np.asarray(batch.notes[name])


@dataclass(frozen=True)
class BinaryEStep(CausesEStep):
    """As in `CausesEStep`, of data that are 0 or 1."""

    def reference(self, batch: Batch, Y: Array, observed: Array) -> Evidence:
        """0, or −∞ where a row holds what is not binary."""
        nothing = self.backend.empty((batch.n,))
        self.backend.kernel("check_rows", D=self.model.D)(batch.n, Y, nothing)
        return Evidence(batch.n, [(nothing, 1.0)])


class MaximalCauses(Causes):
    """The field of largest magnitude is seen, or a smooth version of it, as the mean of some noise.

    Parameters
    ----------
    D, H, Hprime, gamma, missing
        As in `Truncated`.
    noise : Noise
    rho : None, "anneal" or float
        As in `MCA`.
    """

    combination: ClassVar[str] = "maximum"

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None,
        gamma: int | None,
        missing: bool,
        noise: Noise,
        rho: float | str | None = None,
    ):
        super().__init__(D, H, Hprime, gamma, missing)
        number = isinstance(rho, int | float | np.number) and not isinstance(rho, bool)
        if not (rho is None or rho == "anneal" or (number and 1 < float(rho) < np.inf)):
            raise ConfigError(f"rho = {rho!r} must be None, 'anneal', or a number above 1")
        if rho is not None and not isinstance(noise, Gaussian):
            raise ConfigError(f"rho = {rho!r}: the smooth maximum is there with gaussian noise, not with {noise.name}")
        self.rho = float(rho) if number else rho  # type: ignore[arg-type]
        self.of = noise
        self.field_domain = "real" if self.combination == "magnitude" else noise.domain
        self.noisy = noise.noisy
        self.offset_in_b = noise.relative

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {**super().parameters, **self.of.parameters}

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        super().check_data(Y, start)
        refuse(Y, *self.of.bad(Y), start)

    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """What the noise begins with (`Noise.begin`), as a rule fields near the data's mean; π = 1/H."""
        begun = self.of.begin(summary.varied(), (self.D, self.H), rng)
        return {"W": begun.pop("W"), "pi": np.array(min(0.5, 1 / self.H)), **begun}

    def spread(self, params: Params) -> float:
        return self.of.spread(params)

    def sharpness(self, T: float) -> float | None:
        """ρ at a temperature; None: the exact maximum."""
        return 1 / (1 - 1 / max(T, LEAST_T)) if self.rho == "anneal" else self.rho  # type: ignore[return-value]

    def combined(self, params: Params, states: np.ndarray) -> np.ndarray:
        rho = self.sharpness(1.0)
        out = np.full((len(states), self.D), self.of.floor)
        for h, field in enumerate(params["W"].T):  # latent by latent: nothing of size S × D × H is formed
            on = np.flatnonzero(states[:, h])
            if rho is None:
                out[on] = np.where(np.abs(field) > np.abs(out[on]), field, out[on])
            else:
                out[on] = _add_powers(out[on], field, rho)
        return out

    def observe(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.of.draw(params, mean, rng)

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        seen = np.isfinite(Y)
        return self.of.log_likelihood(params, np.where(seen, Y, 0), seen, self.combined(params, states))

    def likelihood(self, params: Params, step: Step) -> Likelihood:
        known, W = self.of.likelihood(params, self.combination), params["W"]
        rho = self.sharpness(step.T)
        if rho is None:
            return known
        from gem.kernels.fragments.smooth_maximum import encode

        scale = float(1.01 * max(np.abs(W).max(), np.finfo(step.dtype).tiny) * self.gamma ** (1 / rho))
        settings = (known.settings[0], 1 / rho, scale, float(W.min() < 0))
        return replace(known, fragments="smooth_maximum+gaussian", fields=encode(W, scale, rho), settings=settings)

    def per_entry(self, params: Params) -> float:
        return self.of.per_entry(params)

    def on(self, backend: Backend, params: Params, step: Step) -> CausesEStep:
        tables = self.tables(backend, params, step)
        if isinstance(self.of, Gaussian):
            return GaussianEStep(backend, self, tables)
        return (RelativeEStep if self.of.relative else BinaryEStep)(backend, self, tables)

    @property
    def layout(self) -> Layout:
        observed: Layout = {"observed": ()} if self.missing and isinstance(self.of, Gaussian) else {}
        return {**super().layout, **self.of.layout, **observed}

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """As in `Causes`, and what the noise is learned from, all of the parameters the sums were found with."""
        means = super().moments(sums, params, step)
        if not self.of.layout:
            return means
        fit = sums["fit"] - log_odds(self.activities(params)) @ sums["s"]  # the energies hold the prior's log odds, too
        own = self.of.own_moments(self, sums, fit, params)
        return sums.but({**means.layout, **dict.fromkeys(own, ())}, **means, **own)

    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = Σ⟨A⟩y / Σ⟨A⟩, within what the noise allows; π = Σ⟨|s|⟩ / NH, corrected for the data selection."""
        notes: list[str] = []
        own = self.of.maximize(self, moments, step, notes)
        W = self.weighted_means(moments, params["W"], notes)
        if self.combination != "magnitude":
            W = held("W", W, self.of.floor, self.of.most, notes)
        return {"W": W, "pi": self.common_pi(moments, params, step, notes), **own}, notes


class MCA(MaximalCauses):
    """Maximal causes analysis: y_d has the mean max_h s_h W_dh, W ≥ 0, s_h ∈ {0, 1} with p(s_h = 1) = π.

    Lücke & Sahani, *Maximal Causes for Non-linear Component Extraction*, JMLR 9, 2008; Puertas, Bornschein, Lücke,
    *The Maximal Causes of Natural Scenes are Edge Filters*, NIPS 2010. Other noise than Gaussian: Mousavi, Drefs,
    Hirschberger, Lücke, *Generic Unsupervised Optimization for a Latent Variable Model With Exponential Family
    Observables*, JMLR 24, 2023. Trained by Expectation Truncation.

    Parameters
    ----------
    D, H, Hprime, gamma, missing
        As in `Truncated`.
    rho : None, "anneal" or float
        None: the exact maximum. A number > 1: the smooth maximum (Σ_h s_h W_dh^ρ)^(1/ρ). "anneal": the smooth
        maximum with ρ = 1 / (1 − 1/T), T the temperature of the step and at least 1.05 (ρ = 21). Of Gaussian noise.
    noise : str
        What y is about its mean: "gaussian", of standard deviation σ; "bernoulli", 0 or 1; "poisson", counts;
        "exponential", y ≥ 0; "gamma", y > 0, of one shape for all, so its standard deviation is the mean over √shape.
        Which one data have is told by the free energy of held-out data: `python -m benchmarks.noise_type`.
    background : float, optional
        The mean where no active cause exceeds it, in the units of the data, > 0 (default: 0.1); a probability if noise
        is "bernoulli"; none if it is "gaussian", where that mean is 0.

    Raises
    ------
    ConfigError
        If there is no such noise, or no `rho` or `background` with it.

    Notes
    -----
    Model parameters are ``W`` (D, H) and ``pi`` (), of Gaussian noise ``sigma`` (), of gamma noise ``shape`` ().
    """

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None = None,
        gamma: int | None = None,
        missing: bool = False,
        rho: float | str | None = None,
        noise: str = "gaussian",
        background: float | None = None,
    ):
        self.noise = check_cell("MCA", noise)
        if noise == "gaussian" and background is not None:
            raise ConfigError(f"background = {background!r}: gaussian noise has none, the mean without a cause is 0")
        of = Gaussian(signed=False) if noise == "gaussian" else NOISES[noise](background)
        super().__init__(D, H, Hprime, gamma, missing, of, rho)
        self.background = None if background is None else of.floor

    def score_offset(self, alone: np.ndarray) -> np.ndarray:
        """Of Gaussian noise nothing: the scores are not the products."""
        return np.zeros(self.H) if isinstance(self.of, Gaussian) else alone

    def on(self, backend: Backend, params: Params, step: Step) -> CausesEStep:
        if not isinstance(self.of, Gaussian):
            return super().on(backend, params, step)
        scores = backend.kernel("cause_scores", D=self.D, H=self.H, MISSING=int(self.missing))
        return MaximumEStep(backend, self, self.tables(backend, params, step), backend.to_device(params["W"]), scores)


class MMCA(MaximalCauses):
    """Maximum magnitude causes analysis: y_d = W_dh* + ε, h* the active h with the largest |W_dh|, ε ~ N(0, σ²).

    Bornschein, Henniges, Lücke, *Are V1 Simple Cells Optimized for Visual Occlusions? A Comparative Study*,
    PLoS Computational Biology 9, 2013. Trained by Expectation Truncation.

    Parameters
    ----------
    D, H, Hprime, gamma, missing, rho
        As in `MCA`.
    noise : str
        "gaussian": no other has means of both signs.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` () and ``sigma`` ().
    """

    combination = "magnitude"

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None = None,
        gamma: int | None = None,
        missing: bool = False,
        rho: float | str | None = None,
        noise: str = "gaussian",
    ):
        self.noise = check_cell("MMCA", noise)
        super().__init__(D, H, Hprime, gamma, missing, Gaussian(signed=True), rho)


def _add_powers(x: np.ndarray, field: np.ndarray, rho: float) -> np.ndarray:
    """z with sign(z)|z|^ρ = sign(x)|x|^ρ + sign(field)|field|^ρ; relative to the larger: no power overflows."""
    larger = np.where(np.abs(field) > np.abs(x), field, x)
    smaller = np.where(np.abs(field) > np.abs(x), x, field)
    ratio = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger != 0)
    return np.asarray(larger * (1 + np.sign(ratio) * np.abs(ratio) ** rho) ** (1 / rho))
