"""BLAS in threads of our own: its pool spins between calls, in the way of every other thread on the machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

SMALL = 1 << 20  # multiplications below this are done before a second thread is awake


@lru_cache(maxsize=1)
def controller() -> Any:
    """The handle on the loaded BLAS libraries, found once (it takes milliseconds); None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def limited(threads: int) -> AbstractContextManager[Any]:
    """At most so many BLAS threads in this process while the context lasts."""
    found = controller()
    return found.limit(limits=threads, user_api="blas") if found else nullcontext()


def library() -> str:
    """The names of the BLAS libraries in use."""
    found = controller()
    return ", ".join(sorted({str(i.get("internal_api")) for i in found.info()})) if found else ""


def matmul(pool: ThreadPoolExecutor, threads: int, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out = a @ b, rows of `out` shared out among the threads of `pool`."""
    if threads == 1 or a.size * b.shape[1] < SMALL or len(a) < threads:
        _quiet_matmul(a, b, out)
        return
    cuts = [len(a) * t // threads for t in range(threads + 1)]
    parts = [slice(start, stop) for start, stop in pairwise(cuts)]
    others = [pool.submit(_quiet_matmul, a[part], b, out[part]) for part in parts[1:]]
    _quiet_matmul(a[parts[0]], b, out[parts[0]])  # here: one thread less to be woken, on another core
    for done in others:
        done.result()


def _quiet_matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    with np.errstate(all="ignore"):  # per thread; NaN and Inf show in the evidence, which the caller checks
        np.matmul(a, b, out=out)
