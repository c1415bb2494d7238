"""Gamma noise of shape k; exponential noise, where k = 1: see gamma.h. setting[0], [1]: k, the floor of means."""

import numpy as np

from gem.kernels.fragments import log_ratio
from gem.kernels.fragments.gaussian import value

__all__ = ["RELATIVE", "term", "value"]

RELATIVE = False


def term(y: np.ndarray, mean: np.ndarray, setting: np.ndarray) -> np.ndarray:
    most = np.maximum(y, setting[1])
    return log_ratio(np.broadcast_to(most, mean.shape), mean) - y / most * ((most - mean) / mean)
