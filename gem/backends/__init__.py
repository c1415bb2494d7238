"""Backends: where the E-step runs. `select` turns a name into one; `available` says what is here."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from gem.backends._fork import ForkedError
from gem.backends._numpy import NumpyBackend
from gem.backends.base import Array, Backend, Batches, Kernel, NoBatches, Totals
from gem.errors import BackendError, ConfigError
from gem.parallel import Communicator, Serial

__all__ = ["Array", "Backend", "Batches", "Kernel", "NoBatches", "Totals", "available", "every_device", "select"]

log = logging.getLogger("gem")

_made: dict[Any, tuple[Any, Backend]] = {}  # what this process has made, by all that tells one from another
_making = threading.RLock()  # two threads that want the same backend must not both open its device
atexit.register(_made.clear)  # while the runtimes are still there


def _forked() -> None:
    """A parent's backends are no use here, and one of its threads may have held the lock."""
    global _making  # noqa: PLW0603  nothing but a new lock is sure to be open
    _making = threading.RLock()
    _made.clear()  # devices are kept all the same: see _fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _once(place: Any, where: Any, make: Callable[[], Backend]) -> Backend:
    """The backend made before in this place, on this device: a context and its queues take longer than a small step."""
    key = place, id(where)
    with _making:
        if key not in _made:
            _made[key] = where, make()  # as long as `where` is kept nothing else has its identity
        return _made[key][1]


def _make_numpy(dtype: np.dtype, index: int | None, comm: Communicator, threads: int) -> Backend:
    return _once(("numpy", dtype, threads), None, lambda: NumpyBackend(dtype, threads))


def _make_opencl(dtype: np.dtype, index: int | None, comm: Communicator, threads: int) -> Backend:
    from gem.backends import _opencl

    own = _opencl.turn(comm.local_rank) if index is None else index
    place = ("opencl", dtype, own, threads)
    return _once(place, _opencl.device(own), lambda: _opencl.OpenCLBackend(dtype, own, threads=threads))


def _make_cuda(dtype: np.dtype, index: int | None, comm: Communicator, threads: int) -> Backend:
    from gem.backends import _cuda

    devices = _cuda.device_count()
    own = comm.local_rank % devices if index is None else index
    return _once(("cuda", dtype, own), _cuda._import_cupy(), lambda: _cuda.CudaBackend(dtype, own))


Maker = Callable[[np.dtype, "int | None", Communicator, int], Backend]
BACKENDS: dict[str, Maker] = {"cuda": _make_cuda, "opencl": _make_opencl, "numpy": _make_numpy}  # fastest first


def select(backend: Any = None, dtype: Any = "float32", comm: Communicator | None = None) -> Backend:
    """The backend that a user asked for, made once per process: the next call gets the same object.

    Parameters
    ----------
    backend : str, Backend or None
        "numpy", "opencl", "cuda", with a device as in "opencl:1", "auto" (the fastest that is here; it logs which,
        and why not another), or a Backend object; None reads GEM_BACKEND, else "auto". Without a device, each rank
        of a host takes another one. A device is opened here, and must show that it computes right.
    dtype : "float32" or "float64"; "auto", which elsewhere depends on the data, is float32 here
    comm : Communicator, optional
        Shares the cores and the devices of the host out among its ranks, all of which call this.

    Raises
    ------
    BackendError
        If the backend does not exist or is not available, with the command that installs it, or if this process was
        forked after a device was used.
    ConfigError
        If dtype is not float32 or float64.
    """
    if isinstance(backend, Backend):
        return backend
    try:
        kind = np.dtype("float32" if isinstance(dtype, str) and dtype == "auto" else dtype)
    except TypeError as error:
        raise ConfigError(f"dtype = {dtype!r} must be 'auto', 'float32' or 'float64'") from error
    if kind not in (np.float32, np.float64):
        raise ConfigError(f"dtype = {dtype!r} must be 'auto', 'float32' or 'float64'")
    comm = comm or Serial()
    chosen = _named(str(backend) if backend is not None else os.environ.get("GEM_BACKEND") or "auto", kind, comm)
    mine = (comm.node, chosen.place)
    ranks = comm.allgather(mine).count(mine)
    return chosen if ranks == 1 else _once(("shared", ranks), chosen, lambda: chosen.shared_by(ranks))


def _named(asked: str, kind: np.dtype, comm: Communicator) -> Backend:
    threads = comm.threads  # asked for by all ranks, whichever backends they come to
    if asked == "auto":
        return _fastest(kind, comm, threads)
    name, _, device = asked.partition(":")
    if name not in BACKENDS or (device and not device.isdigit()):
        raise BackendError(
            f"unknown backend {asked!r}: choose among auto, {', '.join(BACKENDS)}, opencl:1, cuda:0, ..."
        )
    return BACKENDS[name](kind, int(device) if device else None, comm, threads)


def _fastest(dtype: np.dtype, comm: Communicator, threads: int) -> Backend:
    """The first backend that works, in the order of their speed."""
    for name, make in BACKENDS.items():
        try:
            if name == "opencl":
                _refuse_emulation()
            found = make(dtype, None, comm, threads)
        except ForkedError:  # by another backend the workers of a run would do other sums than their parent
            raise
        except BackendError as error:
            log.info("backend auto: not %s: %s", name, error)
        else:
            log.info("backend auto: %s", found.name)
            return found
    raise BackendError("no backend works here, not even numpy")


def _refuse_emulation() -> None:
    """A device that a program stands in for is slower than numpy.

    Raises
    ------
    BackendError
        If OpenCL has no other.
    """
    from gem.backends._opencl import devices, emulates

    if all(emulates(device) for device in devices()):
        raise BackendError("it only emulates a device; backend='opencl' takes it")


def every_device(backend: str, dtype: Any = "float32") -> list[Backend]:
    """A backend on each device of its that can be used, first the one that only its name chooses; "opencl:1" is one.

    Raises
    ------
    BackendError
        As `select`.
    """
    found = [select(backend, dtype)]
    others = [] if ":" in backend else _others(found[0])
    for name in others:
        with suppress(BackendError):
            found.append(select(name, dtype))
    return found


def available() -> dict[str, dict[str, Any]]:
    """Every backend gem knows → what it runs on, or under "unavailable" why it cannot; likewise its further devices.

    "unusable": what an OpenCL platform answered that is there and does not work. A device that only emulates one is
    not opened (its compiler may take minutes): it says so under "emulates".
    """
    about: dict[str, dict[str, Any]] = {}
    for kind in BACKENDS:
        try:
            chosen = select(kind)
        except BackendError as error:
            about[kind] = {"unavailable": str(error)}
            continue
        about[kind] = chosen.describe()
        for name in _others(chosen):
            about[name] = _about(name)
        if kind == "opencl" and (unusable := _unusable()):
            about[kind]["unusable"] = "; ".join(unusable)
    return about


def _about(name: str) -> dict[str, Any]:
    try:
        kind, _, index = name.partition(":")
        if kind == "opencl" and (emulated := _emulated(int(index))):
            return emulated
        return select(name).describe()
    except BackendError as error:
        return {"unavailable": str(error)}


def _emulated(index: int) -> dict[str, Any]:
    from gem.backends._opencl import device, emulates

    one = device(index)
    return {"device": one.name.strip(), "emulates": "not opened unless asked for by number"} if emulates(one) else {}


def _others(chosen: Backend) -> list[str]:
    """How a user asks for the devices of a backend beside the one that its name by itself chooses."""
    kind, count = chosen.name.partition(":")[0], 1
    if kind == "opencl":
        from gem.backends._opencl import devices

        count = len(devices())
    elif kind == "cuda":
        from gem.backends._cuda import device_count

        count = device_count()
    return [name for name in (f"{kind}:{index}" for index in range(count)) if count > 1 and name != chosen.name]


def _unusable() -> list[str]:
    from gem.backends._opencl import survey

    return survey()[1]
