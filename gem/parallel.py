"""Communicators: the few collective operations that EM needs, serial or over MPI."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from gem.cores import room, share
from gem.errors import ConfigError, GemError
from gem.extras import install_hint
from gem.launch import alone_among, launch, launched, refuses_before_start
from gem.leaving import Together, status_of

__all__ = ["MPI", "Communicator", "Serial", "communicator", "largest", "launched", "mpi_library"]

MPI_HINT = f"MPI is not available ({{reason}}): {install_hint('mpi')}, or run without mpiexec and with comm=None"
AWARE = "GEM_CUDA_AWARE_MPI"
MESSAGE_BYTES = 1 << 30  # counts in MPI are 32-bit: longer reductions are cut into pieces of this size


class Communicator(ABC):
    """What EM asks of a group of processes. Every collective is called by all ranks in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0  # the host's number: the first of its ranks
    device_aware: bool = False  # whether `allreduce` takes arrays in the memory of a CUDA device

    @abstractmethod
    def allreduce(self, buffer: Any) -> None:
        """Sum a contiguous array over all ranks, in place; one of CuPy where the communicator is `device_aware`."""

    @abstractmethod
    def allgather(self, value: Any) -> list[Any]:
        """Every rank's small value, in the order of the ranks."""

    @abstractmethod
    def bcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""

    @abstractmethod
    def abort(self, status: int = 1) -> None:
        """End the whole job at once, with an exit status. Returns only where there is nobody else to end."""

    def slab(self, n: int) -> tuple[int, int]:
        """This rank's part [start, stop) of n data points: contiguous, sizes differing by one at the most.

        Raises
        ------
        ConfigError
            If there are fewer data points than ranks.
        """
        if n < self.size:
            raise ConfigError(f"{n} data points cannot be shared by {self.size} ranks: start at most {n} ranks")
        return n * self.rank // self.size, n * (self.rank + 1) // self.size

    @property
    def threads(self) -> int:
        """Threads for this rank: its part of the host's cores. Like a collective, all ranks ask for it together."""
        return max(1, _cores() // self.local_size)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let a failing rank end the job with its message, instead of leaving the others to wait for ever.

        An interrupt and an exit with a status are failures too: the other ranks do not know of them.
        """
        try:
            yield
        except BaseException as error:
            if not (isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and not error.code)):
                self._end_job(error)
            raise

    @contextmanager
    def together(self) -> Iterator[Callable[[int], None]]:
        """A loop over steps, whose body is others' code: yields what is called between two steps, with the step done.

        A rank that leaves the loop on its own, by whatever way, ends the job with its exit status (1 where that is 0:
        the job has not done its work).
        """
        yield lambda step: None

    def _end_job(self, error: BaseException) -> None:
        """Say what happened on this rank, and end all; nothing where there is one rank."""
        if self.size == 1:
            return
        if self.rank:
            time.sleep(0.5)  # an error that all ranks share is told once, by rank 0
        print(f"gem: rank {self.rank}: {_told(error)}", file=sys.stderr, flush=True)
        self.abort(status_of(error.code) or 1 if isinstance(error, SystemExit) else 1)


def _told(error: BaseException) -> str:
    """What a user is to read: a message where one was written for him, else the traceback."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, str) else f"exit status {error.code}"
    return str(error) if isinstance(error, GemError) else "".join(traceback.format_exception(error))


class Serial(Communicator):
    """One process, nothing to exchange."""

    def allreduce(self, buffer: Any) -> None:
        pass

    def allgather(self, value: Any) -> list[Any]:
        return [value]

    def bcast(self, value: Any) -> Any:
        return value

    def abort(self, status: int = 1) -> None:
        pass


class MPI(Communicator):
    """An mpi4py communicator."""

    def __init__(self, comm: Any):
        mpi = _import_mpi()
        _refuse_lone_world(mpi, comm)
        self._mpi, self._comm = mpi, comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        local = comm.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = local.Get_rank(), local.Get_size()
        self.node = local.bcast(self.rank)
        local.Free()
        self.device_aware = self.size > 1 and _takes_device_memory(mpi)

    def allreduce(self, buffer: Any) -> None:
        flat = buffer.reshape(-1)
        if isinstance(buffer, np.ndarray) and not np.shares_memory(flat, buffer):
            raise ValueError("allreduce works in place: it needs a contiguous array")
        count = max(1, MESSAGE_BYTES // buffer.itemsize)
        for start in range(0, flat.size, count):
            self._comm.Allreduce(self._mpi.IN_PLACE, flat[start : start + count])

    def allgather(self, value: Any) -> list[Any]:
        return self._comm.allgather(value)

    def bcast(self, value: Any) -> Any:
        return self._comm.bcast(value)

    def abort(self, status: int = 1) -> None:
        time.sleep(0.3)  # the launcher drops what was printed just before
        self._comm.Abort(status)
        os._exit(status)  # Abort may return while the launcher is at its work: nothing more is to be said

    @property
    def threads(self) -> int:
        own = room()
        return share(own, [each for node, each in self.allgather((self.node, own)) if node == self.node])

    @contextmanager
    def together(self) -> Iterator[Callable[[int], None]]:
        if self.size == 1:
            yield lambda step: None
            return
        side, number = self._aside()
        with Together(self._mpi, side, number, self._end_job, self._end_with) as loop:
            yield loop.agree

    def _aside(self) -> tuple[Any, int]:
        """A communicator beside this one, made once for it, and the number of the loop that begins."""
        key = _side_key(self._mpi)
        found = self._comm.Get_attr(key)
        side, number = (self._comm.Dup(), 0) if found is None else found
        self._comm.Set_attr(key, (side, number + 1))
        return side, number + 1

    def _end_with(self, message: str, status: int) -> None:
        print(f"gem: rank {self.rank}: {message}", file=sys.stderr, flush=True)
        self.abort(status)


def communicator(comm: Any = None) -> Communicator:
    """Turn the `comm` of the public surface into a Communicator.

    Parameters
    ----------
    comm : None (serial), "world", an mpi4py communicator, or a Communicator
        GEM_CUDA_AWARE_MPI = 1 or 0 says whether its MPI takes device memory, if the library cannot.

    Raises
    ------
    ConfigError
        If it is none of these, or MPI is asked for and not there.
    """
    if comm is None:
        return Serial()
    if isinstance(comm, Communicator):
        return comm
    if isinstance(comm, str) and comm == "world":
        return MPI(_import_mpi().COMM_WORLD)
    if hasattr(comm, "Allreduce"):
        return MPI(comm)
    raise ConfigError(f"comm = {comm!r} must be None, 'world' or an mpi4py communicator")


@lru_cache(maxsize=1)
def _side_key(mpi: Any) -> int:
    """Where a communicator of MPI keeps the one beside it."""
    key: int = mpi.Comm.Create_keyval()
    return key


def mpi_library() -> str:
    """The name and version of the MPI library that mpi4py finds, without starting it.

    Raises
    ------
    ImportError, RuntimeError
        If mpi4py, or a library for it, is not there.
    """
    name: str = _load_mpi().Get_library_version()
    return name.splitlines()[0].strip("\0 ")


def _load_mpi() -> Any:
    """mpi4py's MPI, not begun if nobody has."""
    import mpi4py

    before = mpi4py.rc.initialize, mpi4py.rc.finalize
    if mpi4py.rc.initialize and "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    try:
        from mpi4py import MPI as mpi  # noqa: N811  the module is called MPI
    finally:
        mpi4py.rc.initialize, mpi4py.rc.finalize = before
    return mpi


def _import_mpi() -> Any:
    """mpi4py's MPI, begun.

    Raises
    ------
    ConfigError
        If there is none, or it is not the one whose launcher started this process.
    """
    found = launch()
    beside = found if found is not None and (found.size or 1) > 1 else None
    try:
        mpi = _load_mpi()
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, an MPI library is not
        hint = MPI_HINT.format(reason=str(error).splitlines()[0])
        raise ConfigError(hint if beside is None else alone_among(beside, "", hint)) from error
    if not mpi.Is_initialized():
        library = mpi.get_vendor()[0]
        if beside is not None and (why := refuses_before_start(beside, library)):
            raise ConfigError(alone_among(beside, library, why))
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
    return mpi


def _refuse_lone_world(mpi: Any, comm: Any) -> None:
    """Processes that were started together and do not know of each other would each make the whole run.

    Raises
    ------
    ConfigError
        With the line to write instead.
    """
    found = launch()
    if found is None or (found.size or 1) == 1 or mpi.COMM_WORLD.Get_size() > 1:
        return
    if mpi.Comm.Compare(comm, mpi.COMM_SELF) != mpi.IDENT:  # COMM_SELF is meant so
        name = mpi.get_vendor()[0]
        raise ConfigError(alone_among(found, name, f"mpi4py uses {name}, and that is not its launcher"))


def _takes_device_memory(mpi: Any) -> bool:
    """Whether the MPI library works in the memory of CUDA devices: GEM_CUDA_AWARE_MPI says so, else the library.

    Raises
    ------
    ConfigError
        If the variable is neither 0 nor 1.
    """
    said = os.environ.get(AWARE)
    if said is not None:
        if said not in ("0", "1"):
            raise ConfigError(f"{AWARE} = {said!r} must be 1 (MPI takes device memory) or 0, or not be set")
        return said == "1"
    try:  # an extension of Open MPI, MPICH and their kin that mpi4py does not know
        query = ctypes.CDLL(mpi.__file__).MPIX_Query_cuda_support
    except (AttributeError, OSError):
        return False
    return bool(query())


def _cores() -> int:
    own = room()
    return share(own, [own])


def largest(comm: Communicator, values: np.ndarray, k: int) -> np.ndarray:
    """Mark the k largest of all ranks' values: a boolean mask over this rank's, ties to the lower global index.

    Bisection on the ordering of the float64 bit patterns: at most 64 reductions of one count, no gather, exact.

    Parameters
    ----------
    values : (n,) float64 array, this rank's, NaN-free
    k : int, 0 ≤ k ≤ total number of values
    """
    keys = np.sort(_ordered(values))
    low, high = 0, 2**64 - 1  # invariant: at least k values ≥ low
    while low < high:
        middle = low + (high - low + 1) // 2
        count = np.array([len(keys) - np.searchsorted(keys, np.uint64(middle))])
        comm.allreduce(count)
        low, high = (middle, high) if count[0] >= k else (low, middle - 1)
    own = _ordered(values)
    mask = own > np.uint64(low)
    ties = np.flatnonzero(own == np.uint64(low))
    above, equal = np.array(comm.allgather((int(mask.sum()), len(ties)))).T
    room = k - above.sum() - equal[: comm.rank].sum()
    mask[ties[: max(0, room)]] = True
    return mask


def heaviest(comm: Communicator, values: np.ndarray, weights: np.ndarray, sought: float) -> np.ndarray:
    """How much of each weight counts if the largest of all ranks' values are taken until their weights add up.

    Bisection as in `largest`. Of the value at the border a part is taken, of equal values those of lower global index
    first: a value of weight 2 counts as that value twice.

    Parameters
    ----------
    values, weights : (n,) float64 arrays, this rank's, NaN-free; weights ≥ 0
    sought : float
        What the weights are to add up to, at most the sum of all.
    """
    own = _ordered(values)
    order = np.argsort(own, kind="stable")
    keys, left = own[order], np.append(np.cumsum(weights[order][::-1])[::-1], 0.0)
    low, high = 0, 2**64 - 1  # invariant: values ≥ low weigh enough
    while low < high:
        middle = low + (high - low + 1) // 2
        weight = left[[np.searchsorted(keys, np.uint64(middle))]]
        comm.allreduce(weight)
        low, high = (middle, high) if weight[0] >= sought else (low, middle - 1)
    part = np.where(own > np.uint64(low), weights, 0.0)
    ties = np.flatnonzero(own == np.uint64(low))
    above, equal = np.array(comm.allgather((part.sum(), weights[ties].sum()))).T
    room = sought - above.sum() - equal[: comm.rank].sum()
    before = np.cumsum(weights[ties]) - weights[ties]
    part[ties] = np.clip(room - before, 0, weights[ties])
    return part


def _ordered(values: np.ndarray) -> np.ndarray:
    """Map float64 to uint64 so that the order is kept (IEEE 754: flip the sign bit, or all bits of a negative)."""
    bits = np.asarray(values, dtype=np.float64).view(np.uint64)
    negative = bits >> np.uint64(63) != 0
    return np.where(negative, ~bits, bits | np.uint64(1 << 63))
