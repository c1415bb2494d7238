"""The E-step of mixtures with a kernel: log joint, softmax and sums, on the device."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.kernels.mixture import JOINT, NOTES, SOFTMAX, STORE, SUMS
from gem.models.base import Step
from gem.models.estep import EStep, Evidence, Posterior
from gem.models.mixtures import Explained, Mixture
from gem.models.parameters import Params
from gem.statistics import Names, Sum, Sums

LARGE = 1000.0  # terms from which on float32 would round the log joint by more than 10⁻⁴


class KernelMixture(Mixture):
    """A mixture with a device kernel.

    A new family takes one dimension by itself: it says its `fragment`, a few lines of C and their twin, and its
    `coefficients`. See docs/kernels.md.
    """

    fragment: ClassVar[str] = ""  # kernels/fragments/FRAGMENT.h

    @abstractmethod
    def coefficients(self, params: Params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """mu and P for kernels/mixture.c, and what log_weight has besides log π, (K,)."""

    def constants(self) -> tuple[str, dict[str, Any]]:
        """The kernel and what it is compiled for."""
        return "mixture", {"fragment": self.fragment, "D": self.D, "K": self.K, "MISSING": int(self.missing)}

    def besides(self, backend: Backend, mu: np.ndarray, P: np.ndarray) -> tuple[Array, ...]:
        """What else the kernel takes."""
        return ()

    def least(self, params: Params) -> float:
        """What no variance is smaller than, as far as the parameters tell."""
        return self.reg

    def largest(self, params: Params) -> float:
        """How large the terms are of which the log joint is a difference; 0 where it is none."""
        return 0.0

    def frame(self, params: Params, step: Step) -> np.ndarray:
        return params[self.centre].astype(step.dtype).astype(np.float64)

    def on(self, backend: Backend, params: Params, step: Step) -> EStep[Explained]:
        mu, P, constant = self.coefficients(params)
        name, constants = self.constants()
        large = backend.dtype == np.float32 and self.largest(params) > LARGE
        fine = backend.acc if large else None
        shift = self.shift(params, step)
        return KernelEStep(
            model=self,
            backend=backend,
            name=name,
            constants={**constants, **({"LARGE": 1} if large else {})},
            centres=backend.to_device(params[self.centre]),
            mu=backend.to_device(mu),
            P=backend.to_device(P, fine),
            log_weight=backend.to_device(np.log(params["pi"]) + constant, fine),
            beta=1 / step.T,
            shift=backend.to_device(shift),
            annealed=step.T != 1 or bool(shift.any()),
            least=self.least(params),
            besides=self.besides(backend, mu, P),
            summed=tuple(self.layout),
            size=sum(prod(shape) for shape in self.layout.values()),
        )


@dataclass(frozen=True)
class KernelEStep(EStep[Explained]):
    """Parameters as the kernel wants them; `summed` are the names of its sums, of `size` numbers together."""

    model: KernelMixture
    backend: Backend
    name: str
    constants: dict[str, Any]
    centres: Array
    mu: Array
    P: Array
    log_weight: Array
    beta: float
    shift: Array
    annealed: bool
    least: float
    besides: tuple[Array, ...]
    summed: Names
    size: int

    def infer(self, batch: Batch) -> Explained:
        return self._run(batch, SUMS, self.backend.empty((1, 1)))

    def sums(self, batch: Batch, found: Explained) -> Sums:
        return found.sums

    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        r = self.backend.empty((batch.n, self.model.K))
        found = Posterior(self._run(batch, STORE, r).evidence, mean=r)
        if reconstruct:  # what is observed of a point changes nothing more where dimensions are independent given k
            found.reconstruction = self.backend.matmul(r, self.centres)
        return found, {}

    def _run(self, batch: Batch, last: int, responsibilities: Array) -> Explained:
        """All stages, the last of which stores r or adds up the sums: in one launch, or one after the other."""
        backend, n = self.backend, batch.n
        fused = backend.fuses or self.name == "mixture_full"
        stages = (JOINT | SOFTMAX | last,) if fused else (JOINT, SOFTMAX, last)
        kernels = [self._kernel(stage) for stage in stages]
        log_evidence = backend.empty((n,))
        sums = backend.empty((kernels[-1].groups(n) if fused or last == SUMS else 1, self.size), backend.acc)
        room = backend.empty((kernels[0].groups(n), self.model.K + NOTES, kernels[0].tile))
        for kernel in kernels:
            kernel(
                n, batch.Y, self.mu, self.P, self.log_weight, self.beta, self.shift, batch.weights,
                log_evidence, room, responsibilities, sums, self.least, *self.besides,
            )  # fmt: skip
        return Explained(Evidence(n, [(log_evidence, 1.0)]), {self.summed: Sum(sums)})

    def _kernel(self, stages: int) -> Kernel:
        return self.backend.kernel(self.name, STAGES=stages, ANNEAL=int(self.annealed), **self.constants)
