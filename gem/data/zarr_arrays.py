"""Arrays of zarr, versions 2 and 3: folders of chunks."""

from __future__ import annotations

import base64
import os
import struct
from contextlib import suppress
from typing import Any

import numpy as np

from gem.data.bands import SlicedSource
from gem.data.cf import packing
from gem.data.choice import only_table
from gem.data.kinds import library
from gem.data.named_columns import NamedColumns
from gem.data.source import Form, Source, Spec, reading
from gem.data.stacks import NotPicturesError, Stack, can_be_pictures, choose_stack
from gem.errors import DataError


def open_table(path: str, name: str | None) -> Source:
    """An array of a zarr folder, by default its only 2-D numeric one; read by bands of chunks.

    Raises
    ------
    ConfigError
        zarr is not installed.
    DataError
        No such array, or several to choose from.
    """
    array, full = _open(path, name, lambda forms: only_table(path, name, forms))
    return _source(array, full, {"data": full})


def open_stack(path: str, name: str | None, patch: int) -> Stack:
    array, full = _open(path, name, lambda forms: choose_stack(path, forms, patch))
    if not can_be_pictures(array.shape, patch):
        raise NotPicturesError(full, f"an array of shape {array.shape}")
    return Stack(_Unpacked(array, full), full, patch)


def open_zarr_object(data: Any) -> Source:
    """An array or group of zarr; resumable where it lies in a folder."""
    root = getattr(data.store, "root", None) or getattr(data.store, "path", None)  # of zarr 3, zarr 2
    inner = data.path.strip("/")
    where = os.path.join(os.path.abspath(str(root)), inner) if root else None
    if not hasattr(data, "shape"):  # a group
        if where and os.path.isdir(where):
            return open_table(where, None)
        raise DataError("data is a zarr group: give one of its arrays, group['NAME']")
    if where and os.path.isdir(where):
        return _source(data, where, {"data": where})
    return _source(data, "data", None)


def _open(path: str, name: str | None, choose: Any) -> tuple[Any, str]:
    zarr = library("zarr", "zarr", f"reading {path}, a zarr folder,")
    with reading(path):
        node = zarr.open(path, mode="r")
        if hasattr(node, "shape"):  # the folder is the array itself
            if name is not None and name.strip("/"):
                raise DataError(f"{path}:{name}: the folder holds one array without a name; use {path}")
            return node, path
        found = None if name is None else node.get(name.strip("/"))
        if not hasattr(found, "shape"):
            name = choose(_forms(node))
            found = node[name.strip("/")]
    return found, f"{path}:{name}"


def _forms(group: Any, inside: str = "") -> dict[str, Form]:
    forms: dict[str, Form] = {}
    for name, array in group.arrays():
        forms[f"{inside}/{name}"] = tuple(array.shape), _dtype(array)
    for name, inner in group.groups():
        forms |= _forms(inner, f"{inside}/{name}")
    return forms


def _dtype(array: Any) -> np.dtype:
    try:
        return np.dtype(array.dtype)
    except TypeError:  # a type that only zarr has
        return np.dtype(object)


def _source(array: Any, name: str, spec: Spec | None) -> Source:
    meant = _Unpacked(array, name)
    source = SlicedSource(meant, name, int(array.chunks[0]) if array.chunks else 1, spec)
    source.gaps = meant.gaps
    return source


class _Unpacked:
    """A zarr array whose numbers are read as they are meant: xarray stores them as the CF conventions say."""

    def __init__(self, array: Any, name: str):
        self._array, self.shape = array, tuple(array.shape)
        stored = _dtype(array)
        self._packing = packing(_attributes(array, stored), stored, name) if stored.kind in "uif" else None
        self._columns = NamedColumns.of((self.shape, stored), name, "Y[:][{names}]") if stored.names else None
        self.dtype = self._packing.dtype if self._packing else stored
        if self._columns:
            self.shape, self.dtype = (*self.shape, self._columns.D), self._columns.dtype
        self.gaps = str(self._packing or "")

    def __getitem__(self, index: Any) -> np.ndarray:
        numbers = np.asarray(self._array[index])
        if self._columns:
            return self._columns.table(numbers)
        return self._packing.decode(numbers) if self._packing else numbers


def _attributes(array: Any, dtype: np.dtype) -> dict[str, Any]:
    """The attributes of an array, with the _FillValue that xarray means.

    xarray packs floats for JSON as base64, and keeps the _FillValue of version 2 as the array's own fill value.
    """
    attributes = dict(array.attrs)
    fill = attributes.get("_FillValue")
    if isinstance(fill, str) and dtype.kind == "f":
        with suppress(ValueError, struct.error):
            attributes["_FillValue"] = struct.unpack("<d", base64.standard_b64decode(fill))[0]
    elif fill is None and "_ARRAY_DIMENSIONS" in attributes and array.fill_value is not None:
        attributes["_FillValue"] = array.fill_value
    return attributes
