"""Mixtures: one latent, the component. Gaussians (MoG), Poisson distributions of counts (MoP)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import lgamma, prod
from typing import Any, ClassVar

import numpy as np

from gem.backends import blas
from gem.backends.base import Array, Backend, Kernel
from gem.checks import number, whole_number, yes_or_no
from gem.data import Source
from gem.errors import ConfigError, DataError
from gem.models import missing_gaussian, seeding
from gem.models.base import (
    TINY,
    Evidence,
    Model,
    Moments,
    Params,
    Posterior,
    Step,
    Weights,
    moments,
    shard_and_moments,
    subsample,
    whole_shard,
)
from gem.models.held import Masks, held_centres, put_back
from gem.parallel import Communicator
from gem.philox import generator
from gem.statistics import Layout, Statistics, Sum, Sums

COVARIANCES = ("diag", "spherical", "tied", "full")
KERNEL_CODE = {
    "diag": 0,
    "spherical": 0,
    "tied": 2,
    "full": 1,
    "poisson": 3,
}  # a spherical model runs as a diagonal one
LARGE = 1000.0  # rates from which on float32 would round the log joint of counts by more than 10⁻⁴
SPREAD = {"diag": "var", "spherical": "var", "tied": "cov", "full": "cov"}
CHOLESKY_RESOLUTION = 100 * float(np.finfo(np.float64).eps)  # times D: what rounding takes of an eigenvalue, and room
FLOOR = 1e-6  # of variances, and of rates
EMPTY = 1e-3  # of a data point: a component that has less explains nothing
ROUNDED = 2.0**-48  # a spread below this part of the mean is the rounding of a constant in float64
UNMOVED = 1e-10  # and one that has less stays where it is: what it has may be rounding
WORTHWHILE = 0.01  # of a component's weight: a smaller part would take long to grow


@dataclass(frozen=True)
class Tables:
    """Parameters as the kernel wants them."""

    backend: Backend
    weights: Weights
    centres: Array
    mu: Array
    precision: Array
    log_weight: Array
    beta: float
    shift: Array
    kernel: Kernel
    storing: Kernel
    least: float


class Mixture(Model):
    """p(y) = Σ_k π_k p(y | k).

    Parameters
    ----------
    D, K : int
        Observed dimensions, components.
    reg : float
        Floor of what must not vanish.
    missing : bool
        Whether NaN in the data marks missing entries; else it is refused.
    alpha : float
        Of the Dirichlet prior of pi: see `MoG`.

    Raises
    ------
    ConfigError
        If a size is not a positive whole number.
    """

    centre: ClassVar[str]  # the parameter (K, D) that is E[y | k]
    component: str  # a key of KERNEL_CODE
    common: bool = False  # whether a component has one variance for all dimensions

    def __init__(self, D: int, K: int, reg: float, missing: bool, alpha: float = 1.0):
        self.alpha = number("alpha", alpha, "a positive number, the concentration of the prior of pi", 0, inside=True)
        self.D, self.K = whole_number("D", D), whole_number("K", K)
        self.reg = number("reg", reg, "a number, finite and not negative: a floor", 0)
        self.missing = yes_or_no("missing", missing)

    def settings(self) -> dict[str, Any]:
        given: dict[str, Any] = {"D": self.D, "K": self.K, "reg": self.reg}
        given |= {} if self.alpha == 1 else {"alpha": self.alpha}
        return {**given, "missing": True} if self.missing else given

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """Centres by k-means++ on a subsample, equal proportions, the subsample's spread about its nearest centre.

        Distances are in units of each column's standard deviation: see `gem.models.seeding`. Y: (N, D) array, path or
        Source; the result is the same on every rank of `comm`.
        """
        shard, group, data, counts = shard_and_moments(Y, self.D, comm, self.missing, weights)
        if data.N < self.K:
            raise DataError(f"{data.N} data points cannot start K = {self.K} components: choose a smaller K")
        rng = generator(seed, "init")
        rows = subsample(shard, data.N, seeding.rows_for(data.N, self.K), group, rng, counts) - data.mean
        seen = np.isfinite(rows)
        unit = np.sqrt(np.where(data.var > 0, data.var, 1))
        scaled = np.where(seen & (data.var > 0), rows / unit, 0)
        with blas.limited(1):  # its threads would spin after each of many small products
            found = seeding.first_centres(scaled, self.K, data.N, rng) if group.rank == 0 else None
        chosen, nearest = group.bcast(found)  # rounding differs between machines, and with it what is drawn
        centres = np.where(seen, rows, 0)[chosen]
        share = np.where(seen, (scaled - scaled[chosen][nearest]) ** 2, 1).mean(axis=0)
        return {"pi": np.full(self.K, 1 / self.K), **self._start(centres + data.mean, share * data.var, data)}

    @abstractmethod
    def _start(self, centres: np.ndarray, var: np.ndarray, data: Moments) -> Params:
        """Parameters but pi, from points amid the data and the variance (D,) about the nearest one."""

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.int64)])
        drawn["s"] = rng.choice(self.K, size=n, p=params["pi"] / params["pi"].sum())
        drawn["Y"] = self._draw(params, drawn["s"], rng)
        return drawn

    @abstractmethod
    def _draw(self, params: Params, k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Data points (n, D) of the components k (n,)."""

    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        return np.log(params["pi"])[np.asarray(states, dtype=int)]

    # -- E-step --------------------------------------------------------------------------------------------

    @abstractmethod
    def _coefficients(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """mu and precision for kernels/mixture.c, and what log_weight has besides log π, (K,)."""

    def tables(self, params: Params, backend: Backend, step: Step) -> Any:
        mu, precision, constant = self._coefficients(params)
        log_pi = np.log(params["pi"])
        code = KERNEL_CODE[self.component]
        sizes: dict[str, Any] = {"D": self.D, "K": self.K, "COVARIANCE": code, "MISSING": int(self.missing)}
        sizes |= {"COMMON": 1} if self.common else {}
        large = backend.dtype == np.float32 and self.largest(params) > LARGE
        sizes |= {"LARGE": 1} if large else {}
        fine = backend.acc if large else None
        return Tables(
            backend=backend,
            weights=Weights(backend),
            centres=backend.to_device(params[self.centre]),
            mu=backend.to_device(mu),
            precision=backend.to_device(precision, fine),
            log_weight=backend.to_device(log_pi + constant, fine),
            beta=1 / step.T,
            shift=backend.to_device(self._shift(log_pi, step)),
            kernel=backend.kernel("mixture", STORE=0, **sizes),
            storing=backend.kernel("mixture", STORE=1, **sizes),
            least=self._least(params),
        )

    def _least(self, params: Params) -> float:
        """What no variance is smaller than, as far as the parameters tell."""
        return self.reg

    def largest(self, params: Params) -> float:
        """How large the terms are of which the log joint is a difference; 0 where it is none."""
        return 0.0

    def _shift(self, log_pi: np.ndarray, step: Step) -> np.ndarray:
        """What the annealed log joint needs added, (K,), where the prior is not annealed."""
        return np.zeros(self.K) if step.anneal_prior else (1 - 1 / step.T) * log_pi

    def _run(self, t: Any, Y: Array, weights: np.ndarray | None, store: bool = False) -> tuple[Posterior, Sums]:
        backend, n = t.backend, Y.shape[0]
        kernel = t.storing if store else t.kernel
        log_evidence = backend.empty((n,))
        responsibilities = backend.empty((n, self.K) if store else (1, 1))
        size = sum(prod(shape) for shape in self.layout.values())
        sums = backend.empty((kernel.groups(n), size), backend.acc)
        keep = t.weights(n, weights)
        kernel(
            n, Y, t.mu, t.precision, t.log_weight, t.beta, t.shift, keep,
            log_evidence, responsibilities, sums, t.least,
        )  # fmt: skip
        return Posterior(Evidence(n, [(log_evidence, 1.0)]), mean=responsibilities), {tuple(self.layout): Sum(sums)}

    def infer(self, tables: Any, Y: Array) -> Posterior:
        return self._run(tables, Y, None)[0]

    def infer_full(self, tables: Any, Y: Array) -> Posterior:
        return self._run(tables, Y, None, store=True)[0]

    def sums(self, tables: Any, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> Sums:
        return self._run(tables, Y, weights)[1]

    def e_step(self, tables: Any, Y: Array, weights: np.ndarray | None = None) -> tuple[Evidence, Sums]:
        posterior, sums = self._run(tables, Y, weights)
        return posterior.log_evidence, sums

    def reconstruct(self, tables: Any, Y: Array, posterior: Posterior) -> Array:
        """Σ_k r_nk E[y | k]: what is observed of y_n changes nothing more where dimensions are independent given k."""
        return tables.backend.matmul(posterior.mean, tables.centres)

    def top_states(self, params: Params, Y: np.ndarray, posterior: Posterior, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most probable components, (n, k), and their responsibilities at T = 1."""
        joint = self.log_joint(params, Y, np.arange(self.K))
        best = np.argsort(-joint, axis=1, kind="stable")[:, :k]
        total = np.logaddexp.reduce(joint, axis=1, keepdims=True)
        return best, np.exp(np.take_along_axis(joint, best, axis=1) - total)

    @property
    def monotone(self) -> bool:
        return self.alpha == 1

    @property
    def layout(self) -> Layout:
        return {"counts": (self.K,), "first": (self.K, self.D)}

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        return itemsize * (self.D + self.K), 8

    # -- M-step --------------------------------------------------------------------------------------------

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """Weighted counts, centres and spreads, with the floor `reg`; an empty component begins anew if F can pay."""
        counts = stats["counts"]
        idle = counts < UNMOVED
        moved = np.where(idle[:, None], 0, stats["first"] / np.where(idle, 1, counts)[:, None])
        old = {**params, self.centre: params[self.centre].astype(step.dtype).astype(np.float64)}
        notes: list[str] = []
        new = {
            "pi": self._proportions(counts),
            self.centre: old[self.centre] + moved,  # what the moments were taken about
        }
        self._update(new, old, stats, moved, idle, step, notes)
        if np.any(counts < EMPTY) and self.alpha >= 1:  # a sparse prior means them to be empty
            live = counts >= EMPTY
            gain = counts[live] @ np.log(new["pi"][live] / old["pi"][live])
            gain += self._gain(new, old, stats, moved, live) - 2 * counts[~live].sum()
            self._reseed(new, counts, gain / 2, notes)
        return new, notes

    def _proportions(self, counts: np.ndarray) -> np.ndarray:
        """The mode of the posterior of pi, π_k ∝ max(N_k + α − 1, 0); at α = 1 the largest likelihood."""
        mass = np.maximum(counts + (self.alpha - 1), 0)
        if not mass.any():  # no component has what the prior takes
            mass = np.where(counts == counts.max(), counts, 0)
        return np.maximum(mass / mass.sum(), TINY)

    def _reseed(self, new: Params, counts: np.ndarray, budget: float, notes: list[str]) -> None:
        """Give each empty component a part of the largest one's weight, beside it: math.md, mixtures.

        The part is what the `budget` allows, in nats of F: that of a component which has c data points may lose the
        share s of its weight for at most c log 1 / (1 - s) nats, wherever the share goes. None is given if that is
        little: then F hardly rises any more, and no component that fell empty again would begin anew for ever.
        """
        empty = np.flatnonzero(counts < EMPTY)
        for left, k in zip(range(len(empty), 0, -1), empty, strict=True):
            big = int(np.argmax(new["pi"]))
            share = min(0.5, -np.expm1(-max(budget, 0) / left / max(counts[big], EMPTY)))
            if share < WORTHWHILE:
                notes.append(f"component {k} is empty: no data point is explained by it")
                continue
            budget += counts[big] * np.log1p(-share)
            direction = generator(int(k), "reseed").standard_normal(self.D)
            self._place_beside(new, int(k), big, direction / np.linalg.norm(direction))
            taken = share * new["pi"][big]
            new["pi"][k], new["pi"][big] = new["pi"][k] + taken, new["pi"][big] - taken  # their sum stays 1
            notes.append(f"component {k} was empty and re-seeded beside component {big}")

    def split(self, new: Params, k: int, big: int, direction: np.ndarray) -> None:
        """Make component k of one half of component `big`, beside it; `direction` (D,) has length 1."""
        self._place_beside(new, k, big, direction)
        new["pi"][k] = new["pi"][big] = new["pi"][big] / 2

    def from_groups(self, source: Source, r: np.ndarray, first: int, last: int, comm: Communicator) -> Params:
        """Parameters of data that belong to components by `r` (N, K); this rank has the rows from first to last."""
        data = moments(whole_shard(source, self.D, comm), comm, self.missing)
        mine, mean = r[first:last], np.zeros((self.K, self.D))
        counts = mine.sum(axis=0)
        comm.allreduce(counts)
        for y, part in _centred(source, mine, first, last, data.mean):
            mean += part.T @ y
        comm.allreduce(mean)
        mean /= counts[:, None]
        scatter = np.zeros({"tied": (self.D, self.D), "full": (self.K, self.D, self.D)}.get(self.component, mean.shape))
        for y, part in _centred(source, mine, first, last, data.mean):
            for k in range(self.K):
                off = y - mean[k]
                if self.component == "tied":
                    scatter += (part[:, k, None] * off).T @ off
                else:
                    scatter[k] += (part[:, k, None] * off).T @ off if self.component == "full" else part[:, k] @ off**2
        comm.allreduce(scatter)
        return {"pi": counts / counts.sum(), **self._of_groups(counts, mean + data.mean, scatter, data)}

    @abstractmethod
    def _of_groups(self, counts: np.ndarray, mean: np.ndarray, scatter: np.ndarray, data: Moments) -> Params:
        """Parameters but pi, from how much each component has, its mean, and sums of squares (products) about it."""

    @abstractmethod
    def _update(
        self,
        new: Params,
        old: Params,
        stats: Statistics,
        moved: np.ndarray,
        idle: np.ndarray,
        step: Step,
        notes: list[str],
    ) -> None:
        """Complete `new`, in which pi and the centres are, and hold it above the floor; `moved` (K, D) is how far
        the centres went from those of `old`; those that are `idle` (K,) keep what they have."""

    @abstractmethod
    def _gain(self, new: Params, old: Params, stats: Statistics, moved: np.ndarray, live: np.ndarray) -> float:
        """By how much log p(y | k), summed over data points and `live` components with their responsibilities, is
        larger under the new parameters: F has risen by that, and by what the proportions add, at least."""

    @abstractmethod
    def _place_beside(self, new: Params, k: int, big: int, direction: np.ndarray) -> None:
        """Component k one standard deviation from component `big`, of its spread; `direction` (D,) has length 1."""


class MoG(Mixture):
    """Mixture of Gaussians: p(y) = Σ_k π_k N(y; μ_k, Σ_k).

    Dempster, Laird & Rubin, J. R. Stat. Soc. B 39, 1977; started by k-means++ (Arthur & Vassilvitskii, SODA 2007).
    Missing values: Ghahramani & Jordan, NIPS 1994; with full or tied covariances on the host, in float64.

    Parameters
    ----------
    D, K : int
        Observed dimensions, components.
    covariance : "diag", "spherical", "tied" or "full"
    reg : float, optional
        Floor of the variances (of the eigenvalues of a covariance), in the data's units squared. By default 1e-6, and
        at most that part of the variance of the data in each dimension: whatever their units, the floor hides no
        clusters. Covariances are held invertible at any scale of the data besides.
    missing : bool
        Whether NaN in the data marks missing entries; else it is refused.
    alpha : float
        Concentration of a Dirichlet prior of pi, of which the M-step takes the mode: each component has alpha − 1 data
        points more than it explains. Below 1 those that explain less than 1 − alpha vanish, for good; 1 is no prior.
        F is that of the data, without the prior.

    Raises
    ------
    ConfigError
        For an unknown covariance, or sizes or a floor that are not positive.

    Notes
    -----
    Model parameters are ``pi`` (K,), ``mu`` (K, D) and ``var`` (K, D) (diag), (K,) (spherical), or ``cov``
    (D, D) (tied), (K, D, D) (full). ``reg`` is the floor as a number, and ``relative`` tells whether the variance of
    the data may lower it.
    """

    domains: ClassVar[Mapping[str, str]] = {"pi": "distribution", "mu": "real", "var": "positive", "cov": "real"}
    centre = location = "mu"

    def __init__(
        self,
        D: int,
        K: int,
        covariance: str = "diag",
        reg: float | None = None,
        missing: bool = False,
        alpha: float = 1.0,
    ):
        if covariance not in COVARIANCES:
            raise ConfigError(f"covariance = {covariance!r}: choose among {', '.join(COVARIANCES)}")
        super().__init__(D, K, FLOOR if reg is None else reg, missing, alpha)
        self.relative = reg is None
        self.covariance = covariance
        self.common = covariance == "spherical"
        self.component = "diag" if self.common else covariance

    def settings(self) -> dict[str, Any]:
        given = {**super().settings(), "covariance": self.covariance}
        if self.relative:
            del given["reg"]
        return given

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        D, K = self.D, self.K
        spread = {"diag": (K, D), "spherical": (K,), "tied": (D, D), "full": (K, D, D)}[self.covariance]
        return {"pi": (K,), "mu": (K, D), SPREAD[self.covariance]: spread}

    def check(self, params: Mapping[str, Any]) -> Params:
        checked = super().check(params)
        if "cov" in checked:
            try:
                np.linalg.cholesky(checked["cov"])
            except np.linalg.LinAlgError as error:
                raise ConfigError("parameter cov must be positive definite") from error
        return checked

    def _start(self, centres: np.ndarray, var: np.ndarray, data: Moments) -> Params:
        var = np.maximum(var, np.maximum(self._floors(data.var), np.finfo(np.float32).eps * data.var))
        if not var.all():
            raise DataError(f"dimension {int(np.argmin(var))} of the data is constant and reg = 0: set a floor")
        spread = {
            "diag": np.tile(var, (self.K, 1)),
            "spherical": np.full(self.K, var.mean()),
            "tied": np.diag(var),
            "full": np.tile(np.diag(var), (self.K, 1, 1)),
        }[self.covariance]
        return {"mu": centres, SPREAD[self.covariance]: spread}

    def _of_groups(self, counts: np.ndarray, mean: np.ndarray, scatter: np.ndarray, data: Moments) -> Params:
        floor = np.maximum(self._floors(data.var), np.finfo(np.float32).eps * data.var)
        if self.covariance == "diag":
            spread = np.maximum(scatter / counts[:, None], floor)
        elif self.covariance == "spherical":
            spread = np.maximum((scatter / counts[:, None]).mean(axis=1), floor.mean())
        else:
            spread = scatter / (counts.sum() if self.covariance == "tied" else counts[:, None, None]) + np.diag(floor)
        return {"mu": mean, SPREAD[self.covariance]: spread}

    def _draw(self, params: Params, k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        e = rng.standard_normal((len(k), self.D))
        if "var" in params:
            return params["mu"][k] + np.sqrt(self._variances(params))[k] * e
        factor = np.broadcast_to(np.linalg.cholesky(params["cov"]), (self.K, self.D, self.D))
        return params["mu"][k] + np.einsum("nij,nj->ni", factor[k], e)

    def _variances(self, params: Params) -> np.ndarray:
        """(K, D) variances of the axis-parallel models."""
        var = params["var"]
        return np.broadcast_to(var if self.covariance == "diag" else var[:, None], (self.K, self.D))

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """log N(y_n; μ_k, Σ_k), (N, S), for the components k listed in `states`: math.md, mixtures."""
        states = np.asarray(states, dtype=int)
        if "cov" in params:
            cov = params["cov"] if self.covariance == "tied" else params["cov"][states]
            return missing_gaussian.log_density(Y, params["mu"][states], cov)
        out = np.empty((len(Y), len(states)))
        for column, k in enumerate(states):
            var = self._variances(params)[k]
            out[:, column] = -np.nansum((Y - params["mu"][k]) ** 2 / var + np.log(2 * np.pi * var), axis=1) / 2
        return out

    # -- E-step --------------------------------------------------------------------------------------------

    def tables(self, params: Params, backend: Backend, step: Step) -> Any:
        if self.missing and "cov" in params:
            log_pi = np.log(params["pi"])
            shift = self._shift(log_pi, step)
            return missing_gaussian.Tables(backend, params["mu"], params["cov"], log_pi, 1 / step.T, shift)
        return super().tables(params, backend, step)

    def _least(self, params: Params) -> float:
        if not self.relative:
            return self.reg
        var = self._variances(params) if "var" in params else np.einsum("...dd->...d", params["cov"])
        mean = params["pi"] @ params["mu"]
        total = params["pi"] @ (np.broadcast_to(var, (self.K, self.D)) + (params["mu"] - mean) ** 2)
        constant = np.abs(total / self.reg - 1) < 1e-6  # a dimension without spread lies at the floor
        return float(self._floors(np.where(constant, 0, total)).min())

    def _coefficients(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        log_2pi = np.log(2 * np.pi)
        if "var" in params:
            precision = 1 / self._variances(params)
            taken = (log_2pi - np.log(precision)) / 2
            if self.missing:
                return params["mu"], np.concatenate([precision, taken]), np.zeros(self.K)
            return params["mu"], precision, -taken.sum(axis=1)
        factor = np.linalg.cholesky(params["cov"])
        log_det = 2 * np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(axis=-1)
        inverse = np.linalg.inv(factor)
        constant = np.broadcast_to(-(log_det + self.D * log_2pi) / 2, (self.K,))
        precision = np.swapaxes(inverse, -1, -2) @ inverse
        return params["mu"], np.tril(inverse) + np.triu(precision, 1), constant

    def _run(self, t: Any, Y: Array, weights: np.ndarray | None, store: bool = False) -> tuple[Posterior, Sums]:
        if not isinstance(t, missing_gaussian.Tables):
            return super()._run(t, Y, weights, store)
        y = t.backend.to_host(Y).astype(np.float64)
        log_evidence, r, sums = missing_gaussian.e_step(t, y, np.ones(len(y)) if weights is None else weights)
        return Posterior(Evidence(len(y), constant=log_evidence), mean=t.backend.to_device(r)), dict(sums)

    def reconstruct(self, tables: Any, Y: Array, posterior: Posterior) -> Array:
        """Σ_k r_nk μ_k, and for missing entries Σ_k r_nk E[y | k, what is observed of y_n]."""
        if not isinstance(tables, missing_gaussian.Tables):
            return super().reconstruct(tables, Y, posterior)
        y, r = (tables.backend.to_host(array).astype(np.float64) for array in (Y, posterior.mean))
        return tables.backend.to_device(missing_gaussian.completed(y, tables.mu, tables.cov, r))

    @property
    def layout(self) -> Layout:
        D, K = self.D, self.K
        return {**super().layout, "second": {"diag": (K, D), "tied": (D, D), "full": (K, D, D)}[self.component]}

    # -- M-step --------------------------------------------------------------------------------------------

    def _update(
        self,
        new: Params,
        old: Params,
        stats: Statistics,
        moved: np.ndarray,
        idle: np.ndarray,
        step: Step,
        notes: list[str],
    ) -> None:
        counts, name = stats["counts"], SPREAD[self.covariance]
        spread = self._spread(stats["second"], np.where(idle, 1, counts), moved, counts.sum())
        if self.covariance != "tied":
            spread[idle] = old[name][idle]
        floor = self._floors(self._data_variance(new["mu"], stats, moved, step.resolution))
        new[name] = self._floor(spread, floor, step, notes)

    def refuses_to_hold(self, name: str, mask: np.ndarray) -> str | None:
        whole = mask.reshape(*mask.shape[:-2], -1)
        if name == "cov" and not np.array_equal(whole.any(axis=-1), whole.all(axis=-1)):
            return "of a covariance all entries are held, or none: it must stay positive definite"
        return None

    def hold(self, new: Params, old: Params, masks: Masks, stats: Statistics, step: Step) -> Params:
        """Variances are about the centres, held or not; an empty component keeps what it had beside held entries."""
        out, name = dict(new), SPREAD[self.covariance]
        if "mu" in masks:
            inverse = None
            if self.component != "diag":
                inverse = np.broadcast_to(np.linalg.inv(new[name]), (self.K, self.D, self.D))
            out["mu"] = held_centres(new["mu"], old["mu"], masks["mu"], inverse)
            empty = (stats["counts"] < EMPTY) & masks["mu"].any(axis=1)
            out["mu"][empty] = old["mu"][empty]
            off = np.where(empty[:, None], 0, out["mu"] - new["mu"])
            out[name] = new[name] + self._spread_of(off, stats["counts"])
            if self.covariance != "tied":
                out[name][empty] = old[name][empty]
        return put_back(out, old, {key: mask for key, mask in masks.items() if key != "mu"}, self.domains)

    def _spread_of(self, off: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """What variances are larger about centres that are `off` (K, D) the means."""
        if self.covariance == "diag":
            return off**2
        if self.covariance == "spherical":
            return np.asarray((off**2).mean(axis=1))
        if self.covariance == "tied":
            return np.asarray(off.T @ (counts[:, None] * off) / counts.sum())
        return np.asarray(off[:, :, None] * off[:, None, :])

    def _gain(self, new: Params, old: Params, stats: Statistics, moved: np.ndarray, live: np.ndarray) -> float:
        """Of Gaussians: from their second moments, about the old means and about the new ones."""
        counts, name = stats["counts"][live], SPREAD[self.covariance]
        second, about_new = stats["second"], self._about_new(stats["second"], stats["counts"], moved)
        before, after = old[name], new[name]
        if self.covariance != "tied":
            second, about_new, before, after = (array[live] for array in (second, about_new, before, after))
        return self._explained(after, about_new, counts) - self._explained(before, second, counts)

    def _explained(self, spread: np.ndarray, second: np.ndarray, counts: np.ndarray) -> float:
        """Σ_n r_nk log N(y_n; μ_k, Σ_k) over components, but for constants, from their second moments about μ_k."""
        if self.component == "diag":
            var = np.broadcast_to(spread if self.covariance == "diag" else spread[:, None], second.shape)
            return -float((counts[:, None] * np.log(var) + second / var).sum()) / 2
        counts = counts.sum() if self.covariance == "tied" else counts
        traces = (np.linalg.inv(spread) * second).sum()  # both are symmetric
        return -float(np.sum(counts * np.linalg.slogdet(spread)[1]) + traces) / 2

    def _place_beside(self, new: Params, k: int, big: int, direction: np.ndarray) -> None:
        if "var" in new:
            new["mu"][k] = new["mu"][big] + np.sqrt(self._variances(new)[big]) * direction
        else:
            cov = new["cov"] if self.covariance == "tied" else new["cov"][big]
            new["mu"][k] = new["mu"][big] + np.linalg.cholesky(cov) @ direction
        if self.covariance != "tied":
            new[SPREAD[self.covariance]][k] = new[SPREAD[self.covariance]][big]

    def _about_new(self, second: np.ndarray, counts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Second moments about the new means, from those about the old ones."""
        if self.component == "diag":
            return second - counts[:, None] * moved**2
        if self.covariance == "tied":
            return second - moved.T @ (counts[:, None] * moved)
        return second - counts[:, None, None] * moved[:, :, None] * moved[:, None, :]

    def _spread(self, second: np.ndarray, counts: np.ndarray, moved: np.ndarray, N: np.ndarray) -> np.ndarray:
        """Variances or covariances about the new means, from second moments about the old ones."""
        if self.covariance == "diag":
            return second / counts[:, None] - moved**2
        if self.covariance == "spherical":
            return (second / counts[:, None] - moved**2).mean(axis=1)
        if self.covariance == "tied":
            return (second - moved.T @ (counts[:, None] * moved)) / N
        return second / counts[:, None, None] - moved[:, :, None] * moved[:, None, :]

    def _data_variance(self, mu: np.ndarray, stats: Statistics, moved: np.ndarray, resolution: float) -> np.ndarray:
        """The variance (D,) of the data: that within components about their new means `mu`, and that of these means.

        One that is no more than rounding is 0.
        """
        counts, second = np.where(stats["counts"] < UNMOVED, 0, stats["counts"]), stats["second"]
        squares = second if self.component == "diag" else np.einsum("...dd->...d", second)
        within = squares.reshape(-1, self.D).sum(axis=0) - counts @ moved**2
        mean = counts @ mu / counts.sum()
        var = (np.maximum(within, 0) + counts @ (mu - mean) ** 2) / counts.sum()
        return np.where(np.sqrt(var) > max(resolution, ROUNDED) * np.abs(mean), var, 0)

    def _floors(self, var: np.ndarray) -> np.ndarray:
        """The floor of the variance of each dimension, (D,), in which the data have variance `var`."""
        if not self.relative:
            return np.full(self.D, self.reg)
        if self.common:
            var = np.full(self.D, var.mean())
        return np.where(var > 0, self.reg * np.minimum(var, 1), self.reg)  # without spread there is no unit to go by

    def _floor(self, spread: np.ndarray, floor: np.ndarray, step: Step, notes: list[str]) -> np.ndarray:
        """Raise variances that are below the floor (D,) to it, and covariances to where none of their eigenvalues is,
        in units in which the floor is one number; other components stay bit for bit.

        Raises
        ------
        DataError
            If a variance vanishes and reg = 0.
        """
        name = SPREAD[self.covariance]
        if self.component == "diag":
            low = spread < (floor[0] if self.common else floor)
            floored = variances = np.where(low, floor[0] if self.common else floor, spread)
        else:
            units = np.sqrt(floor / self.reg) if self.relative else np.ones(self.D)
            units = np.outer(units, units)
            spread = (spread + np.swapaxes(spread, -1, -2)) / 2
            floored = spread.reshape(-1, self.D, self.D).copy()
            least = max(step.resolution, CHOLESKY_RESOLUTION * self.D)
            close = np.array([_near_singular(sigma, self.reg, least) for sigma in floored / units], dtype=bool)
            values, vectors = np.linalg.eigh(floored[close] / units)
            missing = np.maximum(self.reg - values, 0)
            low = missing[:, 0] > CHOLESKY_RESOLUTION * self.D * values[:, -1]  # by more than rounding
            missing[~low] = 0
            floored[close] += (vectors * missing[:, None, :]) @ np.swapaxes(vectors, -1, -2) * units
            variances = np.diagonal(floored.reshape(spread.shape), axis1=-2, axis2=-1)
        if low.any():
            of = " of the variance of the data" if floor.min() < self.reg else ""
            notes.append(f"{int(low.sum())} {name} held at reg = {self.reg:g}{of}")
        if not np.all(variances > 0):
            where = tuple(int(i) for i in np.argwhere(~(variances > 0))[0])
            raise DataError(
                f"the variance {name} at {where} vanishes and reg = 0: set a floor reg, or choose a smaller K"
            )
        if self.component != "diag":
            close[close] = np.maximum(values[:, 0], self.reg) < least * values[:, -1]
            self._resolve(floored, least, close, notes)
        return floored.reshape(spread.shape)

    def _resolve(self, cov: np.ndarray, least: float, doubtful: np.ndarray, notes: list[str]) -> None:
        """Raise eigenvalues that neither the E-step nor a Cholesky factor in float64 can tell from 0; others stay.

        What can be told is a matter of the correlations, whose eigenvalues shall be `least`: the units of the
        dimensions do not count. `doubtful` (K,): which of `cov`, (K, D, D), need a look, by their own eigenvalues.
        """
        for k in np.flatnonzero(doubtful):
            scale = np.sqrt(np.diagonal(cov[k]))
            values, vectors = np.linalg.eigh(cov[k] / np.outer(scale, scale))
            if values[0] < least:
                cov[k] = (vectors * np.maximum(values, least)) @ vectors.T * np.outer(scale, scale)
                of = "" if self.covariance == "tied" else f" of component {k}"
                notes.append(f"covariance{of} was held at {least:.2g} of its scale: some dimensions depend on others")


def _centred(
    source: Source, r: np.ndarray, first: int, last: int, mean: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows first to last of the data less their mean, 0 where they are missing, and of `r`, some at a time."""
    rows = max(1, (8 << 20) // (8 * source.shape[1]))
    for start in range(first, last, rows):
        stop = min(start + rows, last)
        yield np.nan_to_num(source.read(start, stop).astype(np.float64) - mean), r[start - first : stop - first]


def _near_singular(cov: np.ndarray, floor: float, least: float) -> bool:
    """Whether an eigenvalue may be below the floor, or below `least` times the largest one: by a Cholesky factor."""
    try:
        np.linalg.cholesky(cov - max(floor, least * np.trace(cov)) * np.eye(len(cov)))
    except np.linalg.LinAlgError:
        return True
    return False


class MoP(Mixture):
    """Mixture of Poisson distributions, of counts: p(y) = Σ_k π_k Π_d Poisson(y_d; λ_kd).

    Parameters
    ----------
    D, K : int
        Observed dimensions, components.
    reg : float
        Floor of the rates.
    missing : bool
        Whether NaN in the data marks missing entries; else it is refused.
    alpha : float
        Of the Dirichlet prior of pi: see `MoG`.

    Raises
    ------
    ConfigError
        If a size or the floor is not positive.
    DataError
        For data that are no counts, by the first step: they must be whole numbers, not negative.

    Notes
    -----
    Model parameters are ``pi`` (K,) and ``lam`` (K, D).
    """

    domains: ClassVar[Mapping[str, str]] = {"pi": "distribution", "lam": "positive"}
    centre, component = "lam", "poisson"

    def __init__(self, D: int, K: int, reg: float = FLOOR, missing: bool = False, alpha: float = 1.0):
        reg = number("reg", reg, "a positive number, the floor of the rates", 0, inside=True)
        super().__init__(D, K, reg, missing, alpha)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"pi": (self.K,), "lam": (self.K, self.D)}

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        super().check_data(Y, start)
        bad = (Y < 0) | (np.floor(Y) < Y)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise DataError(
                f"data: {Y[row, column]} at row {start + row}, column {column} is no count: MoP explains whole "
                "numbers that are not negative; round or clip them, or choose MoG"
            )

    def _start(self, centres: np.ndarray, var: np.ndarray, data: Moments) -> Params:
        return {"lam": np.maximum((centres + data.mean) / 2, self.reg)}  # a count of 0 is no rate of 0

    def _of_groups(self, counts: np.ndarray, mean: np.ndarray, scatter: np.ndarray, data: Moments) -> Params:
        return {"lam": np.maximum(mean, self.reg)}

    def largest(self, params: Params) -> float:
        return float(np.sqrt((params["lam"].max(axis=0) ** 2).sum()))  # their rounding adds up by squares

    def _draw(self, params: Params, k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.poisson(params["lam"][k]).astype(np.float64)

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Σ_d y_nd log λ_kd − λ_kd − log y_nd!, (N, S), for the components k listed in `states`: math.md, mixtures."""
        lam = params["lam"][np.asarray(states, dtype=int)]
        seen = ~np.isnan(Y)
        y = np.where(seen, Y, 0)
        counts, which = np.unique(y, return_inverse=True)
        log_factorial = np.array([lgamma(count + 1) for count in counts])[which.reshape(y.shape)]
        return y @ np.log(lam).T - seen @ lam.T - log_factorial.sum(axis=1, keepdims=True)

    def _coefficients(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lam = params["lam"]
        reference = lam.mean(axis=0)
        exact = reference.astype(np.float32).astype(np.float64)  # as the device has it: what is relative to it fits
        reference = np.where(reference > 1, exact, reference)
        more = lam - reference
        rates, log_ratio = np.concatenate([lam, reference[None]]), np.log(lam / reference)
        if self.missing:
            return rates, np.concatenate([log_ratio, more]), np.zeros(self.K)
        return rates, log_ratio, -more.sum(axis=1)

    def _update(
        self,
        new: Params,
        old: Params,
        stats: Statistics,
        moved: np.ndarray,
        idle: np.ndarray,
        step: Step,
        notes: list[str],
    ) -> None:
        low = new["lam"] < self.reg
        new["lam"][low] = self.reg
        if low.any():
            notes.append(f"{int(low.sum())} lam held at reg = {self.reg:g}")

    def _gain(self, new: Params, old: Params, stats: Statistics, moved: np.ndarray, live: np.ndarray) -> float:
        """Of Poisson distributions: from the sums of counts that each component explains."""
        counts, before, after = stats["counts"][live, None], old["lam"][live], new["lam"][live]
        explained = stats["first"][live] + counts * before
        return float((explained * np.log(after / before) - counts * (after - before)).sum())

    def _place_beside(self, new: Params, k: int, big: int, direction: np.ndarray) -> None:
        lam = new["lam"][big]
        new["lam"][k] = np.maximum(np.abs(lam + np.sqrt(lam) * direction), self.reg)
