"""The E-step of Gaussian and Poisson mixtures: log joint, responsibilities and moments of a tile of data in one go.

log N(y; μ_k, P_k⁻¹) is linear in features of y − c: (y, y²) for diagonal precisions, (y, y yᵀ) for full ones; that of
counts is in y, and where entries are missing, in whether each is there. So the log joint is one matrix product with
the features, the moments are another, and a softmax lies between. A feature that is always 1 carries the constants
in, and the counts out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gem.kernels.weights import settled_exp

TILE_BYTES = 1 << 21  # features of the data points whose responsibilities exist at once: N × K is never formed
TILE, LONG_TILE = 64, 512  # data points at least; and where their features are taken in parts
DIAG, FULL, TIED, POISSON = 0, 1, 2, 3  # COVARIANCE, a number for the sake of C
LOG_FACTORIALS = np.cumsum(np.log(np.maximum(1, np.arange(1024))))
SAFE = 1e3  # squared distance, in standard deviations, up to which float32 expands a square with error < 1e-4


def mixture(
    N: int,
    Y: np.ndarray,
    mu: np.ndarray,
    precision: np.ndarray,
    log_weight: np.ndarray,
    beta: float,
    shift: np.ndarray,
    weights: np.ndarray,
    log_evidence: np.ndarray,
    responsibilities: np.ndarray,
    sums: np.ndarray,
    *,
    COVARIANCE: int,
    MISSING: int,
    STORE: int,
) -> None:
    """Log evidence of each point, and the sums Σ_n w_n r_nk (1, y − μ_k, (y − μ_k)²).

    Moments are taken about the old means, so that no variance is a small difference of large numbers.

    Parameters
    ----------
    Y : (N, D) array
        If MISSING (diag and Poisson), NaN is no observation, and counts with its expectation.
    mu : (K, D) array
        Poisson: rates, and reference rates μ_K as one more row.
    precision : (K, D) array if COVARIANCE is 0 (diag), (K, D, D) if 1 (full), (D, D) if 2 (tied)
        If COVARIANCE is 3 (Poisson): log(μ_k / μ_K), (K, D). If MISSING, K more rows, what an observed y_d takes
        from the log joint: −½ log(P_kd / 2π); Poisson: μ_kd − μ_Kd.
    log_weight : (K,) array
        log π_k + ½ log|P_k| − D/2 log 2π; Poisson: log π_k − Σ_d (μ_kd − μ_Kd); log π_k if MISSING.
    beta, shift : float, (K,) array
        Responsibilities r_n are the softmax of beta log p(k, y_n) + shift.
    weights : (N,) array
    log_evidence : (N,) array, out
        −∞ where a Poisson mixture meets what is no count.
    responsibilities : (N, K) array, out, if STORE; any array otherwise
    sums : (groups, K + K D + size of `precision`) array, out
        A row for each group of data points (here: one): counts, first and second moments; the latter are summed
        over k if tied, and absent if Poisson.
    """
    rates = mu[-1] if COVARIANCE == POISSON else None
    mu = mu[: len(log_weight)]
    centre, dtype = _frame(Y, mu, precision, COVARIANCE)
    expansion = EXPANSIONS[COVARIANCE, MISSING](mu - centre, precision.astype(np.float64))
    D = len(centre)
    whole = [expansion.linear, (log_weight + expansion.constant)[:, None], expansion.coefficients]
    coefficients = np.concatenate(whole, axis=1).astype(dtype)
    tile, parts = _parts(N, expansion, D + 1, dtype)
    moments, square = np.zeros(coefficients.shape), np.zeros((D, D))
    features = np.empty((max(part.rows.stop for part in parts), tile), dtype=dtype)  # data points run along: SIMD
    features[D] = 1
    for start in range(0, N, tile):
        here = slice(start, min(N, start + tile))
        f = features[:, : here.stop - start]
        y = f[:D]
        np.subtract(Y[here].T, centre.astype(dtype)[:, None], out=y)  # the same number: `_frame` has rounded it
        joint = np.zeros((len(coefficients), y.shape[1]), dtype)
        for part in parts:
            expansion.fill(f[D + 1 : part.rows.stop], y, part.block)
            joint += coefficients[:, part.columns] @ f[part.rows]
        r = _softmax(joint, beta, shift, weights[here], log_evidence[here])
        if rates is not None:
            log_evidence[here] += _log_poisson(Y[here], rates)
        if STORE:
            responsibilities[here] = r.T
        for part in parts:
            if len(parts) > 1:  # else it is still there
                expansion.fill(f[D + 1 : part.rows.stop], y, part.block)
            moments[:, part.columns] += r @ f[part.rows].T
        if COVARIANCE == TIED:
            square += (y * weights[here].astype(dtype)) @ y.T
    counts, first, second = moments[:, D], moments[:, :D], moments[:, D + 1 :]
    sums[0] = np.concatenate([counts, *(a.ravel() for a in expansion.recentre(counts, first, second, square))])


@dataclass(frozen=True)
class _Part:
    """Features that exist at once: which `rows` of the array, for which `columns` of coefficients, made of `block`."""

    rows: slice
    columns: slice
    block: slice


def _parts(N: int, expansion: "_Expansion", head: int, dtype: np.dtype) -> tuple[int, list[_Part]]:
    """How many data points are taken at once, and their features in which parts; `head` of these are y and 1."""
    tile = TILE_BYTES // ((head + expansion.coefficients.shape[1]) * dtype.itemsize)
    blocks = [slice(0, expansion.D)]
    if tile < TILE:
        blocks = expansion.blocks(TILE_BYTES // (LONG_TILE * dtype.itemsize))
    parts: list[_Part] = []
    end = head
    for block in blocks:
        size = expansion.size(block)
        begin = end if parts else 0
        parts.append(_Part(slice(min(begin, head), head + size), slice(begin, end + size), block))
        end += size
    return min(N, LONG_TILE if len(parts) > 1 else max(TILE, tile)), parts


def _frame(Y: np.ndarray, mu: np.ndarray, precision: np.ndarray, covariance: int) -> tuple[np.ndarray, np.dtype]:
    """A centre amid the means, and the type in which squares about it are exact enough to be expanded."""
    if covariance == POISSON:
        return np.zeros(mu.shape[1]), Y.dtype
    centre = mu.mean(axis=0, dtype=np.float64).astype(Y.dtype).astype(np.float64)
    offset = mu - centre
    if covariance == DIAG:
        distance = (offset**2 * precision[: len(mu)]).sum(axis=1)
    else:
        distance = ((offset[:, None, :] @ precision)[:, 0, :] * offset).sum(axis=1)
    return centre, np.dtype(np.float64) if distance.max() > SAFE else Y.dtype


def _softmax(
    joint: np.ndarray, beta: float, shift: np.ndarray, weights: np.ndarray, log_evidence: np.ndarray
) -> np.ndarray:
    """Log joint (K, n) to weighted responsibilities, in place; the log evidence aside."""
    annealed = beta != 1 or bool(np.any(shift))
    if annealed:
        top = joint.max(axis=0)
        log_evidence[:] = top + np.log(np.exp(joint - top).sum(axis=0))
        joint *= joint.dtype.type(beta)
        joint += shift.astype(joint.dtype)[:, None]
    top = joint.max(axis=0)
    joint -= top
    settled_exp(joint)
    total = joint.sum(axis=0)
    if not annealed:
        log_evidence[:] = top + np.log(total)
    joint *= (weights / total).astype(joint.dtype)
    return joint


class _Expansion:
    """The log joint as a product of features: y, 1, and others that `fill` makes of a block of y's rows.

    Attributes
    ----------
    linear, coefficients : (K, D), (K, number of the others) arrays
    constant : (K,) array
    """

    linear: np.ndarray
    coefficients: np.ndarray
    constant: np.ndarray

    def __init__(self, offset: np.ndarray):
        self.offset, self.D = offset, offset.shape[1]

    def blocks(self, most: int) -> list[slice]:
        """Blocks of y's rows that make about `most` of the other features each."""
        return [slice(0, self.D)]

    def size(self, block: slice) -> int:
        """Number of the other features that a block makes."""
        return self.coefficients.shape[1]

    def fill(self, others: np.ndarray, y: np.ndarray, block: slice) -> None:
        """Make the other features of a block."""

    def recentre(
        self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray, square: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """First and second moments about the means, from the features' moments."""
        raise NotImplementedError


class _Diagonal(_Expansion):
    """y²."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray):
        super().__init__(offset)
        self.linear, self.coefficients = precision * offset, -precision / 2
        self.constant = -(self.linear * offset).sum(axis=1) / 2

    def fill(self, others: np.ndarray, y: np.ndarray, block: slice) -> None:
        np.multiply(y, y, out=others[: self.D])

    def recentre(
        self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray, square: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        first = linear - counts[:, None] * self.offset
        return first, others - self.offset * (linear + first)


class _DiagonalWithGaps(_Diagonal):
    """y², and whether there is a y."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray):
        self.precision, normalisation = np.split(precision, 2)
        super().__init__(offset, self.precision)
        taken = self.precision * offset**2 / 2 + normalisation
        self.coefficients = np.concatenate([self.coefficients, -taken], axis=1)
        self.constant = np.zeros(len(offset))

    def fill(self, others: np.ndarray, y: np.ndarray, block: slice) -> None:
        _mark_observed(others[self.D :], y)
        super().fill(others, y, block)

    def recentre(
        self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray, square: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """A missing entry adds its variance to the second moment."""
        squares, seen = np.split(others, 2, axis=1)
        first = linear - seen * self.offset
        second = squares - self.offset * (linear + first)
        return first, second + (counts[:, None] - seen) / self.precision


class _Counts(_Expansion):
    """Nothing but y."""

    def __init__(self, rates: np.ndarray, log_rates: np.ndarray):
        super().__init__(rates)
        self.linear, self.coefficients, self.constant = log_rates, np.empty((len(rates), 0)), np.zeros(len(rates))

    def recentre(
        self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray, square: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """First moments about the rates."""
        return (linear - counts[:, None] * self.offset,)


class _CountsWithGaps(_Counts):
    """Whether there is a y."""

    def __init__(self, rates: np.ndarray, log_rates: np.ndarray):
        per_entry, taken = np.split(log_rates, 2)
        super().__init__(rates, per_entry)
        self.coefficients = -taken

    def fill(self, others: np.ndarray, y: np.ndarray, block: slice) -> None:
        _mark_observed(others, y)

    def recentre(
        self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray, square: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        return (linear - others * self.offset,)


def _mark_observed(observed: np.ndarray, y: np.ndarray) -> None:
    """1 where y is a number, 0 where it is NaN, which becomes 0 itself."""
    np.logical_not(np.isnan(y), out=observed)
    np.copyto(y, 0, where=observed == 0)


def _log_poisson(Y: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Σ_d log Poisson(y_d; rate_d), (n,), of what is there; −∞ for a data point with what is no count."""
    bad, seen = (Y < 0) | (np.floor(Y) < Y), ~np.isnan(Y)
    y = np.where(seen & ~bad, Y, 0).astype(np.float64)  # its large terms nearly cancel
    rates = rates.astype(np.float64)
    log_p = y @ np.log(rates) - seen.astype(np.float64) @ rates - _log_factorial(y).sum(axis=1)
    return np.where(bad.any(axis=1), -np.inf, log_p)


def _log_factorial(y: np.ndarray) -> np.ndarray:
    """log y! of counts: from a table, by Stirling's series beyond its end."""
    last = len(LOG_FACTORIALS) - 1
    out = LOG_FACTORIALS[np.minimum(y, last).astype(np.intp)]
    beyond = y > last
    if beyond.any():
        z = y[beyond] + 1
        out[beyond] = (z - 0.5) * np.log(z) - z + 0.5 * np.log(2 * np.pi) + 1 / (12 * z) - 1 / (360 * z**3)
    return out


class _Full(_Expansion):
    """y_i y_j for i ≤ j: half the work of K products with D × D matrices."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray):
        super().__init__(offset)
        self.linear = (precision @ offset[:, :, None])[:, :, 0]
        self.coefficients = np.empty((len(offset), self.D * (self.D + 1) // 2))
        for i, row in self._rows():
            np.negative(precision[:, i, i:], out=self.coefficients[:, row])  # y_i y_j stands for y_j y_i, too
            self.coefficients[:, row.start] /= 2
        self.constant = -(self.linear * offset).sum(axis=1) / 2

    def _rows(self) -> Iterator[tuple[int, slice]]:
        """For each i, where its y_i y_j are."""
        start = 0
        for i in range(self.D):
            yield i, slice(start, start + self.D - i)
            start += self.D - i

    def blocks(self, most: int) -> list[slice]:
        starts, size = [0], 0
        for i in range(self.D):
            if size + self.D - i > most and size:
                starts, size = [*starts, i], 0
            size += self.D - i
        return [slice(start, stop) for start, stop in pairwise([*starts, self.D])]

    def size(self, block: slice) -> int:
        return sum(self.D - i for i in range(block.start, block.stop))

    def fill(self, others: np.ndarray, y: np.ndarray, block: slice) -> None:
        start = 0
        for i in range(block.start, block.stop):
            np.multiply(y[i:], y[i], out=others[start : start + self.D - i])
            start += self.D - i

    def recentre(
        self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray, square: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        second = np.empty((len(others), self.D, self.D))
        for i, row in self._rows():
            second[:, i, i:] = second[:, i:, i] = others[:, row]
        first = linear - counts[:, None] * self.offset
        for k, offset in enumerate(self.offset):
            second[k] -= np.outer(offset, linear[k])
            second[k] -= np.outer(first[k], offset)
        return first, second


class _Tied(_Expansion):
    """½ yᵀPy: the square is the same for all components, so is its moment."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray):
        super().__init__(offset)
        self.precision = precision
        self.linear, self.coefficients = offset @ precision, -np.ones((len(offset), 1))
        self.constant = -(self.linear * offset).sum(axis=1) / 2

    def fill(self, others: np.ndarray, y: np.ndarray, block: slice) -> None:
        np.sum((self.precision.astype(y.dtype) @ y) * y, axis=0, out=others[0])
        others[0] /= 2

    def recentre(
        self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray, square: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """First moments about the means, and the second ones summed over components."""
        first = linear - counts[:, None] * self.offset
        return first, square - self.offset.T @ linear - first.T @ self.offset


EXPANSIONS: dict[tuple[int, int], type[Any]] = {  # of an offset and a precision
    (DIAG, 0): _Diagonal,
    (DIAG, 1): _DiagonalWithGaps,
    (FULL, 0): _Full,
    (TIED, 0): _Tied,
    (POISSON, 0): _Counts,
    (POISSON, 1): _CountsWithGaps,
}


def walks(cpu: bool, D: int, K: int, COVARIANCE: int, **_: int) -> int:
    """Groups walk over the data, each with sums of this size."""
    return K + K * D + {DIAG: K * D, FULL: K * D * D, TIED: D * D, POISSON: 0}[COVARIANCE]


def local_reals(D: int, K: int, **_: int) -> int:
    """Local memory a data point takes on a GPU: itself and its responsibilities."""
    return D + K
