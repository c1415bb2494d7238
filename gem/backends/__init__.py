"""Backends: where the E-step runs. `select` turns a name into one; `available` says what is here."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from gem.backends._numpy import NumpyBackend
from gem.backends.base import Array, Backend, Batches, Kernel, Totals
from gem.errors import BackendError, ConfigError
from gem.parallel import Communicator, Serial

__all__ = ["Array", "Backend", "Batches", "Kernel", "Totals", "available", "every_device", "select"]

log = logging.getLogger("gem")


def _make_numpy(dtype: np.dtype, index: int | None, comm: Communicator, threads: int) -> Backend:
    return NumpyBackend(dtype, threads)


def _make_opencl(dtype: np.dtype, index: int | None, comm: Communicator, threads: int) -> Backend:
    from gem.backends._opencl import OpenCLBackend, device_count

    return OpenCLBackend(dtype, _placed(comm, device_count(), index), threads=threads)


def _make_cuda(dtype: np.dtype, index: int | None, comm: Communicator, threads: int) -> Backend:
    from gem.backends._cuda import CudaBackend, device_count

    return CudaBackend(dtype, _placed(comm, device_count(), index))


def _placed(comm: Communicator, devices: int, index: int | None) -> int:
    """The device of this rank: the one asked for, or those of its host by turns."""
    return comm.local_rank % devices if index is None else index


Maker = Callable[[np.dtype, "int | None", Communicator, int], Backend]
BACKENDS: dict[str, Maker] = {"cuda": _make_cuda, "opencl": _make_opencl, "numpy": _make_numpy}  # fastest first


def select(backend: Any = None, dtype: Any = "float32", comm: Communicator | None = None) -> Backend:
    """Make the backend that a user asked for.

    Parameters
    ----------
    backend : str, Backend or None
        "numpy", "opencl", "cuda", with a device as in "opencl:1", "auto" (the fastest that is here; it logs which,
        and why not another), or a Backend object; None reads GEM_BACKEND, else "numpy". Without a device, each rank
        of a host takes another one.
    dtype : "float32" or "float64"; "auto", which elsewhere depends on the data, is float32 here
    comm : Communicator, optional
        Shares the cores and the devices of the host out among its ranks, all of which call this.

    Raises
    ------
    BackendError
        If the backend does not exist or is not available, with the command that installs it.
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
    chosen = _named(str(backend) if backend is not None else os.environ.get("GEM_BACKEND", "numpy"), kind, comm)
    mine = (comm.node, chosen.place)
    chosen.shared_by(comm.allgather(mine).count(mine))
    return chosen


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
            found = make(dtype, None, comm, threads)
        except BackendError as error:
            log.info("backend auto: not %s: %s", name, error)
        else:
            log.info("backend auto: %s", found.name)
            return found
    raise BackendError("no backend works here, not even numpy")


def every_device(backend: str, dtype: Any = "float32") -> list[Backend]:
    """A backend on each device of its that can be used, first the one that its name alone chooses; "opencl:1" is one.

    Raises
    ------
    BackendError
        As `select`.
    """
    found = [select(backend, dtype)]
    others = [] if ":" in backend else _names(found[0].name.partition(":")[0])[1:]
    for name in others:
        with suppress(BackendError):
            found.append(select(name, dtype))
    return found


def available() -> dict[str, dict[str, Any]]:
    """Every backend gem knows → what it runs on, or under "unavailable" why it cannot; likewise its further devices.

    "unusable": what an OpenCL device answered that is there and does not work.
    """
    about: dict[str, dict[str, Any]] = {}
    for kind in BACKENDS:
        try:
            names = _names(kind)
        except BackendError as error:
            about[kind] = {"unavailable": str(error)}
            continue
        for name in names:
            try:
                about[name] = select(name).describe()
            except BackendError as error:
                about[name] = {"unavailable": str(error)}
        if kind == "opencl" and (unusable := _unusable()):
            about[kind]["unusable"] = "; ".join(unusable)
    return about


def _names(kind: str) -> list[str]:
    """How a user asks for each device of a backend: by the backend's name alone for the first."""
    count = 1
    if kind == "opencl":
        from gem.backends._opencl import devices

        count = len(devices())
    elif kind == "cuda":
        from gem.backends._cuda import device_count

        count = device_count()
    return [kind, *(f"{kind}:{index}" for index in range(1, count))]


def _unusable() -> list[str]:
    from gem.backends._opencl import survey

    return survey()[1]
