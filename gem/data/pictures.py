"""Random patches of images as a table."""

from __future__ import annotations

import numpy as np

from gem.checks import whole_number
from gem.data.source import Source
from gem.errors import ConfigError
from gem.images import Patches, find_images, learn_whitening

PIXELS = 2**20  # of patches, cut and whitened at once
IMAGE_OPTIONS = ("patch", "count", "whitening", "onoff", "seed")


class ImageSource(Source):
    """Random patches of images, as float32; cut, and whitened, when they are read: memory does not grow with them.

    The patches lie in the order of their images and of their places therein, so a slab needs its own images
    alone. The whitening is learned in one pass over all patches when the source is opened, by each rank.

    Parameters
    ----------
    paths : image files and folders. The spec lists the files found, so a folder may grow before a resume.
    patch : side length in pixels; D = patch * patch.
    count : number of patches N.
    whitening : whiten the patches; `self.whitening` then is the record that undoes it. Else they are grey
        values in [0, 1], and it is None.
    onoff : split the values into channels max(x, 0) and max(−x, 0), as the retina does: D = 2 patch * patch
        numbers that are not negative, for models with W ≥ 0.
    seed : same images and seed, same patches: all ranks of a run draw the same ones.
    """

    def __init__(
        self,
        paths: list[str],
        patch: int = 16,
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
        files = [str(file) for file in find_images(paths)]
        name = files[0] if len(files) == 1 else f"{len(files)} images"
        spec = {"data": files, "patch": patch, "count": count, "whitening": whitening, "seed": seed}
        if onoff:
            spec["onoff"] = True
        super().__init__((count, patch**2 * (1 + onoff)), np.dtype(np.float32), f"patches of {name}", spec)
        self._patches = Patches(files, patch, count, seed)
        self._rows = max(1, PIXELS // patch**2)
        self._onoff = onoff
        self.whitening = learn_whitening(self._patches.blocks(self._rows)) if whitening else None

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
