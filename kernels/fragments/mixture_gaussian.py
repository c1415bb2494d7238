"""A component is Gaussian in each dimension, of mean mu and inverse variance P: see mixture_gaussian.h."""

import numpy as np

BASE, SECOND = False, True


def cost(y: np.ndarray, mu: np.ndarray, P: np.ndarray) -> np.ndarray:
    return P * (y - mu) ** 2 / 2


def whole(q: np.ndarray, P: float) -> np.ndarray:
    return q


def second(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x**2


def unseen(P: np.ndarray) -> np.ndarray:
    return 1 / P
