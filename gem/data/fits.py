"""Pictures in FITS files, through astropy: scaled, unsigned, with gaps, compressed, in any extension."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from gem.data.kinds import library
from gem.data.source import LISTED, reading
from gem.data.stacks import NotPicturesError, Stack
from gem.errors import DataError


class _Unit:
    """The image of a FITS unit (HDU) as an array read in parts: BSCALE and BZERO applied, BLANK as NaN."""

    def __init__(self, unit: Any, name: str):
        self._unit, self._lazy = unit, len(unit.shape) > 2 and hasattr(unit, "section")
        header = unit.header
        self._blank = header.get("BLANK", header.get("ZBLANK")) if header["BITPIX"] > 0 else None
        self._scale, self._zero = header.get("BSCALE", 1), header.get("BZERO", 0)
        self.shape = tuple(unit.shape)
        self.dtype = self[(0,) * (len(self.shape) - 2)].dtype

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        read = np.asarray(self._unit.section[index] if self._lazy and index else self._unit.data[index])
        numbers = read.astype(read.dtype.newbyteorder("="))
        if self._blank is None or numbers.dtype.kind == "f":  # astropy has marked the gaps of what it scaled
            return numbers
        gaps = numbers == self._blank * self._scale + self._zero
        return np.where(gaps, np.nan, numbers) if gaps.any() else numbers.astype(np.float64)


def open_stack(path: str, name: str | None, patch: int) -> Stack:
    """The picture or cube of a FITS file; by default of the only unit that has one.

    Parameters
    ----------
    name : number or EXTNAME of the unit, or ``EXTNAME,EXTVER``.

    Raises
    ------
    ConfigError
        astropy is not installed, or it is a table.
    DataError
        No picture, or several to choose from.
    """
    file, array, title = _open(path, name)
    try:
        return Stack(array, title, patch, close=file.close)
    except BaseException:
        file.close()
        raise


def read_image(path: str) -> np.ndarray:
    """The whole image of the only unit that has one, of any number of axes; raises as `open_stack`."""
    try:
        file, array, _ = _open(path, None)
    except NotPicturesError as error:
        raise DataError(f"{error.name} is {error}: there is no picture in it") from error
    with file, reading(path):
        return array[()]


def _open(path: str, name: str | None) -> tuple[Any, _Unit, str]:
    """The open file, the image that is meant, and what messages call it."""
    file = open_fits(path)
    try:
        with reading(path):
            unit, title = _choose(file, path, name)
            return file, _Unit(unit, title), title
    except BaseException:
        file.close()
        raise


def open_fits(path: str) -> Any:
    """The open file, a sequence of its units; raises as `open_stack`."""
    fits = library("astropy.io.fits", "astropy", f"reading {path}, a FITS file,")
    with reading(path):
        return fits.open(path, memmap=False, lazy_load_hdus=False)


def is_table_unit(unit: Any) -> bool:
    """Whether a unit is a table, in binary or in ASCII; a compressed image, which is stored in one, is not."""
    return not unit.is_image and hasattr(unit, "columns")


def _choose(file: Any, path: str, name: str | None) -> tuple[Any, str]:
    pictures = {i: unit for i, unit in enumerate(file) if unit.is_image and len(unit.shape) > 1 and prod(unit.shape)}
    if name is not None:
        unit, title = unit_named(file, path, name), f"{path}:{name}"
        if is_table_unit(unit):
            raise NotPicturesError(title, "a FITS table")
        if not any(unit is picture for picture in pictures.values()):
            raise DataError(f"{title} has no picture: {_there_are(path, pictures)}")
        return unit, title
    if len(pictures) == 1:
        ((i, unit),) = pictures.items()
        return unit, path if i == 0 else f"{path}:{i}"
    tables = [i for i, unit in enumerate(file) if is_table_unit(unit)]
    if tables and not pictures:
        raise NotPicturesError(f"{path}:{tables[0]}", "a FITS table")
    raise DataError(f"{path} has {len(pictures)} pictures to choose from: {_there_are(path, pictures)}")


def unit_named(file: Any, path: str, name: str) -> Any:
    """The unit of an open file by its number or name."""
    title, _, version = name.strip("/").partition(",")
    key: Any = int(name) if name.isdigit() else (title, int(version)) if version.isdigit() else title
    try:
        return file[key]
    except (KeyError, IndexError) as error:
        units = ", ".join(f"{i} ({unit.name or 'no name'})" for i, unit in enumerate(file[:LISTED]))
        raise DataError(f"{path} has no unit {name}; there are {units}") from error


def _there_are(path: str, pictures: dict[int, Any]) -> str:
    few = sorted(pictures, key=lambda i: -prod(pictures[i].shape))[:LISTED]
    found = [f"{path}:{i} ({pictures[i].name}, {' x '.join(map(str, pictures[i].shape))})" for i in few]
    more = f" and {len(pictures) - LISTED} more" if len(pictures) > LISTED else ""
    return f"name one of its pictures: {', '.join(found) or 'there are none'}{more}"
