"""A backend that tells a trace what it does: copies, reading, products, kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any

import numpy as np

from gem.backends.base import Array, Backend, Batches, Kernel, Parts, Result, Totals
from gem.batch import Batch
from gem.data import SampleWeights, Shard
from gem.memory import Memory
from gem.parallel import Communicator
from gem.statistics import Layout, Statistics, Sums
from gem.trace import Trace


class Traced(Backend):
    """Another backend, every call of it recorded.

    A device that works on its own (a GPU) shows its products and kernels as the time it takes to ask for them; the
    wait for their results is in the copy to the host. With `wait` each call ends when its work is done.
    """

    def __init__(self, backend: Backend, trace: Trace, wait: bool = False):
        self.name, self.dtype, self.acc = backend.name, backend.dtype, backend.acc
        self._backend, self._trace, self._wait = backend, trace, wait

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        with self._trace.span(name):
            yield
            if self._wait:
                self._backend.synchronize()

    @property
    def fuses(self) -> bool:
        return self._backend.fuses

    def describe(self) -> dict[str, Any]:
        return self._backend.describe()

    def to_device(self, host: np.ndarray, dtype: Any = None) -> Array:
        with self._trace.span("copy to device", bytes=np.asarray(host).nbytes):
            return self._backend.to_device(host, dtype)

    def to_host(self, device: Array) -> np.ndarray:
        with self._trace.span("copy to host"):
            return self._backend.to_host(device)

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        return self._backend.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        return self._backend.zeros(shape, dtype)

    def matmul(self, a: Array, b: Array, *, transpose_a: bool = False) -> Array:
        with self._span("matmul"):
            return self._backend.matmul(a, b, transpose_a=transpose_a)

    def sum_products(self, a: Array, b: Array) -> Array:
        with self._span("matmul"):
            return self._backend.sum_products(a, b)

    def kernel(self, name: str, *, states: Any = None, fragment: str | None = None, **constants: int) -> Kernel:
        with self._trace.span(f"build {name}"):
            return _TracedKernel(self._backend.kernel(name, states=states, fragment=fragment, **constants), self._span)

    def batch_size(self, N: int, bytes_per_point: int) -> int:
        return self._backend.batch_size(N, bytes_per_point)

    def ones(self, n: int) -> Array:
        return self._backend.ones(n)

    def load(self, shard: Shard, weights: SampleWeights | None = None, tell: bool = True) -> Batches:
        with self._trace.span("load data", points=shard.N):
            return _TracedBatches(self._backend.load(shard, weights, tell), self._trace)

    def map(self, function: Callable[[Batch], Result], batches: Batches) -> Iterator[Result]:
        def recorded(batch: Batch) -> Result:
            with self._trace.span("batch", start=batch.start):
                return function(batch)

        return self._backend.map(recorded, batches)

    def point_sums(self, parts: Parts, weights: Array = None) -> Any:
        with self._span("point_sums"):
            return self._backend.point_sums(parts, weights)

    def totals(self, layout: Layout) -> Totals:
        return _TracedTotals(self._backend.totals(layout), self._span)

    def synchronize(self) -> None:
        self._backend.synchronize()


class _TracedKernel(Kernel):
    def __init__(self, kernel: Kernel, span: Callable[[str], AbstractContextManager[None]]):
        self.name, self.tile, self._kernel, self._span = kernel.name, kernel.tile, kernel, span

    def groups(self, N: int) -> int:
        return self._kernel.groups(N)

    def __call__(self, N: int, *arguments: Any) -> None:
        with self._span(self.name):
            self._kernel(N, *arguments)


class _TracedTotals(Totals):
    def __init__(self, totals: Totals, span: Callable[[str], AbstractContextManager[None]]):
        self._totals, self._span = totals, span

    @property
    def nbytes(self) -> int:
        return self._totals.nbytes

    def add(self, sums: Sums) -> None:
        with self._span("add sums"):
            self._totals.add(sums)

    def reduce(self, comm: Communicator) -> Statistics:
        return self._totals.reduce(comm)


class _TracedBatches:
    """Batches whose reading (and upload, where they are streamed) is recorded."""

    def __init__(self, batches: Batches, trace: Trace):
        self.N, self.start, self.stop = batches.N, batches.start, batches.stop
        self._batches, self._trace = batches, trace

    def remember(self, memory: Memory) -> None:
        self._batches.remember(memory)

    def bring_back(self) -> None:
        self._batches.bring_back()

    def __iter__(self) -> Iterator[Batch]:
        waiting = iter(self._batches)
        while True:
            with self._trace.span("read batch"):
                batch = list(islice(waiting, 1))
            if not batch:
                return
            yield batch.pop()  # nothing here holds on to it: its memory may be needed
