"""The E-step of a mixture whose components take one dimension by itself: log joint, softmax, sums. See mixture.c."""

from __future__ import annotations

from typing import Any

import numpy as np

from gem.kernels import mixture_products
from gem.kernels.weights import annealed_softmax

PARTS = 8  # groups that may share a tile of data points for the log joint
NOTES = 2 * PARTS + 1  # rows of a tile's room besides the components'
JOINT, SOFTMAX, SUMS, STORE = 1, 2, 4, 8  # STAGES


def mixture(
    N: int,
    Y: np.ndarray,
    mu: np.ndarray,
    P: np.ndarray,
    log_weight: np.ndarray,
    beta: float,
    shift: np.ndarray,
    weights: np.ndarray,
    log_evidence: np.ndarray,
    room: np.ndarray,
    responsibilities: np.ndarray,
    sums: np.ndarray,
    least: float,
    *,
    STAGES: int,
    MISSING: int,
    fragment: Any,
) -> None:
    """Log evidence (N,), r_nk (N, K) if STORE, and Σ_n w_n r_nk (1, y − μ_k, second moment) in a row, if SUMS.

    Parameters
    ----------
    Y : (N, D) array
        If MISSING, NaN is no observation, and counts with its expectation.
    mu, P : (K, D) arrays
        The family's parameters; K + 1 rows of mu if it has a base. If MISSING, P has K more rows: what an observed y_d
        costs besides.
    log_weight, shift : (K,) arrays
        Responsibilities are the softmax of beta log p(k, y_n) + shift.
    weights : (N,) array
    room, least
        For devices, and for `mixture_products`.
    """
    K, seen = len(log_weight), ~np.isnan(Y)
    y = Y.astype(np.float64)
    joint = np.empty((N, K))
    for k in range(K):
        cost = fragment.cost(y, mu[k], P[k]) + (P[K + k] if MISSING else 0)
        joint[:, k] = log_weight[k] - fragment.whole(np.where(seen, cost, 0).sum(axis=1), P[k, 0])
    if fragment.BASE:
        joint += np.where(seen, fragment.log_base(y, mu[K].astype(np.float64)), 0).sum(axis=1, keepdims=True)
    log_evidence[:], r = annealed_softmax(joint, beta, shift, weights)
    if STAGES & STORE:
        responsibilities[:] = r
    if STAGES & SUMS:
        x = np.where(seen[:, None], y[:, None] - mu[:K], 0)
        moments = [r.sum(axis=0), np.einsum("nk,nkd->kd", r, x)]
        if fragment.SECOND:
            unseen = fragment.unseen(P[:K]) if MISSING else 0
            square = np.where(seen[:, None], fragment.second(y[:, None], x), unseen)
            moments.append(np.einsum("nk,nkd->kd", r, square))
        sums[0] = np.concatenate([moment.ravel() for moment in moments])


def tuned(fragment: Any, **_: Any) -> Any:
    """What the numpy backend runs instead: products of features, for families that have them."""
    return mixture_products.mixture if fragment.__name__.rpartition(".")[2] in mixture_products.FAMILIES else None


def walks(cpu: bool, D: int, K: int, STAGES: int, **_: int) -> int:
    """Groups that take a tile through several stages, or sum, walk over the data, each with sums of this size."""
    return K + 2 * K * D if STAGES not in (JOINT, SOFTMAX, STORE) else 0


def share(D: int, K: int, STAGES: int, **_: int) -> int:
    """Groups of a GPU that share data points: a part of the log joint's components each, or a block of the sums."""
    blocks = -(-K // 64) if STAGES == JOINT else -(-K // 32) * -(-D // 32)
    return {JOINT: min(PARTS, blocks), SUMS: blocks}.get(STAGES, 1)


def tile(STAGES: int, **_: int) -> int:
    """Data points of a tile on a GPU."""
    return 64


def group(STAGES: int, **_: int) -> int:
    """Work-items of a GPU's group: in the softmax one for each data point of a tile."""
    return 64 if STAGES == SOFTMAX else 128


def local_reals(D: int, **_: int) -> int:
    """What a CPU's group keeps of a data point."""
    return D
