"""The CUDA backend: CuPy's arrays, cuBLAS, and the kernels as RawModules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from gem.backends import _fork
from gem.backends._device import PRODUCT_ROWS, DeviceBackend, DeviceTotals, Schedule, schedule
from gem.backends.base import Totals
from gem.errors import BackendError
from gem.extras import install_hint
from gem.kernels import source
from gem.parallel import Communicator
from gem.statistics import Layout, Statistics

INSTALL = f"{install_hint('cuda')} (with a driver of CUDA 12: {install_hint('cuda12')})"
SHARED_BYTES = 48 << 10  # static shared memory of a block, on every architecture
BATCH_BYTES = 512 << 20  # enough points to fill the largest GPU, small enough to leave room for data that stay
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
RESIDENT_SHARE = 0.6  # of the free memory, for data that stay


class CudaBackend(DeviceBackend):
    """One CUDA device; on a thread that has used none yet, it becomes the current one.

    Parameters
    ----------
    dtype : float32 or float64
    index : int
        The device's number.

    Raises
    ------
    BackendError
        If CuPy, a driver or the device is missing, or the device refuses.
    """

    runtime = "CUDA"

    def __init__(self, dtype: Any = "float32", index: int = 0):
        super().__init__()
        self._cupy = _import_cupy()
        if index >= device_count():
            raise BackendError(f"there is no CUDA device {index}, only {device_count()}: numbers begin at 0")
        self.name, self.dtype = f"cuda:{index}", np.dtype(dtype)
        cuda = self._cupy.cuda
        self._device = cuda.Device(index)
        try:
            if not cuda.driver.ctxGetCurrent():  # no device is in use: to go back to the first would open it, too
                self._device.use()
            with self._device:
                self._copying = cuda.Stream(non_blocking=True)
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            raise BackendError(
                f"CUDA device {index} cannot be used ({error}): nvidia-smi shows who has it; choose another one, "
                "another backend, or wait"
            ) from error
        self._pinned: list[tuple[Any, Any]] = []  # host buffers of uploads, each with the event of its last one

    def describe(self) -> dict[str, Any]:
        runtime = self._cupy.cuda.runtime
        properties = runtime.getDeviceProperties(self._device.id)
        return {
            "backend": self.name,
            "device": properties["name"].decode(),
            "compute capability": str(self._device.compute_capability),
            "multiprocessors": int(properties["multiProcessorCount"]),
            "memory": int(properties["totalGlobalMem"]),
            "driver": runtime.driverGetVersion(),
            "cuda": runtime.runtimeGetVersion(),
            "cupy": self._cupy.__version__,
            "dtype": str(self.dtype),
        }

    @property
    def place(self) -> str:
        """A rank may see only its own device, and call it number 0 as all others do theirs."""
        return str(self._cupy.cuda.runtime.getDeviceProperties(self._device.id)["uuid"])

    # -- memory --------------------------------------------------------------------------------------------

    def to_device(self, host: np.ndarray, dtype: Any = None) -> Any:
        with self._device:
            return self._cupy.asarray(self.contiguous(host, dtype))

    def prefetch(self, host: np.ndarray) -> Callable[[], Any]:
        """Copy to one of two pinned buffers, and from there to the device while kernels run on another stream."""
        host = np.ascontiguousarray(host, dtype=self.dtype)
        with self._device:
            with self._lock:
                pinned, free = self._pinned.pop(0) if len(self._pinned) > 1 else (None, None)
            if free is not None:
                free.synchronize()
            if pinned is None or pinned.mem.size < host.nbytes:
                pinned = self._page_locked(host.nbytes)
            if pinned is None:
                return partial(self.to_device, host)
            staging = np.frombuffer(pinned, self.dtype, host.size).reshape(host.shape)
            staging[...] = host
            with self._copying:  # in memory of its own: other work gets none of an upload that nobody waits for
                array = self._cupy.empty(host.shape, self.dtype)
            done = self._cupy.cuda.Event(disable_timing=True)
            self._copying.wait_event(self._cupy.cuda.get_current_stream().record())  # the block may be in use still
            array.set(staging, self._copying)
            done.record(self._copying)
            self._pinned.append((pinned, done))

        def finish() -> Any:
            with self._device:
                self._cupy.cuda.get_current_stream().wait_event(done)
            return array

        return finish

    def to_host(self, device: Any) -> np.ndarray:
        self.demand("to_host", device)
        with self._device:
            return self._cupy.asnumpy(device)

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        with self._device:
            return self._cupy.empty(shape, dtype or self.dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        with self._device:
            return self._cupy.zeros(shape, dtype or self.dtype)

    def pinned(self, size: int) -> np.ndarray:
        """A float64 host buffer (size,) that the device writes to at full speed, if there is such memory."""
        with self._device:
            memory = self._page_locked(8 * size)
        return np.empty(size) if memory is None else np.frombuffer(memory, np.float64, size)

    def _page_locked(self, size: int) -> Any:
        """So many bytes of host memory that copies need not stage, or None where the system gives no more of it."""
        try:
            return self._cupy.cuda.alloc_pinned_memory(size)
        except self._cupy.cuda.runtime.CUDARuntimeError:
            return None

    def totals(self, layout: Layout) -> Totals:
        return CudaTotals(self, layout)

    # -- work ----------------------------------------------------------------------------------------------

    def matmul(self, a: Any, b: Any, *, transpose_a: bool = False) -> Any:
        self.demand("matmul", a, b)
        with self._device:
            return self._cupy.matmul(a.T if transpose_a else a, b)

    def products(self, a: Any, b: Any, out: Any, parts: slice, rows: int) -> None:
        """By one call of cuBLAS, which sees each matrix transposed."""
        from cupy_backends.cuda.libs import cublas

        D, H = a.shape[1], b.shape[1]
        gemm = cublas.sgemmStridedBatched if self.dtype == np.float32 else cublas.dgemmStridedBatched
        one, zero = (np.array(x, self.dtype) for x in (1, 0))
        a, b, out = a[parts.start * PRODUCT_ROWS :], b[parts.start * PRODUCT_ROWS :], out[parts]
        with self._device:
            gemm(
                self._device.cublas_handle, cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_T, H, D, rows,
                one.ctypes.data, b.data.ptr, H, rows * H, a.data.ptr, D, rows * D,
                zero.ctypes.data, out.data.ptr, H, D * H, len(out),
            )  # fmt: skip

    def plan(self, name: str, constants: dict[str, int]) -> Schedule:
        units, memory = self._size
        return schedule(name, constants, self.dtype.itemsize, False, units, SHARED_BYTES, memory)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Multiprocessors and bytes of memory: to ask the driver takes longer than a launch."""
        return self._device.attributes["MultiProcessorCount"], self._device.mem_info[1]

    def launch(self, built: Any, plan: Schedule, N: int, arguments: tuple[Any, ...]) -> None:
        values = [a if self.owns(a) else self.scalar(a) for a in arguments]
        with self._device, self._told_of_memory():
            built((plan.launched(N),), (plan.group,), (np.int32(N), *values))

    @contextmanager
    def _told_of_memory(self) -> Iterator[None]:
        """Let a driver without room for a program, or for what its work-items keep, say so as an allocation does."""
        try:
            yield
        except self._cupy.cuda.driver.CUDADriverError as error:
            if error.status != OUT_OF_MEMORY:
                raise
            raise MemoryError(str(error)) from error

    def owns(self, array: Any) -> bool:
        return isinstance(array, self._cupy.ndarray) and array.device == self._device

    def build(self, name: str, text: str, defines: dict[str, int]) -> Any:
        with self._device:
            try:
                with self._told_of_memory():
                    module = self._cupy.RawModule(code=source.defined(text, defines), options=("--std=c++17",))
                    return module.get_function(name)
            except self._cupy.cuda.compiler.CompileException as error:
                raise BackendError(f"kernels/{name}.c does not build with {defines}:\n{error}") from error
            except (ImportError, RuntimeError) as error:
                raise BackendError(f"CUDA's compiler NVRTC does not work ({error}): {INSTALL}") from error

    def batch_size(self, N: int, bytes_per_point: int) -> int:
        return max(1, min(N, BATCH_BYTES // bytes_per_point))

    def synchronize(self) -> None:
        self._device.synchronize()

    def current(self) -> AbstractContextManager[Any]:
        """While this lasts CUDA works on this device, whoever calls it."""
        return self._device

    def room(self) -> int:
        with self._device:
            return int((self._device.mem_info[0] + self._cupy.get_default_memory_pool().free_bytes()) * RESIDENT_SHARE)

    def out_of_memory(self) -> tuple[type[BaseException], ...]:
        return (MemoryError,)  # CuPy's is one

    def _forget(self) -> None:
        super()._forget()
        while self._pinned:
            self._pinned.pop()[1].synchronize()  # an upload that nobody waited for

    def free_memory(self) -> None:
        with self._device:
            self._cupy.get_default_memory_pool().free_all_blocks()


class CudaTotals(DeviceTotals):
    """Sums on the device, reduced there by an MPI that takes device memory, else through one pinned host buffer."""

    _backend: CudaBackend

    def reduce(self, comm: Communicator) -> Statistics:
        size = self._host.buffer.size
        if comm.device_aware:
            self._accumulate(self._backend.to_device(self._host.buffer, np.float64), 1.0, 0, size)
            self._backend.synchronize()  # MPI knows nothing of streams
            with self._backend.current():  # nor which device memory is on
                comm.allreduce(self._total)
        pinned = self._backend.pinned(size)
        self._total.get(out=pinned)
        if not comm.device_aware:
            pinned += self._host.buffer
            comm.allreduce(pinned)
        return Statistics(self._host.layout, pinned)


def device_count() -> int:
    """How many CUDA devices there are.

    Raises
    ------
    BackendError
        If CuPy or a driver is missing, or there is no device.
    """
    _fork.refuse_inherited("CUDA")
    cupy = _import_cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(
            f"CUDA does not work here ({error}): install NVIDIA's driver, or choose another backend"
        ) from error
    if not count:
        raise BackendError("there is no CUDA device: choose another backend")
    _fork.opened("CUDA")
    return count


@lru_cache(maxsize=1)
def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendError(f"CuPy is not installed ({error}): {INSTALL}") from error
    return cupy
