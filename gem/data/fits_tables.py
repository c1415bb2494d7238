"""Tables in FITS files, through astropy: their columns as they are meant, held in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from gem.data.fits import is_table_unit, open_fits, unit_named
from gem.data.named_columns import NamedColumns
from gem.data.source import LISTED, ArraySource, reading
from gem.errors import DataError

LINE = "numpy.save('OUT.npy', numpy.column_stack([astropy.io.fits.getdata({path!r}, {unit!r})[n] for n in {{names}}]))"


def is_table(path: str, name: str | None) -> bool:
    """Whether a FITS file (or the unit `name` of it) is a table: it has no picture.

    Raises
    ------
    ConfigError, DataError
        As `open_table`.
    """
    with open_fits(path) as file, reading(path):
        if name is not None:
            return is_table_unit(unit_named(file, path, name))
        return any(map(is_table_unit, file)) and not any(unit.is_image and len(unit.shape) > 1 for unit in file)


def open_table(path: str, name: str | None) -> ArraySource:
    """The table of a FITS file, by default its only one.

    Parameters
    ----------
    name : number or EXTNAME of the unit, or ``EXTNAME,EXTVER``.

    Raises
    ------
    ConfigError
        astropy is not installed.
    DataError
        No table, several to choose from, or a column that is no number, named.
    """
    with open_fits(path) as file, reading(path):
        if name is None:
            name = _only(path, file)
        unit, full = unit_named(file, path, name), f"{path}:{name}"
        if not is_table_unit(unit):
            raise DataError(f"{full} is no table")
        records = unit.data
        columns = {column.name: _numbers(records, column) for column in unit.columns}
        gaps = [f"TNULL = {column.null}" for column in unit.columns if column.null is not None]
    N = len(records)
    form = (N,), np.dtype([(field, values.dtype, values.shape[1:]) for field, values in columns.items()])
    pick = LINE.format(path=path, unit=int(name) if name.isdigit() else name)
    meant = NamedColumns.of(form, full, pick, records=columns)
    parts = [values.reshape(N, -1).astype(meant.dtype, copy=False) for values in columns.values()]
    source = ArraySource(np.concatenate(parts, axis=1), full, {"data": full})
    source.gaps = gaps[0] if gaps and np.isnan(np.sum(source.read(0, N), dtype=np.float64)) else ""
    return source


def _only(path: str, file: Any) -> str:
    tables = {i: unit for i, unit in enumerate(file) if is_table_unit(unit)}
    if len(tables) == 1:
        return str(*tables)
    few = [f"{path}:{i} ({tables[i].name}, {tables[i].header['NAXIS2']} rows)" for i in list(tables)[:LISTED]]
    more = f" and {len(tables) - LISTED} more" if len(tables) > LISTED else ""
    raise DataError(f"{path} has {len(tables)} tables to choose from: name one of them: {', '.join(few)}{more}")


def _numbers(records: Any, column: Any) -> np.ndarray:
    """The numbers of a column, scaled; what stands for a missing one is NaN.

    astropy leaves TNULL as it is, scales it, or makes 0 of it: it is looked for in what is stored.
    """
    stored = records.view(np.ndarray)[column.name]
    values = np.asarray(records.field(column.name))
    if stored.dtype.kind == "S" and values.dtype.kind in "iu":  # a table in ASCII
        text = np.char.strip(stored)
        missing = (text == b"") | (text == str(column.null or "").strip().encode("ascii", "replace"))
    elif stored.dtype == np.int8 and values.dtype.kind == "b":  # logical: T, F, or neither
        missing = stored == 0
    elif stored.dtype.kind in "iu" and column.null is not None:
        missing = (stored == column.null).reshape(values.shape)
    else:
        return values  # floats have NaN of their own
    return np.where(missing, np.nan, values) if missing.any() else values
