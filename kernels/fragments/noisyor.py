"""Each active cause switches y on with probability w, independently of the others.

Fields, the combined value and `share` are explained in noisyor.h. setting: 1.
"""

import numpy as np

RELATIVE, EXCLUSIVE, IMPUTED = False, False, False


def start(y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return 1 - y


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    out = c * np.where(w < 0, -w, 1 - w)
    out += y * np.where(w < 0, 1 + w, w)
    return out


def term(y: np.ndarray, c: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(c, np.finfo(c.dtype).tiny))


def share(w: np.ndarray, c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.where(y > 0, 1 - c, c) / np.where(y > 0, c, 1 - c)


def value(c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.where(y > 0, c, 1 - c)
