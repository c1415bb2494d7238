"""A component is Gaussian with one inverse variance P for all dimensions: see mixture_spherical.h."""

import numpy as np

BASE, SECOND = False, True


def cost(y: np.ndarray, mu: np.ndarray, P: np.ndarray) -> np.ndarray:
    return (y - mu) ** 2


def whole(q: np.ndarray, P: float) -> np.ndarray:
    return P * q / 2


def second(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x**2
