"""Squared lengths of data points."""

import numpy as np


def squared_norms(N: int, Y: np.ndarray, out: np.ndarray) -> None:
    """out[n] = ‖y_n‖², summed in float64. Y (N, D), out (N,)."""
    out[:] = np.einsum("nd,nd->n", Y, Y, dtype=np.float64)
