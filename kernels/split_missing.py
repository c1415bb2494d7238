"""Missing values: NaN in the data becomes a 0 and a mask."""

import numpy as np


def split_missing(N: int, Y: np.ndarray, filled: np.ndarray, observed: np.ndarray) -> None:
    """filled = Y with 0 for NaN; observed = 1, or 0 where Y is NaN. All (N, D)."""
    missing = np.isnan(Y)
    filled[...] = np.where(missing, 0, Y)
    np.logical_not(missing, out=observed)
