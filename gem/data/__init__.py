"""Arrays, .npy, .npz, HDF5 and images as one kind of Source; a Shard is one rank's slab of it, in batches."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from gem.data.hdf5 import HDF5Source
from gem.data.numpy_files import NpySource, NpzSource
from gem.data.pictures import IMAGE_OPTIONS, ImageSource
from gem.data.precision import Reading, Survey, holds
from gem.data.shard import Shard, check_finite, fingerprint
from gem.data.source import ArraySource, Source, Spec
from gem.errors import ConfigError, DataError

__all__ = [
    "TABLE_FILE",
    "ArraySource",
    "HDF5Source",
    "ImageSource",
    "NpySource",
    "NpzSource",
    "Reading",
    "Shard",
    "Source",
    "Survey",
    "check_finite",
    "fingerprint",
    "from_spec",
    "holds",
    "open_data",
]

TABLE_FILE = re.compile(r"(?P<path>.+?\.(?P<kind>npy|npz|h5|hdf5))(:(?P<name>.+))?", re.IGNORECASE)


def open_data(data: Any, **options: Any) -> Source:
    """Open data of any kind.

    Parameters
    ----------
    data : one of
        a Source, returned as it is; an (N, D) array;
        ``x.npy``; ``x.npz`` or ``x.npz:name``; ``x.h5`` or ``x.h5:/dataset``, as str or Path;
        an image, a folder of images (searched through), or a list of these.
    **options : for images: patch=16, count=50_000, whitening=True, onoff=False, seed=0; see
        ImageSource.

    Raises
    ------
    ConfigError
        An unknown option, an image option with data that is not images, or a missing library.
    DataError
        Data that is missing, unreadable, or not an (N, D) table of real numbers.
    """
    unknown = sorted(set(options) - set(IMAGE_OPTIONS))
    if unknown:
        raise ConfigError(f"unknown data option {', '.join(unknown)}; there are: {', '.join(IMAGE_OPTIONS)}")
    if isinstance(data, (list, tuple)) and len(data) == 1:
        return open_data(data[0], **options)

    paths = data if isinstance(data, (list, tuple)) else [data]
    if all(isinstance(path, (str, os.PathLike)) for path in paths):
        table = TABLE_FILE.fullmatch(os.path.abspath(paths[0])) if len(paths) == 1 else None
        if table is None:
            return ImageSource([os.fspath(path) for path in paths], **options)
        _refuse_image_options(options, paths[0])
        return _open_table(table["path"], table["kind"].lower(), table["name"])
    _refuse_image_options(options, f"a {type(data).__name__}")
    return data if isinstance(data, Source) else _from_memory(data)


def _refuse_image_options(options: Spec, data: Any) -> None:
    if options:
        raise ConfigError(f"{', '.join(options)}: such options apply when images are opened, not to {data}")


def from_spec(spec: Spec | None) -> Source:
    """Open the data that `spec` (of a Source) describes.

    Raises
    ------
    ConfigError
        The data was an array in memory, which has no spec.
    """
    if spec is None:
        raise ConfigError("the data was an array in memory and cannot be opened again: pass it once more")
    return open_data(**spec)


def _open_table(path: str, kind: str, name: str | None) -> Source:
    if kind == "npz":
        return NpzSource(path, name)
    if kind == "npy":
        if name is not None:
            raise DataError(f"{path}:{name}: a .npy file holds one array without a name; use {path}")
        return NpySource(path)
    return HDF5Source(path, name)


def _from_memory(data: Any) -> Source:
    if isinstance(data, np.ma.MaskedArray):
        raise DataError("data is a masked array, and its mask would be lost: Y.filled(np.nan) marks the gaps")
    if not hasattr(data, "__array__"):
        raise DataError(
            f"data is a {type(data).__name__}, neither an array nor a path nor a list of image "
            "paths; np.array(data) makes an array of nested lists"
        )
    return ArraySource(np.asarray(data))
