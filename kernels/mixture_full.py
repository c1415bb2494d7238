"""The E-step of Gaussian mixtures with covariances: log joint, responsibilities, sums. See mixture_full.c."""

from __future__ import annotations

from typing import Any

import numpy as np

from gem.kernels import mixture_products
from gem.kernels.mixture import STORE, SUMS
from gem.kernels.weights import annealed_softmax


def mixture_full(
    N: int,
    Y: np.ndarray,
    mu: np.ndarray,
    precision: np.ndarray,
    log_weight: np.ndarray,
    beta: float,
    shift: np.ndarray,
    weights: np.ndarray,
    log_evidence: np.ndarray,
    room: np.ndarray,
    responsibilities: np.ndarray,
    sums: np.ndarray,
    least: float,
    nu: np.ndarray,
    *,
    STAGES: int,
    TIED: int,
) -> None:
    """Log evidence (N,), r_nk (N, K) if STORE, and Σ_n w_n r_nk (1, y − μ_k, (y − μ_k) (y − μ_k)ᵀ) in a row, if SUMS.

    Parameters
    ----------
    Y : (N, D) array
    mu : (K, D) array
    precision : (K, D, D) array, or (D, D) if TIED: the last sum is then one over k, too
        R_k, lower triangular, R_kᵀR_k = P_k; above the diagonal P_k.
    log_weight, shift : (K,) arrays
        Responsibilities are the softmax of beta log p(k, y_n) + shift.
    weights : (N,) array
    room, least, nu
        For devices, and for `mixture_products`.
    """
    x = Y.astype(np.float64)[None] - mu[:, None]
    z = x @ np.swapaxes(np.tril(precision.astype(np.float64)), -1, -2)
    joint = log_weight - np.einsum("knd,knd->nk", z, z) / 2
    log_evidence[:], r = annealed_softmax(joint, beta, shift, weights)
    if STAGES & STORE:
        responsibilities[:] = r
    if STAGES & SUMS:
        second = np.einsum("nk,kni,knj->kij", r, x, x)
        second = second.sum(axis=0) if TIED else second
        sums[0] = np.concatenate([r.sum(axis=0), np.einsum("nk,knd->kd", r, x).ravel(), second.ravel()])


def tuned(**_: Any) -> Any:
    """What the numpy backend runs instead: products of features, or with triangles."""
    return mixture_products.mixture


def walks(cpu: bool, D: int, K: int, TIED: int, **_: int) -> int:
    """Groups walk over the data, each with sums of this size."""
    return K + K * D + (D * D if TIED else K * D * D)


def local_reals(D: int, K: int, **_: int) -> int:
    """Local memory a data point takes on a GPU: itself and its responsibilities."""
    return D + K
