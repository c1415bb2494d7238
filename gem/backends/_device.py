"""What the OpenCL and the CUDA backend share: schedules of kernels, and batches that stay or stream."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gem.backends.base import Array, Backend, Batches, Kernel, Result
from gem.errors import BackendError
from gem.kernels import source

log = logging.getLogger("gem")

VECTOR_BYTES = 64  # the lanes of a CPU device: one vector register, or a few that the compiler splits it into
BLOCK = 128  # work-items of a group on a GPU: four warps
LANE_BYTES = 100  # local memory per work-item that leaves every GPU half of its threads
WALKING_TILE = 32  # data points, a power of two, of a group that walks over tiles
WALKING_BYTES = 12 << 10  # of local memory, so that enough groups share the 100 KiB of a small multiprocessor
PRIVATE_BYTES = 1 << 20  # of the one work-item of a CPU's group: it lives on a thread's stack
GROUPS_PER_UNIT = 4  # of kernels whose groups walk over many tiles: enough to hide latency
PARTIAL_BYTES = 64 << 20  # what such kernels may return at the most: fewer groups if one's sums are large


@dataclass(frozen=True)
class Schedule:
    """How a kernel is laid out on a device; see kernels/gem.h.

    Attributes
    ----------
    width : int
        Lanes in a vector (CPU devices), 1 on GPUs.
    group : int
        Work-items in a group.
    tile : int
        Data points a group takes at a time.
    groups : int or None
        Their number, for kernels whose groups walk over tiles; None: one for each tile.
    """

    width: int
    group: int
    tile: int
    groups: int | None = None

    def count(self, N: int) -> int:
        """Groups for N data points."""
        return self.groups or max(1, -(-N // self.tile))

    @property
    def defines(self) -> dict[str, int]:
        return {"WIDTH": self.width, "GROUP": self.group, "TILE": self.tile}


def schedule(name: str, constants: dict[str, int], itemsize: int, cpu: bool, units: int, local_bytes: int) -> Schedule:
    """Choose the schedule of a kernel: vectors of data points or latents on a CPU, tiles of work-items on a GPU.

    A twin module may say `local_reals(**constants)`, local memory per data point in reals, and
    `walks(cpu, **constants)`, the size of one group's sums if its groups walk over the data (0 if not).

    Raises
    ------
    BackendError
        If a data point needs more local memory than the device has.
    """
    module = source.twin(name)
    sums = getattr(module, "walks", lambda cpu, **_: 0)(cpu, **constants)
    groups = min(units * (1 if cpu else GROUPS_PER_UNIT), max(1, PARTIAL_BYTES // (8 * sums))) if sums else None
    per_point = itemsize * getattr(module, "local_reals", lambda **_: 0)(**constants)
    if cpu:
        width = VECTOR_BYTES // itemsize
        tile = 4 * width if sums else width
        while tile > width and 4 * tile * per_point > PRIVATE_BYTES:
            tile //= 2
        return Schedule(width, 1, tile, groups)
    room = local_bytes // 2
    if per_point > room:
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

    def __init__(self) -> None:
        self._built: dict[Any, Any] = {}

    def kernel(self, name: str, *, states: Any = None, fragment: str | None = None, **constants: int) -> Kernel:
        plan = self.plan(name, constants)
        table = None if states is None or plan.width > 1 else (states.Hprime, states.gamma)
        key = (name, fragment, plan, table, *sorted(constants.items()))
        if key not in self._built:
            text = source.program(name, states if table else None, fragment)
            defines = {**constants, **plan.defines, "GEM_REAL": 8 * self.dtype.itemsize}
            self._built[key] = self.build(name, text, defines)
        return DeviceKernel(self, name, self._built[key], plan)

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

    def load(self, shard: Any) -> Batches:
        needed, room = shard.N * shard.D * self.dtype.itemsize, self.room()
        if needed <= room:
            try:
                resident = Resident(self, shard)
            except self.out_of_memory() as error:
                log.warning("%s has less room than it said (%s)", self.name, error)
            else:
                log.info("data (%.0f MB) stay on %s between steps", needed / 1e6, self.name)
                return resident
        log.info("data (%.0f MB) are streamed to %s: it has room for %.0f MB", needed / 1e6, self.name, room / 1e6)
        return Streamed(self, shard)

    def map(self, function: Callable[[int, Array], Result], batches: Batches) -> Iterator[Result]:
        for start, Y in batches:
            yield from self._halving(function, start, Y)

    def _halving(self, function: Callable[[int, Array], Result], start: int, Y: Array) -> Iterator[Result]:
        """Where device memory runs out, the batch is done in halves."""
        try:
            result = function(start, Y)
        except self.out_of_memory() as error:
            said = str(error)  # not the error itself: its traceback holds on to all that the attempt allocated
        else:
            yield result
            return
        if Y.shape[0] == 1:
            raise BackendError(f"{self.name} has no memory left for a single data point: {said}")
        log.warning("out of memory on %s: %d data points are done in halves", self.name, Y.shape[0])
        self.free_memory()
        host = self.to_host(Y)
        half = len(host) // 2
        for offset, part in ((0, host[:half]), (half, host[half:])):
            yield from self._halving(function, start + offset, self.to_device(part))

    @abstractmethod
    def plan(self, name: str, constants: dict[str, int]) -> Schedule:
        """How a kernel is laid out on this device."""

    @abstractmethod
    def build(self, name: str, text: str, defines: dict[str, int]) -> Any:
        """Compile a program and take its kernel `name`."""

    @abstractmethod
    def launch(self, built: Any, plan: Schedule, N: int, arguments: tuple[Any, ...]) -> None:
        """Run what `build` gave."""

    @abstractmethod
    def owns(self, array: Any) -> bool:
        """Whether an array is one of this backend's, on this device."""

    @abstractmethod
    def room(self) -> int:
        """Bytes of device memory that data may take for the length of a run."""

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

    def groups(self, N: int) -> int:
        return self._plan.count(N)

    def __call__(self, N: int, *arguments: Any) -> None:
        self._backend.demand(f"kernel {self.name}", *arguments)
        self._backend.launch(self._built, self._plan, N, arguments)


class Resident:
    """Batches that were uploaded once."""

    def __init__(self, backend: DeviceBackend, shard: Any):
        self.N, self.start, self.stop = shard.N, shard.start, shard.stop
        self._batches = [(start, backend.to_device(Y)) for start, Y in shard.batches()]

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        return iter(self._batches)


class Streamed:
    """Batches that are uploaded at each pass, the next one while the last one is worked on."""

    def __init__(self, backend: DeviceBackend, shard: Any):
        self.N, self.start, self.stop = shard.N, shard.start, shard.stop
        self._backend, self._shard = backend, shard

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        waiting: tuple[int, Callable[[], Array]] | None = None
        for start, Y in self._shard.batches():
            try:
                coming = self._backend.prefetch(Y)
            except self._backend.out_of_memory():  # no room for two batches at once: one after the other, then
                if waiting is not None:
                    yield waiting[0], waiting[1]()
                    waiting = None
                self._backend.free_memory()
                coming = partial(self._backend.to_device, Y)
            if waiting is not None:
                yield waiting[0], waiting[1]()
            waiting = (start, coming)
        if waiting is not None:
            yield waiting[0], waiting[1]()
