"""Each active cause switches y on with some probability, independently of the others.

Fields and combined values are odds: see noisyor.h.
"""

import numpy as np

from gem.kernels.fragments.maximum import seen, start

__all__ = ["EXCLUSIVE", "IMPUTED", "combine", "seen", "share", "start"]

EXCLUSIVE, IMPUTED = False, False
MOST_ODDS = {"float64": 1e300, "float32": 1e37}


def combine(c: np.ndarray, w: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    out = c * w
    out += c
    out += w
    return np.minimum(out, c.dtype.type(MOST_ODDS[str(c.dtype)]), out=out)


def share(w: np.ndarray, c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return 1 / c
