"""Which files a user means: a path, PATH:NAME, a folder's pictures, or the parts of a table in it."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gem.data.fits_tables import is_table
from gem.data.kinds import PICTURES, TABLES, is_zarr, kind_of, split_name
from gem.errors import ConfigError, DataError
from gem.images import SUFFIXES, find_images

LOG = logging.getLogger(__name__)
KEPT_APART = (".", "_")  # files that systems and Spark put beside the data begin so


def find_files(given: Sequence[str]) -> list[str]:
    """Absolute ``PATH`` or ``PATH:NAME`` of every file; a folder's are searched for.

    Raises
    ------
    DataError
        Something that is not there, a folder without data, or with tables of several kinds.
    """
    files: list[str] = []
    for one in given:
        path, name = split_name(one)
        if name is not None:
            files.append(f"{path}:{name}")
        elif os.path.isdir(path) and not is_zarr(path):
            files += _of_folder(path)
        else:
            files.append(path)
    if not files:
        raise DataError("an empty list of paths: name a file or a folder")
    return files


def are_pictures(data: Any, **options: Any) -> bool:
    """Whether patches are to be drawn from what the paths `data` name: pictures, or arrays of which they are asked.

    What cannot be read is for `open_data` to refuse.
    """
    paths = [data] if isinstance(data, (str, os.PathLike)) else data
    try:
        files = find_files([os.fspath(path) for path in paths])
        return bool(options) or any(map(holds_pictures, files))
    except DataError:
        return True


def holds_pictures(file: str) -> bool:
    """Whether ``PATH`` or ``PATH:NAME`` is of pictures, by its kind; a FITS file may be of either.

    Raises
    ------
    DataError
        It cannot be read, or is of a kind that gem does not take.
    """
    path, name = split_name(file)
    kind = kind_of(path)
    if kind != "fits":
        return kind in PICTURES
    try:
        return not is_table(path, name)
    except ConfigError:  # without astropy; told by what opens it
        return True


def _of_folder(folder: str) -> list[str]:
    """The images of a folder, or if it has none its tables, all of one kind; part2 comes before part10."""
    everything = list(_walk(folder))
    if any(Path(file).suffix.lower() in SUFFIXES for file in everything):
        return [str(file) for file in find_images([folder])]
    kinds: dict[str, str] = {}
    refused: list[DataError] = []
    for file in sorted(everything, key=_natural):
        try:
            kind = kind_of(file)
        except DataError as error:
            refused.append(error)
            continue
        if kind in TABLES:
            kinds[file] = kind
    if not kinds:
        known = " ".join(sorted(SUFFIXES))
        also = f"; {refused[0]}" if refused else ""
        raise DataError(f"no image in {folder} (known suffixes: {known}), and no file of a table{also}")
    found = Counter(kinds.values())
    if len(found) > 1:
        counted = ", ".join(f"{n} {kind}" for kind, n in found.items())
        raise DataError(
            f"{folder} has tables of several kinds ({counted}), and a table is in files of one kind: give a list of "
            "the files that belong together, as your shell makes it of FOLDER/*.npy"
        )
    if refused:
        LOG.info("%s: %d files that are no data are left out", folder, len(refused))
    return list(kinds)


def _walk(folder: str) -> Iterator[str]:
    """Files, and folders that are zarr arrays, below a folder."""
    for place, folders, names in os.walk(folder):
        arrays = [name for name in folders if is_zarr(os.path.join(place, name))]
        folders[:] = [name for name in folders if name not in arrays and not name.startswith(KEPT_APART)]
        for name in [*names, *arrays]:
            if not name.startswith(KEPT_APART):
                yield os.path.join(place, name)


def _natural(path: str) -> list[tuple[int, str]]:
    """A key by which numbers in names sort as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path) if part]
