"""Poisson noise: see poisson.h. setting[0], [1]: 1, the floor of rates."""

import numpy as np

from gem.kernels.fragments import log_ratio
from gem.kernels.fragments.gaussian import value

__all__ = ["RELATIVE", "term", "value"]

RELATIVE = False


def term(y: np.ndarray, rate: np.ndarray, setting: np.ndarray) -> np.ndarray:
    most = np.broadcast_to(np.maximum(y, setting[1]), rate.shape)
    return y * log_ratio(rate, most) - (rate - most)
