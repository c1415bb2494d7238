"""What the OpenCL and the CUDA backend share: schedules of kernels, and batches that stay or stream."""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gem.backends import _fork
from gem.backends.base import Array, Backend, Batches, Kernel, Parts, Result, Totals
from gem.batch import Batch
from gem.data import SampleWeights, Shard
from gem.errors import BackendError
from gem.kernels import accumulate, point_sums, source
from gem.memory import Memory
from gem.parallel import Communicator
from gem.statistics import Layout, Names, Statistics, Sum

log = logging.getLogger("gem")

VECTOR_BYTES = 64  # the lanes of a CPU device: one vector register, or a few that the compiler splits it into
WARP = 32  # work-items that exchange registers, on CUDA
BLOCK = 128  # work-items of a group on a GPU: four warps
LANE_BYTES = 100  # local memory per work-item that leaves every GPU half of its threads
WALKING_TILE = 32  # data points, a power of two, of a group that walks over tiles
WALKING_BYTES = 12 << 10  # of local memory, so that enough groups share the 100 KiB of a small multiprocessor
PRIVATE_BYTES = 1 << 20  # of the one work-item of a CPU's group: it lives on a thread's stack
GROUPS_PER_UNIT = 4  # of kernels whose groups walk over many tiles: enough to hide latency
PARTIAL_BYTES = 512 << 20  # what such kernels may leave at the most: fewer groups if one's sums are large
PARTIAL_SHARE = 32  # nor more than a device's memory over this
PRODUCT_ROWS = 1 << 12  # of sums of products: no long sum in float32
KEPT_KERNELS = 256  # of models that are not in use


@dataclass(frozen=True)
class Schedule:
    """How a kernel is laid out on a device; see kernels/gem.h.

    Attributes
    ----------
    width : int
        Lanes: elements of a vector (CPU devices), or work-items of a warp; 1 for kernels without lanes on a GPU.
    group : int
        Work-items in a group.
    tile : int
        Data points a group takes at a time.
    groups : int or None
        Their number, for kernels whose groups walk over tiles; None: one for each tile.
    share : int
        Groups that share data points, for kernels whose work is divided so, too.
    """

    width: int
    group: int
    tile: int
    groups: int | None = None
    share: int = 1

    def count(self, N: int) -> int:
        """Groups for N data points, but for those that share them."""
        return self.groups or max(1, -(-N // self.tile))

    def rows(self, N: int) -> int:
        """Rows of sums over N data points: each group leaves one, or each of its warps."""
        return self.count(N) * (self.group // self.width if min(self.group, self.width) > 1 else 1)

    def launched(self, N: int) -> int:
        """All groups."""
        return self.count(N) * self.share

    @property
    def defines(self) -> dict[str, int]:
        return {"WIDTH": self.width, "GROUP": self.group, "TILE": self.tile, "SHARE": self.share}


def schedule(
    name: str,
    constants: dict[str, int],
    itemsize: int,
    cpu: bool,
    units: int,
    local_bytes: int,
    memory: int = PARTIAL_BYTES * PARTIAL_SHARE,
    block: int = BLOCK,
) -> Schedule:
    """Choose the schedule of a kernel: vectors on a CPU, warps or tiles of work-items on a GPU.

    A twin module that says `LANES` has a kernel written for lanes (see kernels/gem.h), on a GPU so many work-items, a
    data point for each or, if it says `POINTS`, so many for all; `block` work-items share a group there, if the
    device's warps need no barriers: else 1.

    A twin module may say `local_reals(**constants)`, what a data point takes of local memory in reals, and
    `walks(cpu, **constants)`, the size of one group's sums if its groups walk over the data (0 if not). A kernel whose
    tiles are not of data points may say how large they are on a GPU, `tile(**constants)`; one of which several groups
    take the same data points there, how many, `share(**constants)`, and of how many work-items, `group(**constants)`.

    Raises
    ------
    BackendError
        If a data point needs more memory than the device has.
    """
    module = source.twin(name)
    sums = getattr(module, "walks", lambda cpu, **_: 0)(cpu, **constants)
    partial = min(PARTIAL_BYTES, memory // PARTIAL_SHARE)
    groups = min(units * (1 if cpu else GROUPS_PER_UNIT), max(1, partial // (8 * sums))) if sums else None
    per_point = itemsize * getattr(module, "local_reals", lambda **_: 0)(**constants)
    if cpu:
        width = VECTOR_BYTES // itemsize
        tile = 4 * width if sums else width
        while tile > width and 4 * tile * per_point > PRIVATE_BYTES:
            tile //= 2
        return Schedule(width, 1, tile, groups)
    if hasattr(module, "LANES"):
        lanes = module.LANES
        group = max(lanes, block) if lanes == WARP else lanes
        rows = min(units * GROUPS_PER_UNIT * BLOCK // lanes, max(1, partial // (8 * sums))) if sums else 0
        tile = getattr(module, "POINTS", lanes) * (group // lanes)
        return Schedule(lanes, group, tile, max(1, rows * lanes // group) if sums else None)
    if hasattr(module, "tile"):
        share = getattr(module, "share", lambda **_: 1)(**constants)
        group = getattr(module, "group", lambda **_: BLOCK)(**constants)
        return Schedule(1, group, module.tile(**constants), groups and max(1, groups // share), share=share)
    if 2 * per_point + 8 * BLOCK > local_bytes:  # the scratch of sums over a group; flags, at most as large as the rest
        raise BackendError(
            f"kernel {name} needs {per_point:,} bytes of local memory for a data point, the device has "
            f"{local_bytes:,}: choose a smaller model (Hprime, gamma; D, K)"
        )
    if sums:
        tile = WALKING_TILE
        while (
            tile > 1 and (tile | 1) * per_point + per_point + 8 * BLOCK > WALKING_BYTES
        ):  # rows padded, flags, scratch
            tile //= 2
        return Schedule(1, BLOCK, tile, groups)
    lanes = 32
    while lanes < 2 * BLOCK and per_point > LANE_BYTES * lanes:
        lanes *= 2
    return Schedule(1, max(lanes, BLOCK), max(1, BLOCK // lanes), groups)


class DeviceBackend(Backend):
    """A backend with memory of its own: batches go there once and stay, or are streamed ahead of their use."""

    runtime: str  # "OpenCL", "CUDA"

    @property
    def fuses(self) -> bool:
        return False

    def __init__(self) -> None:
        _fork.watch(self)
        self._lock = threading.RLock()  # one thread at a time gives a kernel its arguments, or takes spare memory
        self._loads = [0]  # batches that are in use
        self._ranks = 1  # that have this device
        self._built: dict[Any, Any] = {}
        self._ones: dict[int, Array] = {}  # of each size of a batch
        self.most = sys.maxsize  # data points at a time: less once memory has run out, until the next data are loaded

    def kernel(self, name: str, *, states: Any = None, fragment: str | None = None, **constants: int) -> Kernel:
        plan = self.plan(name, constants)
        key = (name, fragment, plan, *sorted(constants.items()))
        if key not in self._built:
            defines = {**constants, **plan.defines, **self._types}
            self._built[key] = self.build(name, source.program(name, fragment), defines)
        return DeviceKernel(self, name, self._built[key], plan)

    @property
    def _types(self) -> dict[str, int]:
        """What a program is compiled for besides its sizes: types, and features of the device."""
        return {"GEM_REAL": 8 * self.dtype.itemsize, "GEM_SUMS": 8 * self.acc.itemsize}

    def demand(self, what: str, *arrays: Any) -> None:
        """Refuse arrays that are not this backend's: a device would read memory that is not there.

        Raises
        ------
        BackendError
            If one is a numpy array, another backend's, or another device's; it says which argument of `what`.
        """
        for position, array in enumerate(arrays):
            if not (isinstance(array, float | int) or self.owns(array)):
                raise BackendError(
                    f"argument {position} of {what} is a {type(array).__name__}, not an array of {self.name}: "
                    "pass it through backend.to_device first"
                )

    def shared_by(self, ranks: int) -> DeviceBackend:
        if ranks == self._ranks:
            return self
        mine = copy(self)  # same device, kernels and memory
        mine._ranks = ranks
        _fork.watch(mine)
        return mine

    def in_use(self, batches: Batches) -> Batches:
        """Batches, when the last of which is gone what was kept for the next one is given back."""
        with self._lock:
            self._loads[0] += 1
        weakref.finalize(batches, self._unloaded).atexit = False
        return batches

    def _unloaded(self) -> None:
        with self._lock:
            self._loads[0] -= 1
            if not self._loads[0] and not _fork.inherited(type(self).runtime):
                self._forget()

    def _forget(self) -> None:
        """Give back what only serves the next batch, or the next step of the same model."""
        self._ones.clear()
        for key in list(self._built)[: max(0, len(self._built) - KEPT_KERNELS)]:
            del self._built[key]

    def ones(self, n: int) -> Array:
        with self._lock:
            if n not in self._ones:
                self._ones[n] = super().ones(n)
            return self._ones[n]

    def totals(self, layout: Layout) -> Totals:
        return DeviceTotals(self, layout) if self._keeps_sums else super().totals(layout)

    def sum_products(self, a: Array, b: Array) -> Array:
        """In parts of some rows each: float32 keeps its digits, and a small (D, H) fills the device."""
        self.demand("sum_products", a, b)
        n, D, H = a.shape[0], a.shape[1], b.shape[1]
        whole, rest = divmod(n, PRODUCT_ROWS)
        if n <= PRODUCT_ROWS:
            return self.matmul(a, b, transpose_a=True)
        out = self.empty((whole + (rest > 0), D, H))
        self.products(a, b, out, slice(0, whole), PRODUCT_ROWS)
        if rest:
            self.products(a, b, out, slice(whole, whole + 1), rest)
        return out

    def point_sums(self, parts: Parts, weights: Array = None) -> Any:
        """By a kernel, where the sums of a step are on the device."""
        if not self._keeps_sums:
            return super().point_sums(parts, weights)
        n, some = parts[0][0].shape[0], [*parts, *[(parts[0][0], 0.0)] * (point_sums.MOST - len(parts))]
        kernel = self.kernel("point_sums", PARTS=len(parts), WEIGHTED=int(weights is not None))
        sums = self.empty((kernel.groups(n),), self.acc)
        factors = [half for _, factor in some for half in self.halves(factor)]
        kernel(n, *(array for array, _ in some), *factors, some[0][0] if weights is None else weights, sums)
        return Sum(sums)

    @property
    def _keeps_sums(self) -> bool:
        """Whether the sums of a step stay on the device: where it counts in float64, as the host does."""
        return self.acc == np.float64

    def load(self, shard: Shard, weights: SampleWeights | None = None, tell: bool = True) -> Batches:
        self.most = sys.maxsize
        return self.in_use(self._loaded(shard, weights, logging.INFO if tell else logging.DEBUG))

    def _loaded(self, shard: Shard, weights: SampleWeights | None, level: int) -> Batches:
        needed, room = shard.N * shard.D * self.dtype.itemsize, self.room() // self._ranks
        if needed <= room:
            try:
                resident = Resident(self, shard, weights)
            except self.out_of_memory() as error:
                log.warning("%s has less room than it said (%s)", self.name, error)
            else:
                log.log(level, "data (%.0f MB) stay on %s between steps", needed / 1e6, self.name)
                return resident
        said = "data (%.0f MB) are streamed to %s: it has room for %.0f MB"
        log.log(level, said, needed / 1e6, self.name, room / 1e6)
        return Streamed(self, shard, weights)

    def map(self, function: Callable[[Batch], Result], batches: Batches) -> Iterator[Result]:
        """Where device memory runs out, a batch is done in parts, and so are all batches after it."""
        for batch in batches:
            if batch.n <= self.most:
                done, said = self._attempt(function, batch)
                if done:
                    del batch  # before the next but one is read
                    yield done.pop()  # it is large, and nobody else's
                    continue
                self._lower(batch.n, said)
            host = batch.Y if isinstance(batch.Y, np.ndarray) else self.to_host(batch.Y)
            start, counts, kept = batch.start, batch.counts, batch.memory
            home = batch.home or {name: self.to_host(array) for name, array in kept.items()}
            stays = batch.home is None
            del batch  # the parts need its room
            self.free_memory()
            yield from self._in_parts(function, start, host, counts, home)
            if stays:
                kept |= self.uploaded(home)

    def _in_parts(
        self,
        function: Callable[[Batch], Result],
        start: int,
        host: np.ndarray,
        counts: np.ndarray | None,
        home: Mapping[str, np.ndarray],
    ) -> Iterator[Result]:
        at = 0
        while at < len(host):
            some = slice(at, at + self.most)
            mine = {name: rows[some] for name, rows in home.items()}
            part = Batch(start + at, host[some], None, None if counts is None else counts[some], home=mine)
            done, said = self._attempt(function, part)
            if done:
                yield done.pop()
                at += part.n
            else:
                self._lower(part.n, said)
                self.free_memory()

    def _attempt(self, function: Callable[[Batch], Result], batch: Batch) -> tuple[list[Result], str]:
        """The result, or none and what was said of the memory; data that are on the host are uploaded first."""
        try:
            home = batch.home or {}
            if isinstance(batch.Y, np.ndarray):
                batch = self.batch(batch.start, self.to_device(batch.Y), batch.counts)
                batch.memory.update(self.uploaded(home))
            result = function(batch)
            for name, rows in home.items():
                rows[...] = self.to_host(batch.memory[name])
            return [result], ""
        except self.out_of_memory() as error:
            return [], str(error)  # not the error itself: its traceback holds on to all that the attempt allocated

    def uploaded(self, rows: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """Copy rows of a memory to the device."""
        return {name: self.to_device(array) for name, array in rows.items()}

    def _lower(self, failed: int, said: str) -> None:
        """Halve what is done at a time.

        Raises
        ------
        BackendError
            If it was a single data point.
        """
        if failed == 1:
            raise BackendError(
                f"{self.name} has no memory left for a single data point ({said}): choose dtype='float32', a smaller "
                "model, or a device with more memory; another program may hold this one's"
            )
        self.most = failed // 2
        log.warning(
            "out of memory on %s: from here on %d data points at a time, not %d; batch=%d spares the attempt",
            self.name, self.most, failed, self.most,
        )  # fmt: skip

    @abstractmethod
    def plan(self, name: str, constants: dict[str, int]) -> Schedule:
        """How a kernel is laid out on this device."""

    @abstractmethod
    def build(self, name: str, text: str, defines: dict[str, int]) -> Any:
        """Compile a program and take its kernel `name`."""

    @abstractmethod
    def products(self, a: Array, b: Array, out: Array, parts: slice, rows: int) -> None:
        """out[p] = aᵀb of so many rows from p PRODUCT_ROWS on, for each p of `parts`."""

    @abstractmethod
    def launch(self, built: Any, plan: Schedule, N: int, arguments: tuple[Any, ...]) -> None:
        """Run what `build` gave."""

    def halves(self, factor: float) -> tuple[float, float]:
        """A factor as this backend's type has it, and what it lost."""
        high = float(self.dtype.type(factor))
        return high, factor - high

    def scalar(self, value: float) -> Any:
        """A number as a kernel takes it."""
        return np.int32(value) if isinstance(value, int) else self.dtype.type(value)

    @abstractmethod
    def owns(self, array: Any) -> bool:
        """Whether an array is one of this backend's, on this device."""

    @abstractmethod
    def room(self) -> int:
        """Bytes of device memory that data of all ranks may take for the length of a run."""

    @abstractmethod
    def out_of_memory(self) -> tuple[type[BaseException], ...]:
        """The exceptions that say device memory has run out."""

    @abstractmethod
    def free_memory(self) -> None:
        """Give back what is cached."""

    @abstractmethod
    def prefetch(self, host: np.ndarray) -> Callable[[], Array]:
        """Begin an upload; the returned function waits for it and gives the device array."""


class DeviceKernel(Kernel):
    """A built kernel, laid out for its device."""

    def __init__(self, backend: DeviceBackend, name: str, built: Any, plan: Schedule):
        self.name = name
        self._backend, self._built, self._plan = backend, built, plan
        self.tile = plan.tile

    def groups(self, N: int) -> int:
        return self._plan.rows(N)

    def __call__(self, N: int, *arguments: Any) -> None:
        self._backend.demand(f"kernel {self.name}", *arguments)
        self._backend.launch(self._built, self._plan, N, arguments)


class DeviceTotals(Totals):
    """Sums that stay on the device until the last batch is done; what models sum on the host waits there."""

    _backend: DeviceBackend

    def __init__(self, backend: DeviceBackend, layout: Layout):
        super().__init__(backend, layout)
        self._total = backend.zeros(self._host.buffer.shape, np.float64)
        self._kernels: dict[tuple[int, int], Kernel] = {}

    def _add(self, names: Names, value: Sum) -> None:
        if not self._backend.owns(value.rows):
            return super()._add(names, value)
        place = self._host.place(names)
        self._accumulate(value.rows, value.scale, place.start, place.stop - place.start)

    def _accumulate(self, rows: Array, scale: float, start: int, count: int) -> None:
        kind = 0 if rows.dtype == self._backend.dtype else 1
        if rows.dtype.kind == "i":
            kind, scale = accumulate.FIXED_POINT, scale * 2.0**40
        many = int(np.prod(rows.shape)) // count
        key = accumulate.columns(count, many), kind
        if key not in self._kernels:
            self._kernels[key] = self._backend.kernel("accumulate", COLUMNS=key[0], KIND=kind)
        self._kernels[key](count, rows, many, *self._backend.halves(scale), start, self._total)

    def reduce(self, comm: Communicator) -> Statistics:
        self._host.buffer += self._backend.to_host(self._total)
        return super().reduce(comm)


class Resident:
    """Batches that were uploaded once."""

    def __init__(self, backend: DeviceBackend, shard: Shard, weights: SampleWeights | None):
        self.N, self.start, self.stop = shard.N, shard.start, shard.stop
        self._backend, self._memory = backend, Memory(shard.start)
        self._batches = deque(
            backend.batch(start, backend.to_device(Y), None if weights is None else weights.of(start, len(Y)))
            for start, Y in shard.batches()
        )

    def __iter__(self) -> Iterator[Batch]:
        if any(batch.n > self._backend.most for batch in self._batches):
            self._cut()
        return iter(self._batches)

    def _cut(self) -> None:
        """Bring batches that were found too large to the size that works, one after the other in its own room."""
        for _ in range(len(self._batches)):
            batch = self._batches.popleft()
            host, start, counts = self._backend.to_host(batch.Y), batch.start, batch.counts
            kept = {name: self._backend.to_host(array) for name, array in batch.memory.items()}
            del batch
            self._backend.free_memory()
            for at, part in _parts(host, self._backend.most):
                some = slice(at, at + len(part))
                mine = self._backend.batch(
                    start + at, self._backend.to_device(part), None if counts is None else counts[some]
                )
                mine.memory.update(self._backend.uploaded({name: rows[some] for name, rows in kept.items()}))
                self._batches.append(mine)

    def remember(self, memory: Memory) -> None:
        """Rows are uploaded, and stay with their batches; those of another memory are brought back before."""
        if memory is self._memory:
            return
        self.bring_back()
        self._memory = memory
        for batch in self._batches:
            batch.memory.update(self._backend.uploaded(memory.rows(batch.start, batch.n)))

    def bring_back(self) -> None:
        for batch in self._batches:
            for name, rows in self._memory.rows(batch.start, batch.n).items():
                rows[...] = self._backend.to_host(batch.memory[name])


class Streamed:
    """Batches that are uploaded at each pass, the next one while the last one is worked on.

    Where there is no room for two of them, they stay on the host until `map` takes them.
    """

    def __init__(self, backend: DeviceBackend, shard: Shard, weights: SampleWeights | None):
        self.N, self.start, self.stop = shard.N, shard.start, shard.stop
        self._backend, self._shard, self._weights = backend, shard, weights
        self._memory = Memory(shard.start)

    def remember(self, memory: Memory) -> None:
        self._memory = memory

    def bring_back(self) -> None:
        """Each batch was when it was done."""

    def __iter__(self) -> Iterator[Batch]:
        waiting: deque[tuple[int, Callable[[], Array]]] = deque()  # it lets go of an array that it gives away
        for start, whole in self._shard.batches():
            for at, Y in _parts(whole, self._backend.most):
                try:
                    coming = self._backend.prefetch(Y)
                except self._backend.out_of_memory():
                    coming = partial(np.asarray, Y)
                while waiting:
                    yield self._arrived(*waiting.popleft())
                waiting.append((start + at, coming))
                del coming
        while waiting:
            yield self._arrived(*waiting.popleft())

    def _arrived(self, start: int, coming: Callable[[], Array]) -> Batch:
        """The batch, with weights if it is on the device: where it is not, `map` uploads these as well."""
        Y = coming()
        counts = None if self._weights is None else self._weights.of(start, Y.shape[0])
        home = self._memory.rows(start, Y.shape[0]) or None
        if isinstance(Y, np.ndarray):
            return Batch(start, Y, None, counts, home=home)
        return replace(self._backend.batch(start, Y, counts), memory=self._backend.uploaded(home or {}), home=home)


def _parts(host: np.ndarray, most: int) -> Iterator[tuple[int, np.ndarray]]:
    """The array in parts of at most `most` rows, each with where it begins."""
    return ((at, host[at : at + most]) for at in range(0, len(host), most))
