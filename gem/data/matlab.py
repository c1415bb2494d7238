"""Matrices in MATLAB files of versions 4 and 5 (7.3 is HDF5), through SciPy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from gem.data.choice import only_table
from gem.data.kinds import library
from gem.data.objects import SparseSource
from gem.data.source import ArraySource, Form, Source, reading
from gem.data.stacks import NotPicturesError, Stack, can_be_pictures, choose_stack
from gem.errors import DataError

CLASSES = {"double": "f8", "single": "f4", "logical": "?", "sparse": "f8", "char": "U1", "cell": "O", "struct": "O"}


def open_table(path: str, name: str | None) -> Source:
    """A real matrix of the file, dense or sparse; by default its only one that is more than a vector.

    Raises
    ------
    ConfigError
        SciPy is not installed.
    DataError
        None of that name, several to choose from, or no real matrix.
    """
    forms, name = _forms(path), name and name.strip("/")
    if name is None:
        name = only_table(path, None, {n: form for n, form in forms.items() if min(form[0], default=0) > 1} or forms)
    matrix, full = _load(path, name, forms), f"{path}:{name}"
    if hasattr(matrix, "tocsr"):
        return SparseSource(matrix, full, {"data": full})
    return ArraySource(matrix, full, {"data": full})


def open_stack(path: str, name: str | None, patch: int) -> Stack:
    """An array of pictures: MATLAB's, whose last axis counts them."""
    forms, name = _forms(path), name and name.strip("/")
    name = choose_stack(path, forms, patch, last=True) if name is None else name
    array = _load(path, name, forms)
    if hasattr(array, "toarray"):
        array = array.toarray()
    if not can_be_pictures(array.shape, patch, last=True):
        raise NotPicturesError(f"{path}:{name}", f"an array of shape {array.shape}")
    return Stack(array, f"{path}:{name}", patch, last=True)


def _forms(path: str) -> dict[str, Form]:
    """Variables with shapes and types, those in structures as ``NAME.FIELD``."""
    io = library("scipy.io", "scipy", f"reading {path}, a MATLAB file,")
    forms: dict[str, Form] = {}
    with reading(path):
        for name, shape, kind in io.whosmat(path):
            forms[name] = tuple(shape), np.dtype(CLASSES.get(kind, kind if kind[:3] in ("int", "uin") else "O"))
            if kind == "struct" and tuple(shape) == (1, 1):
                _note_fields(name, io.loadmat(path, variable_names=[name])[name], forms)
    return forms


def _note_fields(name: str, structure: Any, forms: dict[str, Form]) -> None:
    for field in structure.dtype.names or ():
        value = structure[field][0, 0]
        if getattr(getattr(value, "dtype", None), "names", None) and value.shape == (1, 1):
            _note_fields(f"{name}.{field}", value, forms)
        elif hasattr(value, "dtype"):
            forms[f"{name}.{field}"] = value.shape, value.dtype


def _load(path: str, name: str, forms: dict[str, Form]) -> Any:
    if name not in forms:
        only_table(path, name, forms)  # says what there is
    if forms[name][1].kind in "OU":
        raise DataError(
            f"{path}:{name} is no matrix of numbers (a cell, a structure of many, a table, text): in MATLAB, "
            f"Y = cell2mat({name}) or table2array({name}), then save('OUT.mat', 'Y')"
        )
    io = library("scipy.io", "scipy", f"reading {path}, a MATLAB file,")
    variables = name.split(".")[:1]
    with reading(path), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        value = _within(io.loadmat(path, variable_names=variables, mat_dtype=True), name)
        if any(warning.category.__name__ == "ComplexWarning" for warning in told):  # SciPy leaves imaginary parts out
            value = _within(io.loadmat(path, variable_names=variables), name)
    if np.iscomplexobj(value):
        raise DataError(
            f"{path}:{name} holds complex numbers, which are not supported: in MATLAB, Y = [real({name}), "
            f"imag({name})] puts the parts side by side, then save('OUT.mat', 'Y')"
        )
    return value


def _within(variables: dict[str, Any], name: str) -> Any:
    """The variable NAME, or the field NAME.FIELD of a structure."""
    variable, *fields = name.split(".")
    value = variables[variable]
    for field in fields:
        value = value[field][0, 0]
    return value
