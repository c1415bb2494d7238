"""|c|^ρ sign c is the sum of the active causes' |w|^ρ sign w.

Fields and combined values are logarithms with a sign: see smooth_maximum.h. setting[1], [2], [3]: 1 / ρ, scale, whether
there are signs.
"""

import numpy as np

EXCLUSIVE, IMPUTED = False, True
NOTHING = 1e30  # a logarithm of 0


def encode(W: np.ndarray, scale: float, rho: float) -> np.ndarray:
    """Numbers as fields: −ρ log2(|W| / scale) with the sign of W."""
    size = np.abs(W) / scale
    logs = -rho * np.log2(size, out=np.full_like(size, -NOTHING / rho), where=size > 0)
    return np.copysign(logs, W)


def start(y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.full_like(y, NOTHING)


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    a, b = np.abs(c), np.abs(w)
    near = np.minimum(a, b)
    small = np.exp2(near - np.maximum(a, b))
    if setting[3]:
        small = np.where((c < 0) == (w < 0), small, -small)
    with np.errstate(divide="ignore"):  # two that cancel
        total = np.minimum(near - np.log1p(small) / c.dtype.type(np.log(2)), c.dtype.type(NOTHING))
    return np.where(np.where(a > b, w, c) < 0, -total, total)


def seen(c: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.copysign(setting[2] * np.exp2(-setting[1] * np.abs(c)), c)


def share(w: np.ndarray, c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.exp2((1 - setting[1]) * np.minimum(np.abs(c) - np.abs(w), 0))
