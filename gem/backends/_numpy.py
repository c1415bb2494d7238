"""The numpy backend: the twins of the kernels, batches spread over threads, one BLAS thread in each."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from gem.backends.base import Backend, Kernel, Result
from gem.errors import BackendError

CACHE_BYTES = 4 << 20  # a batch of this size stays close to a core between product, posterior and statistics
MIN_BATCH, MAX_BATCH = 256, 4096


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
        blas = sorted({str(i.get("internal_api")) for i in _blas().info()}) if _blas() else []
        return {
            "backend": self.name,
            "device": platform.processor() or platform.machine(),
            "threads": self.threads,
            "numpy": np.__version__,
            "blas": ", ".join(blas),
            "dtype": str(self.dtype),
        }

    def to_device(self, host: np.ndarray) -> np.ndarray:
        host = np.asarray(host)
        return np.ascontiguousarray(host, dtype=self.dtype if host.dtype.kind == "f" else host.dtype)

    def to_host(self, device: np.ndarray) -> np.ndarray:
        return device

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        return np.empty(shape, dtype=dtype or self.dtype)

    def matmul(self, a: np.ndarray, b: np.ndarray, *, transpose_a: bool = False) -> np.ndarray:
        return (a.T if transpose_a else a) @ b

    def kernel(self, name: str, **constants: Any) -> Kernel:
        try:
            module = import_module(f"gem.kernels.{name}")
        except ModuleNotFoundError as error:
            raise BackendError(f"no numpy twin kernels/{name}.py: every kernel needs one") from error
        return NumpyKernel(name, partial(getattr(module, name), **constants))

    def batch_size(self, N: int, bytes_per_point: int) -> int:
        return max(1, min(N, max(MIN_BATCH, min(MAX_BATCH, CACHE_BYTES // bytes_per_point))))

    def map(
        self, function: Callable[[int, np.ndarray], Result], batches: Iterable[tuple[int, np.ndarray]]
    ) -> Iterator[Result]:
        def quietly(start: int, Y: np.ndarray) -> Result:
            with np.errstate(all="ignore"):  # NaN and Inf show in the evidence, which the caller checks
                return function(start, Y)

        with self._single_threaded_blas(), ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[Future[Result]] = deque()
            for start, Y in batches:
                waiting.append(pool.submit(quietly, start, Y))
                if len(waiting) > self.threads + 1:  # bounded: batches in flight are memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def synchronize(self) -> None:
        pass

    @staticmethod
    def _single_threaded_blas() -> AbstractContextManager[Any]:
        blas = _blas()
        return blas.limit(limits=1, user_api="blas") if blas else nullcontext()


class NumpyKernel(Kernel):
    """A twin bound to its constants."""

    def __init__(self, name: str, function: Callable[..., None]):
        self.name = name
        self._function = function

    def __call__(self, N: int, *arguments: Any) -> None:
        self._function(N, *arguments)


@lru_cache(maxsize=1)
def _blas() -> Any:
    """The handle on the loaded BLAS libraries, found once (it takes milliseconds)."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
