"""The numpy backend: the twins of the kernels, batches spread over threads, one BLAS thread in each."""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import lru_cache, partial
from inspect import signature
from typing import Any

import numpy as np

from gem.backends import blas
from gem.backends.base import Backend, Batches, Kernel, Result
from gem.batch import Batch
from gem.data import SampleWeights, Shard
from gem.kernels import source
from gem.memory import Memory

CACHE_BYTES = 16 << 20  # a batch of this size stays near a core; a smaller one has threads wait for each other's calls
MIN_BATCH, MAX_BATCH = 256, 8192
THREAD_BYTES = 64 << 10  # less than this is done before another thread is awake


class NumpyBackend(Backend):
    """Vectorised numpy on this process's share of the cores.

    A batch is small enough for the cache, so a thread takes it through all stages; BLAS runs single-threaded
    inside, which also makes the results independent of the number of threads.
    """

    name = "numpy"
    tuned = True  # whether a twin that has a faster form is run in that

    def __init__(self, dtype: Any = "float64", threads: int = 1):
        self.dtype = np.dtype(dtype)
        self.threads = threads
        self._workers: tuple[int, ThreadPoolExecutor] | None = None  # of this process: a fork has none of its threads

    def __reduce__(self) -> tuple[Any, ...]:
        return NumpyBackend, (self.dtype, self.threads)

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
        module, lines = source.twin(name), fragment and source.fragment_twin(fragment)
        function = self.tuned and getattr(module, "tuned", lambda **_: None)(fragment=lines, **constants)
        function = function or getattr(module, name)
        given = {**constants, "states": states, "fragment": lines}
        wanted = _names(function)  # sizes a twin can see in its arguments it does not ask for
        return NumpyKernel(name, partial(function, **{k: v for k, v in given.items() if k in wanted}))

    def batch_size(self, N: int, bytes_per_point: int) -> int:
        largest = min(MAX_BATCH, max(MIN_BATCH, CACHE_BYTES // bytes_per_point))
        threads = max(1, min(self.threads, N * bytes_per_point // THREAD_BYTES))
        rounds = -(-N // (largest * threads))  # whole rounds: no thread is left with nothing to do
        return max(1, -(-N // (rounds * threads)))

    def load(self, shard: Shard, weights: SampleWeights | None = None, tell: bool = True) -> Batches:
        return HostBatches(self, shard, weights)

    def map(self, function: Callable[[Batch], Result], batches: Batches) -> Iterator[Result]:
        """The last batch is done by the caller's own thread: of a single one no other has to be woken."""
        waiting: deque[Future[Result]] = deque()
        last: Batch | None = None
        try:
            for batch in batches:
                if last is not None:
                    waiting.append(self._pool().submit(_quietly, function, last))
                last = batch
                if len(waiting) > self.threads + 1:  # bounded: batches in flight are memory
                    yield waiting.popleft().result()
            if last is not None:
                waiting.append(_done(function, last))
            while waiting:
                yield waiting.popleft().result()
        finally:  # where the caller has left, or one has failed: none is at work any more
            for each in waiting:
                each.cancel()
            wait(waiting)

    def _pool(self) -> ThreadPoolExecutor:
        """The threads, which are kept: to start them takes longer than a small step."""
        if self._workers is None or self._workers[0] != os.getpid():
            self._workers = os.getpid(), ThreadPoolExecutor(self.threads, "gem-numpy")
        return self._workers[1]

    def synchronize(self) -> None:
        pass


def _quietly(function: Callable[[Batch], Result], batch: Batch) -> Result:
    with np.errstate(all="ignore"):  # per thread; NaN and Inf show in the evidence, which the caller checks
        return function(batch)


def _done(function: Callable[[Batch], Result], batch: Batch) -> Future[Result]:
    """As a thread of a pool would have done it: what it raises is raised in its turn."""
    future: Future[Result] = Future()
    try:
        future.set_result(_quietly(function, batch))
    except Exception as error:
        future.set_exception(error)
    return future


@lru_cache(maxsize=256)
def _names(function: Callable[..., None]) -> frozenset[str]:
    """Of its arguments: to look them up takes longer than many a call."""
    return frozenset(signature(function).parameters)


class HostBatches:
    """A shard's batches as they are read: kept, with what is computed only from them, where the shard's rows are."""

    def __init__(self, backend: Backend, shard: Shard, weights: SampleWeights | None):
        self.N, self.start, self.stop = shard.N, shard.start, shard.stop
        self._backend, self._shard, self._weights = backend, shard, weights
        self._kept = list(self._read()) if shard.resident else None
        self._memory: Memory | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._read() if self._kept is None else self._kept:
            yield batch if self._memory is None else replace(batch, memory=self._memory.rows(batch.start, batch.n))

    def _read(self) -> Iterator[Batch]:
        for start, Y in self._shard.batches():
            yield self._backend.batch(start, Y, None if self._weights is None else self._weights.of(start, len(Y)))

    def remember(self, memory: Memory) -> None:
        self._memory = memory

    def bring_back(self) -> None:
        """It is the host's own."""


class NumpyKernel(Kernel):
    """A twin bound to its constants."""

    def __init__(self, name: str, function: Callable[..., None]):
        self.name = name
        self._function = function

    def __call__(self, N: int, *arguments: Any) -> None:
        self._function(N, *arguments)
