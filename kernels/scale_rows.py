"""Weights of data points, applied to what was computed for them."""

import numpy as np


def scale_rows(N: int, X: np.ndarray, weights: np.ndarray) -> None:
    """X[n, :] *= weights[n], in place. X (N, H), weights (N,)."""
    X *= weights[:, None]
