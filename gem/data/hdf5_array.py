"""A numeric HDF5 dataset of any dimension, read in slabs as its numbers are meant."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from threading import Lock
from typing import Any

import numpy as np

from gem.data.cf import NETCDF_FILL, packing
from gem.data.hdf5_checks import check_dataset, columns_of, missing_filters, not_installed
from gem.data.hdf5_chunks import Slabs
from gem.data.hdf5_order import turned
from gem.data.source import reading
from gem.errors import DataError

log = logging.getLogger("gem")


class HDF5Array:
    """An HDF5 dataset of real numbers, looked at when it is opened and decoded when it is read.

    Axes are in the order that is meant (MATLAB's and Octave's matrices and Loom's are stored transposed), packed
    numbers are unpacked (scale_factor, add_offset), gaps are NaN (_FillValue, missing_value, valid_range, and what
    netCDF-4 finds where nothing was written), named columns (a compound) are a table, as NamedColumns says. Up to
    256 MiB of unpacked chunks are kept between two reads.

    Parameters
    ----------
    dataset : h5py.Dataset in an open file, which stays the caller's, unless `close` says else.
    name : what messages call it; by default file and dataset.
    close : what to close with it.

    Attributes
    ----------
    shape, dtype : as decoded; any number of axes.
    name : as given.
    turned : whether the axes are stored in the reverse order.
    named : whether it is a table of named columns.
    gaps : what marks gaps, which are read as NaN; empty if nothing does.

    Raises
    ------
    DataError
        What is no number, or cannot be read as it was written: see gem.data.hdf5_checks.check_dataset.
    """

    def __init__(self, dataset: Any, name: str | None = None, close: Any = None):
        self.name = name or f"{dataset.file.filename}:{dataset.name}"
        self._close = close
        self._lock = Lock()  # HDF5 is not thread-safe, and close() must not come amid a read
        with reading(self.name):
            why = turned(dataset, self.name)  # before the type: MATLAB's classes say more
            check_dataset(dataset, self.name)
            stored = dataset.dtype if dataset.dtype.subdtype is None else dataset.dtype.subdtype[0]
            shape = (dataset.shape or ()) + dataset.dtype.shape
            self._columns = columns_of(dataset, self.name)
            self._packing = None
            if stored.kind in "uif":
                attributes, columns = _units(dataset, self.name)
                self._packing = packing(attributes, stored, self.name, _netcdf_fill(dataset, stored), columns)
            self._dataset = dataset
            self._slabs = Slabs(dataset, self.name) if dataset.shape else None
        self.named = self._columns is not None
        self.turned = bool(why) and not self.named
        self.shape = tuple(map(int, shape[::-1] if why else shape))
        self.dtype = self._packing.dtype if self._packing else stored
        if self._columns:
            self.shape, self.dtype = (*self.shape, self._columns.D), self._columns.dtype
        self.gaps = str(self._packing or "")
        if why and len(shape) > 1:
            log.info(f"{self.name}: {why}: read as {' × '.join(map(str, self.shape))}")
        if self._packing and (self._packing.scale, self._packing.offset) != (1, 0):
            log.info(f"{self.name}: unpacked, stored values × {self._packing.scale:g} + {self._packing.offset:g}")
        if self._packing and self._packing.columns is not None:
            log.info(f"{self.name}: each column has a factor of its own, in channel_conversion")

    def read(self, start: int, stop: int) -> np.ndarray:
        """The entries [start, stop) of the first axis, as `dtype`."""
        return self.slab(0, start, stop)

    def slab(self, axis: int, start: int, stop: int) -> np.ndarray:
        """The entries [start, stop) along `axis`, all of the other axes, as `dtype`.

        Raises
        ------
        DataError
            The file cannot be read (any more).
        """
        with self._lock, reading(self.name):
            if self._slabs is None:
                raise DataError(f"{self.name} has shape {self.shape} and no axis to read along")
            try:
                values = self._slabs.read(len(self.shape) - 1 - axis if self.turned else axis, start, stop)
            except OSError as error:
                if absent := missing_filters(self._dataset):
                    raise not_installed(self.name, absent) from error
                raise
        if self._columns:
            return self._columns.table(values)
        values = values.T if self.turned else values
        return self._packing.decode(values) if self._packing else values

    def close(self) -> None:
        """Let go of the file; nothing is read after this."""
        with self._lock:
            if self._slabs is not None:
                self._slabs.close()
            if self._close is not None:
                self._close.close()


def _units(dataset: Any, name: str) -> tuple[Mapping[str, Any], np.ndarray | None]:
    """The attributes of a dataset, and factors of its columns; those of a time series of NWB in terms of CF.

    There the unit is that of stored · conversion · channel_conversion + offset (NWB 2, TimeSeries, ElectricalSeries).
    """
    attributes, group = dataset.attrs, dataset.parent
    if "conversion" not in attributes or "neurodata_type" not in group.attrs:
        return attributes, None
    attributes = {"scale_factor": attributes["conversion"], "add_offset": attributes.get("offset", 0.0)}
    if "channel_conversion" not in group:
        return attributes, None
    factors = np.asarray(group["channel_conversion"][()], dtype=np.float64)
    if np.all(factors == 1):
        return attributes, None
    if factors.shape != dataset.shape[1:]:
        raise DataError(
            f"{name} has shape {dataset.shape}, its channel_conversion {factors.shape}: a factor for each column is "
            "needed; multiply the values yourself and save them without it"
        )
    return attributes, factors


def _netcdf_fill(dataset: Any, dtype: np.dtype) -> Any:
    """What netCDF-4 reads where nothing was written, if it wrote this dataset and filled it; None otherwise."""
    from h5py import h5d

    default = NETCDF_FILL.get(f"{dtype.kind}{dtype.itemsize}")
    if dataset.dtype.subdtype is not None or default is None or dataset.fillvalue != dtype.type(default):
        return None
    if dataset.id.get_create_plist().get_fill_time() == h5d.FILL_TIME_NEVER:
        return None
    of_netcdf = "_NCProperties" in dataset.file.attrs or any(
        key in dataset.attrs for key in ("_Netcdf4Dimid", "_Netcdf4Coordinates", "DIMENSION_LIST")
    )
    return default if of_netcdf or dtype.kind == "f" else None
