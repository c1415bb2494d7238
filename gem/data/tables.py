"""A table in a file, by what the file is."""

from __future__ import annotations

from collections.abc import Callable

from gem.data import fits_tables, matlab, zarr_arrays
from gem.data.columns import ParquetSource, open_arrow
from gem.data.hdf5 import HDF5Source
from gem.data.kinds import kind_of, split_name
from gem.data.numpy_files import NpySource, NpzSource
from gem.data.source import Source
from gem.errors import DataError


def open_table(given: str) -> Source:
    """The table at ``PATH`` or ``PATH:NAME``.

    Raises
    ------
    ConfigError
        A library that reads the file is not installed.
    DataError
        It is no table, or unreadable.
    """
    path, name = split_name(given)
    kind = kind_of(path)
    if kind == "npy":
        if name is not None:
            raise DataError(f"{given}: a .npy file holds one array without a name; use {path}")
        return NpySource(path)
    return READERS[kind](path, name)


READERS: dict[str, Callable[[str, str | None], Source]] = {
    "npz": NpzSource,
    "mat": matlab.open_table,
    "zarr": zarr_arrays.open_table,
    "parquet": ParquetSource,
    "arrow": open_arrow,
    "hdf5": HDF5Source,
    "fits": fits_tables.open_table,
}
