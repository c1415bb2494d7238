"""Mixtures: one latent, the component. Gaussians (MoG)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.errors import ConfigError, DataError
from gem.models.base import Model, Params, Posterior, Step, shard_and_moments, subsample, whole_number
from gem.philox import generator
from gem.statistics import Layout, Statistics

COVARIANCES = ("diag", "spherical", "tied", "full")
KERNEL_CODE = {"diag": 0, "spherical": 0, "tied": 2, "full": 1}  # a spherical model runs as a diagonal one
SPREAD = {"diag": "var", "spherical": "var", "tied": "cov", "full": "cov"}
POINTS_PER_CENTRE = 40  # k-means++ looks at a subsample: seeding needs no more


@dataclass(frozen=True)
class Tables:
    """Parameters as the kernel wants them."""

    backend: Backend
    mu: Array
    precision: Array
    log_weight: Array
    beta: float
    shift: Array
    kernel: Kernel
    storing: Kernel


class MoG(Model):
    """Mixture of Gaussians: p(y) = Σ_k π_k N(y; μ_k, Σ_k).

    Dempster, Laird & Rubin, J. R. Stat. Soc. B 39, 1977; started by k-means++ (Arthur & Vassilvitskii, SODA 2007).

    Parameters
    ----------
    D, K : int
        Observed dimensions, components.
    covariance : "diag", "spherical", "tied" or "full"
    reg : float
        Floor of the variances (of the eigenvalues of a covariance), in the data's units squared.

    Raises
    ------
    ConfigError
        For an unknown covariance, or sizes or a floor that are not positive.

    Notes
    -----
    Model parameters are ``pi`` (K,), ``mu`` (K, D) and ``var`` (K, D) (diag), (K,) (spherical), or ``cov``
    (D, D) (tied), (K, D, D) (full).
    """

    domains: ClassVar[Mapping[str, str]] = {"pi": "probability", "mu": "real", "var": "positive", "cov": "real"}

    def __init__(self, D: int, K: int, covariance: str = "diag", reg: float = 1e-6):
        if covariance not in COVARIANCES:
            raise ConfigError(f"covariance = {covariance!r}: choose among {', '.join(COVARIANCES)}")
        if not reg >= 0:
            raise ConfigError(f"reg = {reg!r}, the floor of the variances, must not be negative")
        self.D, self.K = whole_number("D", D), whole_number("K", K)
        self.covariance, self.reg = covariance, float(reg)
        self._kernel_covariance = "diag" if covariance == "spherical" else covariance

    def settings(self) -> dict[str, Any]:
        return {"D": self.D, "K": self.K, "covariance": self.covariance, "reg": self.reg}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        D, K = self.D, self.K
        spread = {"diag": (K, D), "spherical": (K,), "tied": (D, D), "full": (K, D, D)}[self.covariance]
        return {"pi": (K,), "mu": (K, D), SPREAD[self.covariance]: spread}

    def check(self, params: Mapping[str, Any]) -> Params:
        checked = super().check(params)
        if abs(checked["pi"].sum() - 1) > 1e-6:
            raise ConfigError(f"the mixing proportions pi must add up to 1, not {checked['pi'].sum()}")
        if "cov" in checked:
            try:
                np.linalg.cholesky(checked["cov"])
            except np.linalg.LinAlgError as error:
                raise ConfigError("parameter cov must be positive definite") from error
        return checked

    def perturb(self, params: Params, noise: Mapping[str, float], rng: np.random.Generator) -> Params:
        noisy = super().perturb(params, noise, rng)
        return {**noisy, "pi": noisy["pi"] / noisy["pi"].sum()} if noise.get("pi_noise") else noisy

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None) -> Params:
        """Means by k-means++ on a subsample, equal proportions, the subsample's spread about its nearest mean.

        Y: (N, D) array, path or Source; the result is the same on every rank of `comm`.
        """
        shard, group, data = shard_and_moments(Y, self.D, comm)
        if data.N < self.K:
            raise DataError(f"{data.N} data points cannot start K = {self.K} components: choose a smaller K")
        rng = generator(seed, "init")
        rows = subsample(shard, data.N, max(2000, POINTS_PER_CENTRE * self.K), group, rng) - data.mean
        mu, nearest = kmeans_plusplus(rows, self.K, rng)
        var = np.maximum(
            ((rows - mu[nearest]) ** 2).mean(axis=0), max(self.reg, np.finfo(np.float32).eps * data.var.mean())
        )
        if not var.all():
            raise DataError(f"dimension {int(np.argmin(var))} of the data is constant and reg = 0: set a floor")
        spread = {
            "diag": np.tile(var, (self.K, 1)),
            "spherical": np.full(self.K, var.mean()),
            "tied": np.diag(var),
            "full": np.tile(np.diag(var), (self.K, 1, 1)),
        }[self.covariance]
        return {"pi": np.full(self.K, 1 / self.K), "mu": mu + data.mean, SPREAD[self.covariance]: spread}

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.int64)])
        k = drawn["s"] = rng.choice(self.K, size=n, p=params["pi"] / params["pi"].sum())
        e = rng.standard_normal((n, self.D))
        if self.covariance in ("diag", "spherical"):
            scale = np.sqrt(self._variances(params))[k]
            drawn["Y"] = params["mu"][k] + scale * e
        else:
            factor = np.broadcast_to(np.linalg.cholesky(params["cov"]), (self.K, self.D, self.D))
            drawn["Y"] = params["mu"][k] + np.einsum("nij,nj->ni", factor[k], e)
        return drawn

    def _variances(self, params: Params) -> np.ndarray:
        """(K, D) variances of the axis-parallel models."""
        var = params["var"]
        return np.broadcast_to(var if self.covariance == "diag" else var[:, None], (self.K, self.D))

    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        return np.log(params["pi"])[np.asarray(states, dtype=int)]

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """log N(y_n; μ_k, Σ_k), (N, S), for the components k listed in `states`: math.md, mixtures."""
        out = np.empty((len(Y), len(states)))
        for column, k in enumerate(states):
            delta = Y - params["mu"][k]
            if "var" in params:
                var = self._variances(params)[k]
                out[:, column] = -(delta**2 / var).sum(axis=1) / 2 - np.log(var).sum() / 2
            else:
                cov = params["cov"] if self.covariance == "tied" else params["cov"][k]
                solved = np.linalg.solve(cov, delta.T).T
                out[:, column] = -(delta * solved).sum(axis=1) / 2 - np.linalg.slogdet(cov)[1] / 2
        return out - self.D / 2 * np.log(2 * np.pi)

    # -- E-step --------------------------------------------------------------------------------------------

    def tables(self, params: Params, backend: Backend, step: Step) -> Tables:
        precision, log_det = self._precision(params)
        log_pi = np.log(params["pi"])
        sizes: dict[str, Any] = {"D": self.D, "K": self.K, "COVARIANCE": KERNEL_CODE[self.covariance]}
        shift = np.zeros(self.K) if step.anneal_prior else (1 - 1 / step.T) * log_pi
        return Tables(
            backend=backend,
            mu=backend.to_device(params["mu"]),
            precision=backend.to_device(precision),
            log_weight=backend.to_device(log_pi + log_det / 2 - self.D / 2 * np.log(2 * np.pi)),
            beta=1 / step.T,
            shift=backend.to_device(shift),
            kernel=backend.kernel("mixture", STORE=0, **sizes),
            storing=backend.kernel("mixture", STORE=1, **sizes),
        )

    def _precision(self, params: Params) -> tuple[np.ndarray, np.ndarray]:
        """Precisions in the kernel's shape, and the logarithm of their determinants, (K,)."""
        if "var" in params:
            precision = 1 / self._variances(params)
            return precision, np.log(precision).sum(axis=1)
        factor = np.linalg.cholesky(params["cov"])
        log_det = -2 * np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(axis=-1)
        inverse = np.linalg.inv(factor)
        return np.swapaxes(inverse, -1, -2) @ inverse, np.broadcast_to(log_det, (self.K,))

    def _run(self, kernel: Kernel, t: Tables, Y: Array, weights: np.ndarray | None) -> tuple[Posterior, Statistics]:
        backend, n = t.backend, Y.shape[0]
        log_evidence = backend.empty((n,))
        responsibilities = backend.empty((n, self.K) if kernel is t.storing else (1, 1))
        size = sum(prod(shape) for shape in self.layout.values())
        sums = backend.empty((kernel.groups(n), size), backend.acc)
        keep = backend.to_device(np.ones(n) if weights is None else weights)
        kernel(n, Y, t.mu, t.precision, t.log_weight, t.beta, t.shift, keep, log_evidence, responsibilities, sums)
        total = Statistics(self.layout, backend.to_host(sums).sum(axis=0, dtype=np.float64))
        return Posterior(backend.to_host(log_evidence).astype(np.float64), mean=responsibilities), total

    def infer(self, tables: Tables, Y: Array) -> Posterior:
        return self._run(tables.kernel, tables, Y, None)[0]

    def infer_full(self, tables: Tables, Y: Array) -> Posterior:
        return self._run(tables.storing, tables, Y, None)[0]

    def sums(self, tables: Tables, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> Statistics:
        return self._run(tables.kernel, tables, Y, weights)[1]

    def e_step(self, tables: Tables, Y: Array) -> tuple[np.ndarray, Statistics]:
        posterior, sums = self._run(tables.kernel, tables, Y, None)
        return posterior.log_evidence, sums

    def reconstruct(self, tables: Tables, Y: Array, posterior: Posterior) -> Array:
        return tables.backend.matmul(posterior.mean, tables.mu)

    def top_states(self, params: Params, Y: np.ndarray, posterior: Posterior, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most probable components, (n, k), and their responsibilities at T = 1."""
        joint = self.log_joint(params, Y, np.arange(self.K))
        best = np.argsort(-joint, axis=1, kind="stable")[:, :k]
        total = np.logaddexp.reduce(joint, axis=1, keepdims=True)
        return best, np.exp(np.take_along_axis(joint, best, axis=1) - total)

    @property
    def layout(self) -> Layout:
        D, K = self.D, self.K
        return {
            "counts": (K,),
            "first": (K, D),
            "second": {"diag": (K, D), "tied": (D, D), "full": (K, D, D)}[self._kernel_covariance],
        }

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        return itemsize * (self.D + self.K), 8

    # -- M-step --------------------------------------------------------------------------------------------

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """Weighted counts, means and covariances, with the floor `reg`; an empty component splits the largest."""
        counts = stats["counts"]
        empty = counts < 1  # less than one data point determines no covariance
        divisor = np.where(empty, 1, counts)
        moved = np.where(empty[:, None], 0, stats["first"] / divisor[:, None])
        spread = self._spread(stats["second"], divisor, moved, counts.sum())
        if self.covariance != "tied":
            spread[empty] = spread[np.argmax(counts)]
        notes: list[str] = []
        new = {
            "pi": counts / counts.sum(),
            "mu": params["mu"].astype(step.dtype) + moved,  # the means that the moments were taken about
            SPREAD[self.covariance]: self._floor(spread, notes),
        }
        self._reseed(new, np.flatnonzero(empty), notes)
        return new, notes

    def _spread(self, second: np.ndarray, counts: np.ndarray, moved: np.ndarray, N: np.ndarray) -> np.ndarray:
        """Variances or covariances about the new means, from second moments about the old ones."""
        if self.covariance == "diag":
            return second / counts[:, None] - moved**2
        if self.covariance == "spherical":
            return (second / counts[:, None] - moved**2).mean(axis=1)
        if self.covariance == "tied":
            return (second - moved.T @ (counts[:, None] * moved)) / N
        return second / counts[:, None, None] - moved[:, :, None] * moved[:, None, :]

    def _floor(self, spread: np.ndarray, notes: list[str]) -> np.ndarray:
        """Raise variances, or eigenvalues of covariances, that are below reg to it; the others stay bit for bit."""
        if self._kernel_covariance == "diag":
            low = spread < self.reg
            raised = np.full_like(spread, self.reg)
        else:
            spread = (spread + np.swapaxes(spread, -1, -2)) / 2
            values, vectors = np.linalg.eigh(spread)
            low = np.asarray((values < self.reg).any(axis=-1))[..., None, None]
            raised = (vectors * np.maximum(values, self.reg)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
        if low.any():
            notes.append(f"{int(low.sum())} {SPREAD[self.covariance]} held at reg = {self.reg:g}")
        return np.where(low, raised, spread)

    def _reseed(self, new: Params, empty: np.ndarray, notes: list[str]) -> None:
        """Give each empty component half of the largest one, a standard deviation away from it."""
        for k in empty:
            big = int(np.argmax(new["pi"]))
            direction = generator(int(k), "reseed").standard_normal(self.D)
            if "var" in new:
                step = np.sqrt(self._variances(new)[big]) * direction
            else:
                step = np.linalg.cholesky(new["cov"] if self.covariance == "tied" else new["cov"][big]) @ direction
            new["mu"][k] = new["mu"][big] + step
            new["pi"][k] = new["pi"][big] = (new["pi"][big] + new["pi"][k]) / 2
            notes.append(f"component {k} was empty and re-seeded beside component {big}")


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
