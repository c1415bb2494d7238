"""Natural images as data: find them, read them as grey values, cut patches, whiten the patches."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gem.errors import ConfigError, DataError
from gem.extras import install_hint
from gem.picture_files import load_picture, save_picture

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "ImageFile",
    "Patches",
    "Pictures",
    "Whitening",
    "find_images",
    "learn_whitening",
    "load_grey",
    "load_picture",
    "save_picture",
]

LOG = logging.getLogger(__name__)
# Which files of a folder are taken for pictures; what they are their first bytes say.
SUFFIXES = {
    *(".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".webp"),
    *(".tif", ".tiff", ".btf", ".lsm", ".fits", ".fit", ".fts", ".iml", ".imc"),
}
PAGED = ("GIF", "PNG", "TIFF", "WEBP", "AVIF")  # formats of Pillow whose frames are pictures of equal right


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files of `paths`: files as given, folders searched through; absolute, sorted, each once.

    Raises
    ------
    DataError
        A path that does not exist, or no image in all of them.
    """
    given = [Path(os.path.abspath(path)) for path in paths]
    found: set[Path] = set()
    for path in given:
        if path.is_dir():
            found.update(filter(_looks_like_image, path.rglob("*")))
        elif path.exists():
            found.add(path)
        else:
            raise DataError(f"{path} does not exist: name an image file or a folder of images")
    if not found:
        raise DataError(
            f"no image in {', '.join(map(str, given)) or 'an empty list'}; known suffixes: {' '.join(sorted(SUFFIXES))}"
        )
    return sorted(found)


def _looks_like_image(file: Path) -> bool:
    hidden = file.name.startswith(".")  # thumbnails and the resource forks that some systems leave behind
    return file.is_file() and not hidden and file.suffix.lower() in SUFFIXES


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with its header read; pixels are decoded on use. Errors inside the block name the file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(f"reading images needs Pillow: {install_hint('images')}") from error
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # on a broken file decoders raise OSError, SyntaxError, struct.error, ...
        raise DataError(
            f"cannot read {path} as an image: {error}. Convert it to PNG; "
            "docs/data.md lists the files of numbers that gem reads"
        ) from error


def load_grey(path: str | os.PathLike[str], frame: int = 0) -> np.ndarray:
    """The image as grey values, upright; of several frames the one asked for.

    Returns
    -------
    (height, width) float64 array in [0, 1].

    Raises
    ------
    ConfigError
        Pillow is not installed.
    DataError
        The file is not a readable image, or has grey values of unknown range.
    """
    with _opened(Path(path)) as image:
        from PIL import ImageOps

        if frame:
            image.seek(frame)
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "F":
            grey = np.asarray(upright, dtype=np.float64)
        elif upright.mode.startswith("I"):  # 16 bits: Pillow's conversion to "L" would clip them at 255
            grey = np.asarray(upright) / 65535
        elif upright.mode == "LAB":  # Pillow converts it to nothing else; its first channel is the lightness
            grey = np.asarray(upright.getchannel(0)) / 255
        else:
            grey = np.asarray(upright.convert("L")) / 255
    if not (grey.min() >= 0 and grey.max() <= 1):
        raise DataError(
            f"{path}: grey values from {grey.min():g} to {grey.max():g} after scaling to [0, 1]; "
            "save it as an 8- or 16-bit image"
        )
    return grey


class Pictures(ABC):
    """The pictures of one file or array, decoded one at a time.

    Attributes
    ----------
    name : what messages call it.
    sizes : (height, width) of each picture.
    """

    name: str
    sizes: Sequence[tuple[int, int]]

    @abstractmethod
    def grey(self, i: int) -> np.ndarray:
        """Picture i as grey values: (height, width) float64 array."""

    def close(self) -> None:  # noqa: B027 (most hold nothing open)
        """Let go of an open file; nothing is read after this."""


class ImageFile(Pictures):
    """An image that Pillow reads, with all its frames; grey values in [0, 1]."""

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        self.name = str(path)
        with _opened(self._path) as image:
            there = getattr(image, "n_frames", 1)
            frames = there if image.format in PAGED else 1
            self.sizes = [(image.height, image.width)] * frames
        if frames < there:
            LOG.warning(
                "%s: the first of its %d frames is used, %d are not: those of %s are layers or previews",
                path, there, there - frames, image.format,
            )  # fmt: skip

    def grey(self, i: int) -> np.ndarray:
        return load_grey(self._path, i) if i else load_grey(self._path)


class Patches:
    """Square patches at random positions, every position of every picture equally likely; cut when they are read.

    Flat patches stay in: they are part of the statistics (data points without a cause), leaving them out
    would bias the prior, and a search for lively patches need not end. Positions are drawn with replacement,
    from the sizes of the pictures only, and sorted: neighbouring patches are of one picture or the next, and who
    reads a slab decodes its own pictures only, one at a time.

    Parameters
    ----------
    images : paths of image files, or Pictures.
    patch : side length in pixels.
    count : number of patches.
    seed : key of the Philox generator: same pictures and seed, same patches.

    Raises
    ------
    DataError
        A picture smaller than the patch, or unreadable.
    """

    def __init__(self, images: Sequence[str | os.PathLike[str] | Pictures], patch: int, count: int, seed: int):
        self.images, self.patch, self.count = images, patch, count
        files = [image if isinstance(image, Pictures) else ImageFile(image) for image in images]
        self._frames = [(file, i) for file in files for i in range(len(file.sizes))]
        places = np.array([_count_positions(file.name, file.sizes[i], patch) for file, i in self._frames])
        self._first = np.cumsum(places) - places
        self._drawn = np.sort(np.random.Generator(np.random.Philox(seed)).integers(places.sum(), size=count))
        self._decoded: tuple[int, np.ndarray] | None = None  # the last picture, by number
        self._lock = Lock()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Patches [start, stop), by picture and position: (stop - start, patch * patch) float64 array.

        Raises
        ------
        DataError
            A picture is unreadable.
        """
        drawn = self._drawn[start:stop]
        owner = np.searchsorted(self._first, drawn, side="right") - 1
        patches = np.empty((len(drawn), self.patch**2))
        for i in np.unique(owner):
            mine = np.flatnonzero(owner == i)
            windows = sliding_window_view(self._grey(i), (self.patch, self.patch))
            rows, columns = np.unravel_index(drawn[mine] - self._first[i], windows.shape[:2])
            patches[mine] = windows[rows, columns].reshape(len(mine), -1)
        return patches

    def blocks(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Patches [start, stop), by default all, `rows` of them at a time."""
        last = self.count if stop is None else stop
        for first in range(start, last, rows):
            yield self.read(first, min(first + rows, last))

    def _grey(self, i: int) -> np.ndarray:
        with self._lock:
            if self._decoded is None or self._decoded[0] != i:
                self._decoded = None  # two at a time would take twice the memory
                file, frame = self._frames[i]
                self._decoded = i, file.grey(frame)
            return self._decoded[1]


def _count_positions(name: str, size: tuple[int, int], patch: int) -> int:
    height, width = size
    if min(width, height) < patch:
        raise DataError(
            f"{name} has {width} x {height} pixels, too few for a patch of {patch} x {patch}: "
            "take a smaller patch or leave the picture out"
        )
    return (width - patch + 1) * (height - patch + 1)


@dataclass(frozen=True, eq=False)
class Whitening:
    """How patches are whitened: ``Y = (X - X.mean(axis=1, keepdims=True) - mean) @ forward``.

    Both matrices are symmetric. ``Y @ inverse + mean`` gives back the patches but for their grey level and
    the components that were cut; ``inverse @ W`` are fields W (D, H) as they look in the image.
    """

    mean: np.ndarray  # (D,) mean patch, after each patch lost its own mean
    forward: np.ndarray  # (D, D)
    inverse: np.ndarray  # (D, D) pseudo-inverse of forward

    def apply(self, patches: np.ndarray) -> np.ndarray:
        """Whitened patches, (N, D) float64; `patches`, (N, D), stay as they are."""
        centred = patches - patches.mean(axis=1, keepdims=True)
        centred -= self.mean
        return centred @ self.forward


def learn_whitening(blocks: Iterable[np.ndarray], variance: float = 0.95) -> Whitening:
    """The whitening (ZCA) of a set of patches that each lose their own mean, without the faintest components.

    The leading principal components that carry `variance` of the total are scaled to equal variance, the rest
    is dropped. Like the low-pass filter of Olshausen & Field (Vision Research 37, 1997) this keeps noise from
    being amplified, but it is learned from the data. The components from the last kept one on hold more than
    1 - variance of the total, so no kept eigenvalue is below ``(1 - variance) * total / D``: nothing is
    divided by a vanishing number.

    Parameters
    ----------
    blocks : (n, D) arrays, together all patches; each is used once.
    variance : share of the variance to keep, in (0, 1).

    Returns
    -------
    The Whitening that gives these patches mean 0 and, averaged over the pixels, variance 1.

    Raises
    ------
    ConfigError
        `variance` outside (0, 1).
    DataError
        All patches are alike up to their mean grey level.
    """
    if not 0 < variance < 1:
        raise ConfigError(f"variance = {variance}: the share to keep must lie between 0 and 1")
    N, mean, covariance, largest = _moments(blocks)
    D = len(mean)
    if np.sqrt(np.trace(covariance) / D) <= 1e-12 * largest:  # nothing but rounding is left
        raise DataError(
            f"the {N} patches do not differ in anything but grey level: "
            "there is nothing to whiten; take other images or more patches"
        )

    eigenvalues, vectors = np.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    carried = np.cumsum(eigenvalues)
    kept = int(np.searchsorted(carried, variance * carried[-1])) + 1
    basis = vectors[:, :kept]
    # `kept` directions of variance 1 spread over D pixels: times D / kept, the mean variance of a pixel is 1
    gain = np.sqrt(D / kept / eigenvalues[:kept])
    return Whitening(mean, basis * gain @ basis.T, basis / gain @ basis.T)


def _moments(blocks: Iterable[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray, float]:
    """Number, mean and covariance of the patches without their own means, and the largest |pixel|.

    Each block is centred on its own mean, and what the means differ is added (Chan, Golub & LeVeque, The
    American Statistician 37, 1983): nothing cancels.
    """
    N, largest = 0, 0.0
    mean = scatter = np.zeros(())
    for block in blocks:
        centred = block - block.mean(axis=1, keepdims=True)
        own = centred.mean(axis=0)
        centred -= own
        moved, total = own - mean, N + len(block)
        scatter = scatter + centred.T @ centred + np.outer(moved, moved) * (N * len(block) / total)
        mean = mean + moved * (len(block) / total)
        N, largest = total, max(largest, float(np.abs(block).max()))
    return N, mean, scatter / N, largest
