"""The pictures of a TIFF file, through tifffile: pages, ImageJ's hyperstacks, OME; any depth, signed, float."""

from __future__ import annotations

import logging
import struct
from math import prod
from threading import Lock
from typing import Any

import numpy as np

from gem.data.kinds import library
from gem.data.source import NUMERIC, reading
from gem.data.stacks import full_scale, grey
from gem.errors import DataError
from gem.images import Pictures

LOG = logging.getLogger(__name__)
WHITE_IS_ZERO, PALETTE, CMYK = 0, 3, 5  # values of the tag PhotometricInterpretation
ALPHA = (1, 2)  # values of the tag ExtraSamples; others are channels
TURNS = {  # of the tag Orientation: what makes the picture upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


class TiffFile(Pictures):
    """Every plane of every page of a TIFF file, reduced copies left out; each channel that is no colour is a picture.

    Raises
    ------
    ConfigError
        tifffile is not installed.
    DataError
        It is torn, or holds no picture.
    """

    def __init__(self, path: str):
        tifffile = library("tifffile", "tifffile", f"reading {path}, a TIFF file,")
        self.name, self._lock = path, Lock()
        with reading(path):
            self._file = tifffile.TiffFile(path)
        self._planes: list[tuple[Any, int, Any]] = []  # page, plane in it, and place where planes lie in a row
        self.sizes: list[tuple[int, int]] = []
        try:
            with reading(path):
                used = [series for series in self._file.series if not series.keyframe.is_reduced]
                absent = sum(self._note(series) for series in used)
                self._check_whole()
                reduced = max(0, len(self._file.pages) - sum(len(series) for series in used))
            if not self._planes:
                raise DataError(f"{path} is a TIFF file without a picture: save it again")
        except BaseException:
            self.close()
            raise
        self._tell(reduced, absent)

    def _check_whole(self) -> None:
        """The last page names no other one; tifffile leaves out those behind a place that the file does not have."""
        file, form, last = self._file.filehandle, self._file.tiff, self._file.pages[-1]
        file.seek(last.offset)
        (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        file.seek(last.offset + form.tagnosize + tags * form.tagsize)
        following = file.read(form.offsetsize)
        if len(following) < form.offsetsize or struct.unpack(form.offsetformat, following)[0] >= file.size:
            raise DataError(
                f"{self.name} is cut short behind its picture {len(self._file.pages)}: copy or save it again"
            )

    def _note(self, series: Any) -> int:
        """Note the planes of a series; returns how many its file does not have."""
        page = series.keyframe
        if np.dtype(page.dtype).kind not in NUMERIC:
            raise DataError(f"{self.name} has pictures of {page.dtype}: pictures are of real numbers")
        planes, absent = _planes_of(page), 0
        found: list[tuple[Any, int, Any]]
        whole = prod(series.shape) // prod(page.shape)  # pages that the series stands for
        if series.dataoffset is not None and whole > 1:  # ImageJ describes one page, and the others follow it
            found = [(page, plane, (series.dataoffset, number)) for number in range(whole) for plane in range(planes)]
        else:
            there = [other for other in series.pages if other is not None]
            absent = len(series.pages) - len(there)
            found = [(other, plane, None) for other in there for plane in range(planes)]
        self._planes += found
        self.sizes += [_size(page)] * len(found)
        return absent

    def _tell(self, reduced: int, absent: int) -> None:
        page = self._planes[0][0]
        values = (
            "values scaled to [0, 1]" if full_scale(np.dtype(page.dtype)) else f"{page.dtype} values kept as they are"
        )
        height, width = self.sizes[0]
        LOG.info("%s: %d picture(s) of %d x %d, %s", self.name, len(self.sizes), height, width, values)
        other = sum(kind not in ALPHA for kind in page.extrasamples) if _is_colour(page) else 0
        if other:
            LOG.warning("%s: %d channels beside its colours are not used", self.name, other)
        if reduced:
            LOG.warning("%s: %d reduced copies of its pictures are not used", self.name, reduced)
        if absent:
            LOG.warning("%s: %d planes that its description speaks of are not in the file", self.name, absent)

    def grey(self, i: int) -> np.ndarray:
        page, plane, row = self._planes[i]
        with self._lock, reading(self.name):
            pixels = page.asarray() if row is None else self._in_a_row(page, *row)
            return _grey(pixels, page, plane)

    def _in_a_row(self, page: Any, offset: int, number: int) -> np.ndarray:
        dtype = np.dtype(self._file.byteorder + page.dtype.char)
        count = prod(page.shape)
        found = np.fromfile(self.name, dtype, count, offset=offset + number * count * dtype.itemsize)
        if found.size < count:
            raise DataError(f"{self.name} is cut short: copy or save it again")
        return found.reshape(page.shape)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _size(page: Any) -> tuple[int, int]:
    height, width = page.imagelength, page.imagewidth
    return (width, height) if _turn(page) in (5, 6, 7, 8) else (height, width)


def _turn(page: Any) -> int:
    tag = page.keyframe.tags.get(274)
    return int(tag.value) if tag is not None else 1


def _is_colour(page: Any) -> bool:
    """Whether the samples of a pixel are a colour, or grey and alpha; else each is a picture of its own."""
    alpha = [kind for kind in page.extrasamples if kind in ALPHA]
    return page.photometric not in (0, 1) or page.samplesperpixel - len(alpha) == 1


def _planes_of(page: Any) -> int:
    depth = page.imagedepth or 1
    return depth * (1 if _is_colour(page) else page.samplesperpixel)


def _grey(pixels: np.ndarray, frame: Any, plane: int) -> np.ndarray:
    """Grey values of one plane of a page's pixels, upright."""
    page = frame.keyframe
    samples = page.samplesperpixel
    if samples > 1 and page.planarconfig == 2:
        pixels = np.moveaxis(pixels.reshape(samples, -1, page.imagelength, page.imagewidth), 0, -1)
    pixels = pixels.reshape(-1, page.imagelength, page.imagewidth, samples)
    colour = pixels[plane] if _is_colour(page) else pixels[plane // samples, :, :, plane % samples, None]
    upright = TURNS.get(_turn(frame), lambda a: a)(_colours(colour, page))
    return grey(upright, None if page.photometric == PALETTE else page.bitspersample)


def _colours(pixels: np.ndarray, page: Any) -> np.ndarray:
    """(height, width, 1 or 3): palettes looked up, white as the largest number, alpha dropped."""
    if page.photometric == PALETTE and page.colormap is not None:
        return np.moveaxis(page.colormap[:, pixels[:, :, 0]], 0, -1) if pixels.dtype.kind == "u" else pixels
    top = 2**page.bitspersample - 1 if full_scale(pixels.dtype) and pixels.dtype.kind == "u" else 1
    if page.photometric == CMYK and pixels.shape[2] >= 4 and pixels.dtype.kind == "u":
        light = (top - pixels[:, :, :4].astype(np.float64)) / top
        return light[:, :, :3] * light[:, :, 3:]
    if page.photometric == WHITE_IS_ZERO and full_scale(pixels.dtype):
        pixels = ~pixels if pixels.dtype.kind == "b" else (top - pixels).astype(pixels.dtype)
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
