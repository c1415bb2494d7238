"""Linear superposition, y = W s + ε with discrete latents: binary, ternary, discrete sparse coding (BSC, TSC, DSC)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.errors import ConfigError
from gem.kernels.bits import words
from gem.models.base import Step, points
from gem.models.estep import EStep, Evidence, Posterior, column_sums, squared_norms
from gem.models.held import Masks, added_variance, held_fields, put_back
from gem.models.imputation import completed, sums_of_gaps
from gem.models.kept import KeptEStep, on_kept
from gem.models.observed import ObservedGram, split_missing
from gem.models.parameters import MIN_PROBABILITY, Parameter, Params
from gem.models.residuals import blended, discrete_spread, loses_digits, residual_sums, squares_about_zero
from gem.models.truncated import FIXED_POINT, Truncated, count_full, held, noise_level, pair_scale, pieces
from gem.sets.first import kept_bytes
from gem.statistics import N_USE, Layout, Statistics, Sum, Sums
from gem.summary import Summary

FAINT = 1e-10  # of the largest Σ⟨s²⟩
BLOCK = 32  # rows of a triangular matrix that are inverted at once


@dataclass(frozen=True)
class Inferred:
    """What the E-step of a linear model finds of a batch, on the device.

    Attributes
    ----------
    evidence : Evidence
    candidates : (n, H') int32
    mean : (n, H)
        ⟨s⟩
    pairs : (n, H'(H'−1)/2)
        ⟨s_i s_j⟩ of the candidates i < j, lexicographic (GSC: of s∘z in units of √ψ).
    yy, full : (n,)
        ‖y‖² of what was observed; whether the most probable state has γ active latents.
    filled, observed : (n, D), or None
        Of data with missing entries: 0 for these; and 1 for what was observed.
    entries : (n,), or None
        How many were observed.
    """

    evidence: Evidence
    candidates: Array
    mean: Array
    pairs: Array
    yy: Array
    full: Array
    filled: Array | None
    observed: Array | None
    entries: Array | None

    def data(self, batch: Batch) -> Array:
        """The batch's data, with 0 for what is missing."""
        return batch.Y if self.filled is None else self.filled


@dataclass(frozen=True)
class Expected(Inferred):
    """Of discrete latents; None where they have one value, so that ⟨s⟩ says it.

    Attributes
    ----------
    squares : (n, H), or None
        ⟨s_h²⟩
    counts : (n, V), or None
        How many latents have each value.
    """

    squares: Array | None
    counts: Array | None


Found = TypeVar("Found", bound=Inferred)


@dataclass(frozen=True)
class GaussianEStep(EStep[Found], Generic[Found]):
    """What the E-steps of all linear models have: fields W (D, H) on the host and as rows on the device, and noise."""

    backend: Backend
    W: np.ndarray
    sigma2: float
    beta: float
    log_p0: float  # log p(s = 0)
    residuals: bool
    fields: Array
    observed_gram: ObservedGram | None
    squared_norms: Kernel
    preselect: Kernel
    pair_sums: Kernel
    scale_rows: Kernel

    def evidence(self, relative: Array, yy: Array, entries: Array | None) -> Evidence:
        """log p(y_n), from what it is `relative` to log p(s = 0) + log N(y; 0, σ² I) of what was observed."""
        n, entry = yy.shape[0], float(np.log(2 * np.pi * self.sigma2)) / 2
        parts = [(relative, 1.0), (yy, -0.5 / self.sigma2)]
        if entries is None:
            return Evidence(n, parts, self.log_p0 - len(self.W) * entry)
        return Evidence(n, [*parts, (entries, -entry)], self.log_p0)

    def split(self, batch: Batch) -> tuple[Array | None, Array | None, Array | None, Array]:
        """`filled`, `observed`, `entries` of `Inferred`, and ‖y‖²: of complete data it is kept as long as they are."""
        if self.observed_gram is None:
            return None, None, None, squared_norms(self.backend, self.squared_norms, batch.Y, batch.notes)
        filled, observed = split_missing(self.backend, batch.Y)
        entries, yy = (squared_norms(self.backend, self.squared_norms, a) for a in (observed, filled))  # of 0 and 1
        return filled, observed, entries, yy

    def pair_moments(self, batch: Batch, found: Found, bound: float) -> Sum:
        """Σ_n w_n ⟨s_i s_j⟩_n of i < j, (H, H), in whole numbers whose unit suits the size of the latents.

        No Σ|⟨s_i s_j⟩| exceeds the largest Σ⟨s_h²⟩, and this not `bound`: what the unit, a power of 2, leaves room for.
        """
        H = self.W.shape[1]
        scale = pair_scale(bound)
        sums = self.backend.zeros((H, H), np.int64)
        self.pair_sums(batch.n, found.candidates, found.pairs, batch.weights, scale, sums)
        return Sum(sums, 1 / (FIXED_POINT * scale))

    def of_gaps(self, batch: Batch, found: Found, squares: Array, scale: float) -> Sums:
        """`sums_of_gaps`, from ⟨s_h²⟩ in units of `scale`; then `observed` is used up."""
        if self.observed_gram is None:
            return {}
        others = self.observed_gram.imputed(found.observed, found.candidates, found.pairs, batch.weights)
        return {
            "observed": [self.backend.point_sums([(found.entries, 1.0)], batch.weights)],
            "own": Sum(self.backend.sum_products(found.observed, squares), scale),
            "others": Sum(others, self.sigma2**0.5),
        }

    def tally(self, batch: Batch, found: Found) -> Sums:
        return count_full(self.backend, batch, found.full)


@dataclass(frozen=True)
class LinearEStep(GaussianEStep[Expected]):
    """Parameters of a model of discrete latents as the kernels want them."""

    model: LinearSuperposition
    dictionary: Array
    gram: Array
    slope: Array
    offset: Array
    values: Array
    score_slope: Array
    score_offset: Array
    nothing: Array
    shift: Array
    gram_posterior: Kernel

    def infer(self, batch: Batch) -> Expected:
        """Preselect I_n, enumerate K_n, weigh: one matrix product and two kernels; more if entries are missing."""
        n, V, empty = batch.n, len(self.model.values), self.backend.empty
        filled, observed, entries, yy = self.split(batch)
        mean = self.backend.matmul(batch.Y if filled is None else filled, self.dictionary)  # b = Wᵀy, before
        candidates, gram, norms = self._select(mean, observed)
        relative, pairs, full = empty((n,)), empty((n, self.model.pairs)), empty((n,))
        squares, counts = (empty((n, self.model.H)), empty((n, V))) if V > 1 else (None, None)
        self.gram_posterior(
            n, mean, gram, norms, self.slope, self.offset, self.values, candidates, self.beta, self.shift, relative,
            pairs, self.nothing if squares is None else squares, self.nothing if counts is None else counts, full,
        )  # fmt: skip
        evidence = self.evidence(relative, yy, entries)
        return Expected(evidence, candidates, mean, pairs, yy, full, filled, observed, entries, squares, counts)

    def _select(self, b: Array, observed: Array | None) -> tuple[Array, Array, Array]:
        """Candidates; and couplings and norms of the fields, of what was observed of each data point."""
        n, H = b.shape
        candidates = self.backend.empty((n, self.model.Hprime), np.int32)
        if self.observed_gram is None or observed is None:
            self.preselect(n, b, self.score_slope, self.score_offset, candidates)
            return candidates, self.gram, self.nothing
        norms, scores = self.observed_gram.norms(observed), self.backend.empty((n, H))
        cosine, V = int(self.model.cosine), len(self.model.values)
        line = self.backend.kernel("linear_scores", H=H, VALUES=V, COSINE=cosine)
        line(n, b, norms, self.slope, self.offset, self.values, scores)
        self.preselect(n, scores, self.score_slope, self.score_offset, candidates)
        return candidates, self.observed_gram.couplings(observed, candidates), norms

    def sums(self, batch: Batch, found: Expected) -> Sums:
        columns, products = partial(column_sums, self.backend, weights=batch.weights), self.backend.sum_products
        sums: dict[str, Any] = {"yy": [self.backend.point_sums([(found.yy, 1.0)], batch.weights)]}
        if found.squares is None:
            sums["squares"] = Sum(columns(found.mean), self.model.values[0])
        else:
            sums |= {"squares": Sum(columns(found.squares)), "counts": Sum(columns(found.counts))}
        if self.residuals:
            sums["ys"], sums["rr"], sums["ss"] = self._residuals(batch, found)
            return sums
        sums["ss"] = self.pair_moments(batch, found, self._most(batch, sums["squares"]))
        sums |= self.of_gaps(
            batch, found, *((found.mean, self.model.values[0]) if found.squares is None else (found.squares, 1.0))
        )
        if batch.counts is not None:
            self.scale_rows(batch.n, found.mean, batch.weights)
        sums["ys"] = [products(found.data(batch), found.mean)]
        return sums

    def _most(self, batch: Batch, squares: Sum) -> float:
        """A bound on all Σ⟨s_h²⟩ of a batch: in float32, with fewer digits to lose, without waiting for them."""
        if self.backend.dtype == np.float32:
            return batch.total * max(value**2 for value in self.model.values)
        return float(np.max(squares.scale * self.backend.to_host(squares.rows).sum(axis=0)))

    def _squares(self, found: Expected) -> np.ndarray:
        """⟨s_h²⟩ on the host, (n, H)."""
        host = self.backend.to_host
        return self.model.values[0] * host(found.mean) if found.squares is None else host(found.squares)

    def _residuals(self, batch: Batch, found: Expected) -> tuple[np.ndarray, float, np.ndarray]:
        """Σ⟨(y − Ws)sᵀ⟩ and Σ⟨‖y − Ws‖²⟩ about the old W, and all of Σ⟨ssᵀ⟩."""
        host = self.backend.to_host
        mean, chosen = host(found.mean), host(found.candidates)
        eps = float(np.finfo(self.backend.dtype).eps)
        squares, pairs = discrete_spread(mean, self._squares(found), chosen, host(found.pairs), eps)
        observed = None if found.observed is None else host(found.observed).astype(np.float64)
        Y = host(found.data(batch))
        return residual_sums(self.W, self.sigma2, Y, observed, mean, squares, chosen, pairs, batch.counts)

    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        found = self.infer(batch)
        whole = self.backend.matmul(found.mean, self.fields) if reconstruct else None
        return Posterior(found.evidence, found.candidates, found.mean, reconstruction=whole), self.tally(batch, found)


class LinearSuperposition(Truncated):
    """y = W s + ε with ε ~ N(0, σ² I) and discrete s_h, independent and alike: the common part of BSC, TSC and DSC.

    A subclass says which `values` a latent takes when it is not 0, and how ``pi`` gives their probabilities.
    """

    cosine: ClassVar[bool] = False  # candidates are chosen by Wᵀy/‖W‖, or by the log joint of only this latent

    @abstractmethod
    def probabilities(self, params: Params) -> np.ndarray:
        """p(s_h = 0), then those of `values`, (1 + V,); none is 0."""

    @abstractmethod
    def prior(self, active: np.ndarray, notes: list[str]) -> np.ndarray:
        """The parameter ``pi`` that gives `values` these probabilities, (V,)."""

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {
            "W": Parameter((self.D, self.H), "real", "fields", latents=1),
            "pi": Parameter((), "probability", "prior"),
            "sigma": Parameter((), "deviation", "noise"),
        }

    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """Fields that explain the data's mean, plus noise of a quarter of its spread; σ the data's standard deviation.

        A latent is active with probability 1/H, at each of its values alike.
        """
        data = summary.varied()
        spread = np.sqrt(data.var)
        noise = rng.standard_normal((self.D, self.H))
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

    def on(self, backend: Backend, params: Params, step: Step) -> LinearEStep | KeptEStep:
        if self.kept is not None:
            return on_kept(self, self.kept, backend, params, step)
        H, V, W, device = self.H, len(self.values), params["W"], backend.to_device
        sigma2 = float(params["sigma"] ** 2)
        log_p = np.log(self.probabilities(params))
        log_odds, values = log_p[1:] - log_p[0], np.array(self.values)
        gram = W.T @ W / sigma2
        norms = np.zeros(H) if self.missing else np.diag(gram)  # of what was observed they differ by data point
        slope = np.full(H, 1 / sigma2)
        offset = log_odds[:, None] - values[:, None] ** 2 / 2 * norms
        score_slope, score_offset = self.score_lines(slope, offset, norms)
        shift = np.zeros(V) if step.anneal_prior else (1 - 1 / step.T) * log_odds
        sizes: dict[str, Any] = {"H": H, "HPRIME": self.Hprime}
        return LinearEStep(
            backend=backend,
            W=W,
            sigma2=sigma2,
            beta=1 / step.T,
            log_p0=float(H * log_p[0]),
            residuals=step.residuals,
            fields=device(W.T),
            observed_gram=ObservedGram.of(W / params["sigma"], self.Hprime, backend) if self.missing else None,
            squared_norms=backend.kernel("squared_norms", D=self.D),
            preselect=backend.kernel("preselect", VALUES=len(score_slope), **sizes),
            pair_sums=backend.kernel("pair_sums", **sizes),
            scale_rows=backend.kernel("scale_rows", H=H),
            model=self,
            dictionary=device(W),
            gram=device(gram),
            slope=device(slope),
            offset=device(offset),
            values=device(values),
            score_slope=device(score_slope),
            score_offset=device(score_offset),
            nothing=device(np.zeros(1)),
            shift=device(shift),
            gram_posterior=backend.kernel(
                "gram_posterior", states=self.states, GAMMA=self.gamma, ANNEAL=int(step.T != 1), VALUES=V,
                MASKED=int(self.missing), **sizes,
            ),
        )  # fmt: skip

    def score_lines(self, slope: np.ndarray, offset: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slopes and offsets in b of the scores, for `preselect`; the scores themselves if entries are missing."""
        if self.missing:
            return np.ones((1, self.H)), np.zeros((1, self.H))
        if not self.cosine:
            return np.multiply.outer(self.values, slope), offset
        length = np.sqrt(norms)  # a field of zeros explains nothing and is scored 0
        return np.divide(1, length, out=np.zeros(self.H), where=length > 0)[None], np.zeros((1, self.H))

    @property
    def layout(self) -> Layout:
        return {**self._layout, **(sums_of_gaps(self.D, self.H) if self.missing else {})}

    @property
    def _layout(self) -> Layout:
        D, H = self.D, self.H
        counts: Layout = {"counts": (len(self.values),)} if len(self.values) > 1 else {}
        return {"yy": (), "rr": (), "ys": (D, H), "squares": (H,), "ss": (H, H), **counts}

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """All of Σ⟨ssᵀ⟩, and Σ y⟨s⟩ᵀ; sums of residuals with the fields W that they are `about`."""
        layout = {N_USE: (), **self._layout}
        if not step.residuals:
            all_entries = completed(sums, params["W"], float(params["sigma"]) ** 2) if self.missing else {}
            return sums.but(layout, ss=symmetric(sums["ss"], sums["squares"]), **all_entries)
        yy = squares_about_zero(sums, sums["ss"], params["W"]) if self.missing else sums["yy"]
        return sums.but({**layout, "about": (self.D, self.H)}, yy=yy, about=params["W"])

    def combine(self, first: Statistics, second: Statistics, a: float, b: float) -> Statistics:
        return blended(first, second, a, b, "ss")

    def usage(self, moments: Statistics) -> np.ndarray:
        """As if all active latents had the smallest value: an upper bound, and exact where all are of one size."""
        return moments["squares"] / np.min(np.square(self.values))

    # -- M-step --------------------------------------------------------------------------------------------

    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = (Σ y⟨s⟩ᵀ)(Σ⟨ssᵀ⟩)⁻¹, σ² = Σ⟨‖y − Ws‖²⟩ / ND, π from the counts, corrected for the data selection."""
        squares = moments["squares"]
        of_noise: list[str] = []
        W, sigma = fields_and_noise(moments, moments["ss"], params["W"], step, of_noise)
        notes = [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(squares == 0)]
        counts = moments["counts"] if len(self.values) > 1 else squares.sum(keepdims=True) / self.values[0] ** 2
        active = counts / (points(moments) * self.H) * self.selection_factor(params, step)
        return {"W": W, "pi": self.prior(active, notes), "sigma": sigma}, notes + of_noise

    def hold(self, new: Params, old: Params, masks: Masks, moments: Statistics, step: Step) -> Params:
        """σ follows the fields."""
        return with_held_fields(new, old, masks, moments["ss"], points(moments), self.parameters)

    @property
    def monotone(self) -> bool:
        """Where no state is left out, or states are kept: new ones are taken only if they are better."""
        return self.kept is not None or (self.Hprime == self.gamma == self.H and not self.missing)

    def needs_residuals(self, params: Params, step: Step, moments: Statistics | None = None) -> bool:
        if self.kept is not None:  # `noise_level` tells where digits are lost
            return False
        with np.errstate(over="ignore"):
            square = self.probabilities(params)[1:] @ np.square(self.values) * np.sum(params["W"] ** 2) / self.D
        return noise_is_lost(square, params, step, moments)

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        if self.kept is not None:
            found = itemsize * (self.H + self.kept.states + 3)
            new = 2 * self.kept.proposed * (itemsize + 4 * words(self.H))
            return found + itemsize * (self.D + self.H) + new + kept_bytes(self.kept, self.H), found
        expected = self.H + self.pairs + (self.H + len(self.values) if len(self.values) > 1 else 0)
        kept = itemsize * (expected + 2 + 2 * self.D * self.missing) + 4 * self.Hprime
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
    takes_sets = True

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

    most_on_patches = 3

    @classmethod
    def sizes_for_patches(cls, count: int, noise: float, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {**super().sizes_for_patches(count, noise, settings), "values": [-2, -1, 0, 1, 2]}

    @classmethod
    def example(cls) -> DSC:
        return cls(2, 2, values=(0, 1))

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {**super().parameters, "pi": Parameter((len(self.all_values),), "distribution", "prior")}

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


def symmetric(upper: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """The full matrix from its strict upper triangle and its diagonal."""
    return upper + upper.T + np.diag(diagonal)


def noise_is_lost(square: float, params: Params, step: Step, moments: Statistics | None) -> bool:
    """`Model.needs_residuals`: `square` is the mean of y_d² by the parameters, in `moments` is that of the data."""
    if moments is not None:
        square = float(moments["yy"]) / (points(moments) * len(params["W"]))
    return loses_digits(square, float(params["sigma"]) ** 2, step)


def fields_and_noise(
    moments: Statistics, ss: np.ndarray, W: np.ndarray, step: Step, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The new W, and σ from Σ⟨‖y − Ws‖²⟩ / ND; a variance below the rounding of the sums cannot be told from zero.

    Where `ys` and `rr` are of residuals of other fields, all is about these: the regression gives what W is more.
    """
    D, H = W.shape
    terms, square, ys = points(moments) * D, float(moments["yy"]), moments["ys"]
    frame, residual = np.zeros_like(W), None
    if "about" in moments:
        frame, square = moments["about"], float(moments["rr"])
        residual = square / terms
    change = solve_fields(ys, ss, W - frame)
    variance = (square - 2 * np.sum(change * ys) + np.sum((change.T @ change) * ss)) / terms
    sigma = noise_level(float(variance), float(moments["yy"]) / terms, H, D, step, notes, residual)
    return frame + change, sigma


def with_held_fields(
    new: Params, old: Params, masks: Masks, ss: np.ndarray, N: float, table: Mapping[str, Parameter]
) -> Params:
    """`Model.hold` of fields W with Σ⟨ssᵀ⟩, and of σ, which is larger by what they are off their minimum."""
    out = dict(new)
    if "W" in masks:
        W = held_fields(new["W"], old["W"], masks["W"], ss)
        added = added_variance(W, new["W"], ss, N * len(W))
        out |= {"W": W, "sigma": np.sqrt(new["sigma"] ** 2 + added)}
    return put_back(out, old, {name: mask for name, mask in masks.items() if name != "W"}, table)


def cholesky_solve(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    """x of L Lᵀ x = right, by blocks of L: numpy can only solve with a matrix, which it would factor once more."""
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
    singular: the correction to W is then taken only in the span of the well-determined directions. Fields of
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
