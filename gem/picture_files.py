"""Pictures read and written in their own kind: samples in the file's units, their depth, their transparency."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gem import png16
from gem.errors import ConfigError, DataError
from gem.extras import install_hint

log = logging.getLogger("gem")
TIFF = {".tif", ".tiff"}
DEEP = {".png", ".pgm", *TIFF}  # suffixes of files that hold 16 bits
CLEAR = {".png", ".webp", *TIFF}  # and of those that hold transparency
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GREY, COLOUR = 1, 3  # channels
TRANSPARENT = (1, 2)  # kinds of extra samples in a TIFF that mean transparency
TURNS: dict[int, Any] = {  # the TIFF tag Orientation: rows and columns as they are to be seen
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
ICC_PROFILE, UNDEFINED = 34675, 7  # a tag of TIFF, and its type


COLOUR_SPACES = {  # of the tag PhotometricInterpretation: samples that are neither grey nor RGB
    3: "a palette",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in the units of its file.

    Attributes
    ----------
    values : (height, width) or (height, width, channels) float64 array
        NaN marks a gap.
    dtype : numpy.dtype
        Of the samples in the file; bool for one bit.
    white : float or None
        The sample of white: 255, 65535, 1; None where the numbers have no such meaning.
    alpha : (height, width) array of `dtype`, or None
        Opacity, as in the file.
    array : bool
        Whether it came from a .npy file.
    extras : dict
        What else is written with the pixels (the colour profile).
    """

    values: np.ndarray
    dtype: np.dtype
    white: float | None
    alpha: np.ndarray | None = None
    array: bool = False
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> float:
        """How much of the file's own units one grey level of 255 is; 1 for arrays and for floats."""
        return self.white / 255 if self.white is not None and self.dtype.kind in "bu" and not self.array else 1.0

    @property
    def hidden(self) -> np.ndarray:
        """(height, width): which pixels are fully transparent."""
        return np.zeros(self.values.shape[:2], bool) if self.alpha is None else self.alpha == 0


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read an image, upright, or the array of a .npy file. Of several pages the first is read, with a warning.

    Raises
    ------
    ConfigError
        A library that this kind of file needs is not installed.
    DataError
        The file is not a readable image or array.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if head.startswith(b"\x93NUMPY") or path.suffix.lower() == ".npy":
        return _from_array(path)
    try:
        if head.startswith(TIFF_SIGNATURES):
            return _from_tiff(path)
        if head.startswith(b"SIMPLE  ="):
            return _from_fits(path)
        if png16.is_deep(head):
            return _deep_png(path)
        return _from_pillow(path)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # on a broken file decoders raise OSError, SyntaxError, struct.error, ...
        raise DataError(f"cannot read {path} as an image: {error}. Convert it to PNG or TIFF") from error


def _from_array(path: Path) -> Picture:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as an array of numbers: {error}") from error
    if array.dtype.kind not in "buif":
        raise DataError(f"{path} holds {array.dtype}: a picture is an array of real numbers")
    return Picture(array.astype(np.float64), array.dtype, white_of(array), array=True)


def white_of(array: np.ndarray) -> float | None:
    """The sample of white: the largest of 8 and 16 bits; of other numbers 1 or 255, where they look like that."""
    if array.dtype.kind == "b":
        return 1.0
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return float(np.iinfo(array.dtype).max)
    seen = array[np.isfinite(array)]
    if not seen.size:
        return None
    low, high = np.percentile(seen, (1, 99))
    reach = float(high) if array.dtype.kind == "f" else float(seen.max())
    if low < 0 and low < -0.1 * high:
        return None
    if array.dtype.kind == "f" and 0 < reach <= 1.1:
        return 1.0
    return 255.0 if reach <= 280 else None  # noise may go beyond white


def _channels(samples: np.ndarray) -> np.ndarray:
    """float64, without an axis for one channel."""
    return (samples[..., 0] if samples.ndim == 3 and samples.shape[2] == 1 else samples).astype(np.float64)


def _with_alpha(samples: np.ndarray, transparent: bool, white: float | None, **more: Any) -> Picture:
    """The picture of interleaved samples, the last of which is opacity if `transparent`."""
    if not transparent:
        return Picture(_channels(samples), samples.dtype, white, **more)
    return Picture(_channels(samples[..., :-1]), samples.dtype, white, samples[..., -1].copy(), **more)


def _from_pillow(path: Path) -> Picture:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError(f"reading images needs Pillow: {install_hint('images')}") from error
    with Image.open(path) as image:
        _tell_pages(path, getattr(image, "n_frames", 1))
        extras = {"icc_profile": image.info["icc_profile"]} if image.info.get("icc_profile") else {}
        deep = image.format in ("PNG", "PPM")  # older versions of Pillow give 16 bits as 32
        clear = "transparency" in image.info
        upright = ImageOps.exif_transpose(image)
        mode = upright.mode
        if mode in ("1", "F") or mode.startswith("I"):
            samples = np.asarray(upright)
            if (mode == "I" and deep) or mode.startswith("I;16"):
                samples = samples.astype(np.uint16)
            return _with_alpha(samples, False, {"1": 1.0, "F": None, "I": 65535.0 if deep else None}.get(mode, 65535.0))
        if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            extras = {}  # the profile was of the other colour space
        target = {"L": "LA" if clear else "L", "LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
        samples = np.asarray(upright.convert(target.get(mode, "RGBA" if clear else "RGB")))
    if mode in ("P", "PA") and np.all(samples[..., :1] == samples[..., :COLOUR]):
        samples = samples[..., [0, 3]] if samples.shape[-1] == 4 else samples[..., 0]
    return _with_alpha(samples, samples.ndim == 3 and samples.shape[-1] in (2, 4), 255.0, extras=extras)


def _tell_pages(path: Path, pages: int) -> None:
    if pages > 1:
        log.warning("%s has %d pages or frames: the first is restored, the others are not", path, pages)


def _deep_png(path: Path) -> Picture:
    samples = png16.read(path)
    return _with_alpha(samples, samples.shape[-1] in (2, 4), 65535.0)


def _from_fits(path: Path) -> Picture:
    """By astropy: Pillow leaves out scale, offset and gaps, and misreads 16 bits."""
    from gem.data.fits import read_image  # which imports this module

    samples = read_image(str(path))
    if samples.ndim != 2:
        raise DataError(
            f"{path} holds an image of shape {samples.shape}, not (height, width): numpy.save('OUT.npy', "
            f"astropy.io.fits.getdata({str(path)!r})[0]) saves the first of several pictures"
        )
    white = float(np.iinfo(samples.dtype).max) if samples.dtype in (np.uint8, np.uint16) else None
    return Picture(samples.astype(np.float64), samples.dtype, white)


def _from_tiff(path: Path) -> Picture:
    """By tifffile where samples have more than 8 bits; by Pillow otherwise, which knows palettes and colour spaces."""
    try:
        import tifffile
    except ImportError:
        return _deep_tiff_by_pillow(path)
    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        series = int(np.prod(file.series[0].shape)) // max(1, int(np.prod(page.shape)))
        count = max(len(file.pages), series)
        if page.dtype is None:
            raise DataError(f"{path} has samples of {page.bitspersample} bits, which cannot be read: convert it")
        if page.bitspersample <= 8:
            return _from_pillow(path)
        _tell_pages(path, count)
        samples = page.asarray()
        if page.axes == "SYX":
            samples = np.moveaxis(samples, 0, -1)
        elif page.axes not in ("YX", "YXS"):
            raise DataError(f"{path} holds {samples.shape} samples ({page.axes}), which is no picture of one plane")
        if samples.dtype.kind not in "uif":
            raise DataError(f"{path} holds {samples.dtype}: a picture has real numbers")
        samples = _black_is_zero(samples, page, path)
        orientation = page.tags.get(274)
        samples = TURNS.get(orientation.value if orientation else 1, lambda a: a)(samples)
        clear = samples.ndim == 3 and any(int(kind) in TRANSPARENT for kind in page.extrasamples)
        profile = page.tags.get(34675)
        extras = {"icc_profile": bytes(profile.value)} if profile else {}
    samples = samples.astype(samples.dtype.newbyteorder("="))
    white = 65535.0 if samples.dtype == np.uint16 else None
    return _with_alpha(samples, clear, white, extras=extras)


def _black_is_zero(samples: np.ndarray, page: Any, path: Path) -> np.ndarray:
    """Grey or RGB samples; unsigned ones that count from white are turned round, as they are written again from black.

    Raises
    ------
    DataError
        If they are colours of another kind.
    """
    kind = int(page.photometric)
    if kind in COLOUR_SPACES:
        raise DataError(f"{path} has {page.bitspersample} bits of {COLOUR_SPACES[kind]}: convert it to RGB or grey")
    if kind != 0 or samples.dtype.kind != "u":
        return samples
    turned = 2**page.bitspersample - 1 - samples
    if samples.ndim == 3 and page.extrasamples:  # opacity and the like count from zero
        turned[..., -len(page.extrasamples) :] = samples[..., -len(page.extrasamples) :]
    return turned.astype(samples.dtype)


def _deep_tiff_by_pillow(path: Path) -> Picture:
    """What Pillow reads without loss: 8 bits, 16 bits of grey, float32 of grey.

    Raises
    ------
    ConfigError
        For other kinds, which Pillow would round to 8 bits or misread.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(f"reading images needs Pillow: {install_hint('images')}") from error
    with Image.open(path) as image:
        tags: Any = getattr(image, "tag_v2", {})
        bits, kinds = tags.get(258, (1,)), tags.get(339, (1,))
        faithful = max(bits) <= 8 or (len(bits) == 1 and (bits[0], kinds[0]) in ((16, 1), (32, 3)))
    if not faithful:
        raise ConfigError(f"{path}: samples of {max(bits)} bits in this form need tifffile: {install_hint('images')}")
    return _from_pillow(path)


def write_picture(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a picture in its own depth, with its transparency; a file that cannot hold these is told in a warning.

    To .npy it goes in its own units: of an array in that array's type, of an image unrounded, opacity as the last
    channel.

    Raises
    ------
    ConfigError
        A library is not installed, or the kind of file cannot hold such numbers, or is not known.
    DataError
        The file cannot be written.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            np.save(path, rounded(picture) if picture.array else _joined(picture, picture.values))
        else:
            _write_image(path, picture)
    except ImportError as error:
        raise ConfigError(
            f"writing {path} needs Pillow, or tifffile for this kind of TIFF: {install_hint('images')}"
        ) from error
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path}: {error}; name a .png or a .npy file") from error
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}") from error


def _joined(picture: Picture, values: np.ndarray) -> np.ndarray:
    """Values with the opacity as the last channel."""
    if picture.alpha is None:
        return values
    planes = values[..., None] if values.ndim == 2 else values
    return np.concatenate([planes, picture.alpha[..., None].astype(values.dtype)], axis=-1)


def rounded(picture: Picture) -> np.ndarray:
    """The values in the picture's type, rounded and clipped where that needs it."""
    kind = picture.dtype
    if kind.kind == "f":
        return picture.values.astype(kind)
    if kind.kind == "b":
        return picture.values > 0.5
    limits = np.iinfo(kind)
    whole = np.clip(np.rint(picture.values), float(limits.min), float(limits.max))
    # 2⁶⁴ − 1 as a float is one too many
    return np.where(whole >= float(limits.max), limits.max, whole.astype(kind)).astype(kind)


def _write_image(path: Path, picture: Picture) -> None:
    suffix = path.suffix.lower()
    picture = _to_hold(path, suffix, picture)
    samples = _joined(picture, rounded(picture))
    if samples.dtype == np.uint16 and samples.ndim == 3 and suffix == ".png":
        png16.write(path, samples)
    elif suffix in TIFF and (samples.dtype.itemsize > 1) and not _pillow_holds(samples):
        _write_tiff(path, picture, samples)
    else:
        from PIL import Image

        options: dict[str, Any] = {"quality": 95} if suffix in (".jpg", ".jpeg") else {}
        options |= {"lossless": True} if suffix == ".webp" else {}
        Image.fromarray(samples).save(path, **options, **picture.extras)


def _pillow_holds(samples: np.ndarray) -> bool:
    """Whether Pillow writes a TIFF of more than 8 bits: of grey only."""
    return samples.ndim == 2 and samples.dtype in (np.dtype(np.uint16), np.dtype(np.float32))


def _write_tiff(path: Path, picture: Picture, samples: np.ndarray) -> None:
    import tifffile

    colours = GREY if picture.values.ndim == 2 else picture.values.shape[2]
    extra: tuple[str, ...] = () if picture.alpha is None else ("unassalpha",)
    photometric = "rgb" if colours == COLOUR else "minisblack"
    if colours not in (GREY, COLOUR):
        extra = ("unspecified",) * (colours - 1) + extra
    planar = "contig" if samples.ndim == 3 else None
    profile = picture.extras.get("icc_profile")
    tags = [(ICC_PROFILE, UNDEFINED, len(profile), profile, True)] if profile else []  # older ones have no iccprofile=
    tifffile.imwrite(
        path,
        samples,
        photometric=photometric,
        extrasamples=extra,
        extratags=tags,
        metadata=None,
        planarconfig=planar,
    )


def _to_hold(path: Path, suffix: str, picture: Picture) -> Picture:
    """The picture as a file of this suffix can hold it; what is lost is told."""
    if picture.alpha is not None and suffix not in CLEAR:
        log.warning("%s: %s files hold no transparency, it is lost; name a .png to keep it", path, suffix)
        picture = replace(picture, alpha=None)
    small = picture.dtype.kind == "b" or picture.dtype == np.uint8
    deep = picture.dtype == np.uint16 and suffix in DEEP and (suffix != ".pgm" or picture.values.ndim == 2)
    if small or deep or suffix in TIFF:
        return picture
    if picture.white is None:
        raise ConfigError(
            f"{path}: numbers of {picture.dtype} without a white fit a .tif or a .npy file only: name one"
        )
    if not picture.array:
        log.warning("%s: %s files hold 8 bits, %s is rounded; name a .png or .tif", path, suffix, picture.dtype)
    scale = 255 / picture.white
    alpha = None if picture.alpha is None else np.rint(picture.alpha * scale).astype(np.uint8)
    return replace(picture, values=picture.values * scale, dtype=np.dtype(np.uint8), white=255.0, alpha=alpha)


def default_output(path: str | os.PathLike[str], picture: Picture) -> Path:
    """IMAGE's name with -restored and the suffix of a file that holds the picture: .png where that does."""
    path = Path(path)
    fits = picture.white is not None and (picture.dtype.kind in "bf" or picture.dtype.itemsize <= 2)
    suffix = ".png" if fits else ".npy" if picture.array else ".tif"
    return path.with_name(f"{path.stem}-restored{suffix}")


def load_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image in grey levels of 0 to 255 without its transparency, or the array of a .npy file as it is.

    Returns
    -------
    (height, width) or (height, width, channels) float64 array

    Raises
    ------
    ConfigError
        Pillow is not installed.
    DataError
        The file is not a readable image or array.
    """
    picture = read_picture(path)
    return picture.values / picture.unit


def save_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
    """Write grey levels of 0 to 255: as they are to a .npy file, rounded to 8 bits to any other.

    Raises
    ------
    ConfigError
        Pillow is not installed, or does not know the suffix.
    DataError
        The file cannot be written.
    """
    values = np.asarray(picture)
    array = Path(path).suffix.lower() == ".npy"
    write_picture(path, Picture(values, values.dtype if array else np.dtype(np.uint8), 255.0, array=array))
