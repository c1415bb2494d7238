"""The E-step: a model with its parameters on a device, and what it says of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel, Parts
from gem.batch import Batch
from gem.statistics import Sums


@dataclass(frozen=True)
class Evidence:
    """log p(y_n | Θ) of the n points of a batch, in the parts it is computed in: they can stay on the device.

    Attributes
    ----------
    n : int
    parts : sequence of (device array (n,), factor)
    constant : float, or (n,) host array
        What is added to all points, or to each.
    """

    n: int
    parts: Parts = ()
    constant: float | np.ndarray = 0.0

    def values(self, backend: Backend) -> np.ndarray:
        """(n,) float64, on the host."""
        total = np.full(self.n, self.constant, dtype=np.float64)
        for array, factor in self.parts:
            total += factor * backend.to_host(array).astype(np.float64)
        return total

    def sums(self, backend: Backend, batch: Batch) -> list[Any]:
        """What the batch adds to the free energy, each point as often as its weight says."""
        each = np.broadcast_to(self.constant, self.n)
        constant = float(each.sum() if batch.counts is None else each @ batch.counts)
        if not self.parts:
            return [constant]
        return [constant, backend.point_sums(self.parts, None if batch.counts is None else batch.weights)]


@dataclass
class Posterior:
    """What the E-step finds out about data points: on the host as `gem.posterior` gives it, on the device before.

    Attributes
    ----------
    log_evidence : (n,) float64 host array; before, an Evidence
        log Σ_{s ∈ K_n} p(s, y_n | Θ), at T = 1 with every constant.
    candidates : (n, H') int32 array, or None
    mean : (n, H) array, or None
        ⟨s⟩ under the annealed posterior; responsibilities of a mixture.
    product : (n, H) array, or None
        ⟨s∘z⟩ where a latent is a switch s and a strength z (spike-and-slab).
    reconstruction : (n, D) array, or None
        E[y] under the posterior.
    sets : (n, S, W) uint32 array, or None
        The kept states of each data point: latent h is bit h % 32 of word h // 32.
    states, probabilities : (n, k, H) and (n, k) host arrays, or None
        The k most probable states, the best first, and p(s | y_n) on K_n at T = 1.
    """

    log_evidence: Any
    candidates: Array = None
    mean: Array = None
    product: Array = None
    reconstruction: Array = None
    states: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    sets: Array = None

    @property
    def map_state(self) -> np.ndarray | None:
        """The most probable state of every data point, (n, H)."""
        return None if self.states is None else self.states[:, 0]


class HasEvidence(Protocol):
    """What inference finds of a batch; a model's own record of device arrays has more."""

    @property
    def evidence(self) -> Evidence:
        """Of its points, at T = 1."""


Found = TypeVar("Found", bound=HasEvidence)


class EStep(ABC, Generic[Found]):
    """A model with its parameters on a device: made once a step by `Model.on`, then called with every batch.

    A subclass is a frozen dataclass of the model, its tables on the device and its kernels; `Found` is the model's own
    record of what inference gives.
    """

    backend: Backend

    @abstractmethod
    def infer(self, batch: Batch) -> Found:
        """The posterior of a batch, annealed; nothing of it depends on the weights."""

    @abstractmethod
    def sums(self, batch: Batch, found: Found) -> Sums:
        """The batch's part of the sufficient statistics `Model.layout`, each point as often as its weight says.

        `found` is used up. What is on the device stays there: a copy to the host would make it wait.
        """

    @abstractmethod
    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        """For a user, on the device: `mean` in any case, with `reconstruct` E[y] under the posterior; and tallies."""

    def tally(self, batch: Batch, found: Found) -> Sums:
        """The batch's part of `Model.tallies`: of how many data points inference has something to tell."""
        return {}

    def __call__(self, batch: Batch) -> tuple[Evidence, Sums]:
        """Log evidence of each point of a batch, and its part of the statistics and tallies."""
        found = self.infer(batch)
        counts = self.tally(batch, found)
        return found.evidence, {**self.sums(batch, found), **counts}


def squared_norms(backend: Backend, kernel: Kernel, rows: Array, notes: dict[str, Array] | None = None) -> Array:
    """‖row‖² of each row of a device array, (n,); `kernel` is "squared_norms" of their length.

    Those of a batch's own Y are looked up in its `notes`, and put there; not to be written to.
    """
    if notes is not None and kernel.name in notes:
        return notes[kernel.name]
    out = backend.empty((rows.shape[0],))
    kernel(rows.shape[0], rows, out)
    if notes is not None:
        notes[kernel.name] = out
    return out


def column_sums(backend: Backend, rows: Array, weights: Array) -> Array:
    """Σ_n w_n rows_n of a device array (n, H), in parts (groups, H)."""
    n, H = rows.shape
    kernel = backend.kernel("column_sums", H=H)
    sums = backend.empty((kernel.groups(n), H), backend.acc)
    kernel(n, rows, weights, sums)
    return sums
