"""Mixtures: one latent, the component. Gaussians (MoG), Poisson distributions of counts (MoP)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import lgamma, prod
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.checks import number, whole_number, yes_or_no
from gem.errors import ConfigError, DataError
from gem.models import missing_gaussian
from gem.models.base import (
    Evidence,
    Model,
    Moments,
    Params,
    Posterior,
    Step,
    Weights,
    shard_and_moments,
    subsample,
)
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
SPREAD = {"diag": "var", "spherical": "var", "tied": "cov", "full": "cov"}
CHOLESKY_RESOLUTION = 100 * float(np.finfo(np.float64).eps)  # times D: what rounding takes of an eigenvalue, and room
POINTS_PER_CENTRE = 40  # k-means++ looks at a subsample: seeding needs no more


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

    Raises
    ------
    ConfigError
        If a size is not a positive whole number.
    """

    centre: ClassVar[str]  # the parameter (K, D) that is E[y | k]
    component: str  # a key of KERNEL_CODE
    common: bool = False  # whether a component has one variance for all dimensions

    def __init__(self, D: int, K: int, reg: float, missing: bool):
        self.D, self.K = whole_number("D", D), whole_number("K", K)
        self.reg = number("reg", reg, "a number, finite and not negative: a floor", 0)
        self.missing = yes_or_no("missing", missing)

    def settings(self) -> dict[str, Any]:
        given = {"D": self.D, "K": self.K, "reg": self.reg}
        return {**given, "missing": True} if self.missing else given

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None) -> Params:
        """Centres by k-means++ on a subsample, equal proportions, the subsample's spread about its nearest centre.

        Y: (N, D) array, path or Source; the result is the same on every rank of `comm`.
        """
        shard, group, data = shard_and_moments(Y, self.D, comm, self.missing)
        if data.N < self.K:
            raise DataError(f"{data.N} data points cannot start K = {self.K} components: choose a smaller K")
        rng = generator(seed, "init")
        rows = subsample(shard, data.N, max(2000, POINTS_PER_CENTRE * self.K), group, rng) - data.mean
        seen = np.isfinite(rows)
        rows = np.where(seen, rows, 0)
        centres, nearest = kmeans_plusplus(rows, self.K, rng)
        var = np.where(seen, (rows - centres[nearest]) ** 2, data.var).mean(axis=0)
        return {"pi": np.full(self.K, 1 / self.K), **self._start(centres + data.mean, var, data)}

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
        return Tables(
            backend=backend,
            weights=Weights(backend),
            centres=backend.to_device(params[self.centre]),
            mu=backend.to_device(mu),
            precision=backend.to_device(precision),
            log_weight=backend.to_device(log_pi + constant),
            beta=1 / step.T,
            shift=backend.to_device(self._shift(log_pi, step)),
            kernel=backend.kernel("mixture", STORE=0, **sizes),
            storing=backend.kernel("mixture", STORE=1, **sizes),
        )

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
            log_evidence, responsibilities, sums, self.reg,
        )  # fmt: skip
        return Posterior(Evidence(n, [(log_evidence, 1.0)]), mean=responsibilities), {tuple(self.layout): Sum(sums)}

    def infer(self, tables: Any, Y: Array) -> Posterior:
        return self._run(tables, Y, None)[0]

    def infer_full(self, tables: Any, Y: Array) -> Posterior:
        return self._run(tables, Y, None, store=True)[0]

    def sums(self, tables: Any, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> Sums:
        return self._run(tables, Y, weights)[1]

    def e_step(self, tables: Any, Y: Array) -> tuple[Evidence, Sums]:
        posterior, sums = self._run(tables, Y, None)
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
    def layout(self) -> Layout:
        return {"counts": (self.K,), "first": (self.K, self.D)}

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        return itemsize * (self.D + self.K), 8

    # -- M-step --------------------------------------------------------------------------------------------

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """Weighted counts, centres and spreads, with the floor `reg`; an empty component splits the largest."""
        counts = stats["counts"]
        empty = counts < 1  # less than one data point determines no spread
        divisor = np.where(empty, 1, counts)
        moved = np.where(empty[:, None], 0, stats["first"] / divisor[:, None])
        notes: list[str] = []
        new = {
            "pi": counts / counts.sum(),
            self.centre: params[self.centre].astype(step.dtype) + moved,  # what the moments were taken about
        }
        self._update(new, stats, moved, empty, step, notes)
        for k in np.flatnonzero(empty):
            big = int(np.argmax(new["pi"]))
            new[self.centre][k] = self._beside(new, big, generator(int(k), "reseed").standard_normal(self.D))
            new["pi"][k] = new["pi"][big] = (new["pi"][big] + new["pi"][k]) / 2
            notes.append(f"component {k} was empty and re-seeded beside component {big}")
        return new, notes

    @abstractmethod
    def _update(
        self, new: Params, stats: Statistics, moved: np.ndarray, empty: np.ndarray, step: Step, notes: list[str]
    ) -> None:
        """Complete `new`, in which pi and the centres are, and hold it above the floor; `moved` (K, D) is how far
        the centres went."""

    @abstractmethod
    def _beside(self, new: Params, k: int, direction: np.ndarray) -> np.ndarray:
        """A centre one standard deviation from that of component k, for `direction` (D,) of normal numbers."""


class MoG(Mixture):
    """Mixture of Gaussians: p(y) = Σ_k π_k N(y; μ_k, Σ_k).

    Dempster, Laird & Rubin, J. R. Stat. Soc. B 39, 1977; started by k-means++ (Arthur & Vassilvitskii, SODA 2007).
    Missing values: Ghahramani & Jordan, NIPS 1994; with full or tied covariances on the host, in float64.

    Parameters
    ----------
    D, K : int
        Observed dimensions, components.
    covariance : "diag", "spherical", "tied" or "full"
    reg : float
        Floor of the variances (of the eigenvalues of a covariance), in the data's units squared. Covariances are held
        invertible at any scale of the data besides.
    missing : bool
        Whether NaN in the data marks missing entries; else it is refused.

    Raises
    ------
    ConfigError
        For an unknown covariance, or sizes or a floor that are not positive.

    Notes
    -----
    Model parameters are ``pi`` (K,), ``mu`` (K, D) and ``var`` (K, D) (diag), (K,) (spherical), or ``cov``
    (D, D) (tied), (K, D, D) (full).
    """

    domains: ClassVar[Mapping[str, str]] = {"pi": "distribution", "mu": "real", "var": "positive", "cov": "real"}
    centre = location = "mu"

    def __init__(self, D: int, K: int, covariance: str = "diag", reg: float = 1e-6, missing: bool = False):
        if covariance not in COVARIANCES:
            raise ConfigError(f"covariance = {covariance!r}: choose among {', '.join(COVARIANCES)}")
        super().__init__(D, K, reg, missing)
        self.covariance = covariance
        self.common = covariance == "spherical"
        self.component = "diag" if self.common else covariance

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "covariance": self.covariance}

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
        var = np.maximum(var, max(self.reg, np.finfo(np.float32).eps * data.var.mean()))
        if not var.all():
            raise DataError(f"dimension {int(np.argmin(var))} of the data is constant and reg = 0: set a floor")
        spread = {
            "diag": np.tile(var, (self.K, 1)),
            "spherical": np.full(self.K, var.mean()),
            "tied": np.diag(var),
            "full": np.tile(np.diag(var), (self.K, 1, 1)),
        }[self.covariance]
        return {"mu": centres, SPREAD[self.covariance]: spread}

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
        self, new: Params, stats: Statistics, moved: np.ndarray, empty: np.ndarray, step: Step, notes: list[str]
    ) -> None:
        counts = stats["counts"]
        spread = self._spread(stats["second"], np.where(empty, 1, counts), moved, counts.sum())
        if self.covariance != "tied":
            spread[empty] = spread[np.argmax(counts)]
        new[SPREAD[self.covariance]] = self._floor(spread, step, notes)

    def _beside(self, new: Params, k: int, direction: np.ndarray) -> np.ndarray:
        if "var" in new:
            return new["mu"][k] + np.sqrt(self._variances(new)[k]) * direction
        return new["mu"][k] + np.linalg.cholesky(new["cov"] if self.covariance == "tied" else new["cov"][k]) @ direction

    def _spread(self, second: np.ndarray, counts: np.ndarray, moved: np.ndarray, N: np.ndarray) -> np.ndarray:
        """Variances or covariances about the new means, from second moments about the old ones."""
        if self.covariance == "diag":
            return second / counts[:, None] - moved**2
        if self.covariance == "spherical":
            return (second / counts[:, None] - moved**2).mean(axis=1)
        if self.covariance == "tied":
            return (second - moved.T @ (counts[:, None] * moved)) / N
        return second / counts[:, None, None] - moved[:, :, None] * moved[:, None, :]

    def _floor(self, spread: np.ndarray, step: Step, notes: list[str]) -> np.ndarray:
        """Raise variances, or eigenvalues of covariances, that are below reg to it; other components stay bit for bit.

        Raises
        ------
        DataError
            If a variance vanishes and reg = 0.
        """
        name = SPREAD[self.covariance]
        if self.component == "diag":
            low = spread < self.reg
            floored = variances = np.where(low, self.reg, spread)
        else:
            spread = (spread + np.swapaxes(spread, -1, -2)) / 2
            floored = spread.reshape(-1, self.D, self.D).copy()
            least = max(step.resolution, CHOLESKY_RESOLUTION * self.D)
            close = np.array([_near_singular(sigma, self.reg, least) for sigma in floored], dtype=bool)
            values, vectors = np.linalg.eigh(floored[close])
            missing = np.maximum(self.reg - values, 0)
            low = missing[:, 0] > CHOLESKY_RESOLUTION * self.D * values[:, -1]  # by more than rounding
            missing[~low] = 0
            floored[close] += (vectors * missing[:, None, :]) @ np.swapaxes(vectors, -1, -2)
            variances = np.diagonal(floored.reshape(spread.shape), axis1=-2, axis2=-1)
        if low.any():
            notes.append(f"{int(low.sum())} {name} held at reg = {self.reg:g}")
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

    def __init__(self, D: int, K: int, reg: float = 1e-6, missing: bool = False):
        reg = number("reg", reg, "a positive number, the floor of the rates", 0, inside=True)
        super().__init__(D, K, reg, missing)

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
        more = lam - reference
        rates, log_ratio = np.concatenate([lam, reference[None]]), np.log(lam / reference)
        if self.missing:
            return rates, np.concatenate([log_ratio, more]), np.zeros(self.K)
        return rates, log_ratio, -more.sum(axis=1)

    def _update(
        self, new: Params, stats: Statistics, moved: np.ndarray, empty: np.ndarray, step: Step, notes: list[str]
    ) -> None:
        low = new["lam"] < self.reg
        new["lam"][low] = self.reg
        if low.any():
            notes.append(f"{int(low.sum())} lam held at reg = {self.reg:g}")

    def _beside(self, new: Params, k: int, direction: np.ndarray) -> np.ndarray:
        lam = new["lam"][k]
        return np.maximum(np.abs(lam + np.sqrt(lam) * direction), self.reg)


def kmeans_plusplus(rows: np.ndarray, K: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """K rows, each drawn with probability ∝ its squared distance to those before; and the nearest one of each row."""
    centres = np.empty((K, rows.shape[1]))
    nearest = np.zeros(len(rows), dtype=int)
    distance = np.full(len(rows), np.inf)
    for k in range(K):
        total = distance.sum()
        spread_out = k and total > 0
        index = rng.choice(len(rows), p=distance / total) if spread_out else rng.integers(len(rows))
        centres[k] = rows[index]
        new = ((rows - centres[k]) ** 2).sum(axis=1)
        nearest[new < distance] = k
        np.minimum(distance, new, out=distance)
    return centres, nearest
