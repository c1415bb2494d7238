"""Only the largest of the active causes is seen, or the floor. setting[1]: the floor."""

import numpy as np

EXCLUSIVE, IMPUTED = True, True


def start(y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.full_like(y, setting[1])


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.maximum(c, w)


def share(w: np.ndarray, c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return (w == c).astype(c.dtype)


def seen(c: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return c


def size(w: np.ndarray) -> np.ndarray:
    return w
