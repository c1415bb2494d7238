"""Pictures with noise or gaps: a model is learned from their own patches, its posterior restores each of them.

Overlapping patches give every pixel many estimates; the picture is their mean. With a learned dictionary: Elad &
Aharon, IEEE Trans. Image Process. 15, 2006; with a mixture of Gaussians: Zoran & Weiss, ICCV 2011; with
spike-and-slab sparse coding: Sheikh, Shelton, Lücke, JMLR 15, 2014.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gem.backends import Backend, select
from gem.checks import whole_number
from gem.em import em_step, posterior
from gem.errors import ConfigError, DataError
from gem.images import load_picture, save_picture
from gem.models import MODELS, Model, known_options, make
from gem.models.base import Params
from gem.models.truncated import Truncated
from gem.philox import generator
from gem.progress import Progress

WHITE = 255.0
BLOCK = 1 << 16  # patches whose estimates exist at once
SURE = 1e-6  # responsibility below which a component is not asked
LARGEST = {"gsc": 2048, "sc": 256, "mog": 40}  # H or K, if not given, where there are patches enough
CAUSES = 128  # of the other models
SIZES = ("H", "Hprime", "gamma", "K", "values")  # settings that the shell has flags for
POINTS_PER_FIELD = 10
NO_RECIPE = {
    "mop": "its data are counts",
    "pmca": "its data are counts",
    "noisyor": "its data are 0 or 1",
}


@dataclass(frozen=True)
class Restored:
    """A restored picture.

    Attributes
    ----------
    picture : array of the given picture's shape
    model : Model
    params : dict of arrays
        What was learned.
    psnr_before, psnr_after : float or None
        Peak signal-to-noise ratios in dB, where the clean picture is known; before: the gaps filled smoothly.
    seconds : float
    """

    picture: np.ndarray
    model: Model
    params: Params
    psnr_before: float | None
    psnr_after: float | None
    seconds: float


@dataclass(frozen=True)
class Cover:
    """All patches of a picture at a stride, and at its far borders: every pixel is in one.

    Attributes
    ----------
    shape : (channels, height, width)
    patch, stride : int
    """

    shape: tuple[int, int, int]
    patch: int
    stride: int = 1

    @cached_property
    def places(self) -> np.ndarray:
        """(N, 3): channel, row and column of every patch's first pixel."""
        rows, columns = (
            np.unique([*range(0, n - self.patch + 1, self.stride), n - self.patch]) for n in self.shape[1:]
        )
        return np.stack(np.meshgrid(np.arange(self.shape[0]), rows, columns, indexing="ij"), axis=-1).reshape(-1, 3)

    def cut(self, picture: np.ndarray, which: Any = slice(None)) -> np.ndarray:
        """The patches, (n, patch²), of a picture (channels, height, width)."""
        windows = sliding_window_view(picture, (self.patch, self.patch), axis=(1, 2))
        return windows[tuple(self.places[which].T)].reshape(-1, self.patch**2)

    def add(self, total: np.ndarray, estimates: np.ndarray, which: Any = slice(None)) -> None:
        """Add patches (n, patch²) to a picture, each at its place."""
        channel, row, column = self.places[which].T
        for i in range(self.patch):
            for j in range(self.patch):
                # within one offset no two patches meet in a pixel
                total[channel, row + i, column + j] += estimates[:, i * self.patch + j]

    def blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.places), BLOCK):
            yield slice(start, min(start + BLOCK, len(self.places)))


def psnr(estimate: np.ndarray, clean: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, of grey levels of 0 to 255; infinite if they are equal."""
    error = float(np.mean((estimate - clean) ** 2))
    return float(10 * np.log10(WHITE**2 / error)) if error else np.inf


def restore(
    picture: np.ndarray,
    model: str = "gsc",
    *,
    sigma: float,
    patch: int = 6,
    stride: int = 1,
    steps: int = 30,
    rounds: int | None = None,
    count: int = 60000,
    seed: int = 0,
    backend: Any = None,
    dtype: Any = "auto",
    clean: np.ndarray | None = None,
    progress: bool = False,
    **settings: Any,
) -> Restored:
    """Denoise a picture of known noise, fill its gaps, or both.

    Patches of a colour picture are those of its channels, one model for all. Each patch is a data point, about its
    own mean grey level.

    Parameters
    ----------
    picture : (height, width) or (height, width, channels) array
        Grey levels of 0 to 255; NaN marks a gap.
    model : str
        A name among `gem.models.MODELS`, for real data; with gaps, one that learns from data with missing entries.
    sigma : float
        Standard deviation of the noise, in grey levels; 0: what is seen is right, and kept bit for bit.
    patch, stride : int
        Side of the patches, and pixels from one to the next.
    steps : int
        EM steps of each round.
    rounds : int, optional
        The grey levels of patches with gaps come from the round before (default: 2 with gaps, else 1).
    count : int
        Patches to learn from, at the most, drawn at random.
    seed : int
    backend, dtype
        See `gem.backends.select`.
    clean : array, optional
        The true picture, for the PSNR alone.
    progress : bool
        Whether to show the live line.
    **settings
        Of the model: H, Hprime, gamma, K, ...

    Raises
    ------
    ConfigError
        For settings out of range, or a model that cannot do it.
    DataError
        If the picture is no picture, smaller than a patch, or has a gap with nothing around it.
    """
    began = time.perf_counter()
    planes = _planes(picture)
    gaps = np.isnan(planes)
    if not sigma >= 0 or sigma == np.inf:
        raise ConfigError(f"sigma = {sigma!r}, the noise in grey levels, must not be negative")
    if sigma == 0 and not gaps.any():
        raise ConfigError("sigma = 0 and no gaps: there is nothing to restore; give the noise in grey levels")
    if clean is not None and np.shape(clean) != np.shape(picture):
        raise DataError(f"the clean picture has shape {np.shape(clean)}, this one {np.shape(picture)}")
    cover = _cover(planes, whole_number("patch", patch), whole_number("stride", stride))
    rounds = (2 if gaps.any() else 1) if rounds is None else whole_number("rounds", rounds)
    made = _make(model, min(len(cover.places), whole_number("count", count)), patch, sigma, bool(gaps.any()), settings)
    job = _Job(made, cover, planes, float(sigma), select(backend, dtype), dtype)
    before = _filled(planes, patch)
    with Progress(rounds * whole_number("steps", steps), 0, progress) as line:
        guide, params = job.run(before, rounds, steps, count, seed, line)
    restored = guide[0] if np.ndim(picture) == 2 else np.moveaxis(guide, 0, -1)
    truth = None if clean is None else _planes(clean)
    return Restored(
        restored,
        made,
        params,
        None if truth is None else psnr(before, truth),
        None if truth is None else psnr(guide, truth),
        time.perf_counter() - began,
    )


@dataclass(frozen=True)
class _Job:
    """A picture (channels, height, width), NaN in its gaps, and what is to restore it."""

    model: Model
    cover: Cover
    planes: np.ndarray
    sigma: float
    backend: Backend
    dtype: Any

    def run(
        self, guide: np.ndarray, rounds: int, steps: int, count: int, seed: int, line: Progress
    ) -> tuple[np.ndarray, Params]:
        """The restored picture and the parameters; `guide`, a first picture without gaps, tells the patches' levels."""
        gaps = np.isnan(self.planes)
        training = _draw(self.cover, ~gaps, count, seed)
        params: Params = {}
        for number in range(rounds):
            levels = _levels(self.model, self.cover, guide)
            Y = self.cover.cut(self.planes, training) - levels[training]
            params = params or _start(self.model, Y, self.sigma, seed)
            for step in range(steps):
                params, info = em_step(self.model, params, Y, backend=self.backend, dtype=self.dtype)
                params = _known_noise(params, self.sigma)
                line.update(number * steps + step + 1, info)
            guide = self.estimate(params, levels)
            if self.sigma == 0:
                guide = np.where(gaps, guide, self.planes)
        return guide, params

    def estimate(self, params: Params, levels: np.ndarray) -> np.ndarray:
        """The mean of all patches' estimates at every pixel; a patch counts by how much of it is seen."""
        total, weight = np.zeros(self.planes.shape), np.zeros(self.planes.shape)
        for part in self.cover.blocks():
            Y = self.cover.cut(self.planes, part) - levels[part]
            seen = (~np.isnan(Y)).mean(axis=1)
            some = seen > 0
            estimates = np.zeros(Y.shape)
            estimates[some] = clean_patches(self.model, params, Y[some], self.sigma, self.backend, self.dtype)
            self.cover.add(total, (estimates + levels[part]) * seen[:, None], part)
            self.cover.add(weight, np.broadcast_to(seen[:, None], Y.shape), part)
        if not weight.all():
            raise DataError(f"there is a gap wider than the patch of {self.cover.patch}: take a larger patch")
        return total / weight


def check_model(model: str, missing: bool) -> None:
    """Refuse a model that cannot restore pictures.

    Raises
    ------
    ConfigError
        With the reason.
    """
    name = model.lower()
    if name not in MODELS or name in NO_RECIPE:
        reason = f"{name} cannot restore pictures: {NO_RECIPE[name]}" if name in MODELS else f"unknown model {model!r}"
        raise ConfigError(f"{reason}; choose among {', '.join(sorted(set(MODELS) - set(NO_RECIPE)))}")
    if missing and not _learns_from_gaps(name):
        able = sorted(n for n in MODELS if n not in NO_RECIPE and _learns_from_gaps(n))
        raise ConfigError(f"{name} cannot learn from patches with gaps; choose among {', '.join(able)}")


def _learns_from_gaps(name: str) -> bool:
    return "missing" in signature(MODELS[name]).parameters


def _make(name: str, count: int, patch: int, sigma: float, missing: bool, settings: dict[str, Any]) -> Model:
    """The model with its usual sizes for `count` patches, but for what `settings` says."""
    check_model(name, missing)
    name = name.lower()
    known_options(name, settings, fixed=("D", "missing"))  # refuses others
    size = max(1, min(LARGEST.get(name, CAUSES), count // POINTS_PER_FIELD))
    usual: dict[str, Any] = {"D": patch**2}
    if name == "mog":
        # Σ_k = Cov[x | k] + σ² I: the floor makes it so
        usual |= {"K": max(1, size // 4) if size < LARGEST[name] else size, "covariance": "full"}
        usual["reg"] = max(sigma**2, 1.0)
    elif name == "sc":
        usual |= {"H": size, "penalty": 1.2 * max(sigma, 1.0)}
    else:
        H = int(settings.get("H") or size)
        usual |= {"H": H, "Hprime": min(H, 8), "gamma": min(H, 3 if name in ("gsc", "dsc") else 5)}
        if name == "dsc":
            usual["values"] = [-2, -1, 0, 1, 2]
        usual["gamma"] = min(usual["gamma"], int(settings.get("Hprime") or usual["Hprime"]))
    return make(name, {**usual, **({"missing": True} if missing else {}), **settings})


def _planes(picture: np.ndarray) -> np.ndarray:
    """(channels, height, width), float64."""
    planes = np.asarray(picture)
    if planes.ndim not in (2, 3) or 0 in planes.shape or planes.dtype.kind not in "buif":
        raise DataError(
            f"a picture is an array (height, width) or (height, width, channels) of numbers, not {planes.shape} "
            f"of {planes.dtype}"
        )
    planes = planes.astype(np.float64)
    planes = planes[None] if planes.ndim == 2 else np.moveaxis(planes, -1, 0)
    if np.isinf(planes).any() or np.isnan(planes).all():
        raise DataError("the picture holds Inf, or nothing but gaps: grey levels are 0 to 255, and NaN marks a gap")
    return planes


def _cover(planes: np.ndarray, patch: int, stride: int) -> Cover:
    channels, height, width = planes.shape
    if min(height, width) < patch:
        raise DataError(
            f"the picture has {width} x {height} pixels, too few for a patch of {patch} x {patch}: take a smaller one"
        )
    if stride > patch:
        raise ConfigError(f"stride = {stride} > patch = {patch}: pixels between patches would not be restored")
    return Cover((channels, height, width), patch, stride)


def _filled(planes: np.ndarray, patch: int) -> np.ndarray:
    """The gaps at the mean of what is seen around them, weighted by a window that widens until it sees something."""
    filled, known = np.where(np.isnan(planes), 0, planes), (~np.isnan(planes)).astype(float)
    out = np.where(known > 0, planes, np.nan)
    reach = 1
    while np.isnan(out).any():
        if reach > 2 * patch:
            raise DataError(f"there is a gap wider than the patch of {patch}: take a larger patch")
        seen = _box(known, reach)
        smooth = np.divide(_box(filled, reach), seen, out=np.full_like(seen, np.nan), where=seen > 0.5)
        out = np.where(np.isnan(out), smooth, out)
        reach *= 2
    return out


def _box(planes: np.ndarray, reach: int) -> np.ndarray:
    """Sums over squares of side 2 reach + 1."""
    padded = np.pad(planes, ((0, 0), (reach, reach), (reach, reach)))
    for axis in (1, 2):
        padded = sliding_window_view(padded, 2 * reach + 1, axis=axis).sum(axis=-1)
    return padded


def _draw(cover: Cover, seen: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which patches to learn from: at random among those of which something is seen."""
    usable = np.flatnonzero(cover.cut(seen).any(axis=1))
    return np.sort(generator(seed, "patches").choice(usable, size=min(count, len(usable)), replace=False))


def _levels(model: Model, cover: Cover, guide: np.ndarray) -> np.ndarray:
    """(N, 1): what is taken off every patch: its mean; nothing where the causes must not be negative."""
    if model.domains.get("W") == "nonnegative":
        return np.zeros((len(cover.places), 1))
    return np.concatenate([cover.cut(guide, part).mean(axis=1, keepdims=True) for part in cover.blocks()])


def _start(model: Model, Y: np.ndarray, sigma: float, seed: int) -> Params:
    """Fields at patches of much contrast: what stands out of the noise."""
    params = model.init_params(Y, seed)
    if isinstance(model, Truncated):
        energy = np.nansum(Y**2, axis=1) ** 2
        again = bool(np.count_nonzero(energy) < model.H)  # else no two fields are the same patch
        rows = generator(seed, "fields").choice(len(Y), size=model.H, replace=again, p=energy / energy.sum())
        fields = np.nan_to_num(Y[rows]).T
        params["W"] = np.maximum(fields, 0) if model.domains["W"] == "nonnegative" else fields.copy()
    if "b" in params:  # σ²/b is the penalty: it stays
        params["b"] = sigma**2 * params["b"] / params["sigma"] ** 2
        params["sigma"] = np.array(sigma)
    return _known_noise(params, sigma)


def _known_noise(params: Params, sigma: float) -> Params:
    """Strengths explain the signal: what is left is noise. Switches alone do not: more than the noise may be left."""
    if "sigma" not in params or sigma == 0:
        return params
    known = sigma if "psi" in params else max(sigma, float(params["sigma"]))
    return {**params, "sigma": np.array(known)}


def clean_patches(
    model: Model, params: Params, Y: np.ndarray, sigma: float, backend: Any = None, dtype: Any = "auto"
) -> np.ndarray:
    """E[x | y] of patches y = x + noise, (n, D); NaN marks what was not seen.

    A model that explains y by E[y | s] and a rest of variance σ_m² owes σ² of it to the noise: the signal keeps the
    share 1 − σ²/σ_m² of what was not explained. A Gaussian of covariance Σ_k keeps (Σ_k − σ² I) Σ_k⁻¹ of y − μ_k.
    """
    found = posterior(model, params, Y, backend=backend, dtype=dtype, reconstruct=True)
    explained = np.asarray(found.reconstruction, dtype=np.float64)
    if "cov" in params:
        return _wiener(params, np.where(np.isnan(Y), explained, Y), np.asarray(found.mean, np.float64), sigma)
    share = max(0.0, 1 - sigma**2 / float(params["sigma"]) ** 2)
    return explained + share * np.nan_to_num(Y - explained)


def _wiener(params: Params, Y: np.ndarray, responsibilities: np.ndarray, sigma: float) -> np.ndarray:
    """Σ_k q_k (μ_k + (Σ_k − σ² I)₊ Σ_k⁻¹ (y − μ_k))."""
    estimates = np.zeros(Y.shape)
    for q, mu, cov in zip(responsibilities.T, params["mu"], params["cov"], strict=True):
        asked = q > SURE
        values, vectors = np.linalg.eigh(cov)
        gain = (vectors * np.maximum(1 - sigma**2 / values, 0)) @ vectors.T
        estimates[asked] += q[asked, None] * (mu + (Y[asked] - mu) @ gain)
    return estimates


def restore_file(args: Namespace) -> None:
    """What `gem denoise` and `gem inpaint` do: read, spoil if asked, restore, write, tell the PSNR."""
    check_model(args.model, missing=args.mask is not None or args.missing is not None)
    output = Path(args.output or Path(args.image).with_name(f"{Path(args.image).stem}-restored.png"))
    if output.resolve() in {Path(p).resolve() for p in (args.image, args.mask, args.clean) if p}:
        raise ConfigError(f"the output {output} is one of the pictures read: choose another name with --output")
    picture = load_picture(args.image)
    clean = None if args.clean is None else load_picture(args.clean)
    given = _planes(picture)  # refuses what is no picture
    spoilt, whole = _spoil(picture, args, given)
    result = restore(
        spoilt,
        args.model,
        sigma=args.sigma,
        patch=args.patch,
        stride=args.stride,
        steps=args.steps,
        seed=args.seed,
        backend=args.backend,
        clean=whole if clean is None else clean,
        progress=not args.quiet,
        **{name: getattr(args, name) for name in SIZES if getattr(args, name) is not None},
    )
    save_picture(output, result.picture)
    ratios = "" if result.psnr_after is None else f", PSNR {result.psnr_before:.2f} dB → {result.psnr_after:.2f} dB"
    print(f"{output}: restored by {result.model!r} in {result.seconds:.1f} s{ratios}")


def _spoil(picture: np.ndarray, args: Namespace, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture with the noise and the gaps asked for; and itself, if it was the clean one."""
    rng = generator(args.seed, "spoil")
    if args.add_noise:
        if not 0 < args.sigma < np.inf:
            raise ConfigError(f"--sigma {args.sigma}: noise of that strength cannot be added; take a positive number")
        return picture + args.sigma * rng.standard_normal(picture.shape), picture
    if args.missing is not None:
        if not 0 < args.missing < 1:
            raise ConfigError(f"--missing {args.missing}: the fraction to lose must lie between 0 and 1")
        noise = args.sigma * rng.standard_normal(picture.shape)
        lost = rng.random(planes.shape[1:]) < args.missing
        return np.where(_over(lost, picture), np.nan, picture + noise), picture
    if args.mask is not None:
        mask = _planes(load_picture(args.mask))
        if mask.shape[1:] != planes.shape[1:]:
            raise DataError(f"the mask has {mask.shape[1:]} pixels, the picture {planes.shape[1:]}: they must agree")
        return np.where(_over((mask != 0).any(axis=0), picture), np.nan, picture), None
    return picture, None


def _over(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """A mask of pixels, for every channel."""
    return mask if picture.ndim == 2 else mask[..., None]
