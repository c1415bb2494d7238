"""The E-step of mixtures that kernels/mixture.c knows: log joint, responsibilities and sums at once, on the device."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.models.base import Step
from gem.models.estep import EStep, Evidence, Posterior
from gem.models.mixtures import Explained, Mixture
from gem.models.parameters import Params
from gem.statistics import Names, Sum, Sums

KERNEL_CODE = {
    "diag": 0,
    "spherical": 0,
    "tied": 2,
    "full": 1,
    "poisson": 3,
}  # a spherical model runs as a diagonal one
LARGE = 1000.0  # rates from which on float32 would round the log joint of counts by more than 10⁻⁴


class KernelMixture(Mixture):
    """A mixture with a device kernel: `component` says which of its kinds."""

    component: str  # a key of KERNEL_CODE
    common: bool = False  # whether a component has one variance for all dimensions

    @abstractmethod
    def coefficients(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """mu and precision for kernels/mixture.c, and what log_weight has besides log π, (K,)."""

    def least(self, params: Params) -> float:
        """What no variance is smaller than, as far as the parameters tell."""
        return self.reg

    def largest(self, params: Params) -> float:
        """How large the terms are of which the log joint is a difference; 0 where it is none."""
        return 0.0

    def frame(self, params: Params, step: Step) -> np.ndarray:
        return params[self.centre].astype(step.dtype).astype(np.float64)

    def on(self, backend: Backend, params: Params, step: Step) -> EStep[Explained]:
        mu, precision, constant = self.coefficients(params)
        code = KERNEL_CODE[self.component]
        sizes: dict[str, Any] = {"D": self.D, "K": self.K, "COVARIANCE": code, "MISSING": int(self.missing)}
        sizes |= {"COMMON": 1} if self.common else {}
        large = backend.dtype == np.float32 and self.largest(params) > LARGE
        sizes |= {"LARGE": 1} if large else {}
        fine = backend.acc if large else None
        return KernelEStep(
            model=self,
            backend=backend,
            centres=backend.to_device(params[self.centre]),
            mu=backend.to_device(mu),
            precision=backend.to_device(precision, fine),
            log_weight=backend.to_device(np.log(params["pi"]) + constant, fine),
            beta=1 / step.T,
            shift=backend.to_device(self.shift(params, step)),
            kernel=backend.kernel("mixture", STORE=0, **sizes),
            storing=backend.kernel("mixture", STORE=1, **sizes),
            least=self.least(params),
            summed=tuple(self.layout),
            size=sum(prod(shape) for shape in self.layout.values()),
        )


@dataclass(frozen=True)
class KernelEStep(EStep[Explained]):
    """Parameters as the kernel wants them; `summed` are the names of its sums, of `size` numbers together."""

    model: KernelMixture
    backend: Backend
    centres: Array
    mu: Array
    precision: Array
    log_weight: Array
    beta: float
    shift: Array
    kernel: Kernel
    storing: Kernel
    least: float
    summed: Names
    size: int

    def infer(self, batch: Batch) -> Explained:
        return self._run(batch, self.kernel, self.backend.empty((1, 1)))

    def sums(self, batch: Batch, found: Explained) -> Sums:
        return found.sums

    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        r = self.backend.empty((batch.n, self.model.K))
        found = Posterior(self._run(batch, self.storing, r).evidence, mean=r)
        if reconstruct:  # what is observed of a point changes nothing more where dimensions are independent given k
            found.reconstruction = self.backend.matmul(r, self.centres)
        return found, {}

    def _run(self, batch: Batch, kernel: Kernel, responsibilities: Array) -> Explained:
        backend, n = self.backend, batch.n
        log_evidence = backend.empty((n,))
        sums = backend.empty((kernel.groups(n), self.size), backend.acc)
        kernel(
            n, batch.Y, self.mu, self.precision, self.log_weight, self.beta, self.shift, batch.weights,
            log_evidence, responsibilities, sums, self.least,
        )  # fmt: skip
        return Explained(Evidence(n, [(log_evidence, 1.0)]), {self.summed: Sum(sums)})
