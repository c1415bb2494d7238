"""The E-step of Gaussian and Poisson mixtures: log joint, responsibilities and moments of a tile of data in one go.

log N(y; μ_k, P_k⁻¹) is linear in features of y − c: (y, y²) for diagonal precisions, (y, y yᵀ) for full ones; that of
counts is in y, and where entries are missing, in whether each is there. So the log joint is one matrix product with
the features, the moments are another, and a softmax lies between. A feature that is always 1 carries the constants
in, and the counts out.
"""

import numpy as np

from gem.kernels.weights import settled_exp

TILE_BYTES = 1 << 21  # features of the data points whose responsibilities exist at once: N × K is never formed
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
    coefficients = np.concatenate([expansion.coefficients, (log_weight + expansion.constant)[:, None]], axis=1)
    coefficients = coefficients.astype(dtype)
    middle = centre.astype(dtype)[:, None]  # the same number: `_frame` has rounded it
    moments = np.zeros(coefficients.shape)
    square = np.zeros((len(centre),) * 2)
    tile = min(N, max(64, TILE_BYTES // coefficients[0].nbytes))
    features = np.empty((coefficients.shape[1], tile), dtype=dtype)  # data points run along the last axis: SIMD
    features[-1] = 1
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        f = features[:, : part.stop - start]
        y = f[: len(centre)]
        np.subtract(Y[part].T, middle, out=y)
        expansion.fill(f, y)
        joint = coefficients @ f
        r = _softmax(joint, beta, shift, weights[part], log_evidence[part])
        if rates is not None:
            log_evidence[part] += _log_poisson(Y[part], rates)
        if STORE:
            responsibilities[part] = r.T
        moments += r @ f.T
        if COVARIANCE == TIED:
            square += (y * weights[part].astype(dtype)) @ y.T
    sums[0] = np.concatenate([moments[:, -1], *(a.ravel() for a in expansion.recentre(moments, square))])


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


class _Diagonal:
    """Features (y, y²)."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray):
        self.offset, self.D = offset, offset.shape[1]
        linear = precision * offset
        self.coefficients = np.concatenate([linear, -precision / 2], axis=1)
        self.constant = -(linear * offset).sum(axis=1) / 2

    def fill(self, features: np.ndarray, y: np.ndarray) -> None:
        np.multiply(y, y, out=features[self.D : 2 * self.D])

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, ...]:
        """First and second moments about the means."""
        linear = sums[:, : self.D]
        first = linear - sums[:, -1:] * self.offset
        return first, sums[:, self.D : 2 * self.D] - self.offset * (linear + first)


class _DiagonalWithGaps(_Diagonal):
    """Features (y, y², whether there is a y)."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray):
        self.precision, normalisation = np.split(precision, 2)
        super().__init__(offset, self.precision)
        taken = self.precision * offset**2 / 2 + normalisation
        self.coefficients = np.concatenate([self.coefficients, -taken], axis=1)
        self.constant = np.zeros(len(offset))

    def fill(self, features: np.ndarray, y: np.ndarray) -> None:
        _mark_observed(features[2 * self.D : -1], y)
        super().fill(features, y)

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, ...]:
        """First and second moments about the means: a missing entry adds its variance to the second."""
        linear, seen = sums[:, : self.D], sums[:, 2 * self.D : -1]
        first = linear - seen * self.offset
        second = sums[:, self.D : 2 * self.D] - self.offset * (linear + first)
        return first, second + (sums[:, -1:] - seen) / self.precision


class _Counts:
    """Features y."""

    def __init__(self, rates: np.ndarray, log_rates: np.ndarray):
        self.rates, self.coefficients, self.constant = rates, log_rates, np.zeros(len(rates))

    def fill(self, features: np.ndarray, y: np.ndarray) -> None:
        """There is nothing but y."""

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, ...]:
        """First moments about the rates."""
        return (sums[:, :-1] - sums[:, -1:] * self.rates,)


class _CountsWithGaps(_Counts):
    """Features (y, whether there is a y)."""

    def __init__(self, rates: np.ndarray, log_rates: np.ndarray):
        per_entry, taken = np.split(log_rates, 2)
        super().__init__(rates, np.concatenate([per_entry, -taken], axis=1))

    def fill(self, features: np.ndarray, y: np.ndarray) -> None:
        _mark_observed(features[len(y) : -1], y)

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, ...]:
        linear, seen = np.split(sums[:, :-1], 2, axis=1)
        return (linear - seen * self.rates,)


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


class _Full:
    """Features (y, y_i y_j for i ≤ j): half the work of K products with D × D matrices."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray):
        self.offset, self.D = offset, offset.shape[1]
        self.i, self.j = np.triu_indices(self.D)
        linear = (precision @ offset[:, :, None])[:, :, 0]
        twice = np.where(self.i == self.j, 0.5, 1.0)  # y_i y_j stands for y_j y_i, too
        self.coefficients = np.concatenate([linear, -precision[:, self.i, self.j] * twice], axis=1)
        self.constant = -(linear * offset).sum(axis=1) / 2

    def fill(self, features: np.ndarray, y: np.ndarray) -> None:
        start = self.D
        for i in range(self.D):
            np.multiply(y[i:], y[i], out=features[start : start + self.D - i])
            start += self.D - i

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, ...]:
        """First and second moments about the means."""
        linear = sums[:, : self.D]
        second = np.empty((len(sums), self.D, self.D))
        second[:, self.i, self.j] = second[:, self.j, self.i] = sums[:, self.D : -1]
        first = linear - sums[:, -1:] * self.offset
        second -= self.offset[:, :, None] * linear[:, None, :]
        second -= first[:, :, None] * self.offset[:, None, :]
        return first, second


class _Tied:
    """Features (y, ½ yᵀPy): the square is the same for all components, so is its moment."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray):
        self.offset, self.precision = offset, precision
        linear = offset @ precision
        self.coefficients = np.concatenate([linear, -np.ones((len(offset), 1))], axis=1)
        self.constant = -(linear * offset).sum(axis=1) / 2

    def fill(self, features: np.ndarray, y: np.ndarray) -> None:
        np.sum((self.precision.astype(y.dtype) @ y) * y, axis=0, out=features[-2])
        features[-2] /= 2

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, ...]:
        """First moments about the means, and the second ones summed over components."""
        linear = sums[:, : len(square)]
        first = linear - sums[:, -1:] * self.offset
        return first, square - self.offset.T @ linear - first.T @ self.offset


EXPANSIONS: dict[tuple[int, int], type[_Diagonal] | type[_Full] | type[_Tied] | type[_Counts]] = {
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
