"""The backend contract: the few verbs that every model is written against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from gem.batch import Array, Batch
from gem.data import SampleWeights, Shard
from gem.memory import Memory
from gem.parallel import Communicator
from gem.statistics import Layout, Names, Statistics, Sum, Sums

Result = TypeVar("Result")
Parts = Sequence[tuple[Array, float]]  # what adds up to a number for each data point: arrays (n,), with factors


class Batches(Protocol):
    """A rank's data in pieces, as `Backend.load` gives them; can be iterated again and again.

    Attributes
    ----------
    N, start, stop : int
        Data points, and where they lie among those of all ranks.
    """

    N: int
    start: int
    stop: int

    def __iter__(self) -> Iterator[Batch]:
        """Each batch, in order."""

    def remember(self, memory: Memory) -> None:
        """Have each batch bring its rows of this memory along from now on."""

    def bring_back(self) -> None:
        """Have the host's memory as the last E-step left it."""


class NoBatches:
    """No data at all."""

    N = start = stop = 0

    def __iter__(self) -> Iterator[Batch]:
        return iter(())

    def remember(self, memory: Memory) -> None:
        pass

    def bring_back(self) -> None:
        pass


class Kernel(ABC):
    """A compiled kernel: called with the number of data points and the arguments its .c file names.

    Of numbers among them a float is a `real` to the kernel, an int an `int`.

    How many groups of which size serve them is the backend's affair: it differs between a CPU and a GPU.
    """

    name: str
    tile: int = 1  # data points that a group takes at a time

    def groups(self, N: int) -> int:
        """Groups that serve N data points: the rows of a kernel's partial sums."""
        return 1

    @abstractmethod
    def __call__(self, N: int, *arguments: Any) -> None: ...


class Totals:
    """The sums of a step on this rank, and then those of all ranks. These are kept on the host, batch by batch."""

    def __init__(self, backend: Backend, layout: Layout):
        self._backend, self._host = backend, Statistics(layout)

    @property
    def nbytes(self) -> int:
        """Of the one buffer that is reduced."""
        return self._host.buffer.nbytes

    def add(self, sums: Sums) -> None:
        """Add a batch's sums; where they are kept on a device nothing is waited for."""
        for names, value in singly(sums):
            self._add(names, value)

    def _add(self, names: Names, value: Sum) -> None:
        on_host = isinstance(value.rows, np.ndarray | np.generic | float | int)
        self._host.add(names, value.rows if on_host else self._backend.to_host(value.rows), value.scale)

    def reduce(self, comm: Communicator) -> Statistics:
        """Sum over all ranks, once, after the last batch."""
        comm.allreduce(self._host.buffer)
        return self._host


def singly(sums: Sums) -> Iterator[tuple[Names, Sum]]:
    """Every contribution with the name of its statistic, or their names."""
    for names, values in sums.items():
        for value in values if isinstance(values, list) else [values]:
            yield names, value if isinstance(value, Sum) else Sum(value)


class Backend(ABC):
    """Where the E-step runs: one device, one floating-point type.

    Attributes
    ----------
    name : str
        As a user asks for it: "numpy", "opencl:0", "cuda:1".
    dtype : numpy.dtype
        float32 or float64; statistics are summed in float64 on the host whatever it is.
    acc : numpy.dtype
        What kernels sum in: float64 wherever the device has it.
    """

    name: str
    dtype: np.dtype
    acc: np.dtype = np.dtype(np.float64)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Device, driver, versions: plain data for the log, the run file and the benchmarks."""

    @property
    def place(self) -> str:
        """What two ranks of a host that have the same device agree in."""
        return self.name

    @property
    def fuses(self) -> bool:
        """Whether the stages of a kernel are best one launch, in which a group takes a few data points through all of
        them in a cache of its own; else each stage is a launch over all points.
        """
        return True

    def shared_by(self, ranks: int) -> Backend:
        """This backend for one of so many ranks that have its device: it takes its part of the memory."""
        return self  # where memory is the host's

    @abstractmethod
    def to_device(self, host: np.ndarray, dtype: Any = None) -> Array:
        """A device copy of a host array (dtype, if not given: of floating-point arrays this backend's)."""

    @abstractmethod
    def to_host(self, device: Array) -> np.ndarray:
        """A host copy; waits for the work that makes the array."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """An uninitialised device array (dtype: this backend's, if not given)."""

    def contiguous(self, host: Any, dtype: Any = None) -> np.ndarray:
        """A host array as `to_device` copies it."""
        host = np.asarray(host)
        return np.ascontiguousarray(host, dtype or (self.dtype if host.dtype.kind == "f" else host.dtype))

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """A device array of zeros."""
        return self.to_device(np.zeros(shape, dtype or self.dtype))

    @abstractmethod
    def matmul(self, a: Array, b: Array, *, transpose_a: bool = False) -> Array:
        """a @ b, or aᵀ @ b, by the best library of the device."""

    def sum_products(self, a: Array, b: Array) -> Array:
        """Σ_n a_n b_nᵀ of the rows of (n, D) and (n, H): (D, H), or (parts, D, H) that `totals` adds up."""
        return self.matmul(a, b, transpose_a=True)

    @abstractmethod
    def kernel(self, name: str, *, states: Any = None, fragment: str | None = None, **constants: int) -> Kernel:
        """The kernel of `kernels/NAME.c` (or its twin), specialised: compile-time constants, a state table, and the
        model's own few lines (files of `kernels/fragments` joined by "+", or their twins) where a kernel asks for some.
        """

    @abstractmethod
    def batch_size(self, N: int, bytes_per_point: int) -> int:
        """How many of N data points to take at once, given what the E-step needs for each."""

    def batch(self, start: int, Y: Array, counts: np.ndarray | None = None) -> Batch:
        """A Batch of these rows on the device (n, D), each of which counts as `counts` (n,) says; None: once."""
        weights = self.ones(Y.shape[0]) if counts is None else self.to_device(counts)
        return Batch(start, Y, weights, counts)

    def reweighted(self, batch: Batch, counts: np.ndarray) -> Batch:
        """The same data points, which now count as `counts` (n,) says."""
        return replace(batch, weights=self.to_device(counts), counts=counts)

    def ones(self, n: int) -> Array:
        """A device array of n ones, not to be written to."""
        return self.to_device(np.ones(n))

    @abstractmethod
    def load(self, shard: Shard, weights: SampleWeights | None = None, tell: bool = True) -> Batches:
        """A shard's batches on the device: kept there if they fit, else streamed at each pass; `tell` logs which."""

    @abstractmethod
    def map(self, function: Callable[[Batch], Result], batches: Batches) -> Iterator[Result]:
        """`function(batch)` for each batch, results in order; it may be given a batch in parts.

        The caller has limited BLAS to one thread (`gem.backends.blas`): threads are the backend's.
        """

    def point_sums(self, parts: Parts, weights: Array = None) -> Any:
        """Σ_n w_n Σ_i factor_i array_i[n] of device arrays (n,), as `totals` takes it (weights: of 1, if not given).

        In float64, and for each data point by itself first: large terms may cancel.
        """
        each = sum(factor * self.to_host(array).astype(np.float64) for array, factor in parts)
        return float(np.sum(each if weights is None else each * self.to_host(weights)))

    def totals(self, layout: Layout) -> Totals:
        """Where the sums of a step are added up."""
        return Totals(self, layout)

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done everything asked of it."""
