"""What the numpy backend runs for `mixture` and `mixture_full`: log joint, responsibilities and sums of a tile of data.

log N(y; μ_k, P_k⁻¹) is linear in features of y − c: (y, y²) for diagonal precisions, (y, y yᵀ) for full ones; that of
counts is in y, and where entries are missing, in whether each is there. So the log joint is one matrix product with
the features, the moments are another, and a softmax lies between. A feature that is always 1 carries the constants
in, and the counts out. Covariances come as the triangular factor R of P = RᵀR. Full ones of many dimensions are taken
one by one with it instead (`_Wide`), and so are components that are narrow and far from c (`_Apart`): there the
expanded square would be a small difference of large terms. If they share one covariance (`_Tied`), features are made
of R (y − c).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from gem.kernels.weights import settled_exp

SUMS, STORE = 4, 8  # STAGES
TILE_BYTES = 1 << 21  # features of the data points whose responsibilities exist at once: N × K is never formed
WIDE = 32  # dimensions from which on triangular products are faster than those of D (D + 1) / 2 features
BLOCKS = 4  # of rows of triangles
FAINT = {4: 32.0, 8: 667.0}  # itemsize → nats below the largest log joint where a responsibility is 0: as in gem.h
LOG_FACTORIALS = np.cumsum(np.log(np.maximum(1, np.arange(1024))))
SAFE = 1e3  # squared distance, in standard deviations, up to which float32 expands a square with error < 1e-4
FAR = 1e8  # and float64 with error < 1e-7
TERMS = 2e3  # Σ_ij |P_ij y_i y_j| up to which the products with P are taken in float32
LOST = {4: 1e-4, 8: 1e-9}  # itemsize → share that a difference of squares must leave of them, or it is taken otherwise


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
    room: np.ndarray,
    responsibilities: np.ndarray,
    sums: np.ndarray,
    least: float,
    nu: Any = None,
    *,
    STAGES: int,
    MISSING: int = 0,
    TIED: int = 0,
    fragment: Any = None,
) -> None:
    """As `mixture.mixture` with a fragment of `FAMILIES`, or `mixture_full.mixture_full` without.

    `least` is the floor of variances: digits far below it are no loss.
    """
    family = fragment.__name__.rpartition(".")[2] if fragment else "tied" if TIED else "full"
    common = family == "mixture_spherical"  # it is their sum that must keep its digits
    rates = mu[-1] if family == "mixture_poisson" else None
    mu = mu[: len(log_weight)]
    wide = family == "full" and mu.shape[1] >= WIDE
    kind = _Wide if wide else FAMILIES[family][MISSING]
    centre, distance = _frame(Y, mu, precision, family) if not wide else (np.zeros(mu.shape[1]), np.zeros(1))
    cancels = distance.max() > SAFE or (kind is _Full and Y.itemsize < 8 and _terms(Y - centre, precision) > TERMS)
    fine = rates is not None and precision.dtype != Y.dtype
    dtype = np.dtype(np.float64) if cancels or fine else Y.dtype
    far = np.broadcast_to(distance > FAR, len(mu))

    def walk(expansion: _Expansion) -> tuple[np.ndarray, ...]:
        """One walk over the data: counts, first and second moments; raw squares."""
        whole = [expansion.linear, (log_weight + expansion.constant)[:, None], expansion.coefficients]
        coefficients = np.concatenate(whole, axis=1).astype(dtype)
        moments, D = np.zeros(coefficients.shape), len(centre)
        tile = min(N, max(64, TILE_BYTES // coefficients[0].nbytes))
        features = np.empty((coefficients.shape[1], tile), dtype=dtype)  # data points run along the last axis: SIMD
        features[D] = 1
        for start in range(0, N, tile):
            part = slice(start, min(N, start + tile))
            f = features[:, : part.stop - start]
            y = f[:D]
            np.subtract(Y[part].T, centre.astype(dtype)[:, None], out=y)  # the same number: `_frame` has rounded it
            expansion.fill(f[D + 1 :], y)
            joint = coefficients @ f
            expansion.weigh(joint, y)
            evidence = np.empty(y.shape[1], dtype)
            r = _softmax(joint, beta, shift, weights[part], evidence)
            log_evidence[part] = evidence if rates is None else evidence + _log_poisson(Y[part], rates)
            if STAGES & STORE:
                responsibilities[part] = r.T
            moments += r @ f.T
            expansion.collect(r, y)
        counts, linear, others = moments[:, D], moments[:, :D], moments[:, D + 1 :]
        return counts, *expansion.recentre(counts, linear, others), expansion.squares(others)

    while True:
        expansion = kind(mu - centre, precision, dtype)
        expansion.faint = (FAINT[dtype.itemsize] + np.ptp(shift)) / min(beta, 1.0)
        counts, *moments, squares = walk(_Apart(expansion, far) if far.any() else expansion)
        lost = ~far & expansion.lost(moments, squares, least * counts, common)
        if not lost.any():
            break
        far, dtype = (far | lost, dtype) if dtype == np.float64 else (far, np.dtype(np.float64))
    if STAGES & SUMS:
        sums[0] = np.concatenate([counts, *(a.ravel() for a in expansion.back(*moments))])


def _frame(Y: np.ndarray, mu: np.ndarray, precision: np.ndarray, family: str) -> tuple[np.ndarray, np.ndarray]:
    """A centre amid the means, and their squared distances from it in standard deviations, (K,)."""
    if family == "mixture_poisson":  # its features are no squares
        return np.zeros(mu.shape[1]), np.zeros(1)
    centre = mu.mean(axis=0, dtype=np.float64).astype(Y.dtype).astype(np.float64)
    offset = mu - centre
    if precision.ndim == 2 and family != "tied":
        return centre, (offset**2 * precision[: len(mu)]).sum(axis=1)
    return centre, ((np.tril(precision) @ offset[:, :, None])[:, :, 0] ** 2).sum(axis=1)


def _terms(Y: np.ndarray, precision: np.ndarray) -> float:
    """The largest Σ_ij |P_ij| s_i s_j of all components, s the size of Y in each dimension, from some of its rows."""
    size = np.sqrt(np.mean(Y[:: -(-len(Y) // 256)] ** 2, axis=0, dtype=np.float64))
    upper = np.abs(np.triu(precision, 1)) @ size @ size
    return float(np.max(2 * upper + (np.tril(precision) ** 2).sum(axis=1) @ size**2))


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
    """The log joint as a product with features: y, 1, and others that `fill` makes of y; what is not, `weigh` adds.

    Attributes
    ----------
    linear, coefficients : (K, D), (K, number of the others) arrays
    constant : (K,) array
    """

    linear: np.ndarray
    coefficients: np.ndarray
    constant: np.ndarray
    faint: float  # log joint below the largest where r is 0

    def __init__(self, offset: np.ndarray):
        self.offset, self.D = offset, offset.shape[1]

    def fill(self, others: np.ndarray, y: np.ndarray) -> None:
        """Make the other features."""

    def weigh(self, joint: np.ndarray, y: np.ndarray) -> None:
        """Add to the log joint (K, n) what is no product with features."""

    def collect(self, r: np.ndarray, y: np.ndarray) -> None:
        """Sum what are no moments of features, with responsibilities (K, n)."""

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        """First and second moments about the means, from the features' moments."""
        raise NotImplementedError

    def back(self, *moments: np.ndarray) -> tuple[np.ndarray, ...]:
        """The moments in the data's frame, where they were taken in another."""
        return moments

    def squares(self, others: np.ndarray) -> np.ndarray:
        """Σ r_nk y_nd² about the centre, (K, D), of which the second moments are what a difference leaves."""
        return np.zeros((1, self.D))

    def lost(self, moments: list[np.ndarray], squares: np.ndarray, floor: np.ndarray, common: bool) -> np.ndarray:
        """Components of which too little is left of it, beside the `floor` of their second moments, (K,)."""
        return np.zeros(len(self.offset), dtype=bool)


class _Gaussian(_Expansion):
    """One whose components can be taken about their own means, too, as `_Apart` does. Of y − μ_k the columns of `d`."""

    apart: Any = 0.0  # coefficients of the other features, for such components
    all_alike = False  # whether all are taken so if one is, since their second moments are one

    def __init__(self, offset: np.ndarray, dtype: np.dtype):
        super().__init__(offset)
        self.dtype = dtype

    def from_mean(self, k: int, y: np.ndarray) -> np.ndarray:
        return y - self.offset[k][:, None]

    def half_square(self, k: int, d: np.ndarray) -> np.ndarray:
        """½ dᵀP_k d = ½ |R_k d|², (n,)."""
        raise NotImplementedError

    def second(self, k: int, r: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Σ_n r_n d_n d_nᵀ, or its diagonal where that is all there is."""
        return (d * r) @ d.T

    def lost(self, moments: list[np.ndarray], squares: np.ndarray, floor: np.ndarray, common: bool) -> np.ndarray:
        second = moments[1] if moments[1].shape == squares.shape else np.einsum("...dd->...d", moments[1])
        least = floor if self.all_alike else floor[:, None]
        if common:
            second, squares, least = second.sum(1, keepdims=True), squares.sum(1, keepdims=True), self.D * least
        kept = np.maximum(second, least)
        return np.broadcast_to(np.any(kept < LOST[self.dtype.itemsize] * squares, axis=-1), len(self.offset))


class _Apart(_Expansion):
    """Another expansion, but of components `far` from the centre: these are taken about their own means."""

    def __init__(self, expansion: Any, far: np.ndarray):
        super().__init__(expansion.offset)
        self.expansion, self.far = expansion, [int(k) for k in np.flatnonzero(far | expansion.all_alike)]
        near = np.isin(np.arange(len(far)), self.far, invert=True)
        self.linear, self.constant = expansion.linear * near[:, None], expansion.constant * near
        self.coefficients = np.where(near[:, None], expansion.coefficients, expansion.apart)
        self.first: dict[int, Any] = dict.fromkeys(self.far, 0.0)
        self.second: dict[int, Any] = dict.fromkeys(self.far, 0.0)

    def fill(self, others: np.ndarray, y: np.ndarray) -> None:
        self.expansion.fill(others, y)

    def weigh(self, joint: np.ndarray, y: np.ndarray) -> None:
        for k in self.far:
            joint[k] -= self.expansion.half_square(k, self.expansion.from_mean(k, y))

    def collect(self, r: np.ndarray, y: np.ndarray) -> None:
        for k in self.far:
            d = self.expansion.from_mean(k, y)
            self.first[k] += d @ r[k]
            self.second[k] += self.expansion.second(k, r[k], d)

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        first, second = self.expansion.recentre(counts, linear, others)
        first[self.far] = list(self.first.values())
        if self.expansion.all_alike:
            return first, sum(self.second.values())
        second[self.far] = list(self.second.values())
        return first, second

    def squares(self, others: np.ndarray) -> np.ndarray:
        return np.asarray(self.expansion.squares(others))


class _Diagonal(_Gaussian):
    """y²."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray, dtype: np.dtype):
        super().__init__(offset, dtype)
        precision = precision.astype(np.float64)
        self.linear, self.coefficients = precision * offset, -precision / 2
        self.constant = -(self.linear * offset).sum(axis=1) / 2

    def fill(self, others: np.ndarray, y: np.ndarray) -> None:
        np.multiply(y, y, out=others[: self.D])

    def squares(self, others: np.ndarray) -> np.ndarray:
        return others[:, : self.D]

    def half_square(self, k: int, d: np.ndarray) -> np.ndarray:
        return -self.coefficients[k, : self.D] @ (d * d)

    def second(self, k: int, r: np.ndarray, d: np.ndarray) -> np.ndarray:
        return (d * d) @ r

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        first = linear - counts[:, None] * self.offset
        return first, others - self.offset * (linear + first)


class _DiagonalWithGaps(_Diagonal):
    """y², and whether there is a y."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray, dtype: np.dtype):
        self.precision, normalisation = np.split(precision.astype(np.float64), 2)
        super().__init__(offset, self.precision, dtype)
        taken = self.precision * offset**2 / 2 + normalisation
        self.coefficients = np.concatenate([self.coefficients, -taken], axis=1)
        self.apart = np.concatenate([np.zeros(offset.shape), -normalisation], axis=1)
        self.constant = np.zeros(len(offset))

    def fill(self, others: np.ndarray, y: np.ndarray) -> None:
        self.observed = others[self.D :]
        _mark_observed(self.observed, y)
        super().fill(others, y)

    def from_mean(self, k: int, y: np.ndarray) -> np.ndarray:
        return super().from_mean(k, y) * self.observed

    def second(self, k: int, r: np.ndarray, d: np.ndarray) -> np.ndarray:
        return super().second(k, r, d) + (r.sum() - self.observed @ r) / self.precision[k]

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        """A missing entry adds its variance to the second moment."""
        squares, seen = np.split(others, 2, axis=1)
        first = linear - seen * self.offset
        second = squares - self.offset * (linear + first)
        return first, second + (counts[:, None] - seen) / self.precision


class _Counts(_Expansion):
    """Nothing but y."""

    def __init__(self, rates: np.ndarray, log_rates: np.ndarray, dtype: np.dtype):
        super().__init__(rates)
        self.linear, self.coefficients, self.constant = log_rates, np.empty((len(rates), 0)), np.zeros(len(rates))

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        """First moments about the rates."""
        return (linear - counts[:, None] * self.offset,)


class _CountsWithGaps(_Counts):
    """Whether there is a y."""

    def __init__(self, rates: np.ndarray, log_rates: np.ndarray, dtype: np.dtype):
        per_entry, taken = np.split(log_rates, 2)
        super().__init__(rates, per_entry, dtype)
        self.coefficients = -taken

    def fill(self, others: np.ndarray, y: np.ndarray) -> None:
        _mark_observed(others, y)

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
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


class _Full(_Gaussian):
    """y_i y_j for i ≤ j: half the work of K products with D × D matrices."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray, dtype: np.dtype):
        super().__init__(offset, dtype)
        rounded, precision = precision.dtype == dtype, precision.astype(np.float64)
        self.factor = np.tril(precision)
        if not rounded:  # more digits than it came with: as good as R is
            precision = np.swapaxes(self.factor, 1, 2) @ self.factor
        root = self.factor @ offset[:, :, None]
        self.linear = (np.swapaxes(self.factor, 1, 2) @ root)[:, :, 0]
        self.constant = -(root[:, :, 0] ** 2).sum(axis=1) / 2
        self.coefficients = np.empty((len(offset), self.D * (self.D + 1) // 2))
        for i, row in self._rows():
            np.negative(precision[:, i, i:], out=self.coefficients[:, row])  # y_i y_j stands for y_j y_i, too
            self.coefficients[:, row.start] = -(self.factor[:, i:, i] ** 2).sum(axis=1) / 2

    def _rows(self) -> Iterator[tuple[int, slice]]:
        """For each i, where its y_i y_j are."""
        start = 0
        for i in range(self.D):
            yield i, slice(start, start + self.D - i)
            start += self.D - i

    def fill(self, others: np.ndarray, y: np.ndarray) -> None:
        for i, row in self._rows():
            np.multiply(y[i:], y[i], out=others[row])

    def squares(self, others: np.ndarray) -> np.ndarray:
        return others[:, [row.start for _, row in self._rows()]]

    def half_square(self, k: int, d: np.ndarray) -> np.ndarray:
        z = self.factor[k] @ d
        return np.asarray(np.einsum("dn,dn->n", z, z)) / 2

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        second = np.empty((len(others), self.D, self.D))
        for i, row in self._rows():
            second[:, i, i:] = second[:, i:, i] = others[:, row]
        first = linear - counts[:, None] * self.offset
        for k, moved in enumerate(self.offset):
            second[k] -= np.outer(moved, linear[k])
            second[k] -= np.outer(first[k], moved)
        return first, second


def _blocks(D: int) -> list[slice]:
    """Rows of a triangular matrix, of which products skip what is right of each block's own columns."""
    ends = [D * part // BLOCKS for part in range(BLOCKS + 1)] if D >= 8 * BLOCKS else [0, D]
    return [slice(start, stop) for start, stop in pairwise(ends)]


class _Wide(_Expansion):
    """No other features: products with triangular matrices about each mean, which skip who has no responsibility.

    The rows of R (y − μ) add up: where the first ones say that r will be 0, as for most components once these have been
    learned, the others are not computed.
    """

    def __init__(self, offset: np.ndarray, precision: np.ndarray, dtype: np.dtype):
        super().__init__(offset)
        K = len(offset)
        self.linear, self.coefficients, self.constant = np.zeros(offset.shape), np.empty((K, 0)), np.zeros(K)
        self.factors, self.means = np.tril(precision).astype(dtype), offset.astype(dtype)[:, :, None]
        self.blocks = _blocks(self.D)
        self.first, self.second = np.zeros(offset.shape), np.zeros(precision.shape)

    def weigh(self, joint: np.ndarray, y: np.ndarray) -> None:
        everyone = np.arange(joint.shape[1])
        for k in range(len(joint)):
            self._take(joint, y, k, everyone, self.blocks[:1])
        best = joint.argmax(axis=0)
        for k in range(len(joint)):
            self._take(joint, y, k, np.flatnonzero(best == k), self.blocks[1:])
        least = joint[best, everyone] - self.faint
        for k in range(len(joint)):
            self._take(joint, y, k, np.flatnonzero((joint[k] >= least) & (best != k)), self.blocks[1:])
        joint[joint < least] = -np.inf

    def _take(self, joint: np.ndarray, y: np.ndarray, k: int, own: np.ndarray, blocks: list[slice]) -> None:
        """Take ½ z² of some rows of z = R_k (y − μ_k) from the log joint of the points `own`."""
        if own.size and blocks:
            last = blocks[-1].stop
            d = (y[:last] if own.size == y.shape[1] else y[:last, own]) - self.means[k, :last]
            for block in blocks:
                z = self.factors[k, block, : block.stop] @ d[: block.stop]
                joint[k, own] -= np.einsum("dn,dn->n", z, z) / 2

    def collect(self, r: np.ndarray, y: np.ndarray) -> None:
        for k, share in enumerate(r):
            own = np.flatnonzero(share)
            d = (y[:, own] if own.size < share.size else y) - self.means[k]
            self.first[k] += d @ share[own]
            d *= np.sqrt(share[own])
            self.second[k] += d @ d.T  # half the work, since it is symmetric

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.first, self.second


class _Tied(_Gaussian):
    """½ |z|² of z = R (y − c), the same for all components, so is its moment: y itself is not needed any more."""

    all_alike = True

    def __init__(self, offset: np.ndarray, precision: np.ndarray, dtype: np.dtype):
        self.factor = np.tril(precision.astype(np.float64))
        super().__init__(offset @ self.factor.T, dtype)
        self.linear, self.coefficients = self.offset, -np.ones((len(offset), 1))
        self.constant = -(self.offset**2).sum(axis=1) / 2
        self.whiten, self.blocks = self.factor.astype(dtype), _blocks(self.D)
        self.square = np.zeros(precision.shape)

    def fill(self, others: np.ndarray, y: np.ndarray) -> None:
        for block in reversed(self.blocks):  # in place: no later one asks for these rows of y
            y[block] = self.whiten[block, : block.stop] @ y[: block.stop]
        others[0] = np.einsum("dn,dn->n", y, y) / 2

    def squares(self, others: np.ndarray) -> np.ndarray:
        return np.diag(self.square)[None]

    def lost(self, moments: list[np.ndarray], squares: np.ndarray, floor: np.ndarray, common: bool) -> np.ndarray:
        return super().lost(moments, squares, floor.sum() * (self.factor**2).sum(axis=1), common)

    def half_square(self, k: int, d: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("dn,dn->n", d, d)) / 2

    def collect(self, r: np.ndarray, y: np.ndarray) -> None:
        x = y * np.sqrt(r.sum(axis=0))
        self.square += x @ x.T

    def recentre(self, counts: np.ndarray, linear: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
        """First moments about the means, and the second ones summed over components; of z."""
        first = linear - counts[:, None] * self.offset
        return first, self.square - self.offset.T @ linear - first.T @ self.offset

    def back(self, *moments: np.ndarray) -> tuple[np.ndarray, ...]:
        inverse = np.linalg.inv(self.factor)
        return moments[0] @ inverse.T, inverse @ moments[1] @ inverse.T


FAMILIES: dict[str, tuple[type[Any], ...]] = {  # fragment, or kind of covariance → without gaps, with them
    "mixture_gaussian": (_Diagonal, _DiagonalWithGaps),
    "mixture_spherical": (_Diagonal,),
    "mixture_poisson": (_Counts, _CountsWithGaps),
    "full": (_Full,),
    "tied": (_Tied,),
}
