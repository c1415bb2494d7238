"""Pictures in HDF5 files, read one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from gem.data.hdf5 import open_hdf5
from gem.data.hdf5_array import HDF5Array
from gem.data.hdf5_sparse import SparseTable
from gem.data.stacks import NotPicturesError, Stack, can_be_pictures
from gem.errors import DataError


def open_stack(path: str, name: str | None, patch: int) -> Stack:
    """The pictures of a data set, by default of the only one of three axes or four; as MATLAB had it, if that wrote it.

    Raises
    ------
    ConfigError
        h5py is not installed, or it is a table.
    DataError
        As of `open_hdf5`.
    """
    array = _open(path, name)
    try:
        if not isinstance(array, HDF5Array) or array.named or not can_be_pictures(array.shape, patch, array.turned):
            raise NotPicturesError(array.name, f"an array of shape {array.shape}")
        return Stack(_Sliced(array), array.name, patch, last=array.turned, close=array.close)
    except BaseException:
        array.close()
        raise


def _open(path: str, name: str | None) -> HDF5Array | SparseTable:
    """The data set of three axes or more; if there is none, the only one of two: its columns may be pictures."""
    try:
        return open_hdf5(path, name, dims=(3, 4))
    except DataError as error:
        try:
            return open_hdf5(path, name)
        except DataError:
            raise error from None


class _Sliced:
    """An HDF5 array of which one picture is read at a time."""

    def __init__(self, array: HDF5Array):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        at = tuple(k for k in index if k is not Ellipsis)
        if not at:
            return self._array.read(0, self.shape[0])
        if index[0] is not Ellipsis:
            within: tuple[Any, ...] = (0, *at[1:])
            return self._array.slab(0, at[0], at[0] + 1)[within]
        within = (Ellipsis, *at[:-1], 0)
        return self._array.slab(len(self.shape) - 1, at[-1], at[-1] + 1)[within]
