"""Which dataset of an HDF5 file is meant: links are followed and told, and what there is to choose from is listed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from gem.data.choice import only_table
from gem.data.hdf5_order import MATLAB_NUMBERS, matlab_class, turned
from gem.data.hdf5_sparse import sparse_layout
from gem.data.source import NUMERIC, Form
from gem.errors import DataError

log = logging.getLogger("gem")


def find(file: Any, path: str, asked: str | None, dims: tuple[int, ...] = (2,)) -> tuple[Any, str]:
    """The dataset (or group that is a sparse matrix) of this name, and its name from "/" on.

    Parameters
    ----------
    file : h5py.File, opened from `path`.
    asked : its name; by default the only numeric one of as many dimensions as `dims` allows.

    Raises
    ------
    DataError
        There is none of that name, or several to choose from: with those there are. A link that leads nowhere.
    """
    import h5py

    if asked is not None:
        asked = "/" + asked.strip("/")
        node = _follow(file, path, asked)
        if isinstance(node, h5py.Group) and "OCTAVE_NEW_FORMAT" in node.attrs and "value" in node:
            node, asked = node["value"], f"{asked}/value"
        if isinstance(node, h5py.Dataset) or (isinstance(node, h5py.Group) and sparse_layout(node, f"{path}:{asked}")):
            return node, asked
    tables = _tables(file, dims)
    full = {name: form for name, form in tables.items() if 0 not in form[0]}
    if any(_usable(form, dims) or form[1].names for form in full.values()):  # else it is told that they are empty
        tables = full
    chosen = only_table(path, asked, tables, dims)
    return _follow(file, path, chosen), chosen


def _follow(file: Any, path: str, name: str) -> Any:
    """What lies at a name, link by link; None if there is nothing."""
    import h5py

    node, place = file, ""
    for part in filter(None, name.split("/")):
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        place = f"{place}/{part}"
        if link is None:
            return None
        target = _target(link)
        try:
            node = node[part]
        except (KeyError, OSError, RuntimeError) as error:
            if not target:
                raise
            raise DataError(f"{path}:{place} is a link to {target}, where nothing can be opened: {error}") from error
        if target:
            log.info(f"{path}:{place} is a link to {target}, which is read")
    return node


def _target(link: Any) -> str:
    """Where a soft or external link leads; empty for a hard one."""
    import h5py

    if isinstance(link, h5py.ExternalLink):
        return f"{link.path} of the file {link.filename}"
    return str(link.path) if isinstance(link, h5py.SoftLink) else ""


def _tables(file: Any, dims: tuple[int, ...]) -> dict[str, Form]:
    """Every dataset and sparse matrix of a file; those at the end of links only if the file has no other table."""
    from h5py import Group

    tables: dict[str, Form] = {}

    def note(name: str, node: Any) -> None:
        if (form := _form(node, f"/{name}")) is not None:
            tables[f"/{name}"] = form

    file.visititems(note)
    if not any(_usable(form, dims) for form in tables.values()):
        for name, node in _linked(file):
            note(name, node)
            if isinstance(node, Group):
                node.visititems(lambda below, node, name=name: note(f"{name}/{below}", node))
    return tables


def _usable(form: Form, dims: tuple[int, ...]) -> bool:
    return len(form[0]) in dims and form[1].kind in NUMERIC


def _linked(file: Any) -> Iterator[tuple[str, Any]]:
    """What soft and external links lead to, by name without the first "/"."""
    from h5py import Group

    groups = [""]
    file.visititems(lambda name, node: groups.append(name) if isinstance(node, Group) else None)
    for group in groups:
        held = file[group] if group else file
        for key in held:
            if _target(held.get(key, getlink=True)) and held.get(key) is not None:
                yield (f"{group}/{key}" if group else key), held[key]


def _form(node: Any, name: str) -> Form | None:
    """Shape and type of what can be a table; None for other groups, and what holds no numbers."""
    from h5py import Dataset, check_enum_dtype

    if not isinstance(node, Dataset):
        try:
            layout = sparse_layout(node, name) if hasattr(node, "keys") else None
        except DataError:  # it is told when that one is asked for
            return None
        return (layout.shape, node[layout.data].dtype) if layout else None
    try:
        dtype, shape = node.dtype, node.shape or ()
    except TypeError:  # a type that numpy has not
        return None
    if dtype.subdtype is not None:
        dtype, shape = dtype.subdtype[0], shape + dtype.shape
    if dtype.kind in "buif" and len(shape) > 1:
        if check_enum_dtype(dtype) is not None:
            return None
        kind = matlab_class(node)
        if kind is not None and (kind not in MATLAB_NUMBERS or "MATLAB_empty" in node.attrs):
            return None
        if turned(node, name):
            shape = shape[::-1]
    return shape, np.dtype(dtype)
