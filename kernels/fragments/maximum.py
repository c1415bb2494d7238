"""Only the largest of the active causes is seen, in Gaussian noise (MCA). setting: −1 / 2σ²."""

import numpy as np

RELATIVE, EXCLUSIVE, IMPUTED = True, True, True


def start(y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.zeros_like(y)


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.maximum(c, w)


def term(y: np.ndarray, c: np.ndarray, setting: np.ndarray) -> np.ndarray:
    difference = y - c
    difference *= difference
    return difference


def share(w: np.ndarray, c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return (w == c).astype(c.dtype)


def value(c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return c


def size(w: np.ndarray) -> np.ndarray:
    return w
