"""Backends: where the E-step runs. `select` turns a name into one; `available` says what is here."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from gem.backends._numpy import NumpyBackend
from gem.backends.base import Array, Backend, Kernel
from gem.errors import BackendError, ConfigError
from gem.parallel import Communicator, Serial

__all__ = ["Array", "Backend", "Kernel", "available", "select"]

NAMES = ("numpy",)


def select(backend: Any = None, dtype: Any = "float32", comm: Communicator | None = None) -> Backend:
    """Make the backend that a user asked for.

    Parameters
    ----------
    backend : str, Backend or None
        "numpy", "auto" (the fastest that is here), or a Backend object; None reads GEM_BACKEND, else "numpy".
    dtype : "float32" or "float64"
    comm : Communicator, optional
        Shares the cores of the host out among its ranks.

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
        kind = np.dtype(dtype)
    except TypeError as error:
        raise ConfigError(f"dtype = {dtype!r} must be 'float32' or 'float64'") from error
    if kind not in (np.float32, np.float64):
        raise ConfigError(f"dtype = {dtype!r} must be 'float32' or 'float64'")
    comm = comm or Serial()
    name = backend if backend is not None else os.environ.get("GEM_BACKEND", "numpy")
    if name in ("numpy", "auto"):
        return NumpyBackend(kind, comm.threads)
    raise BackendError(f"unknown backend {name!r}: choose among {', '.join(NAMES)} and auto")


def available() -> dict[str, dict[str, Any]]:
    """Every backend gem knows → what it runs on, or why it cannot."""
    return {"numpy": NumpyBackend(threads=Serial().threads).describe()}
