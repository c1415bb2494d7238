"""What a device has to show before it is trusted: one real kernel gives its twin's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from gem.backends._numpy import NumpyBackend
from gem.backends.base import Array, Backend
from gem.states import state_table

N, H, HPRIME, GAMMA = 3, 5, 3, 2  # small: what takes time is the compiler
TOLERANCE = 1e-4  # of float32


def differs(backend: Backend) -> str:
    """How far the posterior of a few data points, by the kernel of the linear models, is from its twin's; "" if near.

    It is the kernel with most in it that compilers get wrong: vectors, tables, loops that depend on one another.
    """
    found, wanted = (_posterior(one) for one in (backend, NumpyBackend(backend.dtype)))
    for name, value in wanted.items():
        off = float(np.max(np.abs(found[name].astype(float) - value)))
        if not off <= TOLERANCE * max(1.0, float(np.abs(value).max())):  # NaN, too
            return f"{name} of a small example is {off:.2g} off"
    return ""


def _posterior(backend: Backend) -> dict[str, np.ndarray]:
    """Log evidence, first and second moments of data points 0 ... N - 1."""

    def real(value: Any) -> Array:
        return backend.to_device(np.asarray(value, backend.dtype))

    rng = np.random.default_rng(0)
    W = rng.standard_normal((2 * H, H))
    means, log_evidence, pairs = real(3 * rng.standard_normal((N, H))), real(np.zeros(N)), real(np.zeros((N, 3)))
    candidates = backend.to_device(np.array([[0, 1, 2], [0, 3, 4], [1, 2, 4]], np.int32))
    constants: dict[str, Any] = {"H": H, "HPRIME": HPRIME, "GAMMA": GAMMA, "ANNEAL": 0, "VALUES": 1, "MASKED": 0}
    kernel = backend.kernel("gram_posterior", states=state_table(HPRIME, GAMMA), **constants)
    kernel(
        N, means, real(W.T @ W / 4), real(np.zeros((N, H))), real(rng.uniform(0.5, 1, H)),
        real(rng.standard_normal((1, H)) - 1), real([1.0]), candidates, 1.0, real([0.0]),
        log_evidence, pairs, real(np.zeros((N, H))), real(np.zeros((N, 1))), real(np.zeros(N)),
    )  # fmt: skip
    arrays = {"the log evidence": log_evidence, "the mean": means, "the second moment": pairs}
    return {name: backend.to_host(array) for name, array in arrays.items()}
