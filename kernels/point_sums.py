"""Sums over the data points of what adds up to a number for each."""

import numpy as np

MOST = 3  # arrays


def point_sums(
    N: int,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    fa: float,
    ra: float,
    fb: float,
    rb: float,
    fc: float,
    rc: float,
    weights: np.ndarray,
    sums: np.ndarray,
    PARTS: int,
    WEIGHTED: int,
) -> None:
    """Σ_n weights[n] (fa a[n] + fb b[n] + fc c[n]), each data point's terms first, in float64.

    Parameters
    ----------
    a, b, c : (N,) arrays
        The first PARTS count.
    fa, ra, fb, rb, fc, rc : float
        Their factors, and what these lost when they were rounded to this backend's type.
    weights : (N,) array
        1, if not WEIGHTED.
    sums : (1,) float64 array, out
        A number for each group that takes part, here one.
    """
    terms = ((a, fa + ra), (b, fb + rb), (c, fc + rc))[:PARTS]
    each = np.sum([factor * x.astype(np.float64) for x, factor in terms], axis=0)
    sums[0] = np.sum(each * weights if WEIGHTED else each)


def walks(cpu: bool, **_: int) -> int:
    """The sum of a group."""
    return 1
