"""The numpy backend: the twins of the kernels, batches spread over threads, one BLAS thread in each."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from gem.backends import blas
from gem.backends.base import Backend, Batches, Kernel, Result
from gem.batch import Batch
from gem.data import SampleWeights, Shard
from gem.kernels import source

CACHE_BYTES = 16 << 20  # a batch of this size stays near a core; a smaller one has threads wait for each other's calls
MIN_BATCH, MAX_BATCH = 256, 8192


class NumpyBackend(Backend):
    """Vectorised numpy on this process's share of the cores.

    A batch is small enough for the cache, so a thread takes it through all stages; BLAS runs single-threaded
    inside, which also makes the results independent of the number of threads.
    """

    name = "numpy"

    def __init__(self, dtype: Any = "float64", threads: int = 1):
        self.dtype = np.dtype(dtype)
        self.threads = threads

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "device": platform.processor() or platform.machine(),
            "threads": self.threads,
            "numpy": np.__version__,
            "blas": blas.library(),
            "dtype": str(self.dtype),
        }

    def to_device(self, host: np.ndarray, dtype: Any = None) -> np.ndarray:
        return self.contiguous(host, dtype)

    def to_host(self, device: np.ndarray) -> np.ndarray:
        return device

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        return np.empty(shape, dtype=dtype or self.dtype)

    def matmul(self, a: np.ndarray, b: np.ndarray, *, transpose_a: bool = False) -> np.ndarray:
        return (a.T if transpose_a else a) @ b

    def kernel(self, name: str, *, states: Any = None, fragment: str | None = None, **constants: int) -> Kernel:
        function = getattr(source.twin(name), name)
        given = {**constants, "states": states, "fragment": fragment and source.fragment_twin(fragment)}
        wanted = signature(function).parameters  # sizes a twin can see in its arguments it does not ask for
        return NumpyKernel(name, partial(function, **{k: v for k, v in given.items() if k in wanted}))

    def batch_size(self, N: int, bytes_per_point: int) -> int:
        largest = min(MAX_BATCH, max(MIN_BATCH, CACHE_BYTES // bytes_per_point))
        rounds = -(-N // (largest * self.threads))  # whole rounds: no thread is left with nothing to do
        return max(1, -(-N // (rounds * self.threads)))

    def load(self, shard: Shard, weights: SampleWeights | None = None, tell: bool = True) -> Batches:
        return HostBatches(self, shard, weights)

    def map(self, function: Callable[[Batch], Result], batches: Batches) -> Iterator[Result]:
        def quietly(batch: Batch) -> Result:
            with np.errstate(all="ignore"):  # NaN and Inf show in the evidence, which the caller checks
                return function(batch)

        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[Future[Result]] = deque()
            for batch in batches:
                waiting.append(pool.submit(quietly, batch))
                if len(waiting) > self.threads + 1:  # bounded: batches in flight are memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def synchronize(self) -> None:
        pass


class HostBatches:
    """A shard's batches as they are read; a thread's own work on them is not kept."""

    def __init__(self, backend: Backend, shard: Shard, weights: SampleWeights | None):
        self.N, self.start, self.stop = shard.N, shard.start, shard.stop
        self._backend, self._shard, self._weights = backend, shard, weights

    def __iter__(self) -> Iterator[Batch]:
        for start, Y in self._shard.batches():
            yield self._backend.batch(start, Y, None if self._weights is None else self._weights.of(start, len(Y)))


class NumpyKernel(Kernel):
    """A twin bound to its constants."""

    def __init__(self, name: str, function: Callable[..., None]):
        self.name = name
        self._function = function

    def __call__(self, N: int, *arguments: Any) -> None:
        self._function(N, *arguments)
