"""The noise of maximal causes: how an entry y is distributed about its mean, and which noise which causes can have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import lgamma
from typing import ClassVar

import numpy as np

from gem.checks import number
from gem.errors import ConfigError
from gem.models.base import Step, points
from gem.models.causes import Causes, Likelihood
from gem.models.parameters import Parameter, Params
from gem.models.truncated import held, noise_level
from gem.statistics import Layout, Statistics
from gem.summary import Summary

LEAST = 1e-5  # of a probability and of its complement
FLOOR = 0.1  # the mean where no cause exceeds it, if none is given
SHAPES = (1e-2, 1e8)  # of gamma noise
TABLE = 1 << 14  # counts below are looked up


class Noise(ABC):
    """How an entry y of a given mean is distributed.

    Parameters
    ----------
    floor : float, optional
        The mean where no active cause exceeds it, > 0 (default: 0.1).
    """

    name: ClassVar[str]
    domain: ClassVar[str] = "nonnegative"  # of means
    most: ClassVar[float] = np.inf  # of means
    noisy: ClassVar[float] = 2.0  # as in `Truncated`
    relative: ClassVar[bool] = False  # whether energies are relative to the most that a mean could give: `of_data`

    def __init__(self, floor: float | None = None):
        self.floor = number("background", FLOOR if floor is None else floor, "a positive mean", 0, inside=True)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """What it has besides the mean."""
        return {}

    @property
    def layout(self) -> Layout:
        """The sums that its own parameters are learned from."""
        return {}

    @abstractmethod
    def bad(self, Y: np.ndarray) -> tuple[np.ndarray, str]:
        """Which entries it cannot explain (NaN is none), and why."""

    def begin(self, data: Summary, shape: tuple[int, int], rng: np.random.Generator) -> Params:
        """Means at those of the data plus noise of half their spread, and its own parameters."""
        noise = np.sqrt(data.var)[:, None] * rng.standard_normal(shape) / 2
        return {"W": np.maximum(np.abs(data.mean[:, None] + noise), self.floor)}

    @abstractmethod
    def spread(self, params: Params) -> float:
        """How far y is from its mean, on an average, in the units in which `W` gets its noise."""

    @abstractmethod
    def draw(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Data with these means."""

    @abstractmethod
    def log_likelihood(self, params: Params, y: np.ndarray, seen: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """log p(y | mean), (N, S), of data (N, D), 0 where they are not `seen`, and means (S, D)."""

    @abstractmethod
    def likelihood(self, params: Params, combination: str) -> Likelihood:
        """The same for the kernel."""

    def per_entry(self, params: Params) -> float:
        """What every observed entry adds to log p(y | s), and is not in the kernel's energies."""
        return 0.0

    def of_data(self, y: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Sums (2, n) over the entries of each row that no parameter changes, if it is `relative`; NaN: no data."""
        raise NotImplementedError

    def best(self, params: Params, rows: np.ndarray) -> np.ndarray:
        """What the energies of a data point are relative to, (n,), from what `of_data` gave."""
        return rows[0]

    def constant(self, params: Params, rows: np.ndarray) -> np.ndarray:
        """What is added to them besides `per_entry`, (n,), likewise."""
        return rows[1]

    def own_moments(self, model: Causes, sums: Statistics, fit: np.ndarray, params: Params) -> dict[str, np.ndarray]:
        """What its own parameters are learned from, of two steps too, from the sums; `fit` is Σ⟨E⟩ less the prior's."""
        return {}

    def maximize(self, model: Causes, moments: Statistics, step: Step, notes: list[str]) -> Params:
        """Its own parameters."""
        return {}


class Gaussian(Noise):
    """y is the mean and a number of standard deviation `sigma`; means may be `signed`. There is no floor."""

    name = "gaussian"
    noisy = 2.5  # more than for sums: a latent that others hide is moved by little of it

    def __init__(self, signed: bool):
        self.floor = 0.0
        self.signed = signed

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"sigma": Parameter((), "deviation", "noise")}

    @property
    def layout(self) -> Layout:
        return {"fit": (), "yy": ()}

    def bad(self, Y: np.ndarray) -> tuple[np.ndarray, str]:
        return np.zeros(Y.shape, bool), ""

    def begin(self, data: Summary, shape: tuple[int, int], rng: np.random.Generator) -> Params:
        """And σ the data's standard deviation."""
        W = data.mean[:, None] + np.sqrt(data.var)[:, None] * rng.standard_normal(shape) / 2
        return {"W": W if self.signed else np.abs(W), "sigma": np.array(np.sqrt(data.var.mean()))}

    def spread(self, params: Params) -> float:
        return float(params["sigma"])

    def draw(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.asarray(mean + params["sigma"] * rng.standard_normal(mean.shape))

    def log_likelihood(self, params: Params, y: np.ndarray, seen: np.ndarray, mean: np.ndarray) -> np.ndarray:
        squares = (y**2).sum(axis=1)[:, None] - 2 * y @ mean.T + seen @ (mean**2).T
        variance = params["sigma"] ** 2
        return np.asarray(-(squares / variance + seen.sum(axis=1)[:, None] * np.log(2 * np.pi * variance)) / 2)

    def likelihood(self, params: Params, combination: str) -> Likelihood:
        W, precision = params["W"], float(1 / params["sigma"] ** 2)
        slope, offset = W * precision, -(W**2) * precision / 2
        return Likelihood(f"{combination}+gaussian", W, (-precision / 2,), slope, offset, np.ones_like(W), W)

    def per_entry(self, params: Params) -> float:
        return float(-np.log(2 * np.pi * params["sigma"] ** 2) / 2)

    def own_moments(self, model: Causes, sums: Statistics, fit: np.ndarray, params: Params) -> dict[str, np.ndarray]:
        """Σ⟨‖y − W̄(s)‖²⟩ (a missing entry adds σ²), and Σ‖y‖²."""
        gaps = points(sums) * model.D - sums["observed"] if model.missing else 0.0
        sigma2 = params["sigma"] ** 2  # log p(y | s) less its constants is −‖y − W̄‖²/2σ²
        return {"residual": np.asarray(gaps * sigma2 - 2 * sigma2 * fit), "yy": sums["yy"]}

    def maximize(self, model: Causes, moments: Statistics, step: Step, notes: list[str]) -> Params:
        """σ² = Σ⟨‖y − W̄(s; W_old)‖²⟩ / ND."""
        entries = points(moments) * model.D
        variance, square = float(moments["residual"]) / entries, float(moments["yy"]) / entries
        return {"sigma": noise_level(variance, square, 1, model.D, step, notes)}


class Bernoulli(Noise):
    """y is 1 or 0, the mean is the probability of 1."""

    name = "bernoulli"
    domain = "probability"
    most = 1 - LEAST
    noisy = 3.5  # it wears off: where W comes near 0 or 1, noise on its logit moves it less

    def __init__(self, floor: float | None = None):
        super().__init__(floor)
        number("background", self.floor, "a probability that is not 1", LEAST, 1 - 2 * LEAST)

    def bad(self, Y: np.ndarray) -> tuple[np.ndarray, str]:
        return ~np.isnan(Y) & (Y != 0) & (Y != 1), "is neither 0 nor 1: Bernoulli noise explains binary data"

    def begin(self, data: Summary, shape: tuple[int, int], rng: np.random.Generator) -> Params:
        """From half to one and a half times the frequency of 1, at random."""
        W = data.mean[:, None] * (0.5 + rng.random(shape))
        return {"W": np.clip(W, max(0.01, self.floor), 0.99)}

    def spread(self, params: Params) -> float:
        """That of log W / (1 − W), on whose scale W gets its noise: 1 / √(W (1 − W))."""
        W = np.clip(params["W"], LEAST, 1 - LEAST)
        return float(1 / np.sqrt(np.mean(W * (1 - W))))

    def draw(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (rng.random(mean.shape) < mean).astype(np.float64)

    def log_likelihood(self, params: Params, y: np.ndarray, seen: np.ndarray, mean: np.ndarray) -> np.ndarray:
        inside = np.minimum(mean, self.most)
        return np.asarray(y @ np.log(inside).T + (seen - y) @ np.log1p(-inside).T)

    def likelihood(self, params: Params, combination: str) -> Likelihood:
        W = np.clip(params["W"], self.floor, self.most)
        odds, settings = W / (1 - W), (1.0, self.floor / (1 - self.floor))
        offset = np.log1p(-W) - np.log1p(-self.floor)
        return Likelihood(f"{combination}+bernoulli", odds, settings, np.log(odds), offset, np.ones_like(W), W)

    def per_entry(self, params: Params) -> float:
        return float(np.log1p(-self.floor))


class Poisson(Noise):
    """y is a count, the mean is its rate."""

    name = "poisson"
    relative = True

    def bad(self, Y: np.ndarray) -> tuple[np.ndarray, str]:
        bad = ~np.isnan(Y) & ((Y < 0) | (np.floor(Y) != Y))
        return bad, "is no count: Poisson noise explains whole numbers ≥ 0"

    def spread(self, params: Params) -> float:
        """The standard deviation of counts of these rates."""
        return float(np.sqrt(params["W"].mean()))

    def draw(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.poisson(mean).astype(np.float64)

    def log_likelihood(self, params: Params, y: np.ndarray, seen: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.asarray(y @ np.log(mean).T - seen @ mean.T - _of_counts(_log_factorial, y)[:, None])

    def likelihood(self, params: Params, combination: str) -> Likelihood:
        W, settings = np.maximum(params["W"], self.floor), (1.0, self.floor)
        return Likelihood(f"{combination}+poisson", W, settings, np.log(W), self.floor - W, np.ones_like(W), W)

    def per_entry(self, params: Params) -> float:
        return -self.floor

    def of_data(self, y: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """log p(y | the best rates) less log p(0 | floor), up to Σ log y!; and with that."""
        best = _of_counts(self._best, y)
        return np.array([best, best - _of_counts(_log_factorial, y)])

    def _best(self, counts: np.ndarray) -> np.ndarray:
        rate = np.maximum(counts, self.floor)
        return np.asarray(counts * np.log(rate) - (rate - self.floor))


class Exponential(Noise):
    """y ≥ 0 is exponentially distributed: gamma noise of shape 1."""

    name = "exponential"
    relative = True

    def shape(self, params: Params) -> float:
        """k: the standard deviation of y is its mean over √k."""
        return 1.0

    def bad(self, Y: np.ndarray) -> tuple[np.ndarray, str]:
        return Y < 0, "is negative: exponential noise explains numbers ≥ 0"

    def spread(self, params: Params) -> float:
        return float(params["W"].mean() / np.sqrt(self.shape(params)))

    def draw(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        k = self.shape(params)
        return np.maximum(rng.gamma(k, mean / k), np.finfo(np.float64).tiny)

    def log_likelihood(self, params: Params, y: np.ndarray, seen: np.ndarray, mean: np.ndarray) -> np.ndarray:
        k = self.shape(params)
        rest = (k - 1) * np.log(np.where(y > 0, y, 1)).sum(axis=1) + seen.sum(axis=1) * (k * np.log(k) - lgamma(k))
        return np.asarray(-k * (seen @ np.log(mean).T + y @ (1 / mean).T) + rest[:, None])

    def likelihood(self, params: Params, combination: str) -> Likelihood:
        W, k = np.maximum(params["W"], self.floor), self.shape(params)
        slope, offset = -k / W, k * (np.log(self.floor) - np.log(W))
        return Likelihood(f"{combination}+gamma", W, (k, self.floor), slope, offset, np.ones_like(W), W)

    def per_entry(self, params: Params) -> float:
        k = self.shape(params)
        return float(k * np.log(k / self.floor) - lgamma(k))

    def of_data(self, y: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Σ log floor / m − y / m, m the best mean; and Σ log y."""
        least = np.full_like(y, self.floor)
        most = np.maximum(y, least)
        rows = np.array([np.log(least / most) - y / most, np.log(np.where(y > 0, y, 1))])
        rows[:, self.bad(np.where(seen > 0, y, np.nan))[0] | np.isnan(y)] = np.nan
        return np.asarray(rows.sum(axis=2))

    def best(self, params: Params, rows: np.ndarray) -> np.ndarray:
        return self.shape(params) * rows[0]

    def constant(self, params: Params, rows: np.ndarray) -> np.ndarray:
        k = self.shape(params)
        return k * rows[0] + (k - 1) * rows[1]


class Gamma(Exponential):
    """y > 0 is gamma distributed; its `shape` k, one for all, is learned as well."""

    name = "gamma"

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"shape": Parameter((), "positive", "shape")}

    @property
    def layout(self) -> Layout:
        return {"fit": (), "logs": (), "entries": ()}

    def shape(self, params: Params) -> float:
        return float(np.clip(params["shape"], *SHAPES))

    def bad(self, Y: np.ndarray) -> tuple[np.ndarray, str]:
        return ~np.isnan(Y) & ~(Y > 0), "is not positive: gamma noise explains numbers > 0"

    def begin(self, data: Summary, shape: tuple[int, int], rng: np.random.Generator) -> Params:
        """And the shape that the data would have if all had their mean."""
        k = np.mean(data.mean**2) / np.mean(data.var)
        return {**super().begin(data, shape, rng), "shape": np.clip(np.array(k), 0.5, 50.0)}

    def own_moments(self, model: Causes, sums: Statistics, fit: np.ndarray, params: Params) -> dict[str, np.ndarray]:
        """Σ⟨log y / c − y / c⟩ of what is observed, c what a state combines to; and how many entries these are."""
        entries = sums["entries"]
        return {"logs": fit / self.shape(params) + sums["logs"] - entries * np.log(self.floor), "entries": entries}

    def maximize(self, model: Causes, moments: Statistics, step: Step, notes: list[str]) -> Params:
        """log k − ψ(k) = Σ⟨y / c − log y / c − 1⟩ / entries, c of the old W."""
        gap = -float(moments["logs"]) / float(moments["entries"]) - 1
        return {"shape": held("shape", shape_of(gap), *SHAPES, notes)}


NOISES: dict[str, type[Noise]] = {kind.name: kind for kind in (Gaussian, Bernoulli, Poisson, Exponential, Gamma)}
CELLS = {  # which noise a combination has: what causes combine to must be a mean of it
    "MCA": (tuple(NOISES), "the largest cause is a mean of any"),
    "MMCA": ((Gaussian.name,), "means of both signs"),
    "NoisyOR": ((Bernoulli.name,), "probabilities, of which 1 − W are multiplied"),
}


def check_cell(model: str, noise: str) -> str:
    """The noise, if the model can have it.

    Raises
    ------
    ConfigError
        Naming all pairs that exist.
    """
    if noise not in CELLS[model][0]:
        pairs = "; ".join(f"{name}: {', '.join(noises)} ({why})" for name, (noises, why) in CELLS.items())
        raise ConfigError(f"{model} has no noise {noise!r}. There are {pairs}")
    return noise


def shape_of(gap: float) -> float:
    """The shape k with log k − ψ(k) = gap; inf where the gap is not positive."""
    if not gap > 0:
        return np.inf
    k = (3 - gap + np.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    for _ in range(20):  # k (log k − ψ(k)) falls from 1 to 1/2, so slowly that each takes off most of the error
        k *= _log_less_digamma(k) / gap
    return float(k)


def _log_less_digamma(k: float) -> float:
    """log k − ψ(k), k > 0: ψ(k) is ψ(k + 8) less Σ 1 / (k + i), and that its asymptotic series."""
    x, i = k + 8, np.arange(8)
    z = 1 / x**2
    series = 1 / (2 * x) + z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z * (1 / 240 - z / 132))))
    return float(np.sum(1 / (k + i)) - np.log1p(8 / k) + series)


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
