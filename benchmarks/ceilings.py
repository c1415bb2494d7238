"""What a device can do at most: its matrix-product rate and its copy bandwidth, measured beside the cases."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gem.backends import Backend, blas, every_device
from gem.batch import Batch
from gem.data import ArraySource, Shard
from gem.errors import BackendError

SIDE = 512  # D and columns of the products that show a device's rate
ROWS = (1 << 12, 1 << 16)  # reals in a row of the arrays that are streamed: GPUs want many, numpy long ones


def devices(wanted: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The backends of this machine, each device by its name ("opencl:1"), and why others are not here.

    Parameters
    ----------
    wanted : a backend ("opencl": all of its devices), or only one device ("opencl:1").

    Raises
    ------
    BackendError
        If there is no backend of the name that is wanted.
    """
    found, absent = [], {}
    for name in [wanted] if wanted else ["numpy", "opencl", "cuda"]:
        try:
            found += [backend.name for backend in every_device(name)]
        except BackendError as error:
            if wanted:
                raise
            absent[name] = str(error)
    return found, absent


def best(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several runs: a ceiling is what was reached once."""
    function()  # compiles, and touches memory
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def product_rate(backend: Backend, N: int, repeats: int = 5) -> float:
    """FLOP/s of large products, Y W and Yᵀ (Y W), with D = 512."""
    Y = np.random.default_rng(0).standard_normal((N, SIDE))
    run = products(backend, shard_of(backend, Y, 3 * SIDE), np.eye(SIDE))
    return 4 * N * SIDE * SIDE / best(run, repeats)


def shard_of(backend: Backend, Y: np.ndarray, reals_per_point: int) -> Shard:
    """`Y` in batches of the size the backend chooses where a data point takes so many reals."""
    size = backend.batch_size(len(Y), reals_per_point * backend.dtype.itemsize)
    return Shard(ArraySource(Y), 0, len(Y), dtype=backend.dtype, batch=size)


def products(backend: Backend, shard: Shard, W: np.ndarray) -> Callable[[], None]:
    """A function that does the two products of a linear model's E-step, batch by batch: Y W, and Yᵀ (Y W)."""
    batches, device_W = backend.load(shard), backend.to_device(W)

    def both(batch: Batch) -> None:
        backend.sum_products(batch.Y, backend.matmul(batch.Y, device_W))

    def run() -> None:
        with blas.limited(1):  # as in a step: threads are the backend's
            for _ in backend.map(both, batches):
                pass
        backend.synchronize()

    return run


def copy_rate(backend: Backend, size: int, repeats: int = 25) -> float:
    """Bytes per second that are read and written where `size` bytes are scaled in place: the best of several rows."""
    rates = []
    for row in ROWS:
        run, touched = scaling_of(backend, size, row)
        rates.append(2 * touched / best(run, repeats))
    return max(rates)


def scaling_of(backend: Backend, size: int, row: int) -> tuple[Callable[[], None], int]:
    """A function that scales an array for each thread of a backend that has them; how many bytes, about `size`."""
    threads = getattr(backend, "threads", 1)
    shape = max(1, size // (threads * row * backend.dtype.itemsize)), row
    scale, ones = backend.kernel("scale_rows", H=row), backend.to_device(np.ones(shape[0]))
    arrays = [backend.to_device(np.ones(shape, backend.dtype)) for _ in range(threads)]
    batches = backend.load(Shard(ArraySource(np.zeros((threads, 1))), 0, threads, dtype=backend.dtype, batch=1))

    def copy(batch: Batch) -> None:
        scale(shape[0], arrays[batch.start], ones)

    def run() -> None:
        for _ in backend.map(copy, batches):
            pass
        backend.synchronize()

    return run, threads * shape[0] * row * backend.dtype.itemsize
