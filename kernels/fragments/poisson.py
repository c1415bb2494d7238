"""The largest of the active causes' rates and a background rate, in Poisson noise. setting: 1, background."""

import numpy as np

RELATIVE, EXCLUSIVE, IMPUTED = True, True, True


def start(y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.full_like(y, setting[1])


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.maximum(c, w)


def term(y: np.ndarray, c: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return y * np.log(c) - c


def share(w: np.ndarray, c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return (w == c).astype(c.dtype)


def value(c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return c
