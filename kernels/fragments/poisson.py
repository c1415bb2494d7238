"""The largest of the active causes' rates and a background rate, in Poisson noise: see poisson.h.

setting: 1, background.
"""

import numpy as np

RELATIVE, EXCLUSIVE, IMPUTED = False, True, True


def start(y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.full_like(y, setting[1])


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.maximum(c, w)


def term(y: np.ndarray, c: np.ndarray, setting: np.ndarray) -> np.ndarray:
    most = np.broadcast_to(np.maximum(y, setting[1]), c.shape)
    above = c - most
    far = 2 * np.abs(above) >= most
    logs = np.log1p(np.where(far, 0, above / most))
    logs[far] = np.log(c[far] / most[far])
    return y * logs - above


def share(w: np.ndarray, c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return (w == c).astype(c.dtype)


def value(c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return c


def size(w: np.ndarray) -> np.ndarray:
    return w
