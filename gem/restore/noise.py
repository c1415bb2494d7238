"""The noise of a picture, told from the picture: its standard deviation, and what clipping did to it."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, pi, sqrt

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

QUARTILE = 0.6744897501960817  # of |x| of the standard normal distribution: its median
# the high-pass filter of the Daubechies wavelet with two vanishing moments: blind to what is flat or slanted
FILTER = np.array([-0.48296291314453416, 0.83651630373780794, -0.22414386804201339, -0.12940952255126037])
CLIPPED = 0.01  # share of the pixels at an end of the range from which that end counts as a limit
SPIKE = 2.0  # and how many times as many there must be as at the next value
ROUNDING = 1e-10  # what is less, beside the largest value, is no noise
MOST = 0.8  # share of clipped pixels around what varies, from which these are no clipped noise
FEW = 0.05  # share of the places that must be free of clipped pixels to tell the noise only from these


@dataclass(frozen=True)
class Limits:
    """The values at which a picture's pixels were clipped; ±inf where they were not."""

    low: float = -np.inf
    high: float = np.inf

    def touched(self, values: np.ndarray) -> np.ndarray:
        """Which pixels lie at a limit."""
        return (values <= self.low) | (values >= self.high)


def find_limits(planes: np.ndarray) -> Limits:
    """Where the pixels pile up at the least or the largest value, that is a limit: noise would have gone beyond it."""
    seen = planes[~np.isnan(planes)]
    if not seen.size or np.ptp(seen) == 0:
        return Limits()
    levels, counts = np.unique(seen, return_counts=True)
    many = max(2.0, CLIPPED * seen.size)
    low = counts[0] >= max(many, SPIKE * counts[1])
    high = counts[-1] >= max(many, SPIKE * counts[-2])
    return Limits(float(levels[0]) if low else -np.inf, float(levels[-1]) if high else np.inf)


def estimate_sigma(picture: np.ndarray) -> float:
    """Estimate the standard deviation of the noise, in the picture's own units.

    The median of the absolute diagonal details of the finest scale, over that of a normal distribution (Donoho &
    Johnstone, Biometrika 81, 1994, section 4.2), as `skimage.restoration.estimate_sigma` does it; gaps, exactly flat
    places and, where enough others are left, clipped pixels are left out. Fine texture counts as noise in part.

    Parameters
    ----------
    picture : (height, width) or (height, width, channels) array
        NaN marks a gap.

    Returns
    -------
    float
        The root of the channels' mean square, those without contrast left out; 0 where nothing varies, and
        where no 4 × 4 pixels lie together, the spread of the differences of neighbours.
    """
    array = np.asarray(picture, dtype=np.float64)
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    limits = find_limits(planes)
    found = [_of_plane(plane, limits) for plane in planes if np.nanmax(plane, initial=0) != np.nanmin(plane, initial=0)]
    found = [sigma for sigma in found if sigma > ROUNDING * np.nanmax(np.abs(planes))]
    return float(np.sqrt(np.mean(np.square(found)))) if found else 0.0


def _of_plane(plane: np.ndarray, limits: Limits) -> float:
    side = len(FILTER)
    if min(plane.shape) < side:
        return _of_neighbours(plane)
    windows = sliding_window_view(plane, (side, side))
    details = np.einsum("ijkl,k,l->ij", windows, FILTER, FILTER)
    lively = windows.max(axis=(2, 3)) > windows.min(axis=(2, 3))  # False beside NaN, too
    touched = sliding_window_view(limits.touched(plane), (side, side)).mean(axis=(2, 3))
    free = lively & (touched == 0)
    if not lively.any():  # gaps everywhere, say
        return _of_neighbours(plane)
    if np.count_nonzero(free) >= FEW * np.count_nonzero(lively):
        return _spread(details[free])
    if np.mean(touched[lively]) > MOST:  # a few points in a field that is flat: it has no noise
        return 0.0
    return _spread(details[lively])


def _of_neighbours(plane: np.ndarray) -> float:
    return _spread(np.concatenate([np.diff(plane, axis=axis).ravel() for axis in (0, 1)])) / sqrt(2)


def _spread(values: np.ndarray) -> float:
    values = np.abs(values[np.isfinite(values)])
    return float(np.median(values)) / QUARTILE if values.size else 0.0


def unclip(estimate: np.ndarray, sigma: float, limits: Limits) -> np.ndarray:
    """Undo the bias of clipped noise: the x for which E[clip(x + noise)] is the estimate.

    Clipping at `low` lifts the mean of dark places, to 0.4 σ where the truth is black (Foi, Signal Processing 89,
    2009). The estimate is kept where it is more than 3 σ from a limit; x is kept within the limits.
    """
    x = estimate.copy()
    z = np.linspace(0, 3, 301)
    density = np.exp(-(z**2) / 2) / sqrt(2 * pi)
    mean = density + z * np.array([(1 + erf(value / sqrt(2))) / 2 for value in z])  # E[max(0, z + noise)]
    if np.isfinite(limits.low):
        depth = (estimate - limits.low) / sigma
        x = np.where(depth < mean[-1], limits.low + sigma * np.interp(depth, mean, z), x)
    if np.isfinite(limits.high):
        depth = (limits.high - estimate) / sigma
        x = np.where(depth < mean[-1], limits.high - sigma * np.interp(depth, mean, z), x)
    return x
