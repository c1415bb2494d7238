"""A device does not outlive a fork: the threads of its runtime stay with the parent, a child would wait for them."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

from gem.errors import BackendError

_openers: dict[str, int] = {}  # runtime → the process that opened it: this one, or one that it was forked from
_alive: weakref.WeakSet[Any] = weakref.WeakSet()


class ForkedError(BackendError):
    """A device was used in the process that this one was forked from."""


def opened(runtime: str) -> None:
    """This process has devices of a runtime ("OpenCL", "CUDA") in use from now on."""
    _openers.setdefault(runtime, os.getpid())


def inherited(runtime: str) -> bool:
    """Whether a process that this one was forked from had opened the runtime."""
    return runtime in _openers and _openers[runtime] != os.getpid()


def refuse_inherited(runtime: str) -> None:
    """Refuse a runtime that was opened before this process was forked.

    Raises
    ------
    ForkedError
        With what to do instead.
    """
    if inherited(runtime):
        raise ForkedError(
            f"this process was forked after {runtime} was used, whose threads it does not have: start workers with "
            "multiprocessing.get_context('spawn') or joblib's loky, fork before the first use of a device, or choose "
            "backend='numpy' in the workers"
        )


def watch(backend: Any) -> None:
    """Refuse every use of a backend object (attribute `runtime`) in processes that are forked from now on."""
    _alive.add(backend)


def keep(*things: Any) -> None:
    """Let go of nothing that a parent's runtime made: to release it would call that runtime, at exit at the latest."""
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _after_fork() -> None:
    for backend in list(_alive):
        if inherited(backend.runtime):
            keep(backend)
            kind = type(backend)
            backend.__class__ = type(f"Inherited{kind.__name__}", (kind,), {"__getattribute__": _refusing})


def _refusing(backend: Any, name: str) -> Any:
    """An attribute of a parent's backend: what is public raises, whatever it is asked for."""
    if not name.startswith("_"):
        refuse_inherited(object.__getattribute__(backend, "runtime"))
    return object.__getattribute__(backend, name)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
