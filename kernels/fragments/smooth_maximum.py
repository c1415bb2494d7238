"""|c|^ρ sign c is the sum of the active causes' |w|^ρ sign w, in Gaussian noise.

Fields and combined values are logarithms with a sign: see smooth_maximum.h. setting: −1 / 2σ², ρ, scale.
"""

import numpy as np

RELATIVE, EXCLUSIVE, IMPUTED = True, False, True
NOTHING = 1e4  # a logarithm of 0


def encode(W: np.ndarray, scale: float) -> np.ndarray:
    """Numbers as fields: −log(|W| / scale) with the sign of W."""
    size = np.abs(W) / scale
    logs = -np.log(size, out=np.full_like(size, -NOTHING), where=size > 0)
    return np.copysign(logs, W)


def start(y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.full_like(y, NOTHING)


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    a, b = np.abs(c), np.abs(w)
    near = np.minimum(a, b)
    small = np.exp(setting[1] * (near - np.maximum(a, b)))
    small = np.where((c < 0) == (w < 0), small, -small)
    with np.errstate(divide="ignore"):  # two that cancel
        total = np.minimum(near - np.log1p(small) / setting[1], c.dtype.type(NOTHING))
    return np.where(np.where(a > b, w, c) < 0, -total, total)


def value(c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.copysign(setting[2] * np.exp(-np.abs(c)), c)


def term(y: np.ndarray, c: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return (y - value(c, y, setting)) ** 2


def share(w: np.ndarray, c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.exp((setting[1] - 1) * np.minimum(np.abs(c) - np.abs(w), 0))
