"""Only the active cause of largest magnitude is seen."""

import numpy as np

from gem.kernels.fragments.maximum import EXCLUSIVE, IMPUTED, seen, share

__all__ = ["EXCLUSIVE", "IMPUTED", "combine", "seen", "share", "size", "start"]


def start(y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return np.zeros_like(y)


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    larger = np.abs(w) > np.abs(c)
    out = w * larger  # faster than np.where, and as exact: the other term is 0
    out += c * ~larger
    return out


def size(w: np.ndarray) -> np.ndarray:
    return np.abs(w)
