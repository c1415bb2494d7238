"""Numbers as netCDF and the CF conventions store them: packed into integers, gaps marked by a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gem.errors import DataError

# the names of CF and netCDF, and those of HDF-EOS 5 (NASA's .he5)
SCALE = ("scale_factor", "ScaleFactor")
OFFSET = ("add_offset", "Offset")
GAPS = ("_FillValue", "missing_value", "MissingValue", "CodeMissingValue", "FillValue")
LIMITS = ("valid_range", "valid_min", "valid_max")

# what netCDF-4 finds where nothing was written (netcdf.h, NC_FILL_*); of bytes every value may be meant
NETCDF_FILL: dict[str, float] = {
    "i2": -32767,
    "u2": 65535,
    "i4": -2147483647,
    "u4": 4294967295,
    "i8": -9223372036854775806,
    "u8": 18446744073709551614,
    "f4": float(np.float32(9.9692099683868690e36)),
    "f8": 9.9692099683868690e36,
}


@dataclass(frozen=True)
class Packing:
    """How stored numbers become the numbers that are meant: stored · scale + offset, NaN in the gaps.

    Attributes
    ----------
    stored : type in which the stored numbers are compared (`_Unsigned` turns the sign bit into a digit).
    scale, offset : as the attributes scale_factor and add_offset have them; 1 and 0 without them.
    gaps : (attribute, value) of every stored value that marks a gap.
    low, high : the stored values that are valid; None for no limit.
    limits : the attribute that gives these.
    dtype : of the decoded numbers, wide enough that no digit is lost: float64, or, where nothing is scaled, float32
        for integers of at most 16 bits and the stored type for floats.
    columns : (D,), by which each column is multiplied besides; None: by 1.
    """

    stored: np.dtype
    scale: float
    offset: float
    gaps: tuple[tuple[str, Any], ...]
    low: Any
    high: Any
    limits: str
    dtype: np.dtype
    columns: np.ndarray | None = None

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Stored numbers → numbers in `dtype`, a new array."""
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if values.dtype.itemsize == self.stored.itemsize and values.dtype.kind in "ui":
            values = values.view(self.stored)
        gap = np.zeros(values.shape, bool)
        for _, value in self.gaps:
            gap |= values == value
        if self.low is not None:
            gap |= values < self.low
        if self.high is not None:
            gap |= values > self.high
        decoded = values.astype(self.dtype)
        if self.columns is not None:
            decoded = decoded * (self.scale * self.columns) + self.offset
        elif (self.scale, self.offset) != (1, 0):
            decoded = decoded * self.scale + self.offset
        decoded[gap] = np.nan
        return decoded

    def __str__(self) -> str:
        """What marks the gaps, for messages; empty if nothing does."""
        said = [f"{attribute} = {value}" for attribute, value in self.gaps]
        if self.low is not None or self.high is not None:
            said.append(f"{self.limits} (values outside {self._range()})")
        return " and ".join(said)

    def _range(self) -> str:
        return f"{'-inf' if self.low is None else self.low} to {'inf' if self.high is None else self.high}"


def packing(
    attributes: Mapping[str, Any], dtype: np.dtype, name: str, fill: Any = None, columns: Any = None
) -> Packing | None:
    """What the attributes of a dataset make of its numbers; None if they are meant as they are stored.

    Parameters
    ----------
    attributes : of the dataset.
    dtype : as stored.
    name : of the dataset, for messages.
    fill : what netCDF-4 puts where nothing was written, if it is a netCDF-4 file; `_FillValue` goes before it.
    columns : as of Packing.

    Raises
    ------
    DataError
        A scale_factor or add_offset that is not one finite number, or a scale_factor of 0.
    """
    stored = _signed(attributes, dtype.newbyteorder("="))
    scale_name, scale = _factor(attributes, SCALE, 1.0, name)
    _, offset = _factor(attributes, OFFSET, 0.0, name)
    if scale == 0:
        raise DataError(f"{name} has {scale_name} = 0, so all values would be the same: correct or delete it")
    gaps = [(key, value) for key in GAPS for value in _values(attributes, key, stored)]
    if "_FillValue" not in attributes and fill is not None:
        gaps.append(("the fill value of netCDF", np.asarray(fill, dtype.newbyteorder("=")).astype(stored)[()]))
    gaps = [gap for i, gap in enumerate(gaps) if gap[1] not in [value for _, value in gaps[:i]]]
    low, high, limits = _limits(attributes, stored, scale, offset)
    scaled = (scale, offset) != (1, 0) or columns is not None
    if not (scaled or gaps or low is not None or high is not None or stored != dtype.newbyteorder("=")):
        return None
    return Packing(stored, scale, offset, tuple(gaps), low, high, limits, _decoded_type(stored, scaled), columns)


def _signed(attributes: Mapping[str, Any], dtype: np.dtype) -> np.dtype:
    """The integers that `_Unsigned` makes of the stored ones."""
    said = str(_text(attributes.get("_Unsigned", ""))).strip().lower()
    kind = {"true": "u", "1": "u", "false": "i", "0": "i"}.get(said, dtype.kind)
    return np.dtype(f"{kind}{dtype.itemsize}") if dtype.kind in "ui" else dtype


def _decoded_type(stored: np.dtype, scaled: bool) -> np.dtype:
    if stored.kind == "f":
        return np.dtype(np.float64) if scaled and stored.itemsize < 8 else stored
    return np.dtype(np.float32 if stored.itemsize <= 2 and not scaled else np.float64)


def _factor(attributes: Mapping[str, Any], keys: tuple[str, ...], default: float, name: str) -> tuple[str, float]:
    """The attribute of one of these names, as a number."""
    for key in keys:
        if key in attributes:
            try:
                (number,) = np.ravel(_text(attributes[key])).astype(np.float64)
            except ValueError:
                number = np.nan
            if not np.isfinite(number):
                raise DataError(
                    f"{name} has {key} = {_text(attributes[key])}, which is not one finite number: scale the values "
                    "yourself and save them without this attribute"
                )
            return key, float(number)
    return keys[0], default


def _values(attributes: Mapping[str, Any], key: str, dtype: np.dtype) -> list[Any]:
    """The values of an attribute that a number of the type can have (NaN marks itself)."""
    if key not in attributes:
        return []
    found = []
    for value in np.ravel(_text(attributes[key])):
        try:
            number = _cast(value, dtype)
        except (TypeError, ValueError, OverflowError):
            continue  # text that is no number, or a number beyond the type: no stored value equals it
        if number is not None and number == number:  # noqa: PLR0124 (NaN differs from itself)
            found.append(number)
    return found


def _cast(value: Any, dtype: np.dtype) -> Any:
    """An attribute's value as a stored number of the type; None if it is none."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(float(value))
    whole = np.asarray(value)
    if whole.dtype.kind in "ui" and whole.dtype.itemsize == dtype.itemsize:
        return whole.astype(dtype)[()]  # -1 of signed bytes is 255 of unsigned ones, as _Unsigned means it
    number = int(value) if whole.dtype.kind in "ui" else float(value)
    limits = np.iinfo(dtype)
    return dtype.type(int(number)) if number == int(number) and limits.min <= number <= limits.max else None


def _limits(attributes: Mapping[str, Any], stored: np.dtype, scale: float, offset: float) -> tuple[Any, Any, str]:
    """(low, high, attribute): the stored values that are valid."""
    pair: list[Any] = [None, None]
    used = []
    for key, places in zip(LIMITS, ((0, 1), (0,), (1,)), strict=True):
        try:
            values = np.ravel(_text(attributes[key])) if key in attributes else np.zeros(0)
            numbers = [_limit(value, stored, scale, offset) for value in values]
        except (TypeError, ValueError):
            continue
        if len(numbers) != len(places):
            continue
        used.append(key)
        for place, number in zip(places, numbers, strict=True):
            pair[place] = number
    if None not in pair and scale < 0 and pair[0] > pair[1]:
        pair.reverse()
    return pair[0], pair[1], ", ".join(used)


def _limit(value: Any, stored: np.dtype, scale: float, offset: float) -> float | None:
    """A limit in stored numbers; floats beside packed integers are meant of the unpacked ones (netCDF Users Guide)."""
    kind = np.asarray(value)
    if kind.dtype.kind == "f" and stored.kind in "ui" and (scale, offset) != (1, 0):
        return (float(value) - offset) / scale
    if kind.dtype.kind in "ui" and stored.kind in "ui" and kind.dtype.itemsize == stored.itemsize:
        return int(kind.astype(stored)[()])
    number = float(value)
    return None if np.isnan(number) else number


def _text(value: Any) -> Any:
    """An attribute with bytes turned into str."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
        return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in value.ravel()])
    return value
