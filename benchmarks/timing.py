"""Time competing functions fairly: in turn, many times, medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

PAUSE = 0.2  # seconds: the threads of a BLAS spin for about that long after their work, in the way of what comes next

BREATH = 0.01  # seconds where no thread of a BLAS is left spinning


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    repeats: int = 9,
    warmup: int = 2,
    pauses: Mapping[str, float] | None = None,
    runs: int = 1,
) -> dict[str, np.ndarray]:
    """Seconds of each run of each function, (repeats,), taken in turn so that a machine's drift hits all alike.

    `pauses` gives the seconds to wait after a function: PAUSE, unless its threads are known not to spin.
    Of so many `runs` of a function in a row the last one counts: as EM steps follow each other, the threads are awake
    then, and the caches hold what the run before has left.
    """
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            for _ in range(runs - 1):
                function()
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
            time.sleep((pauses or {}).get(name, PAUSE))
    return {name: np.array(t) for name, t in times.items()}


def spread(ratios: np.ndarray) -> str:
    """Median and range of a ratio taken pair by pair."""
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
