"""Sums of a batch, added to those of a step."""

import numpy as np

FIXED_POINT = 2  # the KIND of whole numbers in units of 2⁻⁴⁰
MOST_COLUMNS = 128
FEW_COLUMNS = 8  # a line of memory
MOST_ROWS = 16  # that a work-item adds up by itself


def accumulate(
    N: int, rows: np.ndarray, many: int, scale: float, rest: float, start: int, total: np.ndarray, KIND: int
) -> None:
    """total[start + i] += (scale + rest) Σ_r rows[r, i], i < N.

    Parameters
    ----------
    rows : (many, N) array of any shape
        Of this backend's type (KIND 0), float64 (1), or int64, fixed point (2).
    scale, rest : float
        A factor, and what it lost when it was rounded to this backend's type.
    start : int
    total : (≥ start + N,) float64 array, in and out
    """
    unit = 2.0**-40 if KIND == FIXED_POINT else 1.0
    total[start : start + N] += (scale + rest) * unit * rows.reshape(many, N).sum(axis=0, dtype=np.float64)


def columns(N: int, rows: int) -> int:
    """The columns of a group that suit N of them, a power of 2: of many rows several work-items share a column."""
    most = MOST_COLUMNS if rows <= MOST_ROWS else FEW_COLUMNS
    return min(most, 1 << (N - 1).bit_length())


def tile(COLUMNS: int, **_: int) -> int:
    """On GPUs."""
    return COLUMNS
