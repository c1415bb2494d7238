"""The E-step of Gaussian mixtures: log joint, responsibilities and moments of a tile of data in one go.

log N(y; μ_k, P_k⁻¹) is linear in features of y − c: (y, y²) for diagonal precisions, (y, y yᵀ) for full ones.
So the log joint is one matrix product with the features, the moments are another, and a softmax lies between.
A feature that is always 1 carries the constants in, and the counts out.
"""

import numpy as np

TILE_BYTES = 1 << 21  # features of the data points whose responsibilities exist at once: N × K is never formed
DIAG, FULL, TIED = 0, 1, 2  # COVARIANCE, a number for the sake of C
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
    STORE: int,
) -> None:
    """Log evidence of each point, and the sums Σ_n w_n r_nk (1, y − μ_k, (y − μ_k)²).

    Moments are taken about the old means, so that no variance is a small difference of large numbers.

    Parameters
    ----------
    Y : (N, D) array
    mu : (K, D) array
    precision : (K, D) array if COVARIANCE is 0 (diag), (K, D, D) if 1 (full), (D, D) if 2 (tied)
    log_weight : (K,) array
        log π_k + ½ log|P_k| − D/2 log 2π.
    beta, shift : float, (K,) array
        Responsibilities r_n are the softmax of beta log p(k, y_n) + shift.
    weights : (N,) array
    log_evidence : (N,) array, out
    responsibilities : (N, K) array, out, if STORE; any array otherwise
    sums : (groups, K + K D + size of `precision`) array, out
        A row for each group of data points (here: one): counts, first and second moments; the latter are summed
        over k if tied.
    """
    centre, dtype = _frame(Y, mu, precision)
    expansion = EXPANSIONS[COVARIANCE](mu - centre, precision.astype(np.float64))
    coefficients = np.concatenate([expansion.coefficients, (log_weight + expansion.constant)[:, None]], axis=1)
    coefficients = coefficients.astype(dtype)
    moments = np.zeros(coefficients.shape)
    square = np.zeros((len(centre),) * 2)
    tile = min(N, max(64, TILE_BYTES // coefficients[0].nbytes))
    features = np.empty((coefficients.shape[1], tile), dtype=dtype)  # data points run along the last axis: SIMD
    features[-1] = 1
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        f = features[:, : part.stop - start]
        y = f[: len(centre)]
        np.subtract(Y[part].T, centre[:, None], out=y, casting="same_kind")
        expansion.fill(f, y)
        joint = coefficients @ f
        r = _softmax(joint, beta, shift, weights[part], log_evidence[part])
        if STORE:
            responsibilities[part] = r.T
        moments += r @ f.T
        if COVARIANCE == TIED:
            square += (y * weights[part].astype(dtype)) @ y.T
    sums[0] = np.concatenate([moments[:, -1], *(a.ravel() for a in expansion.recentre(moments, square))])


def _frame(Y: np.ndarray, mu: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.dtype]:
    """A centre amid the means, and the type in which squares about it are exact enough to be expanded."""
    centre = mu.mean(axis=0, dtype=np.float64).astype(Y.dtype).astype(np.float64)
    offset = mu - centre
    if precision.shape == mu.shape:
        distance = (offset**2 * precision).sum(axis=1)
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
    np.exp(joint, out=joint)
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

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second moments about the means."""
        linear = sums[:, : self.D]
        first = linear - sums[:, -1:] * self.offset
        return first, sums[:, self.D : 2 * self.D] - self.offset * (linear + first)


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

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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

    def recentre(self, sums: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First moments about the means, and the second ones summed over components."""
        linear = sums[:, : len(square)]
        first = linear - sums[:, -1:] * self.offset
        return first, square - self.offset.T @ linear - first.T @ self.offset


EXPANSIONS: dict[int, type[_Diagonal] | type[_Full] | type[_Tied]] = {DIAG: _Diagonal, FULL: _Full, TIED: _Tied}


def walks(cpu: bool, D: int, K: int, COVARIANCE: int, **_: int) -> int:
    """Groups walk over the data, each with sums of this size."""
    return K + K * D + {DIAG: K * D, FULL: K * D * D, TIED: D * D}[COVARIANCE]


def local_reals(D: int, K: int, **_: int) -> int:
    """Local memory a data point takes on a GPU: itself and its responsibilities."""
    return D + K
