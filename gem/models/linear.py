"""Linear superposition, y = W s + ε with discrete latents: binary, ternary, discrete sparse coding (BSC, TSC, DSC)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import frexp
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.errors import ConfigError
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
from gem.models.held import Masks, added_variance, held_fields, put_back
from gem.models.imputation import impute
from gem.models.observed import ObservedGram, split_missing
from gem.models.residuals import discrete_spread, loses_digits, residual_sums
from gem.models.truncated import Truncated, held, noise_level, pieces
from gem.philox import generator
from gem.statistics import Layout, Statistics, Sum

FIXED_POINT = 2.0**40  # the scale of pair_sums: integers add up to the same bits in any order
ROOM = 21  # sums of pairs stay below 2²¹ units of 2⁴⁰: a quarter of what 64 bits hold
FLOAT_RANGE = 120  # exponents that a float32 holds with some to spare
FAINT = 1e-10  # of the largest Σ⟨s²⟩
BLOCK = 32  # rows of a triangular matrix that are inverted at once


@dataclass(frozen=True)
class Tables:
    """Parameters as the kernels want them, and as they are."""

    backend: Backend
    weights: Weights
    params: Params
    sigma2: float
    W: Array
    fields: Array
    gram: Array
    slope: Array
    offset: Array
    values: Array
    score_slope: Array
    score_offset: Array
    nothing: Array
    beta: float
    shift: Array
    log_p0: float
    squared_norms: Kernel
    preselect: Kernel
    gram_posterior: Kernel
    pair_sums: Kernel
    scale_rows: Kernel
    observed_gram: ObservedGram | None
    residuals: bool


@dataclass(frozen=True)
class Seen:
    """A batch as the posterior takes it: data, what of them was observed (None: all), b = Wᵀy, couplings of fields."""

    Y: Array
    observed: Array | None
    b: Array
    gram: Array
    norms: Array
    candidates: Array


class LinearSuperposition(Truncated):
    """y = W s + ε with ε ~ N(0, σ² I) and discrete s_h, independent and alike: the common part of BSC, TSC and DSC.

    A subclass says which `values` a latent takes when it is not 0, and how ``pi`` gives their probabilities.
    """

    domains: ClassVar[Mapping[str, str]] = {"W": "real", "pi": "probability", "sigma": "deviation"}
    cosine: ClassVar[bool] = False  # candidates are chosen by Wᵀy/‖W‖, or by the log joint of the latent alone

    @abstractmethod
    def probabilities(self, params: Params) -> np.ndarray:
        """p(s_h = 0), then those of `values`, (1 + V,); none is 0."""

    @abstractmethod
    def prior(self, active: np.ndarray, notes: list[str]) -> np.ndarray:
        """The parameter ``pi`` that gives `values` these probabilities, (V,)."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.D, self.H), "pi": (), "sigma": ()}

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """Fields that explain the data's mean, plus noise of a quarter of its spread; σ the data's standard deviation.

        A latent is active with probability 1/H, at each of its values alike.
        Y: (N, D) array, path or Source; the result is the same on every rank of `comm`.
        """
        data = self.varied_moments(Y, comm, weights)
        spread = np.sqrt(data.var)
        noise = generator(seed, "init").standard_normal((self.D, self.H))
        values = np.array(self.values)
        size = np.sqrt(np.mean(values**2))
        return {
            "W": data.mean[:, None] * values.mean() / size**2 + spread[:, None] * noise / (4 * size),
            "pi": self.prior(np.full(len(values), min(0.5, 1 / self.H) / len(values)), []),
            "sigma": np.array(np.sqrt(data.var.mean())),
        }

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        kinds = np.array([*self.values, 0.0])
        small = np.array_equal(kinds, kinds.astype(np.int8))
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.int8 if small else np.float64, (self.H,))])
        steps = np.cumsum(self.probabilities(params)[1:])
        drawn["s"] = kinds[np.searchsorted(steps, rng.random((n, self.H)), side="right")]
        drawn["Y"] = drawn["s"] @ params["W"].T + params["sigma"] * rng.standard_normal((n, self.D))
        return drawn

    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        numbers = np.array([np.count_nonzero(states == value, axis=1) for value in (0.0, *self.values)])
        return np.log(self.probabilities(params)) @ numbers

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        squares, variance = np.empty((len(Y), len(states))), params["sigma"] ** 2
        for some in pieces(len(states), self.D):
            mean = states[some] @ params["W"].T
            for rows in pieces(len(Y), mean.size):
                squares[rows, some] = np.nansum((Y[rows, None] - mean) ** 2, axis=2)
        observed = np.isfinite(Y).sum(axis=1)[:, None]
        return -(squares / variance + observed * np.log(2 * np.pi * variance)) / 2

    # -- E-step --------------------------------------------------------------------------------------------

    def tables(self, params: Params, backend: Backend, step: Step) -> Tables:
        H, W = self.H, params["W"]
        sigma2 = float(params["sigma"] ** 2)
        log_p = np.log(self.probabilities(params))
        log_odds, values = log_p[1:] - log_p[0], np.array(self.values)
        gram = W.T @ W / sigma2
        norms = np.zeros(H) if self.missing else np.diag(gram)  # of what was observed they differ by data point
        slope = np.full(H, 1 / sigma2)
        offset = log_odds[:, None] - values[:, None] ** 2 / 2 * norms
        score_slope, score_offset = self._score_lines(slope, offset, norms)
        shift = np.zeros(len(values)) if step.anneal_prior else (1 - 1 / step.T) * log_odds
        sizes: dict[str, Any] = {"H": H, "HPRIME": self.Hprime}
        return Tables(
            backend=backend,
            weights=Weights(backend),
            params=params,
            sigma2=sigma2,
            W=backend.to_device(W),
            fields=backend.to_device(W.T),
            gram=backend.to_device(gram),
            slope=backend.to_device(slope),
            offset=backend.to_device(offset),
            values=backend.to_device(values),
            score_slope=backend.to_device(score_slope),
            score_offset=backend.to_device(score_offset),
            nothing=backend.to_device(np.zeros(1)),
            beta=1 / step.T,
            shift=backend.to_device(shift),
            log_p0=float(H * log_p[0]),
            squared_norms=backend.kernel("squared_norms", D=self.D),
            preselect=backend.kernel("preselect", VALUES=len(score_slope), **sizes),
            gram_posterior=backend.kernel(
                "gram_posterior", states=self.states, GAMMA=self.gamma, ANNEAL=int(step.T != 1),
                VALUES=len(values), MASKED=int(self.missing), **sizes,
            ),
            pair_sums=backend.kernel("pair_sums", **sizes),
            scale_rows=backend.kernel("scale_rows", H=H),
            observed_gram=ObservedGram.of(W / params["sigma"], self.Hprime, backend) if self.missing else None,
            residuals=step.residuals,
        )  # fmt: skip

    def _score_lines(self, slope: np.ndarray, offset: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slopes and offsets in b of the scores, for `preselect`; the scores themselves if entries are missing."""
        if self.missing:
            return np.ones((1, self.H)), np.zeros((1, self.H))
        if not self.cosine:
            return np.multiply.outer(self.values, slope), offset
        length = np.sqrt(norms)  # a field of zeros explains nothing and is scored 0
        return np.divide(1, length, out=np.zeros(self.H), where=length > 0)[None], np.zeros((1, self.H))

    def infer(self, tables: Tables, Y: Array) -> Posterior:
        """Preselect I_n, enumerate K_n, weigh: one matrix product and two kernels; more if entries are missing."""
        t, n, V = tables, Y.shape[0], len(self.values)
        seen = self._select(t, Y) if t.observed_gram is None else self._select_observed(t, t.observed_gram, Y)
        log_evidence, pairs, full = t.backend.empty((n,)), t.backend.empty((n, self.pairs)), t.backend.empty((n,))
        squares = t.backend.empty((n, self.H)) if V > 1 else t.nothing
        counts = t.backend.empty((n, V)) if V > 1 else t.nothing
        t.gram_posterior(
            n, seen.b, seen.gram, seen.norms, t.slope, t.offset, t.values, seen.candidates, t.beta, t.shift,
            log_evidence, pairs, squares, counts, full,
        )  # fmt: skip
        yy = squared_norms(t.backend, t.squared_norms, seen.Y)
        rest = {"pairs": pairs, "squares": squares, "counts": counts, "yy": yy, "full": full}
        if seen.observed is not None:
            rest |= {"Y": seen.Y, "observed": seen.observed}
        evidence = in_white_noise(t, self.D, log_evidence, yy, seen.observed)
        return Posterior(evidence, seen.candidates, seen.b, rest=rest)

    def _select(self, t: Tables, Y: Array) -> Seen:
        candidates = t.backend.empty((Y.shape[0], self.Hprime), np.int32)
        b = t.backend.matmul(Y, t.W)
        t.preselect(Y.shape[0], b, t.score_slope, t.score_offset, candidates)
        return Seen(Y, None, b, t.gram, t.nothing, candidates)

    def _select_observed(self, t: Tables, gram: ObservedGram, Y: Array) -> Seen:
        """The observed part alone: its products with the fields, and its own Gram matrix of the candidates."""
        n = Y.shape[0]
        filled, observed = split_missing(t.backend, Y)
        b, norms = t.backend.matmul(filled, t.W), gram.norms(observed)
        scores, candidates = t.backend.empty((n, self.H)), t.backend.empty((n, self.Hprime), np.int32)
        line = t.backend.kernel("linear_scores", H=self.H, VALUES=len(self.values), COSINE=int(self.cosine))
        line(n, b, norms, t.slope, t.offset, t.values, scores)
        t.preselect(n, scores, t.score_slope, t.score_offset, candidates)
        return Seen(filled, observed, b, gram.couplings(observed, candidates), norms, candidates)

    def sums(self, tables: Tables, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> dict[str, Any]:
        t, n, rest = tables, Y.shape[0], posterior.rest
        keep, columns = t.weights(n, weights), partial(column_sums, t.backend)
        sums: dict[str, Any] = {"yy": [t.backend.point_sums([(rest["yy"], 1.0)], keep)]}
        if len(self.values) > 1:
            sums |= {name: Sum(columns(rest[name], keep)) for name in ("squares", "counts")}
        else:  # ⟨s⟩ says it
            sums["squares"] = Sum(columns(posterior.mean, keep), self.values[0])
        if t.residuals:
            sums["ys"], sums["rr"], sums["ss"] = self._residuals(t, Y, posterior, weights)
            return sums
        count = n if weights is None else float(weights.sum())
        sums["ss"] = pair_moments(t, n, posterior, keep, self._most(t, count, sums["squares"]))
        ys, yy = self._imputed(t, posterior, weights) if self.missing else (0.0, 0.0)
        if weights is not None:
            t.scale_rows(n, posterior.mean, keep)
        sums["ys"] = [t.backend.sum_products(rest.get("Y", Y), posterior.mean)]
        if self.missing:
            sums["ys"].append(ys)
            sums["yy"].append(yy)
        return sums

    def _imputed(self, t: Tables, posterior: Posterior, weights: np.ndarray | None) -> tuple[np.ndarray, float]:
        """What the missing entries, latents themselves, add to Σ y⟨s⟩ᵀ and Σ‖y‖²."""
        host, rest = t.backend.to_host, posterior.rest
        squares = host(rest["squares"]) if len(self.values) > 1 else self.values[0] * host(posterior.mean)
        moments = squares, host(posterior.candidates), host(rest["pairs"])
        return impute(t.params["W"], t.sigma2, host(rest["observed"]), *moments, weights)

    def _residuals(
        self, t: Tables, Y: Array, posterior: Posterior, weights: np.ndarray | None
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """Σ⟨(y − Ws)sᵀ⟩ and Σ⟨‖y − Ws‖²⟩ about the old W, and all of Σ⟨ssᵀ⟩."""
        host, rest = t.backend.to_host, posterior.rest
        mean, chosen = host(posterior.mean), host(posterior.candidates)
        squares = host(rest["squares"]) if len(self.values) > 1 else self.values[0] * mean
        eps = float(np.finfo(t.backend.dtype).eps)
        spread = discrete_spread(mean, squares, chosen, host(rest["pairs"]), eps)
        observed = host(rest["observed"]).astype(np.float64) if self.missing else None
        Y = host(rest.get("Y", Y))
        return residual_sums(t.params["W"], t.sigma2, Y, observed, mean, spread[0], chosen, spread[1], weights)

    def reconstruct(self, tables: Tables, Y: Array, posterior: Posterior) -> Array:
        return tables.backend.matmul(posterior.mean, tables.fields)

    def _most(self, t: Tables, count: float, squares: Sum) -> float:
        """A bound on all Σ⟨s_h²⟩ of so many points: in float32, with fewer digits to lose, without waiting for them."""
        if t.backend.dtype == np.float32:
            return count * max(value**2 for value in self.values)
        return float(np.max(squares.scale * t.backend.to_host(squares.rows).sum(axis=0)))

    @property
    def layout(self) -> Layout:
        D, H = self.D, self.H
        counts: Layout = {"counts": (len(self.values),)} if len(self.values) > 1 else {}
        return {"yy": (), "rr": (), "ys": (D, H), "squares": (H,), "ss": (H, H), **counts}

    def usage(self, stats: Statistics) -> np.ndarray:
        """As if all active latents had the smallest value: an upper bound, and exact where all are of one size."""
        return stats["squares"] / np.min(np.square(self.values))

    # -- M-step --------------------------------------------------------------------------------------------

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = (Σ y⟨s⟩ᵀ)(Σ⟨ssᵀ⟩)⁻¹, σ² = Σ⟨‖y − Ws‖²⟩ / ND, π from the counts, corrected for the data selection."""
        N = float(stats["N_use"])
        ss = stats["ss"] if step.residuals else symmetric(stats["ss"], stats["squares"])
        of_noise: list[str] = []
        W, sigma = fields_and_noise(stats, ss, params["W"], step, of_noise)
        notes = [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(stats["squares"] == 0)]
        counts = stats["counts"] if len(self.values) > 1 else stats["squares"].sum(keepdims=True) / self.values[0] ** 2
        active = counts / (N * self.H) * self.selection_factor(params, step)
        return {"W": W, "pi": self.prior(active, notes), "sigma": sigma}, notes + of_noise

    def hold(self, new: Params, old: Params, masks: Masks, stats: Statistics, step: Step) -> Params:
        """σ follows the fields."""
        ss = stats["ss"] if step.residuals else symmetric(stats["ss"], stats["squares"])
        return with_held_fields(new, old, masks, ss, float(stats["N_use"]), self.domains)

    @property
    def monotone(self) -> bool:
        """Where no state is left out."""
        return self.Hprime == self.gamma == self.H and not self.missing

    def needs_residuals(self, params: Params, step: Step, stats: Statistics | None = None) -> bool:
        with np.errstate(over="ignore"):
            square = self.probabilities(params)[1:] @ np.square(self.values) * np.sum(params["W"] ** 2) / self.D
        return noise_is_lost(square, params, step, stats)

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        moments = self.H + self.pairs + (self.H + len(self.values) if len(self.values) > 1 else 0)
        kept = itemsize * (moments + 2 + 2 * self.D * self.missing) + 4 * self.Hprime
        return kept + itemsize * (self.D + self.H + (2 * self.H + self.pairs) * self.missing), kept


class BSC(LinearSuperposition):
    """Binary sparse coding: y = W s + ε, s_h ∈ {0, 1} with p(s_h = 1) = π, ε ~ N(0, σ² I).

    Trained by Expectation Truncation. Henniges, Puertas, Bornschein, Eggert, Lücke, *Binary Sparse Coding*,
    LVA/ICA 2010; Lücke & Eggert, *Expectation Truncation*, JMLR 11, 2010.

    Settings as in `Truncated`.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` () and ``sigma`` ().
    """

    cosine = True

    def probabilities(self, params: Params) -> np.ndarray:
        return shared_out(params["pi"], 1)

    def prior(self, active: np.ndarray, notes: list[str]) -> np.ndarray:
        return held("pi", active.sum(), MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes)


class TSC(LinearSuperposition):
    """Ternary sparse coding: y = W s + ε, s_h ∈ {−1, 0, 1} with p(s_h = ±1) = π/2, ε ~ N(0, σ² I).

    Exarchakis, Henniges, Eggert, Lücke, *Ternary Sparse Coding*, LVA/ICA 2012. Settings as in `Truncated`.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` () and ``sigma`` ().
    """

    values = (-1.0, 1.0)

    def probabilities(self, params: Params) -> np.ndarray:
        return shared_out(params["pi"], 2)

    def prior(self, active: np.ndarray, notes: list[str]) -> np.ndarray:
        return held("pi", active.sum(), MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes)


class DSC(LinearSuperposition):
    """Discrete sparse coding: y = W s + ε, each s_h one of `values` with probabilities π, ε ~ N(0, σ² I).

    Exarchakis & Lücke, *Discrete Sparse Coding*, Neural Computation 29, 2017.

    Parameters
    ----------
    values : sequence of numbers
        What a latent may be: 0, and at least one more. Other settings as in `Truncated`.

    Raises
    ------
    ConfigError
        If `values` are not distinct and finite, or 0 is not one of them.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` (K,), aligned with `values`, and ``sigma`` ().
    """

    domains: ClassVar[Mapping[str, str]] = {**LinearSuperposition.domains, "pi": "distribution"}

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None = None,
        gamma: int | None = None,
        *,
        values: Sequence[float],
        missing: bool = False,
    ):
        super().__init__(D, H, Hprime, gamma, missing)
        self.all_values = checked_values(values)
        self.values = tuple(value for value in self.all_values if value != 0)
        self._zero = self.all_values.index(0.0)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "values": list(self.all_values)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super().shapes, "pi": (len(self.all_values),)}

    def activity(self, params: Params) -> float:
        return float(1 - params["pi"][self._zero])

    def probabilities(self, params: Params) -> np.ndarray:
        pi = np.maximum(params["pi"], MIN_PROBABILITY)
        return np.concatenate([pi[[self._zero]], np.delete(pi, self._zero)]) / pi.sum()

    def prior(self, active: np.ndarray, notes: list[str]) -> np.ndarray:
        """What the other values leave is that of 0."""
        pi = np.insert(active, self._zero, 1 - active.sum())
        pi = held("pi", pi, MIN_PROBABILITY, 1.0, notes)
        return pi / pi.sum()


def shared_out(pi: np.ndarray, values: int) -> np.ndarray:
    """The probability of 0, and those of `values` that share π alike."""
    active = np.clip(pi, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return np.array([1 - active, *[active / values] * values])


def checked_values(values: Sequence[float]) -> tuple[float, ...]:
    """The values of a discrete latent, in the order given.

    Raises
    ------
    ConfigError
        If they are not numbers, distinct and finite, or lack 0 or another one.
    """
    try:
        found = tuple(float(value) + 0.0 for value in values)  # + 0: no −0
    except (TypeError, ValueError) as error:
        raise ConfigError(f"values = {values!r} must be a list of numbers, such as [0, 1, 2]") from error
    if not np.all(np.isfinite(found)) or len(set(found)) < len(found) or 0 not in found or len(found) < 2:
        raise ConfigError(f"values = {list(found)} must be distinct and finite, with 0 and at least one other")
    return found


def in_white_noise(t: Any, D: int, relative: Array, yy: Array, observed: Array | None) -> Evidence:
    """log p(y_n), from what it is `relative` to log p(s = 0) + log N(y; 0, σ² I) of what was observed; yy is ‖y‖²."""
    n, entry = yy.shape[0], float(np.log(2 * np.pi * t.sigma2)) / 2
    parts = [(relative, 1.0), (yy, -0.5 / t.sigma2)]
    if observed is None:
        return Evidence(n, parts, t.log_p0 - D * entry)
    counts = squared_norms(t.backend, t.squared_norms, observed)  # of 0 and 1
    return Evidence(n, [*parts, (counts, -entry)], t.log_p0)


def pair_moments(t: Any, n: int, posterior: Posterior, keep: Array, bound: float) -> Sum:
    """Σ_n keep_n ⟨s_i s_j⟩_n of i < j, (H, H), in whole numbers whose unit suits the size of the latents.

    No Σ|⟨s_i s_j⟩| exceeds the largest Σ⟨s_h²⟩, and this not `bound`: what the unit, a power of 2, leaves room for.
    """
    H = posterior.mean.shape[1]
    _, exponent = frexp(bound)
    scale = 2.0 ** float(np.clip(ROOM - exponent, -FLOAT_RANGE, FLOAT_RANGE))
    sums = t.backend.zeros((H, H), np.int64)
    t.pair_sums(n, posterior.candidates, posterior.rest["pairs"], keep, scale, sums)
    return Sum(sums, 1 / (FIXED_POINT * scale))


def symmetric(upper: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """The full matrix from its strict upper triangle and its diagonal."""
    return upper + upper.T + np.diag(diagonal)


def noise_is_lost(square: float, params: Params, step: Step, stats: Statistics | None) -> bool:
    """`Model.needs_residuals`: `square` is the mean of y_d² by the parameters, in `stats` is that of the data."""
    if stats is not None:
        square = float(stats["yy"]) / (float(stats["N_use"]) * len(params["W"]))
    return loses_digits(square, float(params["sigma"]) ** 2, step)


def with_held_fields(
    new: Params, old: Params, masks: Masks, ss: np.ndarray, N: float, domains: Mapping[str, str]
) -> Params:
    """`Model.hold` of fields W with Σ⟨ssᵀ⟩, and of σ, which is larger by what they are off their minimum."""
    out = dict(new)
    if "W" in masks:
        W = held_fields(new["W"], old["W"], masks["W"], ss)
        added = added_variance(W, new["W"], ss, N * len(W))
        out |= {"W": W, "sigma": np.sqrt(new["sigma"] ** 2 + added)}
    return put_back(out, old, {name: mask for name, mask in masks.items() if name != "W"}, domains)


def fields_and_noise(
    stats: Statistics, ss: np.ndarray, W: np.ndarray, step: Step, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The new W, and σ from Σ⟨‖y − Ws‖²⟩ / ND; a variance below the rounding of the sums cannot be told from zero.

    Where the sums `ys` and `rr` are of residuals of the old W, all is about it: their regression is W's correction.
    """
    D, H = W.shape
    terms, square, about = float(stats["N_use"]) * D, stats["yy"], stats["ys"]
    if step.residuals:
        square = stats["rr"]
        change = solve_fields(about, ss, np.zeros_like(W))
        new = W + change
    else:
        new = change = solve_fields(about, ss, W)
    variance = (square - 2 * np.sum(change * about) + np.sum((change.T @ change) * ss)) / terms
    residual = float(square) / terms if step.residuals else None
    return new, noise_level(float(variance), float(stats["yy"]) / terms, H, D, step, notes, residual)


def cholesky_solve(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    """x of L Lᵀ x = right, by blocks of L: numpy can solve with a matrix alone, which it would factor once more."""
    x = right.copy()
    blocks = [slice(i, i + BLOCK) for i in range(0, len(factor), BLOCK)]
    inverses = [np.linalg.inv(factor[b, b]) for b in blocks]
    for b, inverse in zip(blocks, inverses, strict=True):
        x[b] = inverse @ (x[b] - factor[b, : b.start] @ x[: b.start])
    for b, inverse in zip(reversed(blocks), reversed(inverses), strict=True):
        x[b] = inverse.T @ (x[b] - factor[b.stop :, b].T @ x[b.stop :])
    return x


def solve_fields(ys: np.ndarray, ss: np.ndarray, W: np.ndarray) -> np.ndarray:
    """The minimiser of Σ⟨‖y − Ws‖²⟩, ys ss⁻¹; where the data leave it undetermined, the old W stays.

    A latent that was never active has a row of zeros in ss, two that are always active together make it
    singular: the correction to W is then taken in the span of the well-determined directions alone. Fields of
    latents so faint that the rounding of this would drown them follow, one after the other, each to its own minimum.
    """
    scale = np.sqrt(np.diag(ss))
    scale = np.where(scale > 0, scale, 1)  # a dead latent's row is zero, whatever divides it
    normal = ss / scale
    normal /= scale[:, None]
    try:
        factor = np.linalg.cholesky(normal)
        well_posed = np.diag(factor).min() ** 2 > len(ss) * np.finfo(np.float64).eps
    except np.linalg.LinAlgError:
        well_posed = False
    if well_posed:
        return cholesky_solve(factor, (ys / scale).T).T / scale
    power = np.diag(ss)
    bright = power > FAINT * power.max()
    W = W.copy()
    if not bright.any():
        return W
    rest = ((ys - W @ ss) / scale)[:, bright]
    values, vectors = np.linalg.eigh(normal[np.ix_(bright, bright)])
    sure = values > len(ss) * np.finfo(np.float64).eps * values[-1]
    inverse = np.divide(1, values, out=np.zeros_like(values), where=sure)
    W[:, bright] += ((rest @ vectors) * inverse @ vectors.T) / scale[bright]
    for h in np.flatnonzero(~bright & (power > 0)):
        W[:, h] += (ys[:, h] - W @ ss[:, h]) / power[h]
    return W
