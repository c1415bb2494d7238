"""What `gem denoise` and `gem inpaint` do: read, spoil if asked, restore, write, tell what was done."""

from __future__ import annotations

import logging
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np

from gem.errors import ConfigError, DataError
from gem.notes import counted
from gem.philox import generator
from gem.picture_files import Picture, default_output, read_picture, write_picture
from gem.restore import Restored, as_planes, check_model, estimate_sigma, restore
from gem.restore.recipe import AUTO

log = logging.getLogger("gem")
SIZES = ("H", "Hprime", "gamma", "K", "values")  # settings that the shell has flags for
ADDED = 25.0  # noise that is added if no strength is given, in grey levels of 255
FAR = 2.0  # a given sigma that differs from the estimate by more than this factor is told


def restore_file(args: Namespace) -> None:
    """Restore the picture that the command line names.

    Raises
    ------
    ConfigError, DataError
        As `restore`, `read_picture` and `write_picture`.
    """
    check_model(args.model, missing=args.mask is not None or args.missing is not None)
    given = read_picture(args.image)
    output = Path(args.output or default_output(args.image, given))
    if output.resolve() in {Path(p).resolve() for p in (args.image, args.mask, args.clean) if p}:
        raise ConfigError(f"the output {output} is one of the pictures read: choose another name with --output")
    as_planes(given.values)  # refuses what is no picture
    unit = 1.0 if args.sigma_unit == "own" else given.unit
    sigma = _strength(args, unit, given)
    hidden = _over(given.hidden, given.values)
    visible = np.where(hidden, _mean(given), given.values)  # nothing is learned from what nobody sees
    spoilt, whole = _spoil(visible, args, sigma)
    if isinstance(sigma, float) and sigma > 0 and whole is None:
        _compare(sigma, spoilt, unit)
    result = restore(
        spoilt,
        args.model,
        sigma=sigma,
        patch=args.patch,
        stride=args.stride,
        steps=args.steps,
        seed=args.seed,
        backend=args.backend,
        clean=whole if args.clean is None else _clean(args.clean, given),
        white=given.white,
        progress=not args.quiet,
        **{name: getattr(args, name) for name in SIZES if getattr(args, name) is not None},
    )
    write_picture(output, replace(given, values=np.where(hidden, given.values, result.picture)))
    for told in counted(result.notes):
        print(f"{output}: note of {told.when}: {told.what}")
    print(f"{output}: {_summary(result, unit, sigma == AUTO)}")


def _strength(args: Namespace, unit: float, given: Picture) -> float | str:
    """The noise in the picture's own units, or "auto"."""
    sigma = args.sigma
    if sigma == AUTO and args.add_noise:
        if given.white is None:
            raise ConfigError("--add-noise needs --sigma: a picture of such numbers has no grey levels of 255")
        return ADDED * given.white / 255
    if isinstance(sigma, str):
        return sigma  # refused by restore, unless it is auto
    if unit != 1 and sigma >= 255:
        raise ConfigError(
            f"--sigma {sigma:g} grey levels of 255 would be more than white; if it is in the picture's own units, "
            "say --sigma-unit own"
        )
    return sigma * unit


def _mean(picture: Picture) -> np.ndarray:
    """By channel: the mean of what is visible."""
    shown = picture.values[~picture.hidden]
    return np.nanmean(shown, axis=0) if np.any(~np.isnan(shown)) else np.array(0.0)


def _clean(path: str, given: Picture) -> np.ndarray:
    """The true picture in the units of the given one."""
    clean = read_picture(path)
    known = clean.white is not None and given.white is not None
    return clean.values * (given.white / clean.white) if known else clean.values  # type: ignore[operator]  # known


def _compare(sigma: float, picture: np.ndarray, unit: float) -> None:
    """Warn of a sigma that the picture does not bear out."""
    found = estimate_sigma(picture)
    if found > 0 and not 1 / FAR < sigma / found < FAR:
        log.warning("sigma = %.3g was given, the picture looks like %.3g: try --sigma auto", sigma / unit, found / unit)


def _summary(result: Restored, unit: float, estimated: bool) -> str:
    """What was done, by what, with which noise, how well."""
    found = "estimated" if estimated else "given"
    if unit == 1:
        noise = f"sigma = {result.sigma:.4g} in the picture's own units ({found})"
    else:
        noise = f"sigma = {result.sigma / unit:.4g} grey levels of 255, {result.sigma:.4g} in its own units ({found})"
    ratios = "" if result.psnr_after is None else f", PSNR {result.psnr_before:.2f} dB → {result.psnr_after:.2f} dB"
    if result.model is None:
        return f"as it was, there is nothing to learn from; {noise}{ratios}"
    return f"restored by {result.model!r} in {result.seconds:.1f} s, {noise}{ratios}"


def _spoil(picture: np.ndarray, args: Namespace, sigma: float | str) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture with the noise and the gaps asked for; and itself, if it was the clean one."""
    rng = generator(args.seed, "spoil")
    if args.add_noise:
        if isinstance(sigma, str) or not 0 < sigma < np.inf:
            raise ConfigError(f"--sigma {args.sigma}: noise of that strength cannot be added; take a positive number")
        return picture + sigma * rng.standard_normal(picture.shape), picture
    if args.missing is not None:
        if not 0 < args.missing < 1:
            raise ConfigError(f"--missing {args.missing}: the fraction to lose must lie between 0 and 1")
        noise = (0.0 if isinstance(sigma, str) else sigma) * rng.standard_normal(picture.shape)
        lost = rng.random(picture.shape[:2]) < args.missing
        return np.where(_over(lost, picture), np.nan, picture + noise), picture
    if args.mask is not None:
        mask = as_planes(read_picture(args.mask).values)
        if mask.shape[1:] != picture.shape[:2]:
            raise DataError(f"the mask has {mask.shape[1:]} pixels, the picture {picture.shape[:2]}: they must agree")
        return np.where(_over((mask != 0).any(axis=0), picture), np.nan, picture), None
    return picture, None


def _over(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """A mask of pixels, for every channel."""
    return mask if picture.ndim == 2 else mask[..., None]
