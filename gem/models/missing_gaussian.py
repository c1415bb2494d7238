"""Gaussians with full covariances and missing values, on the host: each data point's observed part has its own inverse.

Ghahramani & Jordan, *Supervised learning from incomplete data via an EM approach*, NIPS 1994. Data points of the same
pattern of observed entries share their matrices; those of many patterns are inverted at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PATTERN_BYTES = 4 << 20  # of the matrices of one kind that exist at once


@dataclass(frozen=True)
class Conditioned:
    """Component k seen by the data points `rows`, whose entries are observed in P patterns.

    Attributes
    ----------
    k : int
    rows, pattern : (n,) arrays
        Indices into the batch, and into the patterns.
    log_density : (n,) array
        log N(y_o; μ_o, Σ_oo) of the observed part.
    centred : (n, D) array
        E[y | y_o, k] − μ_k.
    cov : (P, D, D) array
        Cov[y | y_o, k]: zero where either entry is observed.
    """

    k: int
    rows: np.ndarray
    pattern: np.ndarray
    log_density: np.ndarray
    centred: np.ndarray
    cov: np.ndarray


def sums(Y: np.ndarray, mu: np.ndarray, cov: np.ndarray, r: np.ndarray) -> dict[str, np.ndarray]:
    """The sums that kernels/mixture.c makes of complete data, from responsibilities (n, K) times weights."""
    first, second = np.zeros(mu.shape), np.zeros(cov.shape)
    for part in conditioned(Y, mu, cov):
        weight = r[part.rows, part.k]
        first[part.k] += weight @ part.centred
        into = second if second.ndim == 2 else second[part.k]
        into += (weight[:, None] * part.centred).T @ part.centred
        into += np.tensordot(np.bincount(part.pattern, weight), part.cov, axes=1)
    return {"counts": r.sum(axis=0), "first": first, "second": second}


def log_density(Y: np.ndarray, mu: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """log N(y_o; μ_k, Σ_k) of what is observed of each data point, (n, K)."""
    out = np.empty((len(Y), len(mu)))
    for part in conditioned(Y, mu, cov):
        out[part.rows, part.k] = part.log_density
    return out


def completed(Y: np.ndarray, mu: np.ndarray, cov: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Σ_k r_nk E[y | y_o, k] for missing entries, Σ_k r_nk μ_k for observed ones, (n, D)."""
    out = r @ mu
    missing = np.isnan(Y)
    for part in conditioned(Y, mu, cov):
        out[part.rows] += np.where(missing[part.rows], r[part.rows, part.k, None] * part.centred, 0)
    return out


def conditioned(Y: np.ndarray, mu: np.ndarray, cov: np.ndarray) -> Iterator[Conditioned]:
    """Every component given the observed part of every data point, in pieces: Y (n, D) with NaN for what is missing."""
    for rows, seen, pattern in _by_pattern(Y):
        bounds, here = np.flatnonzero(np.diff(pattern)) + 1, seen[pattern]
        hidden = ~seen[:, :, None] & ~seen[:, None, :]
        for k in range(len(mu)):
            if k == 0 or cov.ndim == 3:
                sigma = cov if cov.ndim == 2 else cov[k]
                inverse, log_det = _observed_inverse(sigma, seen)
                rest = np.where(hidden, sigma - sigma @ inverse @ sigma, 0)
            x = np.where(here, Y[rows] - mu[k], 0)
            solved = np.concatenate([part @ inverse[p] for p, part in enumerate(np.split(x, bounds))])
            square = (x * solved).sum(axis=1) + here.sum(axis=1) * np.log(2 * np.pi)
            yield Conditioned(
                k, rows, pattern, -(square + log_det[pattern]) / 2, np.where(here, x, solved @ sigma), rest
            )


def _by_pattern(Y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows sorted by what is observed of them: (indices (n,), patterns (P, D), the pattern of each (n,)), in pieces."""
    patterns, which = np.unique(~np.isnan(Y), axis=0, return_inverse=True)
    which = which.ravel()
    order = np.argsort(which, kind="stable")
    size = max(1, PATTERN_BYTES // (8 * Y.shape[1] ** 2))
    for start in range(0, len(patterns), size):
        first, last = np.searchsorted(which[order], (start, start + size))
        rows = order[first:last]
        yield rows, patterns[start : start + size], which[rows] - start


def _observed_inverse(sigma: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Σ_oo⁻¹ in its place among zeros, (P, D, D), and log|Σ_oo|, (P,): an identity stands for what is missing."""
    gaps = (~seen)[:, :, None] * np.eye(seen.shape[1])
    padded = np.where(seen[:, :, None] & seen[:, None, :], sigma, gaps)
    return np.linalg.inv(padded) - gaps, np.linalg.slogdet(padded)[1]
