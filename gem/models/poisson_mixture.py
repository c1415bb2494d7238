"""A mixture of Poisson distributions, of counts (MoP)."""

from __future__ import annotations

from collections.abc import Mapping
from math import lgamma

import numpy as np

from gem.checks import number
from gem.errors import DataError
from gem.models.base import Step
from gem.models.mixture_kernel import KernelMixture
from gem.models.mixtures import FLOOR, direction
from gem.models.parameters import Parameter, Params
from gem.statistics import Statistics
from gem.summary import Summary


class MoP(KernelMixture):
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

    fragment = "mixture_poisson"
    unfit_for_pictures = "its data are counts"

    def __init__(self, D: int, K: int, reg: float = FLOOR, missing: bool = False, alpha: float = 1.0):
        reg = number("reg", reg, "a positive number, the floor of the rates", 0, inside=True)
        super().__init__(D, K, reg, missing, alpha)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"pi": self.proportions, "lam": Parameter((self.K, self.D), "positive", "centres", latents=0)}

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        super().check_data(Y, start)
        bad = (Y < 0) | (np.floor(Y) < Y)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise DataError(
                f"data: {Y[row, column]} at row {start + row}, column {column} is no count: MoP explains whole "
                "numbers that are not negative; round or clip them, or choose MoG"
            )

    def begin(self, centres: np.ndarray, var: np.ndarray, summary: Summary) -> Params:
        return {"lam": np.maximum((centres + summary.mean) / 2, self.reg)}  # a count of 0 is no rate of 0

    def draw(self, params: Params, k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.poisson(params["lam"][k]).astype(np.float64)

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Σ_d y_nd log λ_kd − λ_kd − log y_nd!, (N, S), for the components k listed in `states`: math.md, mixtures."""
        lam = params["lam"][np.asarray(states, dtype=int)]
        seen = ~np.isnan(Y)
        y = np.where(seen, Y, 0)
        counts, which = np.unique(y, return_inverse=True)
        log_factorial = np.array([lgamma(count + 1) for count in counts])[which.reshape(y.shape)]
        return y @ np.log(lam).T - seen @ lam.T - log_factorial.sum(axis=1, keepdims=True)

    # -- E-step --------------------------------------------------------------------------------------------

    def largest(self, params: Params) -> float:
        return float(np.sqrt((params["lam"].max(axis=0) ** 2).sum()))  # their rounding adds up by squares

    def coefficients(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lam = params["lam"]
        reference = lam.mean(axis=0)
        exact = reference.astype(np.float32).astype(np.float64)  # as the device has it: what is relative to it fits
        reference = np.where(reference > 1, exact, reference)
        more = lam - reference
        rates, log_ratio = np.concatenate([lam, reference[None]]), np.log(lam / reference)
        if self.missing:
            return rates, np.concatenate([log_ratio, more]), np.zeros(self.K)
        return rates, log_ratio, -more.sum(axis=1)

    # -- M-step --------------------------------------------------------------------------------------------

    def update(
        self, mean: np.ndarray, old: Params, moments: Statistics, idle: np.ndarray, step: Step, notes: list[str]
    ) -> Params:
        low = mean < self.reg
        if low.any():
            notes.append(f"{int(low.sum())} lam held at reg = {self.reg:g}")
        return {"lam": np.where(low, self.reg, mean)}

    def gain(self, new: Params, old: Params, moments: Statistics, live: np.ndarray) -> float:
        """Of Poisson distributions: from the sums of counts that each component explains."""
        counts, before, after = moments["counts"][live, None], old["lam"][live], new["lam"][live]
        explained = moments["first"][live] + counts * moments["centres"][live]
        return float((explained * np.log(after / before) - counts * (after - before)).sum())

    def beside(self, params: Params, k: int, rng: np.random.Generator) -> np.ndarray:
        lam = params["lam"][k]
        return np.asarray(np.maximum(np.abs(lam + np.sqrt(lam) * direction(self.D, rng)), self.reg))
