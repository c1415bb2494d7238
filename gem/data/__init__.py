"""Files, objects and pictures as one kind of Source; a Shard is one rank's slab of it, in batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gem.data.folders import are_pictures, find_files, holds_pictures
from gem.data.hdf5 import HDF5Source
from gem.data.minibatches import Deal, Dealt
from gem.data.numpy_files import NpySource, NpzSource
from gem.data.objects import open_object, open_object_stack
from gem.data.parts import PartsSource
from gem.data.pictures import IMAGE_OPTIONS, PATCH, ImageSource
from gem.data.precision import Reading, Survey, holds
from gem.data.shard import Shard, check_finite, fingerprint, same_data
from gem.data.source import ArraySource, Source, Spec
from gem.data.stacks import NotPicturesError
from gem.data.tables import open_table
from gem.data.weights import SampleWeights, load_weights, place_of
from gem.errors import ConfigError, DataError

__all__ = [
    "ArraySource",
    "Deal",
    "Dealt",
    "HDF5Source",
    "ImageSource",
    "NpySource",
    "NpzSource",
    "PartsSource",
    "Reading",
    "SampleWeights",
    "Shard",
    "Source",
    "Survey",
    "are_pictures",
    "check_finite",
    "fingerprint",
    "from_spec",
    "holds",
    "load_weights",
    "open_data",
    "place_of",
    "same_data",
]


def open_data(data: Any, **options: Any) -> Source:
    """Open data of any kind.

    Parameters
    ----------
    data : one of
        a Source, returned as it is;
        an (N, D) array, matrix or frame of any library (docs/data.md lists them);
        a file of a table, whatever its name: .npy, .npz, HDF5, MATLAB, zarr, Parquet, Feather; ``PATH:NAME`` is an
        array in it;
        several of these, or a folder of them: one table, row after row;
        an image, a folder of images (searched through), or a list of these; or, if an option of images is given,
        an array of pictures (n, height, width), in memory or in a file of any kind above.
    **options : for pictures: patch=16, count=50_000, whitening=True, onoff=False, seed=0; see
        ImageSource.

    Raises
    ------
    ConfigError
        An unknown option, a picture option with data that is not pictures, or a missing library.
    DataError
        Data that is missing, unreadable, or not an (N, D) table of real numbers.
    """
    unknown = sorted(set(options) - set(IMAGE_OPTIONS))
    if unknown:
        raise ConfigError(f"unknown data option {', '.join(unknown)}; there are: {', '.join(IMAGE_OPTIONS)}")
    if isinstance(data, (list, tuple)) and len(data) == 1:
        return open_data(data[0], **options)

    paths = data if isinstance(data, (list, tuple)) else [data]
    if all(isinstance(path, (str, bytes, os.PathLike)) for path in paths):
        return _open_paths([os.fsdecode(path) for path in paths], options)
    if not options:
        return data if isinstance(data, Source) else open_object(data)
    with _only_of_pictures(options):
        if isinstance(data, Source):
            raise NotPicturesError("data", f"a {type(data).__name__}")
        return ImageSource([open_object_stack(data, options.get("patch", PATCH))], **options)


@contextmanager
def _only_of_pictures(options: Spec, given: str | None = None) -> Iterator[None]:
    """Say which options were given for a table."""
    try:
        yield
    except NotPicturesError as error:
        raise ConfigError(
            f"{', '.join(options)}: such options apply when images are opened, not to {given or error.name}, "
            f"{error}: leave them out; an array of pictures is (n, height, width)"
        ) from error


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


def _open_paths(given: list[str], options: Spec) -> Source:
    """Patches if these are pictures or options of patches are given, else a table."""
    files = find_files(given)
    pictures = {file: holds_pictures(file) for file in files}
    if options or all(pictures.values()):
        with _only_of_pictures(options, given[0] if len(given) == 1 else None):
            return ImageSource(files, **options)
    if any(pictures.values()):
        image, table = (next(file for file in files if pictures[file] is which) for which in (True, False))
        raise DataError(f"{image} is a picture, {table} a table: data are all the one or all the other")
    sources: list[Source] = []
    try:
        for file in files:
            sources.append(open_table(file))
        return sources[0] if len(sources) == 1 else PartsSource(sources)
    except BaseException:
        for source in sources:
            source.close()
        raise
