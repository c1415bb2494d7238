"""Arrays as pictures: which axes count them, how their values become grey, how one at a time is read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt, prod
from threading import Lock
from typing import Any

import numpy as np

from gem.data.choice import listed
from gem.data.source import NUMERIC, Form, reading
from gem.errors import ConfigError, DataError
from gem.images import Pictures

LOG = logging.getLogger(__name__)
COLOURS = (3, 4)  # channels of a colour picture; the fourth is alpha
LUMA = (19595, 38470, 7471)  # of 65536: ITU-R 601, in the whole numbers that Pillow uses


@dataclass(frozen=True)
class Layout:
    """Where the pictures lie in an array.

    Attributes
    ----------
    front : whether the axes that count pictures come first; else last.
    counts : lengths of these axes; empty for one picture.
    size : (height, width).
    channels : of the axis behind height and width; 0 if there is none.
    """

    front: bool
    counts: tuple[int, ...]
    size: tuple[int, int]
    channels: int = 0

    def index(self, i: int) -> tuple[Any, ...]:
        """The index of picture i."""
        at = tuple(int(k) for k in np.unravel_index(i, self.counts)) if self.counts else ()
        return at if self.front else (Ellipsis, *at)


def layout(shape: tuple[int, ...], dtype: np.dtype, last: bool, patch: int) -> Layout:
    """Which axes count the pictures: the one beside two equal ones, else MATLAB's arrays by their last, others by their
    first.

    An axis of 3 or 4 behind two larger ones holds colours; in MATLAB's arrays only of unsigned 8 or 16 bits, as
    images have them: there the third axis may as well count.

    Parameters
    ----------
    last : whether the array is MATLAB's, which counts by the last axis.
    patch : side of the patches: an axis shorter than it is no side of a picture, if there is a choice.
    """
    if len(shape) == 2:
        return Layout(True, (), (shape[0], shape[1]))
    coloured = _coloured(shape, dtype, last)
    if coloured is not None:
        return coloured
    before = Layout(True, shape[:-2], (shape[-2], shape[-1]))
    behind = Layout(False, shape[2:], (shape[0], shape[1]))
    usual, other = (behind, before) if last else (before, behind)
    square = [form.size[0] == form.size[1] for form in (usual, other)]
    if len(shape) == 3 and square == [False, True]:
        return other
    return other if min(usual.size) < patch <= min(other.size) else usual


def _coloured(shape: tuple[int, ...], dtype: np.dtype, last: bool) -> Layout | None:
    """Where the pictures lie if an axis holds colours, or the only grey value."""
    if last:
        colours = COLOURS if dtype.kind == "u" and dtype.itemsize <= 2 else ()
        if shape[2] in colours:
            return Layout(False, shape[3:], (shape[0], shape[1]), shape[2])
        return None
    channels = shape[-1]
    if min(shape[-3:-1]) > max(COLOURS) and (channels in COLOURS or (channels == 1 and len(shape) > 3)):
        return Layout(True, shape[:-3], (shape[-3], shape[-2]), channels)
    return None


class Stack(Pictures):
    """The pictures of an array, read one at a time.

    Parameters
    ----------
    array : what has a shape and gives the numbers of an index: a NumPy array, a dataset of a file.
    name : what messages call it.
    last : as in `layout`.
    patch : as in `layout`.
    bits : of the range of unsigned numbers, if it is not that of their type.
    close : lets go of the file behind it.

    Raises
    ------
    DataError
        Not real numbers, or no pictures.
    """

    def __init__(
        self,
        array: Any,
        name: str,
        patch: int,
        *,
        last: bool = False,
        bits: int | None = None,
        close: Callable[[], None] = lambda: None,
    ):
        self.name, self._array, self._bits, self.close = name, array, bits, close  # type: ignore[method-assign]
        self._lock = Lock()
        shape, dtype = tuple(int(n) for n in array.shape), np.dtype(array.dtype)
        if dtype.kind not in NUMERIC or 0 in shape:
            raise DataError(f"{name} has shape {shape} and dtype {dtype}: pictures are of real numbers, at least one")
        self._columns = last and columns_of_squares(shape, patch)
        if self._columns:
            side = isqrt(shape[0])
            self._layout = Layout(False, shape[1:], (side, side))
        else:
            self._layout = layout(shape, dtype, last, patch)
        self.sizes = [self._layout.size] * prod(self._layout.counts)
        self._tell(shape, dtype)

    def grey(self, i: int) -> np.ndarray:
        with self._lock, reading(self.name):
            picture = np.asarray(self._array[self._layout.index(i)])
        if self._columns:
            picture = picture.reshape(self._layout.size, order="F")
        return grey(picture, self._bits)

    def _tell(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        where, n = self._layout, len(self.sizes)
        if where.counts:
            axes = len(where.counts)
            which = ("first" if where.front else "last") + (f" {axes} axes count" if axes > 1 else " axis counts")
            how = f"the {which} them"
        else:
            how = "one picture"
        colours = f", {where.channels} channels made grey" if where.channels in COLOURS else ""
        values = "values scaled to [0, 1]" if full_scale(dtype) else f"{dtype} values kept as they are"
        LOG.info(
            "%s: %s is %d picture%s of %d x %d (%s)%s, %s",
            self.name, shape, n, "s" * (n > 1), *where.size, how, colours, values,
        )  # fmt: skip


def columns_of_squares(shape: tuple[int, ...], patch: int) -> bool:
    """Whether each column is a square picture, as in the 262144 x 10 of IMAGES.mat: too thin to be one picture."""
    return (
        len(shape) == 2 and isqrt(shape[0]) ** 2 == shape[0] and isqrt(shape[0]) >= patch and shape[1] < isqrt(shape[0])
    )


def full_scale(dtype: np.dtype) -> bool:
    """Whether the type has a range that stands for black to white: unsigned, of 8 or 16 bits."""
    return dtype.kind == "b" or (dtype.kind == "u" and dtype.itemsize <= 2)


def grey(picture: np.ndarray, bits: int | None = None) -> np.ndarray:
    """Grey values (height, width) as float64 of a picture, perhaps with channels behind.

    Unsigned numbers of 8 or 16 bits (or of so many `bits`) are scaled to [0, 1]; signed ones, longer ones and floats
    are kept: their range says nothing of black and white.
    """
    scale = 1.0
    if full_scale(picture.dtype):
        scale = 1.0 if picture.dtype.kind == "b" else 2.0 ** (bits or 8 * picture.dtype.itemsize) - 1
    if picture.ndim == 3 and picture.shape[2] >= 3:
        if picture.dtype == np.uint8:  # as Pillow rounds it, so that a format does not change a picture
            whole = sum(picture[:, :, k].astype(np.int64) * weight for k, weight in enumerate(LUMA))
            return np.asarray((whole + 2**15) >> 16) / scale
        picture = picture[:, :, :3].astype(np.float64) @ (np.array(LUMA) / 2**16)
    elif picture.ndim == 3:
        picture = picture[:, :, 0]
    return picture.astype(np.float64) / scale


def choose_stack(path: str, forms: dict[str, Form], patch: int, last: bool = False) -> str:
    """The only array of a file that can be pictures: of three axes or more if there is one, else as in IMAGES.mat.

    Raises
    ------
    DataError
        None, or several to choose from: listed.
    """
    numeric = {name: shape for name, (shape, dtype) in forms.items() if dtype.kind in NUMERIC and 0 not in shape}
    deep = [name for name, shape in numeric.items() if len(shape) > 2]
    flat = [n for n, shape in numeric.items() if len(shape) == 2 and can_be_pictures(shape, patch, last)]
    usable = deep or flat
    if len(usable) == 1:
        return usable[0]
    if not usable and numeric:
        raise NotPicturesError(path, f"with its arrays {listed(path, list(numeric), forms)}")
    raise DataError(
        f"{path} has {len(usable)} arrays to take patches of; name one of its arrays (n, height, width): "
        f"{listed(path, usable, forms)}"
    )


def can_be_pictures(shape: tuple[int, ...], patch: int, last: bool = False) -> bool:
    """Whether an array is no table: of three axes or more, or MATLAB's with a square picture in every column."""
    return len(shape) > 2 or (last and columns_of_squares(shape, patch))


class NotPicturesError(ConfigError):
    """Options of patches for `name`, which is a table; `open_data` says which options."""

    def __init__(self, name: str, form: str):
        super().__init__(form)
        self.name = name
