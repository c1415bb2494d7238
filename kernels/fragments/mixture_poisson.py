"""A component is Poisson in each dimension, of rate mu; P is its log beside the base's rate: see mixture_poisson.h."""

from math import lgamma

import numpy as np

BASE, SECOND = True, False


def cost(y: np.ndarray, mu: np.ndarray, P: np.ndarray) -> np.ndarray:
    return -P * y


def whole(q: np.ndarray, P: float) -> np.ndarray:
    return q


def log_base(y: np.ndarray, rate: np.ndarray) -> np.ndarray:
    counts = (y >= 0) & (np.floor(y) == y)
    y = np.where(counts, y, 0)
    return np.where(counts, y * np.log(rate) - rate - np.vectorize(lgamma)(y + 1), -np.inf)
