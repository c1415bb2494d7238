"""HDF5 datasets whose axes are stored in another order than they are meant: of MATLAB, Octave and Loom."""

from __future__ import annotations

from typing import Any

from gem.errors import DataError

MATLAB_NUMBERS = {
    "double",
    "single",
    "logical",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


def turned(dataset: Any, name: str) -> str:
    """Why the axes of a dataset are meant in the reverse of the stored order; empty if they are not.

    Raises
    ------
    DataError
        A MATLAB array without numbers: text, a cell array, an object, an empty matrix.
    """
    kind = matlab_class(dataset)
    if kind is not None:
        if dataset.attrs.get("MATLAB_empty", 0):
            raise DataError(f"{name} is an empty matrix of MATLAB: there is nothing to learn from")
        if kind not in MATLAB_NUMBERS:
            raise DataError(
                f"{name} is of MATLAB's class {kind}, not numbers: save a numeric matrix (cell2mat, str2double or "
                "table2array make one)"
            )
        return "MATLAB stores matrices by column"
    if "OCTAVE_NEW_FORMAT" in dataset.parent.attrs:
        return "Octave stores matrices by column"
    if _of_loom(dataset):
        return "Loom keeps genes by rows; each cell is a data point"
    return ""


def matlab_class(node: Any) -> str | None:
    """What MATLAB says that a dataset or group is; None if it did not write it."""
    kind = node.attrs.get("MATLAB_class")
    if kind is None:
        return None
    return kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)


def _of_loom(dataset: Any) -> bool:
    """The matrix of a Loom file, or one of its layers: genes × cells."""
    root = dataset.file
    placed = dataset.name == "/matrix" or str(dataset.name).startswith("/layers/")
    return placed and len(dataset.shape or ()) == 2 and "row_attrs" in root and "col_attrs" in root
