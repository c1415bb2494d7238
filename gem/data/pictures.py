"""Random patches of pictures as a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gem.checks import whole_number
from gem.data import fits, hdf5_stack, matlab, numpy_files, zarr_arrays
from gem.data.folders import find_files
from gem.data.kinds import VAN_HATEREN, kind_of, split_name
from gem.data.source import Source, Spec, reading
from gem.data.stacks import NotPicturesError, Stack
from gem.data.tiff import TiffFile
from gem.errors import ConfigError, DataError
from gem.images import ImageFile, Patches, Pictures, learn_whitening

PATCH = 16  # side, if none is given
PIXELS = 2**20  # of patches, cut and whitened at once
IMAGE_OPTIONS = ("patch", "count", "whitening", "onoff", "seed")


class ImageSource(Source):
    """Random patches of pictures, as float32; cut, and whitened, when they are read: memory does not grow with them.

    The patches lie in the order of their pictures and of their places therein, so a slab needs its own pictures
    only. The whitening is learned in one pass over all patches when the source is opened, by each rank. All pages of
    an image and all pictures of a stack are used, each position in each of them is equally likely.

    Parameters
    ----------
    paths : image files, ``PATH`` or ``PATH:NAME`` of arrays (n, height, width), folders of images, or Stacks of arrays
        in memory. The spec lists the files found, so a folder may grow before a resume.
    patch : side length in pixels; D = patch * patch.
    count : number of patches N.
    whitening : whiten the patches; `self.whitening` then is the record that undoes it. Else it is None, and they are
        grey values: in [0, 1] of unsigned numbers of 8 and 16 bits, as they are of others.
    onoff : split the values into channels max(x, 0) and max(−x, 0), as the retina does: D = 2 patch * patch
        numbers that are not negative, for models with W ≥ 0.
    seed : same images and seed, same patches: all ranks of a run draw the same ones.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str] | Stack],
        patch: int = PATCH,
        count: int = 50_000,
        whitening: bool = True,
        onoff: bool = False,
        seed: int = 0,
    ):
        patch, count = whole_number("patch", patch, 2), whole_number("count", count, 1)
        seed = whole_number("seed", seed, 0)
        for option, value in {"whitening": whitening, "onoff": onoff}.items():
            if not isinstance(value, bool):
                raise ConfigError(f"{option} = {value!r}: choose True or False")
        objects = [given for given in paths if isinstance(given, Stack)]
        named = [os.fspath(given) for given in paths if not isinstance(given, Stack)]
        files = sorted(set(find_files(named)), key=Path) if named or not objects else []
        name = objects[0].name if not files else files[0] if len(files) == 1 else f"{len(files)} images"
        spec: Spec = {"data": files, "patch": patch, "count": count, "whitening": whitening, "seed": seed}
        if onoff:
            spec["onoff"] = True
        super().__init__(
            (count, patch**2 * (1 + onoff)), np.dtype(np.float32), f"patches of {name}", None if objects else spec
        )
        self._rows = max(1, PIXELS // patch**2)
        self._onoff = onoff
        self._pictures: list[Pictures] = [*objects]
        try:
            for file in files:
                self._pictures.append(open_pictures(file, patch))
            self._patches = Patches(self._pictures, patch, count, seed)
            self.whitening = learn_whitening(self._finite_blocks()) if whitening else None
        except BaseException:
            self.close()
            raise

    def _finite_blocks(self) -> Iterator[np.ndarray]:
        for block in self._patches.blocks(self._rows):
            if not np.isfinite(block).all():
                raise DataError(
                    f"{self.name}: there are NaN or Inf in the pictures, and patches with gaps cannot be whitened: "
                    "whitening=False (--no-whitening) leaves NaN to models with missing=True"
                )
            yield block

    def close(self) -> None:
        for pictures in self._pictures:
            pictures.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        table = np.empty((stop - start, self.shape[1]), self.dtype)
        done = 0
        for block in self._patches.blocks(self._rows, start, stop):
            values = self.whitening.apply(block) if self.whitening else block
            if self._onoff:
                values = np.concatenate([np.maximum(values, 0), np.maximum(-values, 0)], axis=1)
            table[done : done + len(block)] = values
            done += len(block)
        return table


def open_pictures(given: str, patch: int) -> Pictures:
    """The pictures of a file, by its kind.

    Raises
    ------
    ConfigError
        It is a table, or a library is missing.
    DataError
        It is unreadable, or holds none.
    """
    path, name = split_name(given)
    kind = kind_of(path)
    if name is not None and kind in ("image", "tiff", "raw", "npy"):
        raise DataError(f"{given}: {path} holds pictures without names; use {path}")
    if kind == "image":
        return ImageFile(path)
    if kind == "tiff":
        return TiffFile(path)
    if kind == "raw":
        return Stack(_VanHateren(path), path, patch)
    if kind == "npy":
        return numpy_files.open_npy_stack(path, patch)
    by_name = {
        "fits": fits.open_stack,
        "npz": numpy_files.open_npz_stack,
        "hdf5": hdf5_stack.open_stack,
        "mat": matlab.open_stack,
        "zarr": zarr_arrays.open_stack,
    }
    if kind not in by_name:
        raise NotPicturesError(path, "a table of columns")
    return by_name[kind](path, name, patch)


class _VanHateren:
    """A picture of van Hateren's set (Proceedings of the Royal Society B 265, 1998): raw big-endian 16-bit numbers."""

    shape, dtype = VAN_HATEREN, np.dtype(">u2")

    def __init__(self, path: str):
        self._path = path

    def __getitem__(self, index: object) -> np.ndarray:
        with reading(self._path):
            return np.fromfile(self._path, self.dtype).reshape(self.shape)
