"""Named columns, as structured arrays, compounds of HDF5 and zarr and tables of FITS have them: one rule for them all.

A field of numbers is a column, one of D numbers is D columns, in their order, which the log tells. A field of anything
else is refused by its name, with the line that picks the others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gem.data.source import LISTED, NUMERIC, Form, wide_enough
from gem.errors import DataError

LOG = logging.getLogger(__name__)
BEYOND = 2**64  # what whole numbers of 64 bits may reach, if nobody has looked


@dataclass(frozen=True)
class NamedColumns:
    """The columns of records (N,).

    Attributes
    ----------
    fields : those that are read, in order.
    D : how many columns they make.
    dtype : that holds all of them; wider than float64 where whole numbers of 64 bits stand beside others.
    """

    fields: list[str]
    D: int
    dtype: np.dtype

    @classmethod
    def of(
        cls, form: Form, name: str, pick: str, other: Mapping[str, str] | None = None, records: Any = None
    ) -> NamedColumns:
        """The columns of records of this shape and type; they are told.

        Parameters
        ----------
        name : of the table, for messages.
        pick : as of `check_columns`.
        other : fields that are no numbers although their types are, and what they are.
        records : all of them, or the columns by name, if they are in memory: whether they need a type wider than
            float64 is then known.

        Raises
        ------
        DataError
            A field that is no number, named; or records of several axes.
        """
        shape, dtype = form
        types: dict[str, Any] = {field: dtype[field] for field in dtype.names or ()}
        check_columns(types | {field: Other(what) for field, what in (other or {}).items()}, name, pick)
        if len(shape) != 1:
            raise DataError(f"{name} has named columns and shape {shape}: a table of rows has one axis, Y.reshape(-1)")
        columns = cls(list(types), *_row(types, records))
        tell_columns(name, [f"{f}[{prod(t.shape)}]" if t.shape else f for f, t in types.items()], columns.D)
        return columns

    def table(self, records: np.ndarray) -> np.ndarray:
        """Records (n,) as an array (n, D)."""
        from numpy.lib.recfunctions import structured_to_unstructured

        return structured_to_unstructured(np.asarray(records)[self.fields], dtype=self.dtype)


def form_of(form: Form) -> Form:
    """Shape and type of the table that records make, if all their fields are numbers; else as given."""
    shape, dtype = form
    if dtype.names is None or len(shape) != 1 or any(dtype[field].base.kind not in NUMERIC for field in dtype.names):
        return form
    D, widest = _row({field: dtype[field] for field in dtype.names}, None)
    return (shape[0], D), widest


def check_columns(types: Mapping[str, Any], name: str, pick: str) -> None:
    """Refuse columns that are no plain numbers.

    Parameters
    ----------
    types : dtype of each column, or Other.
    pick : the line that picks the columns {names} (a list) or {joined} (with commas), for the message.

    Raises
    ------
    DataError
        Naming at most ten of them.
    """
    other = [f"{column} ({dtype})" for column, dtype in types.items() if dtype.base.kind not in NUMERIC]
    if not other:
        return
    fine = [column for column, dtype in types.items() if dtype.base.kind in NUMERIC]
    more = f" and {len(other) - LISTED} more" if len(other) > LISTED else ""
    picked = pick.replace("{names}", str(fine)).replace("{joined}", ",".join(fine)) if fine else "none is"
    raise DataError(
        f"{name}: columns that are no plain numbers: {', '.join(other[:LISTED])}{more}; those that are: {picked}"
    )


def tell_columns(name: str, columns: list[str], D: int | None = None) -> None:
    """The log says which columns there are, D of them where some hold several."""
    more = f" and {len(columns) - LISTED} more" if len(columns) > LISTED else ""
    told = ", ".join(map(str, columns[:LISTED])) + more
    LOG.info("%s: %d columns in this order: %s", name, len(columns) if D is None else D, told)


class Other(str):
    """The name of a type that is no number, with what `check_columns` asks of a dtype."""

    kind = "O"

    @property
    def base(self) -> Other:
        return self


def _row(types: Mapping[str, np.dtype], records: Any) -> tuple[int, np.dtype]:
    """How many numbers a record has, and the type that holds all of them."""
    dtype = np.result_type(*(t.base for t in types.values())).newbyteorder("=")
    whole = [field for field, t in types.items() if t.base.kind in "iu" and t.base.itemsize == 8]
    if records is None:
        ends: list[tuple[Any, Any]] = [(-BEYOND, BEYOND)] * len(whole)
    else:
        ends = [(int(records[field].min()), int(records[field].max())) for field in whole if records[field].size]
    return sum(prod(t.shape) for t in types.values()), wide_enough(dtype, ends)
