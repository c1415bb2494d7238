"""y is 1 or 0; what is combined are odds: see bernoulli.h. setting[0], [1]: 1, the odds where no cause is active."""

import numpy as np

RELATIVE = False


def term(y: np.ndarray, odds: np.ndarray, setting: np.ndarray) -> np.ndarray:
    out = np.where(y > 0, odds, odds.dtype.type(1))
    out /= 1 + odds
    out *= 1 + setting[1]
    np.maximum(out, np.finfo(out.dtype).tiny, out=out)
    return np.log(out, out=out)


def value(odds: np.ndarray, setting: np.ndarray) -> np.ndarray:
    return odds / (1 + odds)
