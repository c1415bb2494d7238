"""A picture as overlapping patches, and back; its gaps filled from around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from gem.errors import DataError

BLOCK = 1 << 22  # numbers in the patches whose estimates exist at once


@dataclass(frozen=True)
class Cover:
    """All patches of a picture at a stride, and at its far borders: every pixel is in one.

    Attributes
    ----------
    shape : (channels, height, width)
    patch, stride : int
        Side of the patches, which no side of the picture exceeds, and pixels from one to the next.
    joint : bool
        Whether a patch goes through all channels.
    """

    shape: tuple[int, int, int]
    patch: int
    stride: int = 1
    joint: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the patches: `patch`, or what the picture has."""
        return min(self.patch, self.shape[1]), min(self.patch, self.shape[2])

    @property
    def depth(self) -> int:
        """Channels of a patch."""
        return self.shape[0] if self.joint else 1

    @property
    def D(self) -> int:
        """Pixels of a patch, by channel, row and column."""
        return self.depth * self.sides[0] * self.sides[1]

    @cached_property
    def places(self) -> np.ndarray:
        """(N, 3): first channel, row and column of every patch."""
        rows, columns = (
            np.unique([*range(0, n - side + 1, self.stride), n - side])
            for n, side in zip(self.shape[1:], self.sides, strict=True)
        )
        channels = np.arange(0, self.shape[0], self.depth)
        return np.stack(np.meshgrid(channels, rows, columns, indexing="ij"), axis=-1).reshape(-1, 3)

    def cut(self, picture: np.ndarray, which: Any = slice(None)) -> np.ndarray:
        """The patches, (n, D), of a picture (channels, height, width)."""
        windows = sliding_window_view(picture, (self.depth, *self.sides))
        return windows[tuple(self.places[which].T)].reshape(-1, self.D)

    def add(self, total: np.ndarray, estimates: np.ndarray, which: Any = slice(None)) -> None:
        """Add patches (n, D) to a picture, each at its place."""
        channel, row, column = self.places[which].T
        by_pixel = estimates.reshape(len(row), self.depth, *self.sides)
        for c, i, j in np.ndindex(*by_pixel.shape[1:]):
            # within one offset no two patches meet in a pixel
            total[channel + c, row + i, column + j] += by_pixel[:, c, i, j]

    def means(self, picture: np.ndarray) -> np.ndarray:
        """(N, depth): the mean of every patch in each of its channels."""
        return np.concatenate(
            [
                self.cut(picture, part).reshape(-1, self.depth, self.D // self.depth).mean(axis=2)
                for part in self.blocks()
            ]
        )

    def spread(self, levels: np.ndarray) -> np.ndarray:
        """(n, D): levels (n, depth) at all pixels of their patches."""
        return np.repeat(levels, self.D // self.depth, axis=1)

    def blocks(self) -> Iterator[slice]:
        """All patches, some at a time."""
        size = max(1, BLOCK // self.D)
        for start in range(0, len(self.places), size):
            yield slice(start, min(start + size, len(self.places)))


def filled(planes: np.ndarray, patch: int) -> np.ndarray:
    """The gaps at the mean of what is seen around them, weighted by a window that widens until it sees something.

    Raises
    ------
    DataError
        For a gap wider than a patch.
    """
    given, known = np.where(np.isnan(planes), 0, planes), (~np.isnan(planes)).astype(float)
    out = np.where(known > 0, planes, np.nan)
    reach = 1
    while np.isnan(out).any():
        if reach > 2 * patch:
            raise DataError(f"there is a gap wider than the patch of {patch}: take a larger patch")
        seen = _box(known, reach)
        smooth = np.divide(_box(given, reach), seen, out=np.full_like(seen, np.nan), where=seen > 0.5)
        out = np.where(np.isnan(out), smooth, out)
        reach *= 2
    return out


def _box(planes: np.ndarray, reach: int) -> np.ndarray:
    """Sums over squares of side 2 reach + 1."""
    padded = np.pad(planes, ((0, 0), (reach, reach), (reach, reach)))
    for axis in (1, 2):
        padded = sliding_window_view(padded, 2 * reach + 1, axis=axis).sum(axis=-1)
    return padded


def halved(planes: np.ndarray) -> np.ndarray:
    """(channels, height // 2, width // 2): the means of 2 × 2 pixels."""
    channels, height, width = planes.shape
    even = planes[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(channels, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


def doubled(planes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture of this shape from one of half its height and width, linear between the pixels' centres."""
    for axis in (1, 2):
        n = planes.shape[axis]
        at = np.clip((np.arange(shape[axis]) + 0.5) / 2 - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        part = np.expand_dims(at - low, tuple({0, 1, 2} - {axis}))
        planes = planes.take(low, axis) * (1 - part) + planes.take(np.minimum(low + 1, n - 1), axis) * part
    return planes


def everywhere(inside: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """(height, width): whether all windows of these sides that cover a pixel are True in `inside`, by first pixel."""
    height, width = sides
    padded = np.pad(inside, ((height - 1, height - 1), (width - 1, width - 1)), constant_values=True)
    return np.asarray(sliding_window_view(padded, (height, width)).all(axis=(2, 3)))
