"""Causes that hide each other: maximal causes analysis (MCA, MMCA, PMCA), and what all models of causes share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import lgamma
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.checks import number
from gem.errors import ConfigError, DataError
from gem.models.base import (
    MIN_PROBABILITY,
    Evidence,
    Params,
    Posterior,
    Step,
    Weights,
    column_sums,
    squared_norms,
)
from gem.models.observed import split_missing
from gem.models.truncated import Truncated, held, log_odds, noise_level
from gem.philox import generator
from gem.statistics import Layout, Statistics, Sum, Sums

TABLE = 1 << 14  # counts below are looked up
MAX_STATES = 1 << 14  # of several causes: kernels hold the energies of all for a data point
SETTINGS = 4  # numbers that a fragment is given, as in kernels/causes.c
LEAST_T = 1.05  # the temperature of the smooth maximum does not fall below


@dataclass(frozen=True)
class Likelihood:
    """What a model tells the kernel of log p(y | s), up to what is the same for all states.

    Attributes
    ----------
    fragment : str
        How causes combine: a file in kernels/fragments.
    fields : (D, H) array
        As the fragment wants them.
    settings : tuple of float
        The fragment's numbers.
    slope, offset : (D, H) arrays
        Σ_d (slope_dh y_d + offset_dh) is log p(y | latent h alone), over the observed d.
    share, value : (D, H) arrays
        The statistic A of latent h where it is alone, and E[y_d].
    """

    fragment: str
    fields: np.ndarray
    settings: tuple[float, ...]
    slope: np.ndarray
    offset: np.ndarray
    share: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Tables:
    """Parameters as the kernels want them, and what of them is needed on the host."""

    backend: Backend
    weights: Weights
    params: Params
    likelihood: Likelihood
    log_p0: float
    W: Array
    fields: Array
    slope: Array
    per_entry: Array
    offset: Array
    score_slope: Array
    score_offset: Array
    zeros: Array
    prior: Array
    shift: Array
    settings: Array
    beta: float
    nothing: Array
    causes: Callable[..., Kernel]
    preselect: Kernel
    squared_norms: Kernel


@dataclass(frozen=True)
class Expectation:
    """What the kernel says of a batch: device arrays.

    `Y` and `observed` are the data with 0 for what is missing, and their mask (or None), `counts` (n,) the number of
    observed entries (or None). `single` is q of the singletons and `mean` ⟨s⟩, (n, H), both times the data points'
    weights; `energy` (n,) is ⟨E⟩, `reference` the part of log p(y | s) outside of E, and `full` (n,) 1 where the most
    probable state has γ causes.
    """

    Y: Array
    observed: Array
    counts: Array
    candidates: Array
    single: Array
    mean: Array
    sums: Array
    reconstruction: Array
    log_evidence: Evidence
    energy: Array
    reference: Evidence
    full: Array


class Causes(Truncated):
    """Binary latents whose fields combine dimension by dimension, but not by a sum: they share the kernel `causes`.

    A subclass says how (`likelihood`, with a fragment of the kernel), and what the M-step makes of the statistics
    Σ⟨A_dh⟩ and Σ⟨A_dh⟩y_d.

    Settings as in `Truncated`.

    Raises
    ------
    ConfigError
        If there are more than 2¹⁴ states of several causes.
    """

    imputes: ClassVar[bool] = True  # a missing y enters ⟨A y⟩ by its expectation; else it does not count
    offset_in_b: ClassVar[bool] = False  # whether `products` has the offsets of the singletons' energies as well

    def __init__(self, D: int, H: int, Hprime: int | None = None, gamma: int | None = None, missing: bool = False):
        super().__init__(D, H, Hprime, gamma, missing)
        if self.states.S > MAX_STATES:
            raise ConfigError(
                f"H' = {self.Hprime}, gamma = {self.gamma} give {self.states.S:,} states per data point, {self.name} "
                f"takes up to {MAX_STATES:,}: lower one of them"
            )

    @abstractmethod
    def likelihood(self, params: Params, step: Step) -> Likelihood:
        """The likelihood with these parameters."""

    def reference(self, tables: Tables, Y: Array) -> Evidence:
        """The part of log p(y_n | s) that depends on y alone and is not in the kernel's energies."""
        return Evidence(Y.shape[0])

    def per_entry(self, params: Params) -> float:
        """The same, what every observed entry adds."""
        return 0.0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.D, self.H), "pi": ()}

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.int8, (self.H,))])
        drawn["s"] = rng.random((n, self.H)) < params["pi"]
        drawn["Y"] = self.observe(params, self.combined(params, drawn["s"]), rng)
        return drawn

    @abstractmethod
    def combined(self, params: Params, states: np.ndarray) -> np.ndarray:
        """E[y | s], (S, D)."""

    @abstractmethod
    def observe(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw data with these means, of the same shape."""

    # -- E-step --------------------------------------------------------------------------------------------

    def tables(self, params: Params, backend: Backend, step: Step) -> Tables:
        known = self.likelihood(params, step)
        pi = self.activities(params)
        logit = log_odds(pi)
        alone = np.zeros(self.H) if self.missing or self.offset_in_b else known.offset.sum(axis=0)
        sizes = {"D": self.D, "H": self.H, "HPRIME": self.Hprime, "GAMMA": self.gamma, "MANY": self.states.S}
        flags = {"ANNEAL": int(step.T != 1), "MISSING": int(self.missing)}
        return Tables(
            backend=backend,
            weights=Weights(backend),
            params=params,
            likelihood=known,
            log_p0=float(np.log1p(-pi).sum()),
            W=backend.to_device(params["W"]),
            fields=backend.to_device(known.fields.T),
            slope=backend.to_device(known.slope),
            per_entry=backend.to_device(known.offset),
            offset=backend.to_device(alone + logit),
            score_slope=backend.to_device(np.ones((1, self.H))),
            score_offset=backend.to_device(alone[None]),
            zeros=backend.zeros((1, self.H)),
            prior=backend.to_device(logit),
            shift=backend.to_device(np.zeros(self.H) if step.anneal_prior else (1 - 1 / step.T) * logit),
            settings=backend.to_device(np.pad(np.array(known.settings), (0, SETTINGS - len(known.settings)))),
            beta=1 / step.T,
            nothing=backend.to_device(np.zeros(1)),
            causes=partial(backend.kernel, "causes", states=self.states, fragment=known.fragment, **sizes, **flags),
            preselect=backend.kernel("preselect", H=self.H, HPRIME=self.Hprime, VALUES=1),
            squared_norms=backend.kernel("squared_norms", D=self.D),
        )

    def scores(self, tables: Tables, Y: Array, observed: Array, b: Array) -> tuple[Array, Array, Array]:
        """Scores of the latents (n, H), and the line (slope, offset) on them that `preselect` takes.

        By default log p(y | latent h alone).
        """
        return b, tables.score_slope, tables.score_offset

    def products(self, t: Tables, Y: Array, observed: Array) -> Array:
        """What of log p(y | latent h alone) differs between data points, (n, H); `observed` is a mask, if any."""
        b = t.backend.matmul(Y, t.slope)
        if self.missing:
            host = t.backend.to_host
            b = t.backend.to_device(host(b) + host(t.backend.matmul(observed, t.per_entry)))
        return b

    def expect(
        self, t: Tables, Y: Array, candidates: Array = None, weights: np.ndarray | None = None, **wanted: int
    ) -> Expectation:
        """Preselect, if `candidates` are not given, and weigh K_n: a matrix product, and kernels."""
        n, device = Y.shape[0], t.backend
        observed, counts = t.nothing, None
        if self.missing:
            Y, observed = split_missing(device, Y)
            counts = squared_norms(device, t.squared_norms, observed)  # of 0 and 1
        b = self.products(t, Y, observed)
        if candidates is None:
            candidates = device.empty((n, self.Hprime), np.int32)
            t.preselect(n, *self.scores(t, Y, observed, b), candidates)
        kernel = t.causes(**{"STATS": 0, "RECONSTRUCT": 0, **wanted})
        log_evidence, energy, full = (device.empty((n,)) for _ in range(3))
        mean = device.empty((n, self.H))
        sums, reconstruction = t.nothing, t.nothing
        if wanted.get("STATS"):
            sums = device.empty((kernel.groups(n), 2, self.H, self.D), device.acc)
        if wanted.get("RECONSTRUCT"):
            reconstruction = device.empty((n, self.D))
        kernel(
            n, Y, observed, b, t.fields, t.offset, t.prior, t.shift, t.settings, candidates, t.beta,
            t.weights(n, weights), log_evidence, energy, mean, reconstruction, sums, full,
        )  # fmt: skip
        reference, entry = self.reference(t, Y), self.per_entry(t.params)
        parts, constant = [(log_evidence, 1.0), *reference.parts], t.log_p0 + reference.constant
        if counts is None:
            constant = constant + self.D * entry
        elif entry:
            parts.append((counts, entry))
        return Expectation(
            Y, observed if self.missing else None, counts, candidates, b, mean, sums, reconstruction,
            Evidence(n, parts, constant), energy, reference, full,
        )  # fmt: skip

    def infer(self, tables: Tables, Y: Array) -> Posterior:
        found = self.expect(tables, Y)
        return Posterior(found.log_evidence, found.candidates, found.mean, rest={"full": found.full})

    def infer_full(self, tables: Tables, Y: Array) -> Posterior:
        found = self.expect(tables, Y, RECONSTRUCT=1)
        rest = {"reconstruction": found.reconstruction, "full": found.full}
        return Posterior(found.log_evidence, found.candidates, found.mean, rest=rest)

    def reconstruct(self, tables: Tables, Y: Array, posterior: Posterior) -> Array:
        return posterior.rest["reconstruction"]

    def e_step(self, tables: Tables, Y: Array, weights: np.ndarray | None = None) -> tuple[Evidence, Sums]:
        found = self.expect(tables, Y, weights=weights, STATS=1)
        sums = self.statistics(tables, found, tables.weights(Y.shape[0], weights))
        return found.log_evidence, {**sums, **self.count_full(tables, found.full, weights)}

    def sums(self, tables: Tables, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> Sums:
        found = self.expect(tables, Y, posterior.candidates, weights, STATS=1)
        return self.statistics(tables, found, tables.weights(Y.shape[0], weights))

    def statistics(self, t: Tables, found: Expectation, keep: Array) -> dict[str, Any]:
        """The kernel's sums over states of several causes, and those of the singletons: `effects` adds them up."""
        device = t.backend
        columns = partial(column_sums, device, keep=t.weights(found.Y.shape[0]))
        sums = {
            "several": Sum(found.sums),
            "alone": device.sum_products(found.Y, found.single),
            "count": Sum(columns(found.single)),
            "s": Sum(columns(found.mean)),
        }
        if self.missing:
            sums["seen"] = device.sum_products(found.observed, found.single)
        return sums

    @property
    def layout(self) -> Layout:
        D, H = self.D, self.H
        seen: Layout = {"seen": (D, H)} if self.missing else {}
        return {"several": (2, H, D), "alone": (D, H), "count": (H,), "s": (H,), **seen}

    # -- M-step --------------------------------------------------------------------------------------------

    def effects(self, stats: Statistics, params: Params, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """Σ⟨A⟩ and Σ⟨A y⟩, (D, H): of states of several causes, and of latents that are alone."""
        known = self.likelihood(params, step)
        A, Ay = stats["several"].swapaxes(1, 2)
        alone, count = stats["alone"], stats["count"]
        seen = stats["seen"] if self.missing else count
        if self.imputes:
            alone, seen = alone + (count - seen) * known.value, count
        return A + known.share * seen, Ay + known.share * alone

    def weighted_means(self, A: np.ndarray, Ay: np.ndarray, old: np.ndarray, notes: list[str]) -> np.ndarray:
        """W = Σ⟨A⟩y / Σ⟨A⟩; what never wins stays."""
        wins = A > 0
        notes += [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(~wins.any(axis=0))]
        some = int(np.count_nonzero(~wins & wins.any(axis=0)))
        if some:
            notes.append(f"{some} of {wins.size} W never had the largest effect: they were kept")
        return np.divide(Ay, A, out=old.copy(), where=wins)

    def common_pi(self, stats: Statistics, params: Params, step: Step, notes: list[str]) -> np.ndarray:
        """π = Σ⟨|s|⟩ / NH, corrected for the data selection."""
        pi = stats["s"].sum() / (float(stats["N_use"]) * self.H) * self.selection_factor(params, step)
        return held("pi", pi, MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes)

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        kept = itemsize * (self.H + 2) + 4 * self.Hprime
        work = 2 * self.H + 3 + (2 if self.missing else 1) * self.D
        return kept + itemsize * work, kept


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

    def settings(self) -> dict[str, Any]:
        return super().settings() | ({} if self.rho is None else {"rho": self.rho})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super().shapes, "sigma": ()}

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """Fields at the data's mean plus noise of half its spread; σ the data's standard deviation; π = 1/H.

        Y: (N, D) array, path or Source; the result is the same on every rank of `comm`.
        """
        data = self.varied_moments(Y, comm, weights)
        noise = np.sqrt(data.var)[:, None] * generator(seed, "init").standard_normal((self.D, self.H)) / 2
        W = data.mean[:, None] + noise
        return {
            "W": np.abs(W) if self.domains["W"] == "nonnegative" else W,
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
        fragment, fields = self.fragment, W
        settings: tuple[float, ...] = (-precision / 2,)
        rho = self.sharpness(step.T)
        if rho is not None:
            from gem.kernels.fragments.smooth_maximum import encode

            scale = float(1.01 * max(np.abs(W).max(), np.finfo(step.dtype).tiny) * self.gamma ** (1 / rho))
            fragment, fields = "smooth_maximum", encode(W, scale, rho)
            settings = (*settings, 1 / rho, scale, float(W.min() < 0))
        return Likelihood(fragment, fields, settings, W * precision, -(W**2) * precision / 2, np.ones_like(W), W)

    def reference(self, tables: Tables, Y: Array) -> Evidence:
        norms = squared_norms(tables.backend, tables.squared_norms, Y)
        return Evidence(Y.shape[0], [(norms, tables.likelihood.settings[0])])

    def per_entry(self, params: Params) -> float:
        return float(-np.log(2 * np.pi * params["sigma"] ** 2) / 2)

    def statistics(self, t: Tables, found: Expectation, keep: Array) -> dict[str, Any]:
        """As in `Causes`, and what the noise is told from."""
        norms, half = found.reference.parts[0]
        parts = {"fit": [(found.energy, 1.0), (norms, half)], "yy": [(norms, 1.0)]}
        if self.missing:
            parts["observed"] = [(found.counts, 1.0)]
        more = {name: t.backend.point_sums(part, keep) for name, part in parts.items()}
        return {**super().statistics(t, found, keep), **more}

    @property
    def layout(self) -> Layout:
        observed: Layout = {"observed": ()} if self.missing else {}
        return {**super().layout, "fit": (), "yy": (), **observed}

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = Σ⟨A⟩y / Σ⟨A⟩, σ² = Σ⟨‖y − W̄(s; W_old)‖²⟩ / ND, π = Σ⟨|s|⟩ / NH, corrected for the data selection."""
        notes: list[str] = []
        sigma2 = params["sigma"] ** 2
        entries = float(stats["N_use"]) * self.D
        # log p(y | s) less its constants is −‖y − W̄‖²/2σ², the energies hold the prior's log odds, too
        fit = stats["fit"] - log_odds(self.activities(params)) @ stats["s"]
        gaps = entries - stats["observed"] if self.missing else 0.0
        variance = (gaps * sigma2 - 2 * sigma2 * fit) / entries
        sigma = noise_level(float(variance), float(stats["yy"]) / entries, 1, self.D, step, notes)
        W = self.weighted_means(*self.effects(stats, params, step), params["W"], notes)
        if self.domains["W"] == "nonnegative":
            W = held("W", W, 0, np.inf, notes)
        return {"W": W, "pi": self.common_pi(stats, params, step, notes), "sigma": sigma}, notes


class MCA(GaussianCauses):
    """Maximal causes analysis: y_d = max_h s_h W_dh + ε, W ≥ 0, s_h ∈ {0, 1} with p(s_h = 1) = π, ε ~ N(0, σ²).

    Lücke & Sahani, *Maximal Causes for Non-linear Component Extraction*, JMLR 9, 2008; Puertas, Bornschein, Lücke,
    *The Maximal Causes of Natural Scenes are Edge Filters*, NIPS 2010. Trained by Expectation Truncation.

    Settings as in `GaussianCauses`.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` () and ``sigma`` ().
    """

    domains: ClassVar[Mapping[str, str]] = {"W": "nonnegative", "pi": "probability", "sigma": "deviation"}
    fragment = "maximum"

    def scores(self, tables: Tables, Y: Array, observed: Array, b: Array) -> tuple[Array, Array, Array]:
        """How little the field exceeds the data: −Σ_d max(W_dh − y_d, 0), up to what no latent changes."""
        n, device = Y.shape[0], tables.backend
        scores = device.empty((n, self.H))
        kernel = device.kernel("cause_scores", D=self.D, H=self.H, MISSING=int(self.missing))
        kernel(n, Y, observed, tables.W, scores)
        return scores, tables.score_slope, tables.zeros


class MMCA(GaussianCauses):
    """Maximum magnitude causes analysis: y_d = W_dh* + ε, h* the active h with the largest |W_dh|.

    Bornschein, Henniges, Lücke, *Are V1 Simple Cells Optimized for Visual Occlusions? A Comparative Study*,
    PLoS Computational Biology 9, 2013. Trained by Expectation Truncation.

    Settings as in `GaussianCauses`.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` () and ``sigma`` ().
    """

    domains: ClassVar[Mapping[str, str]] = {"W": "real", "pi": "probability", "sigma": "deviation"}
    fragment = "magnitude"


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

    domains: ClassVar[Mapping[str, str]] = {"W": "nonnegative", "pi": "probability"}
    offset_in_b = True

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

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "background": self.background}

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        super().check_data(Y, start)
        refuse(Y, ~np.isnan(Y) & ((Y < 0) | (np.floor(Y) != Y)), start, "is no count: PMCA explains whole numbers ≥ 0")

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """Rates at the data's mean plus noise of half its spread; π = 1/H. Y: array, path or Source."""
        data = self.varied_moments(Y, comm, weights)
        noise = np.sqrt(data.var)[:, None] * generator(seed, "init").standard_normal((self.D, self.H)) / 2
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
        return Likelihood("poisson", W, (1.0, self.background), np.log(W), self.background - W, np.ones_like(W), W)

    def products(self, t: Tables, Y: Array, observed: Array) -> Array:
        """log p(y | latent h alone) less that of the best rates, which the kernel's energies are relative to.

        In float64 on the host: of counts of 20,000 the terms are 10⁵ times as large as their sum.
        """
        y = t.backend.to_host(Y).astype(np.float64)
        seen = t.backend.to_host(observed).astype(np.float64) if self.missing else np.ones((1, self.D))
        return t.backend.to_device(
            y @ t.likelihood.slope + seen @ t.likelihood.offset - _of_counts(self._best, y)[:, None]
        )

    def _best(self, y: np.ndarray) -> np.ndarray:
        """log p(y_d | the best rate) of each count, less log p(0 | background) and up to log y_d!"""
        rate = np.maximum(y, self.background)
        return np.asarray(y * np.log(rate) - (rate - self.background))

    def reference(self, tables: Tables, Y: Array) -> Evidence:
        """log p(y | the best rates) less the background of each entry; NaN where a row holds what is no count."""
        y = tables.backend.to_host(Y).astype(np.float64)
        return Evidence(len(y), constant=_of_counts(lambda counts: self._best(counts) - _log_factorial(counts), y))

    def per_entry(self, params: Params) -> float:
        return -self.background

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = Σ⟨A⟩y / Σ⟨A⟩, at least the background; π = Σ⟨|s|⟩ / NH, corrected for the data selection."""
        notes: list[str] = []
        W = self.weighted_means(*self.effects(stats, params, step), params["W"], notes)
        W = held("W", W, self.background, np.inf, notes)
        return {"W": W, "pi": self.common_pi(stats, params, step, notes)}, notes


def refuse(Y: np.ndarray, bad: np.ndarray, start: int, why: str) -> None:
    """Name the first bad entry."""
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(f"data: {Y[row, column]} at row {start + row}, column {column} {why}")


def _add_powers(x: np.ndarray, field: np.ndarray, rho: float) -> np.ndarray:
    """z with sign(z)|z|^ρ = sign(x)|x|^ρ + sign(field)|field|^ρ; relative to the larger: no power overflows."""
    larger = np.where(np.abs(field) > np.abs(x), field, x)
    smaller = np.where(np.abs(field) > np.abs(x), x, field)
    ratio = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger != 0)
    return np.asarray(larger * (1 + np.sign(ratio) * np.abs(ratio) ** rho) ** (1 / rho))


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
