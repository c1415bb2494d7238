"""The OpenCL backend: PyOpenCL on any device, reikna's products on GPUs, BLAS on mapped memory on CPU devices."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gem.backends import _fork, blas
from gem.backends._check import differs
from gem.backends._device import PRODUCT_ROWS, VECTOR_BYTES, DeviceBackend, Schedule, schedule
from gem.backends.base import Batches, Parts, Result, Totals, singly
from gem.batch import Batch
from gem.data import SampleWeights, Shard
from gem.errors import BackendError
from gem.extras import install_hint
from gem.kernels import source
from gem.memory import Memory
from gem.statistics import Layout, Names, Sum, Sums

log = logging.getLogger("gem")

INSTALL = (
    f"{install_hint('opencl')} brings PyOpenCL and pocl, a runtime for CPUs; for processors newer than that, "
    f"{install_hint('opencl-intel')}, or the pocl of your system (on Debian apt-get install pocl-opencl-icd)"
)
ATOMICS = "cl_khr_int64_base_atomics"
BATCH_BYTES = {True: 96 << 20, False: 256 << 20}  # CPU device: threads are worth waking; GPU: enough to fill it
LOCAL_BYTES = 48 << 10  # what every GPU gives a group
SPARE_BYTES = 256 << 20  # of memory that is kept for the next batch, on a CPU device
SHARED_BYTES = 1 << 20  # of an array that is done with before it would be mapped, on a CPU device
SPARSE_SHARE = 1 / 16  # of numbers that are not 0, below which a dense product takes longer on CPU devices
SPARSE_ROWS = 256  # that are looked at to tell
SPARSE_WORK = 1 << 24  # multiplications below which it does not matter
EMULATORS = ("llvmpipe", "softpipe", "lavapipe", "swiftshader", "oclgrind", "simulator", "emulat")  # in devices' names
RESIDENT_SHARE = 0.5  # of a device's memory, for data that stay
BLOCK_WIDTHS = (32, 16, 8)  # of reikna's products
TUNED_WORK = 1 << 26  # multiplications of a matrix from which on these are tried
Product = tuple[tuple[int, ...], tuple[int, ...], bool, tuple[int, int, int]]
# shapes of a and b, whether a is transposed, where in their buffers a, b and the product begin


@dataclass
class DeviceArray:
    """An OpenCL buffer with a shape.

    A CPU device's array is the host's or the device's turn by turn: `view` is the host's way to it while it is mapped.
    A `shared` one is both's at any moment (fine-grained shared virtual memory), and always has a view.
    """

    buffer: Any
    shape: tuple[int, ...]
    dtype: np.dtype
    host: np.ndarray | None = None  # the memory a CPU device's buffer lives in: kept alive with it
    writable: bool = True
    view: Any = None
    shared: bool = False
    gone: Callable[[], None] | None = None  # told that nobody has the array any more

    def __del__(self) -> None:
        if _fork.inherited("OpenCL"):
            _fork.keep(self.buffer, self.view, self.host)
            return
        if self.view is not None and not self.shared:  # unmapped while its memory is there, and done before a process
            self.view.base.release().wait()  # may end: Intel's runtime aborts one that leaves such work behind
        if self.gone is not None:
            self.gone()


class OpenCLBackend(DeviceBackend):
    """One OpenCL device, one in-order queue.

    Parameters
    ----------
    dtype : float32 or float64
    index : int
        Which of all platforms' devices, in their order (GPUs first).
    schedule : "cpu" or "gpu", optional
        How kernels are laid out: lanes are elements of vectors, or work-items. Default: as the device is. With "gpu" a
        CPU device does all that a GPU would, with memory and products of its own, too: for tests, and to count that.
    threads : int
        For matrix products on a CPU device (0: its compute units).
    trust : bool
        Whether to take the device's word for what it computes, instead of a kernel that gave its twin's numbers.

    Raises
    ------
    BackendError
        If PyOpenCL or the device is missing, it computes wrongly, float64 is asked of a device without it, or this
        process was forked after OpenCL was used.
    """

    runtime = "OpenCL"

    def __init__(
        self,
        dtype: Any = "float32",
        index: int = 0,
        schedule: str | None = None,
        threads: int = 0,
        trust: bool = False,
    ):
        super().__init__()
        _fork.refuse_inherited("OpenCL")
        self._cl = _import_pyopencl()
        self._device = device(index)
        self.name, self.dtype = f"opencl:{index}", np.dtype(dtype)
        if self.dtype == np.float64 and not self._device.double_fp_config:
            raise BackendError(f"{self._device.name.strip()} has no float64: use dtype='float32' or another device")
        if not trust and (said := answer(self._device)) != "works":
            raise BackendError(f"OpenCL device {index} is refused: {_told(self._device, said)}; {INSTALL}")
        self.acc = np.dtype(np.float64 if self._device.double_fp_config else np.float32)
        is_cpu = bool(self._device.type & self._cl.device_type.CPU)
        self._cpu = is_cpu and schedule != "gpu"
        self._vectors = is_cpu if schedule is None else schedule == "cpu"
        self._cpu_as_gpu = is_cpu and not self._vectors and not emulates(self._device)
        self._context = self._cl.Context([self._device])
        self._queue, self._copying = (self._cl.CommandQueue(self._context) for _ in range(2))
        self._units, self._largest = self._device.max_compute_units, self._device.max_mem_alloc_size
        self._threads = min(threads or self._units, self._units) if self._cpu else 1
        self._pool = ThreadPoolExecutor(self._threads)
        fine = self._cl.device_svm_capabilities.FINE_GRAIN_BUFFER
        self._shares = bool(getattr(self._device, "svm_capabilities", 0) & fine)
        self._products: dict[Any, Any] = {}
        self._plans: dict[Any, Schedule] = {}
        self._typed: set[int] = set()  # kernels that have been told which of their arguments are numbers
        self._cached = True
        self._spare: dict[int, list[DeviceArray]] = {}
        self._running: list[tuple[Any, ...]] = []  # arguments of kernels on a CPU device: their memory is Python's
        self._kept = [0]  # bytes of these, by whichever of the ranks' parts of the device

    def describe(self) -> dict[str, Any]:
        device = self._device
        return {
            "backend": self.name,
            "device": device.name.strip(),
            "platform": f"{device.platform.name.strip()} {device.platform.version.strip()}",
            "driver": device.driver_version.strip(),
            "compute units": device.max_compute_units,
            "memory": device.global_mem_size,
            "pyopencl": self._cl.VERSION_TEXT,
            "dtype": str(self.dtype),
        }

    # -- memory --------------------------------------------------------------------------------------------

    def to_device(self, host: np.ndarray, dtype: Any = None) -> DeviceArray:
        host = self.contiguous(host, dtype)
        if not host.size:  # OpenCL has no empty buffers
            return self.empty(host.shape, host.dtype)
        flags = self._cl.mem_flags
        if self._cpu:
            return self._filled(self.empty(host.shape, host.dtype), host)
        self._demand_one_piece(host.nbytes)
        buffer = self._cl.Buffer(self._context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=host)
        return DeviceArray(buffer, host.shape, host.dtype)

    def _demand_one_piece(self, size: int) -> None:
        """A device may have the memory, and yet give less than that to one buffer: then a batch is halved, too."""
        if size > self._largest:
            raise MemoryError(f"{size:,} bytes in one piece, of {self._largest:,} at the most")

    def _loaded(self, shard: Shard, weights: SampleWeights | None, level: int) -> Batches:
        if not self._cpu:
            return super()._loaded(shard, weights, level)
        where = "stay in the host's memory, where it" if shard.resident else "are read at each step; it"
        log.log(level, "%s is a CPU: data %s works on them in place", self.name, where)
        return InPlace(self, shard, weights)

    def map(self, function: Callable[[Batch], Result], batches: Batches) -> Iterator[Result]:
        """One batch after the other: what was freed is in use until the queue has come to it."""
        for result in super().map(function, batches):
            yield result
            del result  # before the next batch makes its own
            self.synchronize()

    def prefetch(self, host: np.ndarray) -> Callable[[], DeviceArray]:
        """Copy on a queue of its own, while kernels run on the other."""
        host = np.ascontiguousarray(host, dtype=self.dtype)
        array = self.empty(host.shape)
        event = self._cl.enqueue_copy(self._copying, array.buffer, host, is_blocking=False)
        self._copying.flush()  # or a driver may begin only when it is waited for

        def finish() -> DeviceArray:
            event.wait()
            return array

        return finish

    def to_host(self, device: DeviceArray) -> np.ndarray:
        self.demand("to_host", device)
        if not prod(device.shape):
            return np.empty(device.shape, device.dtype)
        if self._cpu:
            return self.mapped(device)[0].copy()
        host = np.empty(device.shape, device.dtype)
        self._cl.enqueue_copy(self._queue, host, device.buffer)
        return host

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> DeviceArray:
        kind = np.dtype(dtype or self.dtype)
        count = prod(shape)
        size = max(1, count) * kind.itemsize
        if self._cpu and count:
            return self._reused(tuple(shape), kind, size)
        self._demand_one_piece(size)
        return DeviceArray(self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, size), tuple(shape), kind)

    def zeros(self, shape: tuple[int, ...], dtype: Any = None) -> DeviceArray:
        array = self.empty(shape, dtype)
        if self._cpu:
            return self._filled(array, 0)
        self._cl.enqueue_fill_buffer(self._queue, array.buffer, array.dtype.type(0), 0, array.buffer.size)
        return array

    def _filled(self, array: DeviceArray, values: Any) -> DeviceArray:
        """A new array of a CPU device, which no kernel has seen yet, with these values."""
        (array.view if array.shared else self.mapped(array)[0])[...] = values
        return array

    def totals(self, layout: Layout) -> Totals:
        return MappedTotals(self, layout) if self._cpu else super().totals(layout)

    @property
    def fuses(self) -> bool:
        return self._vectors

    @property
    def _keeps_sums(self) -> bool:
        return not self._cpu and super()._keeps_sums

    def point_sums(self, parts: Parts, weights: Any = None) -> Any:
        if self._cpu:  # all are waited for at once
            self.mapped(*(array for array, _ in parts), *([] if weights is None else [weights]))
        return super().point_sums(parts, weights)

    def _reused(self, shape: tuple[int, ...], kind: np.dtype, size: int) -> DeviceArray:
        """Memory that an array of the same size gave back: fresh pages cost more than most kernels."""
        with self._lock:
            spare = self._spare.get(size)
            source = spare.pop() if spare else None
            self._kept[0] -= size if source else 0
        source = source or self._fresh(size)
        view = source.view.view(kind).reshape(shape) if source.shared else None
        give_back = partial(self._give_back, size, source)
        return DeviceArray(source.buffer, shape, kind, source.host, True, view, source.shared, give_back)

    def _fresh(self, size: int) -> DeviceArray:
        """New memory; of a small array such that it need not be mapped, where the device has any."""
        if size > SHARED_BYTES or not self._shares:
            return self.wrap(np.empty(size, np.uint8))
        kind = self._cl.svm_mem_flags
        flags = kind.READ_WRITE | kind.SVM_FINE_GRAIN_BUFFER
        array = self.wrap(self._cl.svm_empty(self._context, flags, size, np.uint8, alignment=VECTOR_BYTES))
        array.view, array.shared = array.host, True
        return array

    def _give_back(self, size: int, source: DeviceArray) -> None:
        with self._lock:
            if self._kept[0] < SPARE_BYTES and self._loads[0]:
                self._spare.setdefault(size, []).append(source)
                self._kept[0] += size

    def wrap(self, host: np.ndarray, writable: bool = True) -> DeviceArray:
        """The host's own memory as an array of a CPU device: nothing is copied."""
        flags = self._cl.mem_flags
        access = flags.READ_WRITE if writable else flags.READ_ONLY
        buffer = self._cl.Buffer(self._context, access | flags.USE_HOST_PTR, hostbuf=host)
        return DeviceArray(buffer, host.shape, host.dtype, host, writable)

    def mapped(self, *arrays: DeviceArray) -> list[Any]:
        """The arrays' own memory, on a CPU device: nothing is copied, the queue has done its work.

        They stay mapped until a kernel asks for them: each mapping takes two switches of threads, 0.1 ms.
        """
        flags, waits = self._cl.map_flags, bool(self._running)
        for a in arrays:
            if a.view is None:
                access = flags.READ | flags.WRITE if a.writable else flags.READ
                a.view, _ = self._cl.enqueue_map_buffer(
                    self._queue, a.buffer, access, 0, a.shape, a.dtype, is_blocking=False
                )
                waits = True
        if waits:
            self.synchronize()
        return [a.view for a in arrays]

    def _unmap(self, *arrays: DeviceArray) -> None:
        """Hand arrays back to the device; what nobody may write stays mapped, as both may read it."""
        for a in arrays:
            if a.view is not None and a.writable and not a.shared:
                a.view.base.release(self._queue)
                a.view = None

    # -- work ----------------------------------------------------------------------------------------------

    def matmul(self, a: DeviceArray, b: DeviceArray, *, transpose_a: bool = False) -> DeviceArray:
        self.demand("matmul", a, b)
        rows = a.shape[1] if transpose_a else a.shape[0]
        out = self.empty((rows, b.shape[1]))
        if self._cpu and transpose_a and self._is_sparse(a, b):
            self._sparse_product(a, b, out)
        elif self._cpu:
            x, y, z = self.mapped(a, b, out)
            blas.matmul(self._pool, self._threads, x.T if transpose_a else x, y, z)
        else:
            self._reikna(out, a, b, (a.shape, b.shape, transpose_a, (0, 0, 0)))
        return out

    def sum_products(self, a: DeviceArray, b: DeviceArray) -> DeviceArray:
        return self.matmul(a, b, transpose_a=True) if self._cpu else super().sum_products(a, b)

    def products(self, a: DeviceArray, b: DeviceArray, out: DeviceArray, parts: slice, rows: int) -> None:
        count, first, D, H = parts.stop - parts.start, parts.start * PRODUCT_ROWS, a.shape[1], b.shape[1]
        starts = (first * D, first * H, parts.start * D * H)
        self._reikna(out, a, b, ((count, rows, D), (count, rows, H), True, starts))

    def _is_sparse(self, a: DeviceArray, b: DeviceArray) -> bool:
        """Whether few of the numbers in b are not 0, by a look at some of its rows."""
        if a.shape[0] * a.shape[1] * b.shape[1] < SPARSE_WORK:
            return False
        seen = self.mapped(b)[0][:: max(1, b.shape[0] // SPARSE_ROWS)]
        return np.count_nonzero(seen) < SPARSE_SHARE * seen.size

    def _sparse_product(self, a: DeviceArray, b: DeviceArray, out: DeviceArray) -> None:
        N, D, H = *a.shape, b.shape[1]
        kernel = self.kernel("sparse_product", D=D, H=H)
        sums = self.empty((kernel.groups(N), H, D))
        kernel(N, a, b, sums)
        parts, whole = self.mapped(sums, out)
        whole[...] = parts.sum(axis=0).T

    def _reikna(self, out: DeviceArray, a: DeviceArray, b: DeviceArray, what: Product) -> None:
        """reikna's product, compiled for these shapes, its blocks as fast as they can be, and kept."""
        buffers = (out.buffer, a.buffer, b.buffer)
        with self._lock:
            if what not in self._products:
                self._products[what] = self._tuned(what, buffers)
            self._products[what](*buffers)

    def _tuned(self, what: Product, buffers: tuple[Any, ...]) -> Any:
        """Which blocks are the fastest depends on shapes and device: each width is timed. All add up in one order."""
        (*_, rows, columns), b, _, _ = what
        seconds: dict[Any, float] = {}
        for width in BLOCK_WIDTHS if rows * columns * b[-1] >= TUNED_WORK else ():
            try:
                product = _compile_matmul(self._queue, self.dtype, what, width)
            except ValueError:  # larger than the device's groups
                continue
            product(*buffers)
            self._queue.finish()
            began = time.perf_counter()
            product(*buffers)
            self._queue.finish()
            seconds[product] = time.perf_counter() - began
        return min(seconds, key=seconds.__getitem__) if seconds else _compile_matmul(self._queue, self.dtype, what)

    def plan(self, name: str, constants: dict[str, int]) -> Schedule:
        key = (name, self._vectors, self._units, *sorted(constants.items()))
        if key not in self._plans:
            local_bytes = min(self._device.local_mem_size, LOCAL_BYTES)
            memory, most = self._device.global_mem_size, self._device.max_work_group_size
            size, vectors, units = self.dtype.itemsize, self._vectors, self._units
            plan = schedule(name, constants, size, vectors, units, local_bytes, memory, block=1)
            if plan.group > most:
                raise BackendError(
                    f"kernel {name} works in groups of {plan.group} work-items, {self._device.name.strip()} takes "
                    f"{most} at the most: choose another device"
                )
            self._plans[key] = plan
        return self._plans[key]

    def build(self, name: str, text: str, defines: dict[str, int]) -> Any:
        try:
            with _quiet():
                return self._cl.Kernel(self._compiled(source.defined(text, defines)), name)
        except self._cl.RuntimeError as error:
            if "ATOMIC_ADD" in str(error) and ATOMICS not in self._device.extensions:
                raise BackendError(
                    f"{self._device.name.strip()} adds no 64-bit integers atomically ({ATOMICS}), kernels/{name}.c "
                    "needs that: choose another device"
                ) from error
            raise BackendError(f"kernels/{name}.c does not build with {defines}:\n{error}") from error

    @property
    def _types(self) -> dict[str, int]:
        return {**super()._types, "ATOMICS": int(ATOMICS in self._device.extensions)}

    def _compiled(self, text: str) -> Any:
        """A built program, from PyOpenCL's cache if that works."""
        options = ["-cl-opt-disable"] if self._cpu_as_gpu else []  # its work-items in loops take minutes to optimise
        if self._cached:
            try:
                return self._cl.Program(self._context, text).build(options)
            except (OSError, RuntimeError, LookupError) as error:  # not the compiler: a folder, or a lock left in it
                log.warning("PyOpenCL cannot cache programs (%s): set XDG_CACHE_HOME to another folder", _origin(error))
                self._cached = False
        return self._cl.Program(self._context, text).build(options, cache_dir=False)

    def launch(self, built: Any, plan: Schedule, N: int, arguments: tuple[Any, ...]) -> None:
        self._unmap(*(a for a in arguments if isinstance(a, DeviceArray)))
        values = [a.buffer if isinstance(a, DeviceArray) else self.scalar(a) for a in arguments]
        with self._lock:
            if id(built) not in self._typed:  # else PyOpenCL finds out at each call what an argument may be
                kinds = [
                    None if isinstance(a, DeviceArray) else v.dtype for a, v in zip(arguments, values, strict=True)
                ]
                built.set_scalar_arg_dtypes([np.dtype(np.int32), *kinds])
                self._typed.add(id(built))
            built(self._queue, (plan.launched(N) * plan.group,), (plan.group,), np.int32(N), *values)
            if self._cpu:
                self._running.append(arguments)

    def owns(self, array: Any) -> bool:
        return isinstance(array, DeviceArray) and array.buffer.context == self._context

    def batch_size(self, N: int, bytes_per_point: int) -> int:
        return max(1, min(N, BATCH_BYTES[self._cpu] // bytes_per_point))

    def synchronize(self) -> None:
        with self._lock:
            done = self._running[:]
            del self._running[:]  # in place: the parts of a device that ranks share have one list
        self._queue.finish()
        del done

    def room(self) -> int:
        return int(self._device.global_mem_size * RESIDENT_SHARE)

    def out_of_memory(self) -> tuple[type[BaseException], ...]:
        return (self._cl.MemoryError, MemoryError)

    def _forget(self) -> None:
        super()._forget()
        self._typed.clear()  # another kernel may come to be in the place of one that is gone
        self._drop_spare()

    def _drop_spare(self) -> None:
        with self._lock:
            self._spare.clear()
            self._kept[0] = 0

    def free_memory(self) -> None:
        self.synchronize()
        self._drop_spare()


class MappedTotals(Totals):
    """The memory of a CPU device is the host's: sums are added where they lie, all of a batch waited for at once."""

    _backend: OpenCLBackend

    def add(self, sums: Sums) -> None:
        self._backend.mapped(*(value.rows for _, value in singly(sums) if isinstance(value.rows, DeviceArray)))
        super().add(sums)

    def _add(self, names: Names, value: Sum) -> None:
        if isinstance(value.rows, DeviceArray):
            value = Sum(np.asarray(value.rows.view), value.scale)
        super()._add(names, value)


class InPlace:
    """Batches of a CPU device: the host's own memory, as the shard reads it."""

    def __init__(self, backend: OpenCLBackend, shard: Shard, weights: SampleWeights | None):
        self.N, self.start, self.stop = shard.N, shard.start, shard.stop
        self._backend, self._shard, self._weights = backend, shard, weights
        self._memory: Memory | None = None
        self._kept = list(self._wrapped()) if shard.resident else None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._wrapped() if self._kept is None else self._kept:
            yield batch if self._memory is None else self._with_memory(self._memory, batch)

    def _with_memory(self, memory: Memory, batch: Batch) -> Batch:
        rows = memory.rows(batch.start, batch.n)
        return replace(batch, memory=self._backend.uploaded(rows), home=rows)

    def remember(self, memory: Memory) -> None:
        self._memory = memory

    def bring_back(self) -> None:
        """Each batch was when it was done."""

    def _wrapped(self) -> Iterator[Batch]:
        for start, Y in self._shard.batches():
            counts = None if self._weights is None else self._weights.of(start, len(Y))
            yield self._backend.batch(start, self._backend.wrap(Y, writable=False), counts)


def devices() -> list[Any]:
    """All OpenCL devices: GPUs first, pocl and then what emulates a device last, else in the order of their platforms.

    Nothing is opened or compiled: whether a device works shows when it is used (`answer`).

    Raises
    ------
    BackendError
        If PyOpenCL is not installed, or there is no device.
    """
    found, told = survey()
    if not found:
        raise BackendError(f"no OpenCL device works ({'; '.join(told) or 'there is none'}): {INSTALL}")
    return found


def device(index: int) -> Any:
    """The device of this number.

    Raises
    ------
    BackendError
        If there are fewer.
    """
    found = devices()
    if index >= len(found):
        raise BackendError(f"there is no OpenCL device {index}, only {len(found)}: {INSTALL}")
    return found[index]


@lru_cache(maxsize=1)
def survey() -> tuple[list[Any], list[str]]:
    """The devices, and what platforms answered that list none.

    Raises
    ------
    BackendError
        If PyOpenCL is not installed, or knows of no runtime.
    """
    cl = _import_pyopencl()
    try:
        with _runtimes():
            platforms = cl.get_platforms()
    except cl.Error as error:
        raise BackendError(f"OpenCL finds no device ({error}): {INSTALL}") from error
    found, told = [], []
    for platform in platforms:
        try:
            some = platform.get_devices()
        except cl.Error as error:  # one vendor's broken driver is no reason to do without the others
            told.append(f"{platform.name.strip()}: {error}")
            continue
        found += some
        _platforms.update({id(one): f" on {platform.name.strip()} {platform.version.strip()}" for one in some})
    if found:
        _fork.opened("OpenCL")
    if len(found) > 1:  # of two runtimes of one CPU pocl is the older: its wheel's compiler is of 2022
        found.sort(key=lambda d: (emulates(d), not d.type & cl.device_type.GPU, "Portable" in d.platform.name))
    return found, told


def emulates(device: Any) -> bool:
    """Whether a device is a program that stands in for one, for the sake of graphics or of finding mistakes."""
    return any(word in device.name.lower() for word in EMULATORS)


_answers: dict[int, tuple[Any, str]] = {}  # by the identity of a device, which is kept for that
_asking = threading.RLock()


def answer(device: Any) -> str:
    """'works', or what is wrong with a device: found out when it is first used."""
    with _asking:
        if id(device) not in _answers:
            _answers[id(device)] = device, _answer(_import_pyopencl(), device)
        return _answers[id(device)][1]


def _answer(cl: Any, device: Any) -> str:
    """'works' if a real kernel gives its twin's numbers; or how it does not, or the last line of what is said instead.

    A runtime can be installed and yet not know the processor it is on (pocl 3.0 from PyPI fails so on recent ones),
    or compile without a word what then computes something else.
    """
    try:
        cl.Context([device])
        wrong = differs(OpenCLBackend("float32", devices().index(device), trust=True))
    except (cl.Error, BackendError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "options:" not in line]
        lines = [line for line in lines if not line.startswith("(source saved")]
        return next((line for line in lines if "error: " in line), lines[-1])
    except OSError as error:
        return f"PyOpenCL must write a cache ({error}): set XDG_CACHE_HOME to a folder where it can"
    return f"it computes wrongly: {wrong}" if wrong else "works"


_platforms: dict[int, str] = {}  # of the devices of `survey`, by their identity


def _told(device: Any, said: str) -> str:
    return f"{device.name.strip()}{_platforms.get(id(device), '')}: {said}"


def _import_pyopencl() -> Any:
    try:
        import pyopencl
    except ImportError as error:
        raise BackendError(f"PyOpenCL is not installed: {INSTALL}") from error
    return pyopencl


@contextmanager
def _runtimes() -> Iterator[None]:
    """Let the loader find the runtime of the intel-opencl-rt wheel beside all others: it lies here unregistered.

    The loader reads one folder of .icd files when it is first asked for platforms (PyOpenCL tells it of its own pocl).
    For that moment it is shown one with the system's and Intel's; not where OCL_ICD_VENDORS says what a user wants.
    """
    intel = Path(sys.prefix) / "lib" / "libintelocl.so"
    if "OCL_ICD_VENDORS" in os.environ or not intel.exists():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        for icd in sorted(Path("/etc/OpenCL/vendors").glob("*.icd")):
            shutil.copy(icd, folder)
        (Path(folder) / "intel-of-this-environment.icd").write_text(f"{intel}\n")
        os.environ["OCL_ICD_VENDORS"] = folder
        try:
            yield
        finally:
            del os.environ["OCL_ICD_VENDORS"]


def _origin(error: BaseException) -> BaseException:
    """The first of the exceptions that led to this one."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Compilers chat; PyOpenCL turns that into warnings, about code that is ours to check elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _compile_matmul(queue: Any, dtype: np.dtype, what: Product, width: int | None = None) -> Any:
    """A product by blocks of this width; None: as large as the device takes."""
    try:
        from reikna.cluda import ocl_api
        from reikna.core import Type
        from reikna.linalg import MatrixMul
    except ImportError as error:
        raise BackendError(f"reikna is not installed, GPUs need its products: {INSTALL}") from error
    a, b, transposed, starts = what
    out = (*a[:-2], a[-1] if transposed else a[-2], b[-1])
    x, y, z = (Type(dtype, s, offset=dtype.itemsize * at) for s, at in zip((a, b, out), starts, strict=True))
    with _quiet():
        return MatrixMul(x, y, z, width, transposed_a=transposed).compile(ocl_api().Thread(queue))


def device_count() -> int:
    """How many devices ranks share out among them: see `shared`."""
    return len(shared())


def shared() -> list[int]:
    """The first device that works, and the others of its kind on its platform.

    Other platforms may drive the same hardware once more. What emulates a device has to be asked for by its number.

    Raises
    ------
    BackendError
        If no device works; it says what each one answered.
    """
    found = devices()
    told = list(survey()[1])
    for first, one in enumerate(found):
        if len(found) > 1 and emulates(one):
            told.append(_told(one, f"it only emulates a device: ask for opencl:{first} if you want that"))
        elif (said := answer(one)) == "works":
            same = (
                d is one or (d.type == one.type and d.platform == one.platform and not emulates(d))
                for d in found[first:]
            )
            return [first + number for number, alike in enumerate(same) if alike]
        else:
            told.append(_told(one, said))
    raise BackendError(f"no OpenCL device works ({'; '.join(told)}): {INSTALL}")


def turn(rank: int) -> int:
    """The device of the rank of this number on its host: by turns, without those that do not work."""
    some = shared()
    own = rank % len(some)
    return next(index for index in some[own:] + some[:own] if answer(device(index)) == "works")
