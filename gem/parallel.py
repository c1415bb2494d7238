"""Communicators: the few collective operations that EM needs, serial or over MPI."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gem.errors import ConfigError, GemError
from gem.extras import install_hint

MPI_HINT = f"MPI is not available ({{reason}}): {install_hint('mpi')}, or run without mpiexec and with comm=None"
LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS")  # set by mpiexec and srun
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
    def abort(self) -> None:
        """End the whole job at once. Returns only where there is nobody else to end."""

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
        """Threads for this rank: the cores of the host, shared out among the ranks on it."""
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
    def watch(self) -> Iterator[None]:
        """Let an exception that nobody catches end the job, for code of others that runs between our collectives.

        A generator is not told why its consumer left: it sees the same of a `break` and of an exception. So the hook
        that Python calls before it ends stays where the context was left early; one that was left at its end puts the
        former hook back. (`sys.exit` on one rank alone calls no hook: only the exceptions of errors do.)
        """
        if self.size == 1 or isinstance(sys.excepthook, _EndJob):
            yield
            return
        hook = sys.excepthook = _EndJob(self, sys.excepthook)
        yield
        if sys.excepthook is hook:
            sys.excepthook = hook.before

    def _end_job(self, error: BaseException) -> None:
        """Say what happened on this rank, and end all; nothing where there is one rank."""
        if self.size == 1:
            return
        if self.rank:
            time.sleep(0.5)  # an error that all ranks share is told once, by rank 0
        print(f"gem: rank {self.rank}: {_told(error)}", file=sys.stderr, flush=True)
        self.abort()


class _EndJob:
    """A `sys.excepthook` that ends the job of all ranks."""

    def __init__(self, comm: Communicator, before: Any):
        self._comm, self.before = comm, before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        self._comm._end_job(error)


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

    def abort(self) -> None:
        pass


class MPI(Communicator):
    """An mpi4py communicator."""

    def __init__(self, comm: Any):
        mpi = _import_mpi()
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

    def abort(self) -> None:
        time.sleep(0.3)  # the launcher drops what was printed just before
        self._comm.Abort(1)
        os._exit(1)  # Abort may return while the launcher is at its work: nothing more is to be said


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


def launched() -> bool:
    """Whether an MPI launcher started this process (told from its environment; MPI is not touched)."""
    return any(name in os.environ for name in LAUNCHERS)


def _import_mpi() -> Any:
    try:
        from mpi4py import MPI as mpi  # noqa: N811  the module is called MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, an MPI library is not
        raise ConfigError(MPI_HINT.format(reason=str(error).splitlines()[0])) from error
    return mpi


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
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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


def _ordered(values: np.ndarray) -> np.ndarray:
    """Map float64 to uint64 so that the order is kept (IEEE 754: flip the sign bit, or all bits of a negative)."""
    bits = np.asarray(values, dtype=np.float64).view(np.uint64)
    negative = bits >> np.uint64(63) != 0
    return np.where(negative, ~bits, bits | np.uint64(1 << 63))
