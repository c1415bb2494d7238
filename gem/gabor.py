"""Gabor functions fitted to learned fields: position, orientation, frequency, phase and size of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

from gem.errors import DataError

NYQUIST = 0.5  # cycles per pixel
PADDING = 4  # the spectrum that starts the fits is sampled at 1 / (4 P) cycles per pixel
SLOWEST = 1 / 4  # least cycles per patch; below, amplitude and phase of the carrier could not be told apart
SMALLEST = 0.5  # least sigma in pixels: a narrower envelope falls between them
GAIN = 4.0  # an odd Gabor of few cycles peaks below its amplitude; more than this is a slope, not a Gabor
MIN_SIDE = 3  # the 8 parameters need 9 pixels


@dataclass(frozen=True)
class Gabor:
    """A plane wave under a Gaussian envelope, in the coordinates of a (P, P) field: x its column, y its row.

    g(x, y) = amplitude · exp(−u²/2σ_x² − v²/2σ_y²) · cos(2π · frequency · u + phase), where u, v are the
    coordinates about the centre (x, y), turned by theta: u along the wave, v along its stripes.
    (Jones & Palmer, J. Neurophysiol. 58, 1987; Ringach, J. Neurophysiol. 88, 2002. Ringach's shape plane is
    n_x = sigma_x · frequency, n_y = sigma_y · frequency.)

    Attributes
    ----------
    amplitude : float
        In the field's units, ≥ 0.
    x, y : float
        Centre in pixels; (0, 0) is the centre of the first pixel.
    theta : float
        Direction of the wave in [0, π), from the x towards the y axis.
    frequency : float
        Cycles per pixel.
    phase : float
        At the centre, in (−π, π].
    sigma_x, sigma_y : float
        Standard deviation of the envelope along the wave and along the stripes, in pixels.
    P : int
        Side of the field.
    r2 : float
        1 − SSR/SST, with SST about the field's own mean: the share of the pixels' variance that the function
        explains. Its constant part counts for nothing, so r2 can be negative; it is 0 for a constant field.
    """

    amplitude: float
    x: float
    y: float
    theta: float
    frequency: float
    phase: float
    sigma_x: float
    sigma_y: float
    P: int
    r2: float

    @property
    def wavelength(self) -> float:
        """Pixels per cycle."""
        return 1 / self.frequency

    def field(self) -> np.ndarray:
        """The function on the pixels, a (P, P) field."""
        a, b = self.amplitude * np.cos(self.phase), -self.amplitude * np.sin(self.phase)
        p = np.array([self.x, self.y, self.theta, self.frequency, self.sigma_x, self.sigma_y, a, b])
        return _Wave(p, self.P).value.reshape(self.P, self.P)


def fit_gabor(field: np.ndarray) -> Gabor:
    """The Gabor function nearest to a field in the sum of squares.

    Bounded least squares from the peaks of the power spectrum and the centroid of the energy, the best of
    three kept. The centre stays in the patch, sigma between half a pixel and P, the frequency between a
    quarter of a cycle per patch and half a cycle per pixel.

    Parameters
    ----------
    field : (P, P) array, P ≥ 3

    Raises
    ------
    DataError
        If the field is not square, smaller than 3 × 3, or not finite.
    """
    from scipy.optimize import least_squares

    w = _checked(np.asarray(field, dtype=np.float64))
    P, peak = len(w), float(np.abs(w).max())
    low, high = _bounds(P)
    if peak == 0:
        return _gabor(np.clip([P / 2 - 0.5] * 2 + [0.0] * 6, low, high), 0.0, P, 0.0)
    w = w / peak
    fits = [
        least_squares(
            lambda p: _Wave(p, P).value - w.ravel(),
            _start(w, theta, frequency, low, high),
            jac=lambda p: _Wave(p, P).jacobian(),
            bounds=(low, high),
            x_scale="jac",
            ftol=1e-5,
            max_nfev=60,
        )
        for theta, frequency in _waves(w)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    constant = np.ptp(w) <= w.size * np.finfo(float).eps
    return _gabor(best.x, peak, P, 0.0 if constant else 1 - 2 * best.cost / (w.size * w.var()))


def fit_all(W: np.ndarray) -> list[Gabor]:
    """`fit_gabor` of every column of W (D, H), each the rows of a square field one after the other.

    Raises
    ------
    DataError
        As `fit_gabor`; also if D is not a square.
    """
    W = np.asarray(W)
    if W.ndim != 2 or isqrt(len(W)) ** 2 != len(W):
        raise DataError(f"W has shape {W.shape}: Gabor functions need square fields, (P², H)")
    P = isqrt(len(W))
    return [fit_gabor(w.reshape(P, P)) for w in W.T]


def summary(fits: Sequence[Gabor]) -> dict[str, int]:
    """How many of the fields are Gabor functions, and how many of these have their envelope within the patch.

    Returns
    -------
    dict
        "fields": their number; "r2_above_half": those whose r2 > 0.5; "localised": those of the latter with
        sigma_x and sigma_y below P/3.
    """
    good = [fit for fit in fits if fit.r2 > 0.5]
    localised = [fit for fit in good if max(fit.sigma_x, fit.sigma_y) < fit.P / 3]
    return {"fields": len(fits), "r2_above_half": len(good), "localised": len(localised)}


class _Wave:
    """A Gabor function on the pixels, from p = (x, y, theta, frequency, sigma_x, sigma_y, a, b).

    The carrier is a cos ω + b sin ω, which is linear in a and b: amplitude and phase would not be.
    """

    def __init__(self, p: np.ndarray, P: int):
        self.p = p
        x, y, theta, frequency, sigma_x, sigma_y, a, b = p
        row, column = np.divmod(np.arange(P * P), P)
        self.cos, self.sin = np.cos(theta), np.sin(theta)
        self.u = self.cos * (column - x) + self.sin * (row - y)
        self.v = self.cos * (row - y) - self.sin * (column - x)
        envelope = np.exp(-((self.u / sigma_x) ** 2 + (self.v / sigma_y) ** 2) / 2)
        omega = 2 * np.pi * frequency * self.u
        self.even, self.odd = envelope * np.cos(omega), envelope * np.sin(omega)
        self.value = a * self.even + b * self.odd

    def jacobian(self) -> np.ndarray:
        """Derivatives of the pixels by p, (P², 8)."""
        _, _, _, frequency, sigma_x, sigma_y, a, b = self.p
        u, v, g = self.u, self.v, self.value
        turned = 2 * np.pi * (b * self.even - a * self.odd)  # by the carrier's cycle
        by_u = frequency * turned - u / sigma_x**2 * g
        by_v = -v / sigma_y**2 * g
        return np.stack(
            [
                self.sin * by_v - self.cos * by_u,
                -self.sin * by_u - self.cos * by_v,
                v * by_u - u * by_v,
                u * turned,
                u**2 / sigma_x**3 * g,
                v**2 / sigma_y**3 * g,
                self.even,
                self.odd,
            ],
            axis=1,
        )


def _checked(w: np.ndarray) -> np.ndarray:
    if w.ndim != 2 or w.shape[0] != w.shape[1] or len(w) < MIN_SIDE:
        raise DataError(f"a field of shape {w.shape}: Gabor functions are fitted to squares from 3 × 3")
    if not np.all(np.isfinite(w)):
        row, column = np.argwhere(~np.isfinite(w))[0]
        raise DataError(f"the field is {w[row, column]} at row {row}, column {column}: it must be finite")
    return w


def _bounds(P: int) -> tuple[np.ndarray, np.ndarray]:
    low = [-0.5, -0.5, -np.inf, SLOWEST / P, SMALLEST, SMALLEST, -GAIN, -GAIN]
    high = [P - 0.5, P - 0.5, np.inf, NYQUIST, P, P, GAIN, GAIN]
    return np.array(low), np.array(high)


def _waves(w: np.ndarray) -> Iterator[tuple[float, float]]:
    """(theta, frequency) to start from: the two highest peaks of the power spectrum.

    A third, across the first, is for fields of less than a cycle, whose peak says little about the stripes.
    """
    n = PADDING * len(w)
    power = np.abs(np.fft.fft2(w, (n, n))[:, : n // 2 + 1]) ** 2  # the other half is its mirror image
    around = [np.roll(power, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    maxima = np.where(np.all([power >= other for other in around], axis=0), power, 0)
    i, j = np.unravel_index(np.argsort(maxima, axis=None)[:-3:-1], power.shape)
    fx, fy = j / n, np.fft.fftfreq(n)[i]
    theta, frequency = np.arctan2(fy, fx), np.hypot(fx, fy)
    yield from zip(theta, frequency, strict=True)
    yield theta[0] + np.pi / 2, frequency[0]


def _start(w: np.ndarray, theta: float, frequency: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The best of a few envelopes for this wave, at the centroid of the energy: as wide, or narrower."""
    P = len(w)
    weight = w.ravel() ** 4 / np.sum(w**4)  # squared energy: noise far from the centre weighs little
    row, column = np.divmod(np.arange(P * P), P)
    x, y = weight @ column, weight @ row
    u = np.cos(theta) * (column - x) + np.sin(theta) * (row - y)
    v = np.cos(theta) * (row - y) - np.sin(theta) * (column - x)
    measured = 2 * np.sqrt(weight @ u**2), 2 * np.sqrt(weight @ v**2)  # the weights fall with exp(−2u²/σ²)
    tried = [
        _projected(np.clip([x, y, theta, frequency, *sigmas, 0, 0], low, high), w)
        for sigmas in (measured, (P / 8, P / 8), (P / 8, P / 4))
    ]
    return np.clip(min(tried, key=lambda p: np.sum((_Wave(p, P).value - w.ravel()) ** 2)), low, high)


def _projected(p: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The start with its best a and b, which are linear."""
    wave = _Wave(p, len(w))
    basis = np.stack([wave.even, wave.odd], axis=1)
    return np.append(p[:6], np.linalg.lstsq(basis, w.ravel(), rcond=None)[0])


def _gabor(p: np.ndarray, scale: float, P: int, r2: float) -> Gabor:
    """The record of a solution: amplitude and phase of the carrier, angles in their ranges."""
    x, y, theta, frequency, sigma_x, sigma_y, a, b = map(float, p)
    half_turns, theta = divmod(theta, np.pi)
    phase = float(np.arctan2(-b, a)) * (-1) ** int(half_turns)  # after half a turn u is −u
    amplitude = scale * float(np.hypot(a, b))
    return Gabor(amplitude, x, y, theta, frequency, phase, sigma_x, sigma_y, P, float(r2))
