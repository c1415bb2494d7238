"""Tables in HDF5 files."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from gem.data.hdf5_array import HDF5Array
from gem.data.hdf5_checks import opening, prefixes
from gem.data.hdf5_names import find
from gem.data.hdf5_sparse import SparseTable
from gem.data.source import Source, reading
from gem.errors import ConfigError
from gem.extras import install_hint

log = logging.getLogger("gem")


class HDF5Source(Source):
    """A dataset of an HDF5 file, by default its only 2-D numeric one, or a group of it that is a sparse matrix.

    It is read as its numbers are meant, or refused: see HDF5Array and SparseTable. Up to 256 MiB of unpacked chunks are
    kept between two reads.

    Parameters
    ----------
    path : the file.
    dataset : name of the dataset or sparse group.
    """

    def __init__(self, path: str, dataset: str | None = None):
        self._take(open_hdf5(path, dataset), True)

    @classmethod
    def of(cls, dataset: Any) -> HDF5Source:
        """The source of an open h5py.Dataset (or h5py.Group, if that is a sparse matrix); its file stays open.

        Raises
        ------
        DataError
            It is closed, or no table of numbers.
        """
        source = cls.__new__(cls)
        source._take(of_dataset(dataset), os.path.isfile(dataset.file.filename))
        return source

    def _take(self, array: HDF5Array | SparseTable, on_disk: bool) -> None:
        self._array = array
        try:
            super().__init__(array.shape, array.dtype, array.name, {"data": array.name} if on_disk else None)
        except Exception:
            array.close()
            raise
        self.gaps = array.gaps

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._array.read(start, stop)

    def close(self) -> None:
        self._array.close()


def open_hdf5(path: str, dataset: str | None = None, dims: tuple[int, ...] = (2,)) -> HDF5Array | SparseTable:
    """Open a numeric dataset of an HDF5 file, of any number of dimensions.

    Parameters
    ----------
    path : the file.
    dataset : name of it, or of a group that is a sparse matrix; by default the only one in the file with as many
        dimensions as `dims` allows.

    Raises
    ------
    ConfigError
        h5py is not installed.
    DataError
        The file cannot be read, has no such dataset or several to choose from, or one that is no array of real numbers
        or not whole.
    """
    file = _open_file(path)
    try:
        with reading(path):
            node, name = find(file, path, dataset, dims)
        name = f"{path}:{name}"
        if hasattr(node, "keys"):
            return SparseTable(node, name, close=file)
        return HDF5Array(_with_prefixes(node), name, close=file)
    except BaseException:
        file.close()
        raise


def of_dataset(node: Any) -> HDF5Array | SparseTable:
    """What `open_hdf5` gives, of an h5py.Dataset (or a sparse h5py.Group) that is open already, and stays so."""
    with reading("an h5py object"):
        if not node:
            raise ValueError("its file is closed")
        name = f"{os.path.abspath(node.file.filename)}:{node.name}"
    return SparseTable(node, name) if hasattr(node, "keys") else HDF5Array(node, name)


def _open_file(path: str) -> Any:
    """h5py.File, for reading, also while another program writes to it in SWMR mode."""
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(f"reading {path} needs h5py: {install_hint('hdf5')}") from error
    with opening(path):
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if "already open for write" not in str(error):
                raise
            try:
                file = h5py.File(path, "r", swmr=True)
            except OSError:
                raise error from None
            log.info(f"{path} is being written (SWMR): what is in it now is read")
            return file


def _with_prefixes(dataset: Any) -> Any:
    """A dataset, opened anew if HDF5 has to be told where the other files that it is made of lie."""
    efile, virtual = prefixes(dataset)
    if not (efile or virtual):
        return dataset
    import h5py

    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    if efile:
        access.set_efile_prefix(os.fsencode(efile))
    if virtual:
        access.set_virtual_prefix(os.fsencode(virtual))
    file, name = dataset.file, dataset.name.encode()
    dataset.id._close()
    return h5py.Dataset(h5py.h5d.open(file.id, name, access))
