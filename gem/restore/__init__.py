"""Pictures with noise or gaps: a model is learned from their own patches, its posterior restores each of them.

Overlapping patches give every pixel many estimates; the picture is their mean. With a learned dictionary: Elad &
Aharon, IEEE Trans. Image Process. 15, 2006; with a mixture of Gaussians: Zoran & Weiss, ICCV 2011; with
spike-and-slab sparse coding: Sheikh, Shelton, Lücke, JMLR 15, 2014.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gem.backends import Backend, blas, select
from gem.checks import whole_number
from gem.em import em_step
from gem.errors import ConfigError, DataError
from gem.models import Model
from gem.models.parameters import Params
from gem.philox import generator
from gem.picture_files import white_of
from gem.progress import Progress
from gem.restore.cover import Cover, doubled, everywhere, filled, halved
from gem.restore.noise import estimate_sigma, find_limits, unclip
from gem.restore.recipe import AUTO, check_model, choose, clean_patches, known_noise, make_model, start, usual_patch

__all__ = ["Cover", "Restored", "check_model", "clean_patches", "estimate_sigma", "psnr", "restore"]

WHITE = 255.0
JOINT = 4  # channels that patches go through together, at the most
STILL = 4  # side of a square that noise never leaves without any contrast
QUIET = 0.12  # root mean square of what is seen in a patch without signal, over σ
MARGIN = 2  # pixels around calm places that are left out
CALM = 0.02  # share of the picture that must be calm for a coarser one to help
COARSE = 4  # patches along the shorter side of a picture that is worth halving


@dataclass(frozen=True)
class Restored:
    """A restored picture.

    Attributes
    ----------
    picture : array of the given picture's shape
    model : Model or None
    params : dict of arrays
        What was learned (of the first principal component of the channels), of patches in 255ths of the picture's
        range; None and nothing if there was nothing to learn.
    psnr_before, psnr_after : float or None
        Peak signal-to-noise ratios in dB, where the clean picture is known; before: the gaps filled smoothly.
    seconds : float
    sigma : float
        The noise in the picture's own units, as given or estimated.
    notes : list of (int, str)
        What a step of one of the models told, in the order in which they learned; `gem.notes.counted` counts them.
    """

    picture: np.ndarray
    model: Model | None
    params: Params
    psnr_before: float | None
    psnr_after: float | None
    seconds: float
    sigma: float = 0.0
    notes: list[tuple[int, str]] = field(default_factory=list)


def psnr(estimate: np.ndarray, clean: np.ndarray, white: float = WHITE) -> float:
    """Peak signal-to-noise ratio in dB, of values of 0 to `white`; infinite if they are equal."""
    error = float(np.mean((np.asarray(estimate, float) - clean) ** 2))
    return float(10 * np.log10(white**2 / error)) if error else np.inf


def restore(
    picture: np.ndarray,
    model: str = AUTO,
    *,
    sigma: float | str = AUTO,
    patch: int | None = None,
    stride: int = 1,
    steps: int = 20,
    rounds: int | None = None,
    count: int = 60000,
    seed: int = 0,
    backend: Any = None,
    dtype: Any = "auto",
    clean: np.ndarray | None = None,
    white: float | None = None,
    progress: bool = False,
    **settings: Any,
) -> Restored:
    """Denoise a picture, fill its gaps, or both.

    Each patch is a data point, about its own mean. Of up to four channels the principal components are restored one
    by one; with gaps a patch goes through all of them at once. More are restored as they are, by one model. What
    has no contrast at all is kept: flat pictures, channels, and areas of 4 × 4 pixels or more. Where pixels were
    clipped (they pile up at the least or the largest value), what that did to the mean is undone.

    Parameters
    ----------
    picture : (height, width) or (height, width, channels) array
        In any units; NaN marks a gap.
    model : str
        A name among `gem.models.MODELS`, for real data; with gaps, one that learns from data with missing entries.
        "auto": a mixture of Gaussians, with gaps spike-and-slab sparse coding (or what the settings are of).
    sigma : float or "auto"
        Standard deviation of the noise, in the picture's own units; 0: what is seen is right, and kept bit for bit.
        "auto": `estimate_sigma`.
    patch, stride : int
        Side of the patches (default: 6, without gaps 8 for noise of 20 or more 255ths of the range; at most the
        picture's), and pixels from one to the next.
    steps : int
        EM steps of each round.
    rounds : int, optional
        The levels of patches with gaps come from the round before (default: 2 with gaps, else 1).
    count : int
        Patches to learn from, at the most, drawn at random.
    seed : int
    backend, dtype
        See `gem.backends.select`.
    clean : array, optional
        The true picture, for the PSNR only.
    white : float, optional
        The value of white, for the PSNR only (default: the largest of an integer type, else 255 or 1 if the clean
        picture looks like that, else its largest value over the least).
    progress : bool
        Whether to show the live line.
    **settings
        Of the model: H, Hprime, gamma, K, ...

    Raises
    ------
    ConfigError
        For settings out of range, or a model that cannot do it.
    DataError
        If the picture is no picture, smaller than a patch that was asked for, or has a gap with nothing around it.
    """
    began = time.perf_counter()
    planes = as_planes(picture)
    gaps = bool(np.isnan(planes).any())
    known = _noise(sigma, picture, gaps)
    if clean is not None and np.shape(clean) != np.shape(picture):
        raise DataError(f"the clean picture has shape {np.shape(clean)}, this one {np.shape(picture)}")
    name = choose(model, gaps, settings)
    unit = _range(planes) / WHITE or 1.0
    which, back = _distinct(planes)
    side = usual_patch(known / unit, gaps) if patch is None else whole_number("patch", patch)
    if patch is not None:
        _check_patch(planes, side)
    if whole_number("stride", stride) > side:
        raise ConfigError(f"stride = {stride} > patch = {side}: pixels between patches would not be restored")
    rounds = (2 if gaps else 1) if rounds is None else whole_number("rounds", rounds)
    before = filled(planes, side)
    after, made = before, None
    params: Params = {}
    notes: list[tuple[int, str]] = []
    if which.size and (known > 0 or gaps):
        with Progress(rounds * whole_number("steps", steps), 0, progress) as line:
            plan = _Plan(name, side, stride, rounds, steps, whole_number("count", count), seed, select(backend, dtype),
                         dtype, settings, line, notes)  # fmt: skip
            least = np.nanmin(planes)
            guide, made, params = _in_colour((planes[which] - least) / unit, known / unit, plan)
        after = _kept(planes, before, (guide * unit + least)[back], known)
    restored = after[0] if np.ndim(picture) == 2 else np.moveaxis(after, 0, -1)
    ratios: tuple[float | None, float | None] = (None, None)
    if clean is not None:
        truth = as_planes(clean)
        peak = white or white_of(np.asarray(clean)) or float(np.ptp(truth)) or 1.0
        ratios = psnr(before, truth, peak), psnr(after, truth, peak)
    return Restored(restored, made, params, *ratios, time.perf_counter() - began, known, notes)


def _noise(sigma: float | str, picture: np.ndarray, gaps: bool) -> float:
    """The noise in the picture's own units."""
    if isinstance(sigma, str):
        if sigma != AUTO:
            raise ConfigError(f"sigma = {sigma!r} is neither a number nor 'auto'")
        return estimate_sigma(picture)
    if not sigma >= 0 or sigma == np.inf:
        raise ConfigError(f"sigma = {sigma!r}, the noise in the picture's own units, must not be negative")
    if sigma == 0 and not gaps:
        raise ConfigError("sigma = 0 and no gaps: there is nothing to restore; give the noise, or sigma='auto'")
    return float(sigma)


def as_planes(picture: np.ndarray) -> np.ndarray:
    """(channels, height, width), float64.

    Raises
    ------
    DataError
        If it is no picture.
    """
    planes = np.asarray(picture)
    if planes.ndim not in (2, 3) or 0 in planes.shape or planes.dtype.kind not in "buif":
        raise DataError(
            f"a picture is an array (height, width) or (height, width, channels) of numbers, not {planes.shape} "
            f"of {planes.dtype}"
        )
    if planes.ndim == 3 and planes.shape[2] > max(4, min(planes.shape[:2])):
        raise DataError(
            f"an array of shape {planes.shape} is no picture (height, width, channels): of a stack give one picture, "
            "Y[i]; np.moveaxis(Y, 0, -1) puts channels last"
        )
    planes = planes.astype(np.float64)
    planes = planes[None] if planes.ndim == 2 else np.moveaxis(planes, -1, 0)
    if np.isinf(planes).any() or np.isnan(planes).all(axis=(1, 2)).any():
        raise DataError("the picture holds Inf, or in some channel nothing but gaps: NaN marks a gap, Inf nothing")
    return planes


def _check_patch(planes: np.ndarray, patch: int) -> None:
    height, width = planes.shape[1:]
    if min(height, width) < patch:
        raise DataError(
            f"the picture has {width} x {height} pixels, too few for a patch of {patch} x {patch}: take a smaller one"
        )


def _range(planes: np.ndarray) -> float:
    """From dark to light, but for 1 % at either end; of what is nearly flat from the least to the largest value."""
    low, high = np.nanpercentile(planes, (1, 99))
    return float(high - low) or float(np.nanmax(planes) - np.nanmin(planes))


def _distinct(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The channels to restore, none flat, none equal to another; and for each channel which of these it is."""
    first = [
        next(i for i in range(c + 1) if np.array_equal(planes[i], planes[c], equal_nan=True))
        for c in range(len(planes))
    ]
    lively = [c for c in range(len(planes)) if first[c] == c and np.nanmax(planes[c]) > np.nanmin(planes[c])]
    places = [lively.index(i) if i in lively else 0 for i in first]
    return np.array(lively, dtype=int), np.array(places)


def _kept(planes: np.ndarray, before: np.ndarray, restored: np.ndarray, sigma: float) -> np.ndarray:
    """The restored picture, but for what is known to be right: flat channels and places; and without noise all seen."""
    if sigma == 0:
        return np.where(np.isnan(planes), restored, planes)
    out = unclip(restored, sigma, find_limits(planes))
    for channel, given in enumerate(planes):
        if np.nanmax(given) == np.nanmin(given):
            out[channel] = before[channel]
        else:
            out[channel][_still(given)] = given[_still(given)]
    return out


def _still(plane: np.ndarray) -> np.ndarray:
    """(height, width): what lies in a square without any contrast."""
    sides = min(STILL, plane.shape[0]), min(STILL, plane.shape[1])
    if max(sides) < STILL:
        return np.zeros(plane.shape, bool)
    windows = sliding_window_view(plane, sides)
    # NaN equals nothing
    moving = ~(windows.max(axis=(2, 3)) == windows.min(axis=(2, 3)))
    return ~everywhere(moving, sides)


@dataclass(frozen=True)
class _Plan:
    """How a picture is to be restored."""

    name: str
    patch: int
    stride: int
    rounds: int
    steps: int
    count: int
    seed: int
    backend: Backend
    dtype: Any
    settings: Mapping[str, Any]
    line: Progress | None
    notes: list[tuple[int, str]]  # told so far, by all that is restored


def _in_colour(planes: np.ndarray, noise: float, plan: _Plan) -> tuple[np.ndarray, Model, Params]:
    """As `_solve`: the principal components of the channels one by one, in which the noise is what it was.

    Patches with gaps go through all channels at once instead: what one misses the others tell.
    """
    if not 1 < len(planes) <= JOINT or np.isnan(planes).any():
        return _solve(planes, noise, plan)
    with blas.limited(1):
        turn = np.linalg.eigh(np.cov(planes.reshape(len(planes), -1)))[1].T[::-1]
    turned = np.tensordot(turn, planes, 1)
    found = [_solve(turned[c : c + 1], noise, plan if c == 0 else replace(plan, line=None)) for c in range(len(turned))]
    return np.tensordot(turn.T, np.concatenate([guide for guide, _, _ in found]), 1), found[0][1], found[0][2]


def _solve(planes: np.ndarray, noise: float, plan: _Plan) -> tuple[np.ndarray, Model, Params]:
    """The restored picture (channels, height, width), the model and its parameters.

    Where patches hold nothing but a level, a picture of half the size tells that better: it is restored in the
    same way, and so on, and its calm places are taken over.
    """
    gaps = bool(np.isnan(planes).any())
    cover = Cover(planes.shape, plan.patch, plan.stride, 1 < len(planes) <= JOINT)
    training = _draw(cover, planes, plan.count, plan.seed)
    model = make_model(plan.name, cover, len(training), noise, gaps, plan.settings)
    job = _Job(model, cover, planes, noise, plan)
    guide, params, quiet = job.run(filled(planes, plan.patch), training)
    if noise > 0 and not gaps and plan.stride == 1 and min(planes.shape[1:]) >= COARSE * plan.patch:
        calm = _calm(quiet, cover)
        if calm.mean() > CALM:
            coarse, _, _ = _solve(halved(planes), noise / 2, replace(plan, line=None))
            guide = np.where(calm, doubled(coarse, planes.shape), guide)
    return guide, model, params


def _calm(quiet: np.ndarray, cover: Cover) -> np.ndarray:
    """(channels or 1, height, width): what only quiet patches cover, and not beside anything else."""
    (height, width), sides = cover.shape[1:], cover.sides
    inside = quiet.reshape(-1, height - sides[0] + 1, width - sides[1] + 1)
    calm = np.array([everywhere(channel, sides) for channel in inside])
    padded = np.pad(calm, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)), constant_values=True)
    return np.asarray(sliding_window_view(padded, (2 * MARGIN + 1, 2 * MARGIN + 1), axis=(1, 2)).all(axis=(3, 4)))


def _draw(cover: Cover, planes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which patches to learn from: at random among those with contrast, of which something is seen."""
    blocks = [cover.cut(planes, part) for part in cover.blocks()]
    low, high = (np.concatenate([f.reduce(block, axis=1) for block in blocks]) for f in (np.fmin, np.fmax))
    usable = np.flatnonzero(high > low)  # False where nothing is seen
    if len(usable) == 0:
        usable = np.flatnonzero(~np.isnan(low))
    return np.sort(generator(seed, "patches").choice(usable, size=min(count, len(usable)), replace=False))


@dataclass(frozen=True)
class _Job:
    """A picture (channels, height, width), NaN in its gaps, and what is to restore it."""

    model: Model
    cover: Cover
    planes: np.ndarray
    sigma: float
    plan: _Plan

    def run(self, guide: np.ndarray, training: np.ndarray) -> tuple[np.ndarray, Params, np.ndarray]:
        """The restored picture, the parameters, and which patches held nothing but a level.

        `guide`, a first picture without gaps, tells the patches' levels.
        """
        gaps, plan = np.isnan(self.planes), self.plan
        params: Params = {}
        for number in range(plan.rounds):
            levels = self._levels(guide)
            Y = self.cover.cut(self.planes, training) - self.cover.spread(levels[training])
            params = params or start(self.model, Y, self.sigma, plan.seed)
            for step in range(plan.steps):
                params, info = em_step(self.model, params, Y, backend=plan.backend, dtype=plan.dtype)
                plan.notes.extend((number * plan.steps + step + 1, note) for note in info.notes)
                params = known_noise(self.model, params, self.sigma, len(Y))
                if plan.line:
                    plan.line.update(number * plan.steps + step + 1, info)
            guide, quiet = self._estimate(params, levels)
            if self.sigma == 0:
                guide = np.where(gaps, guide, self.planes)
        return guide, params, quiet

    def _levels(self, guide: np.ndarray) -> np.ndarray:
        """(N, depth): what is taken off every patch: its means; nothing where the causes must not be negative."""
        if self.model.fields_are_nonnegative:
            return np.zeros((len(self.cover.places), self.cover.depth))
        return self.cover.means(guide)

    def _estimate(self, params: Params, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean of all patches' estimates at every pixel, and which patches are quiet.

        A patch counts by how much of it is seen.
        """
        total, weight = np.zeros(self.planes.shape), np.zeros(self.planes.shape)
        quiet = np.zeros(len(levels), bool)
        for part in self.cover.blocks():
            level = self.cover.spread(levels[part])
            Y = self.cover.cut(self.planes, part) - level
            seen = (~np.isnan(Y)).mean(axis=1)
            some = seen > 0
            estimates = np.zeros(Y.shape)
            estimates[some] = clean_patches(self.model, params, Y[some], self.sigma, self.plan.backend, self.plan.dtype)
            quiet[part] = np.mean(estimates**2, axis=1) < (QUIET * self.sigma) ** 2
            self.cover.add(total, (estimates + level) * seen[:, None], part)
            self.cover.add(weight, np.broadcast_to(seen[:, None], Y.shape), part)
        if not weight.all():
            raise DataError(f"there is a gap wider than the patch of {self.plan.patch}: take a larger patch")
        return total / weight, quiet
