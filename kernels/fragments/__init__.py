"""Fragments: the lines by which the models of one kernel differ, each a .h for devices and a .py twin."""

import numpy as np


def log_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log(a / b) of positive numbers, arrays of one shape, to all digits where they are near each other."""
    above = a - b
    far = 2 * np.abs(above) >= b
    logs = np.log1p(np.where(far, 0, above / b))
    logs[far] = np.log(a[far] / b[far])
    return np.asarray(logs)
