"""A mixture of Gaussians (MoG)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gem.backends import blas
from gem.backends.base import Backend
from gem.errors import ConfigError, DataError
from gem.models import missing_gaussian
from gem.models.base import Step
from gem.models.estep import EStep
from gem.models.gaussian_floors import SPREAD, Floors
from gem.models.held import Masks, held_centres, put_back
from gem.models.mixture_kernel import KernelMixture
from gem.models.mixtures import EMPTY, FLOOR, UNMOVED, Mixture, direction, from_centres
from gem.models.parameters import Parameter, Params
from gem.models.pictures import POINTS_PER_FIELD, of_signal
from gem.statistics import Layout, Statistics, Sums
from gem.summary import Summary

ROUNDED = 2.0**-48  # a spread below this part of the mean is the rounding of a constant in float64

POINTS_PER_COMPONENT = 2000  # patches of a picture
COMPONENTS = (8, 20)  # for patches: at least (where there are so many), at most
SURE = 1e-6  # responsibility below which a component is not asked


class MoG(KernelMixture):
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

    def __init__(
        self,
        D: int,
        K: int,
        covariance: str = "diag",
        reg: float | None = None,
        missing: bool = False,
        alpha: float = 1.0,
    ):
        if covariance not in SPREAD:
            raise ConfigError(f"covariance = {covariance!r}: choose among {', '.join(SPREAD)}")
        super().__init__(D, K, FLOOR if reg is None else reg, missing, alpha)
        self.relative = reg is None
        self.covariance = covariance
        self.common = covariance == "spherical"
        self.component = "diag" if self.common else covariance
        self.floors = Floors(self.D, covariance, self.reg, self.relative)

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        if self.relative:
            del given["reg"]
        return given

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        D, K, name = self.D, self.K, SPREAD[self.covariance]
        shape = {"diag": (K, D), "spherical": (K,), "tied": (D, D), "full": (K, D, D)}[self.covariance]
        domain = "positive" if name == "var" else "covariance"
        return {
            "pi": self.proportions,
            "mu": Parameter((K, D), "real", "centres", latents=0, shifts=True),
            name: Parameter(shape, domain, "spread", latents=None if self.covariance == "tied" else 0),
        }

    def begin(self, centres: np.ndarray, var: np.ndarray, summary: Summary) -> Params:
        var = np.maximum(var, np.maximum(self.floors.of(summary.var), np.finfo(np.float32).eps * summary.var))
        if not var.all():
            raise DataError(f"dimension {int(np.argmin(var))} of the data is constant and reg = 0: set a floor")
        spread = {
            "diag": np.tile(var, (self.K, 1)),
            "spherical": np.full(self.K, var.mean()),
            "tied": np.diag(var),
            "full": np.tile(np.diag(var), (self.K, 1, 1)),
        }[self.covariance]
        return {"mu": centres, SPREAD[self.covariance]: spread}

    def draw(self, params: Params, k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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

    @property
    def _on_host(self) -> bool:
        """Whether no kernel knows the model: each pattern of observed entries has its own inverse."""
        return self.missing and SPREAD[self.covariance] == "cov"

    def on(self, backend: Backend, params: Params, step: Step) -> EStep[Any]:
        return Mixture.on(self, backend, params, step) if self._on_host else super().on(backend, params, step)

    def frame(self, params: Params, step: Step) -> np.ndarray:
        return Mixture.frame(self, params, step) if self._on_host else super().frame(params, step)

    def sums_on_host(self, params: Params, Y: np.ndarray, r: np.ndarray) -> Sums:
        """As of every mixture, and second moments about the centres; what is missing counts with its expectation."""
        if SPREAD[self.covariance] == "cov":
            return missing_gaussian.sums(Y, params["mu"], params["cov"], r)
        second, var = np.empty((self.K, self.D)), self._variances(params)
        for k, centre in enumerate(params["mu"]):
            square = (Y - centre) ** 2
            second[k] = r[:, k] @ (np.where(np.isnan(Y), var[k], square) if self.missing else square)
        return {**super().sums_on_host(params, Y, r), "second": second}

    def expected(self, params: Params, Y: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Σ_k r_nk μ_k, and for missing entries Σ_k r_nk E[y | k, what is observed of y_n]."""
        return missing_gaussian.completed(Y, params["mu"], params["cov"], r)

    def constants(self) -> tuple[str, dict[str, Any]]:
        if self.component != "diag":
            return "mixture_full", {"D": self.D, "K": self.K, "TIED": int(self.component == "tied")}
        fragment = "mixture_spherical" if self.common and not self.missing else "mixture_gaussian"
        return "mixture", {**super().constants()[1], "fragment": fragment}

    def besides(self, backend: Backend, mu: np.ndarray, P: np.ndarray) -> tuple[Any, ...]:
        """If the covariances are one, R (μ_k − μ_0), of numbers as the kernel has them."""
        if self.component == "diag":
            return ()
        rounded, factor = (a.astype(backend.dtype).astype(np.float64) for a in (mu, np.tril(P)))
        tied = self.component == "tied"
        return (backend.to_device((rounded - rounded[0]) @ factor.T if tied else np.zeros((1, 1)), backend.acc),)

    def least(self, params: Params) -> float:
        if not self.relative:
            return self.reg
        var = self._variances(params) if "var" in params else np.einsum("...dd->...d", params["cov"])
        mean = params["pi"] @ params["mu"]
        total = params["pi"] @ (np.broadcast_to(var, (self.K, self.D)) + (params["mu"] - mean) ** 2)
        constant = np.abs(total / self.reg - 1) < 1e-6  # a dimension without spread lies at the floor
        return float(self.floors.of(np.where(constant, 0, total)).min())

    def coefficients(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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

    @property
    def layout(self) -> Layout:
        D, K = self.D, self.K
        return {**super().layout, "second": {"diag": (K, D), "tied": (D, D), "full": (K, D, D)}[self.component]}

    # -- M-step --------------------------------------------------------------------------------------------

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """As of every mixture; second moments are about the mean of the data that a component explains."""
        moments = super().moments(sums, params, step)
        moments["second"][...] -= self._squares(moments["counts"], from_centres(moments))
        return moments

    def combine(self, first: Statistics, second: Statistics, a: float, b: float) -> Statistics:
        """By the formulas of Chan, Golub & LeVeque (Am. Stat. 37, 1983): no difference of large numbers."""
        both = super().combine(first, second, a, b)
        apart = first["centres"] - second["centres"] + from_centres(first) - from_centres(second)
        counts = both["counts"]
        share = np.divide(b * second["counts"], counts, out=np.zeros_like(counts), where=counts > 0)
        both["second"][...] += self._squares(a * first["counts"] * share, apart)
        return both

    def _squares(self, counts: np.ndarray, apart: np.ndarray) -> np.ndarray:
        """Second moments of `counts` (K,) points that lie so far (K, D) from what these are about."""
        if self.component == "diag":
            return counts[:, None] * apart**2
        if self.covariance == "tied":
            return apart.T @ (counts[:, None] * apart)
        return counts[:, None, None] * apart[:, :, None] * apart[:, None, :]

    def update(
        self, mean: np.ndarray, old: Params, moments: Statistics, idle: np.ndarray, step: Step, notes: list[str]
    ) -> Params:
        name = SPREAD[self.covariance]
        spread = self._spread(moments["second"], np.where(idle, 1, moments["counts"]), moments["counts"].sum())
        if self.covariance != "tied":
            spread[idle] = old[name][idle]
        floor = self.floors.of(self._data_variance(mean, moments, step.resolution))
        return {"mu": mean, name: self.floors.hold(spread, floor, step.resolution, notes)}

    def _spread(self, second: np.ndarray, counts: np.ndarray, N: float) -> np.ndarray:
        """Variances or covariances, from second moments about the means."""
        if self.covariance == "tied":
            return second / N
        spread = second / counts.reshape(-1, *[1] * (second.ndim - 1))
        return spread.mean(axis=1) if self.common else spread

    def _data_variance(self, mu: np.ndarray, moments: Statistics, resolution: float) -> np.ndarray:
        """The variance (D,) of the data: that within components about their means `mu`, and that of these means.

        One that is no more than rounding is 0.
        """
        counts, second = moments["counts"], moments["second"]
        counts = np.where(counts < UNMOVED, 0, counts)
        squares = second if self.component == "diag" else np.einsum("...dd->...d", second)
        within = squares.reshape(-1, self.D).sum(axis=0)
        mean = counts @ mu / counts.sum()
        var = (np.maximum(within, 0) + counts @ (mu - mean) ** 2) / counts.sum()
        return np.where(np.sqrt(var) > max(resolution, ROUNDED) * np.abs(mean), var, 0)

    # -- pictures ------------------------------------------------------------------------------------------

    @classmethod
    def sizes_for_patches(cls, count: int, noise: float, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Full covariances; Σ_k = Cov[x | k] + σ² I: the floor makes it so."""
        least, most = COMPONENTS
        K = max(1, min(max(least, count // POINTS_PER_COMPONENT), most, count // POINTS_PER_FIELD))
        return {"K": K, "covariance": "full", "reg": noise**2 or 1.0}

    def with_known_noise(self, params: Params, noise: float, count: int) -> Params:
        """Gaussians of mean 0, as many patches are x as −x, with the covariances of `of_signal`."""
        if self.covariance != "full":
            return params
        mu, cov = params["mu"], params["cov"] + params["mu"][:, :, None] * params["mu"][:, None, :]
        with blas.limited(1):  # more threads only wait for each other on matrices this small
            shrunk = [of_signal(c, noise, count * float(pi)) for c, pi in zip(cov, params["pi"], strict=True)]
        return {**params, "mu": np.zeros_like(mu), "cov": np.array(shrunk)}

    def signal(
        self, params: Params, Y: np.ndarray, explained: np.ndarray, mean: np.ndarray, noise: float
    ) -> np.ndarray:
        """Σ_k q_k (μ_k + (Σ_k − σ² I)₊ Σ_k⁻¹ (y − μ_k)): what a Gaussian keeps of y − μ_k is (Σ_k − σ² I) Σ_k⁻¹."""
        y, estimates = np.where(np.isnan(Y), explained, Y), np.zeros(Y.shape)
        spread = params.get("cov")
        if spread is None:
            spread = self._variances(params)[:, :, None] * np.eye(self.D)
        with blas.limited(1):
            for q, mu, cov in zip(mean.T, params["mu"], np.broadcast_to(spread, (self.K, self.D, self.D)), strict=True):
                asked = q > SURE
                values, vectors = np.linalg.eigh(cov)
                gain = (vectors * np.maximum(1 - noise**2 / values, 0)) @ vectors.T
                estimates[asked] += q[asked, None] * (mu + (y[asked] - mu) @ gain)
        return estimates

    # -- what is held --------------------------------------------------------------------------------------

    def refuses_to_hold(self, name: str, mask: np.ndarray) -> str | None:
        whole = mask.reshape(*mask.shape[:-2], -1)
        if name == "cov" and not np.array_equal(whole.any(axis=-1), whole.all(axis=-1)):
            return "of a covariance all entries are held, or none: it must stay positive definite"
        return None

    def hold(self, new: Params, old: Params, masks: Masks, moments: Statistics, step: Step) -> Params:
        """Variances are about the centres, held or not; an empty component keeps what it had beside held entries."""
        out, name = dict(new), SPREAD[self.covariance]
        if "mu" in masks:
            inverse = None
            if self.component != "diag":
                inverse = np.broadcast_to(np.linalg.inv(new[name]), (self.K, self.D, self.D))
            out["mu"] = held_centres(new["mu"], old["mu"], masks["mu"], inverse)
            empty = (moments["counts"] < EMPTY) & masks["mu"].any(axis=1)
            out["mu"][empty] = old["mu"][empty]
            off = np.where(empty[:, None], 0, out["mu"] - new["mu"])
            out[name] = new[name] + self._spread_of(off, moments["counts"])
            if self.covariance != "tied":
                out[name][empty] = old[name][empty]
        return put_back(out, old, {key: mask for key, mask in masks.items() if key != "mu"}, self.parameters)

    def _spread_of(self, off: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """What variances are larger about centres that are `off` (K, D) the means."""
        if self.covariance == "tied":
            return np.asarray(self._squares(counts, off) / counts.sum())
        squares = self._squares(np.ones(self.K), off)
        return squares.mean(axis=1) if self.common else squares

    def gain(self, new: Params, old: Params, moments: Statistics, live: np.ndarray) -> float:
        """Of Gaussians: from their second moments, about the old means and about the new ones."""
        counts, name = moments["counts"], SPREAD[self.covariance]
        about_new = moments["second"]
        about_old = about_new + self._squares(counts, new["mu"] - old["mu"])
        before, after = old[name], new[name]
        if self.covariance != "tied":
            about_old, about_new, before, after = (array[live] for array in (about_old, about_new, before, after))
        return self._explained(after, about_new, counts[live]) - self._explained(before, about_old, counts[live])

    def _explained(self, spread: np.ndarray, second: np.ndarray, counts: np.ndarray) -> float:
        """Σ_n r_nk log N(y_n; μ_k, Σ_k) over components, but for constants, from their second moments about μ_k."""
        if self.component == "diag":
            var = np.broadcast_to(spread if self.covariance == "diag" else spread[:, None], second.shape)
            return -float((counts[:, None] * np.log(var) + second / var).sum()) / 2
        counts = counts.sum() if self.covariance == "tied" else counts
        traces = (np.linalg.inv(spread) * second).sum()  # both are symmetric
        return -float(np.sum(counts * np.linalg.slogdet(spread)[1]) + traces) / 2

    def beside(self, params: Params, k: int, rng: np.random.Generator) -> np.ndarray:
        e = direction(self.D, rng)
        if "var" in params:
            return np.asarray(params["mu"][k] + np.sqrt(self._variances(params)[k]) * e)
        cov = params["cov"] if self.covariance == "tied" else params["cov"][k]
        return np.asarray(params["mu"][k] + np.linalg.cholesky(cov) @ e)
