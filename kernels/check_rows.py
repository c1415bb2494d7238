"""Data points that a model of binary data cannot explain."""

import numpy as np


def check_rows(N: int, Y: np.ndarray, out: np.ndarray) -> None:
    """out[n] = 0, or −∞ where Y[n] holds anything but 0 and 1. Y (N, D), out (N,)."""
    out[:] = np.where(((Y == 0) | (Y == 1)).all(axis=1), 0, -np.inf)
