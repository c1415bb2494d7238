"""The E-step of Gaussian mixtures: log joint, responsibilities and moments of a tile of data in one go.

log N(y; μ_k, P_k⁻¹) is linear in features of y − c: (y, y²) for diagonal precisions, (y, y yᵀ) for full ones.
So the log joint is one matrix product with the features, the moments are another, and a softmax lies between.
"""

import numpy as np

TILE = 1024  # data points whose responsibilities exist at once: N × K is never formed
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
    counts: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    covariance: str,
    store: bool,
) -> None:
    """Log evidence of each point, and the sums Σ_n w_n r_nk (1, y − μ_k, (y − μ_k)²).

    Moments are taken about the old means, so that no variance is a small difference of large numbers.

    Parameters
    ----------
    Y : (N, D) array
    mu : (K, D) array, float64
    precision : float64 array, (K, D) if covariance is "diag", (K, D, D) if "full", (D, D) if "tied"
    log_weight : (K,) array, float64
        log π_k + ½ log|P_k| − D/2 log 2π.
    beta, shift : float, (K,) array
        Responsibilities r_n are the softmax of beta log p(k, y_n) + shift.
    weights : (N,) array
    log_evidence : (N,) array, out
    responsibilities : (N, K) array, out, if `store`; any array otherwise
    counts, first, second : (K,), (K, D), shape of `precision`, float64 arrays, out
        `second` of "tied" is summed over k.
    """
    centre, dtype = _frame(Y, mu, precision)
    expansion = EXPANSIONS[covariance](mu - centre, precision, dtype)
    constant = (log_weight + expansion.constant).astype(dtype)
    for start in range(0, N, TILE):
        part = slice(start, min(N, start + TILE))
        y = np.subtract(Y[part], centre, dtype=dtype)
        features = expansion.features(y)
        joint = features @ expansion.coefficients
        joint += constant
        r = _softmax(joint, beta, shift, log_evidence[part])
        if store:
            responsibilities[part] = r
        r *= weights[part, None].astype(dtype)
        expansion.add(r, features, y, weights[part])
    counts[:], first[:], second[:] = expansion.moments()


def _frame(Y: np.ndarray, mu: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.dtype]:
    """A centre amid the means, and the type in which squares about it are exact enough to be expanded."""
    centre = mu.mean(axis=0).astype(Y.dtype).astype(np.float64)
    offset = mu - centre
    if precision.shape == mu.shape:
        distance = (offset**2 * precision).sum(axis=1)
    else:
        distance = ((offset[:, None, :] @ precision)[:, 0, :] * offset).sum(axis=1)
    return centre, np.dtype(np.float64) if distance.max() > SAFE else Y.dtype


def _softmax(joint: np.ndarray, beta: float, shift: np.ndarray, log_evidence: np.ndarray) -> np.ndarray:
    """Log joint (n, K) to responsibilities, in place; the log evidence aside."""
    annealed = beta != 1 or bool(np.any(shift))
    weight = np.exp(joint - joint.max(axis=1, keepdims=True)) if annealed else joint
    if annealed:
        log_evidence[:] = joint.max(axis=1) + np.log(weight.sum(axis=1))
        joint *= joint.dtype.type(beta)
        joint += shift.astype(joint.dtype)
    top = joint.max(axis=1)
    joint -= top[:, None]
    np.exp(joint, out=joint)
    total = joint.sum(axis=1)
    if not annealed:
        log_evidence[:] = top + np.log(total)
    joint *= (1 / total)[:, None]
    return joint


class _Diagonal:
    """Features (y, y²)."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray, dtype: np.dtype):
        self.offset, self.D = offset, offset.shape[1]
        linear = precision * offset
        self.coefficients = np.concatenate([linear, -precision / 2], axis=1).T.astype(dtype)
        self.constant = -(linear * offset).sum(axis=1) / 2
        self.counts = np.zeros(len(offset))
        self.sums = np.zeros((len(offset), 2 * self.D))

    def features(self, y: np.ndarray) -> np.ndarray:
        return np.concatenate([y, y * y], axis=1)

    def add(self, r: np.ndarray, features: np.ndarray, y: np.ndarray, weights: np.ndarray) -> None:
        self.counts += r.sum(axis=0, dtype=np.float64)
        self.sums += r.T @ features

    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        linear, square = self.sums[:, : self.D], self.sums[:, self.D :]
        first = linear - self.counts[:, None] * self.offset
        return self.counts, first, square - self.offset * (linear + first)


class _Full:
    """Features (y, y_i y_j for i ≤ j): half the work of K products with D × D matrices."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray, dtype: np.dtype):
        self.offset, self.D = offset, offset.shape[1]
        self.i, self.j = np.triu_indices(self.D)
        linear = (precision @ offset[:, :, None])[:, :, 0]
        twice = np.where(self.i == self.j, 0.5, 1.0)  # y_i y_j stands for y_j y_i, too
        self.coefficients = np.concatenate([linear, -precision[:, self.i, self.j] * twice], axis=1).T.astype(dtype)
        self.constant = -(linear * offset).sum(axis=1) / 2
        self.counts = np.zeros(len(offset))
        self.sums = np.zeros((len(offset), self.D + len(self.i)))

    def features(self, y: np.ndarray) -> np.ndarray:
        out = np.empty((len(y), self.D + len(self.i)), dtype=y.dtype)
        out[:, : self.D] = y
        start = self.D
        for i in range(self.D):
            np.multiply(y[:, i:], y[:, i, None], out=out[:, start : start + self.D - i])
            start += self.D - i
        return out

    def add(self, r: np.ndarray, features: np.ndarray, y: np.ndarray, weights: np.ndarray) -> None:
        self.counts += r.sum(axis=0, dtype=np.float64)
        self.sums += r.T @ features

    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        linear = self.sums[:, : self.D]
        square = np.empty((len(self.offset), self.D, self.D))
        square[:, self.i, self.j] = square[:, self.j, self.i] = self.sums[:, self.D :]
        first = linear - self.counts[:, None] * self.offset
        cross = self.offset[:, :, None] * linear[:, None, :]
        square -= cross + first[:, :, None] * self.offset[:, None, :]
        return self.counts, first, square


class _Tied:
    """Features (y, ½ yᵀPy): the square is the same for all components, so is its moment."""

    def __init__(self, offset: np.ndarray, precision: np.ndarray, dtype: np.dtype):
        self.offset, self.precision = offset, precision.astype(dtype)
        linear = offset @ precision
        self.coefficients = np.concatenate([linear, -np.ones((len(offset), 1))], axis=1).T.astype(dtype)
        self.constant = -(linear * offset).sum(axis=1) / 2
        self.counts = np.zeros(len(offset))
        self.linear = np.zeros_like(offset)
        self.square = np.zeros_like(precision)

    def features(self, y: np.ndarray) -> np.ndarray:
        half = ((y @ self.precision) * y).sum(axis=1, keepdims=True) / 2
        return np.concatenate([y, half], axis=1)

    def add(self, r: np.ndarray, features: np.ndarray, y: np.ndarray, weights: np.ndarray) -> None:
        self.counts += r.sum(axis=0, dtype=np.float64)
        self.linear += r.T @ y
        self.square += (y * weights[:, None].astype(y.dtype)).T @ y

    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first = self.linear - self.counts[:, None] * self.offset
        return self.counts, first, self.square - self.offset.T @ self.linear - first.T @ self.offset


EXPANSIONS: dict[str, type[_Diagonal] | type[_Full] | type[_Tied]] = {"diag": _Diagonal, "full": _Full, "tied": _Tied}
