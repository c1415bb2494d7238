"""Tables of columns, through pyarrow: .parquet by its row groups, Feather and Arrow files by their batches."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np

from gem.data.bands import BandSource
from gem.data.kinds import library
from gem.data.named_columns import Other, check_columns, tell_columns
from gem.data.source import Source, Spec, reading, wide_enough
from gem.errors import DataError


class ArrowTable(BandSource):
    """A table of pyarrow: each column of numbers is a column, one of lists of D numbers is D columns; nulls are NaN.

    Parameters
    ----------
    table : of pyarrow, or a RecordBatch.
    """

    def __init__(self, table: Any, name: str = "data", names: list[str] | None = None, spec: Spec | None = None):
        schema = table.schema
        self.columns = _chosen(schema, name, names, "Y.select({names})" if spec is None else f"{name}:{{joined}}")
        self._table = table.select(self.columns)
        widths = [_width(self._table.column(i)) for i in range(len(self.columns))]
        gaps = any(_gaps(self._table.column(i)) for i in range(len(self.columns)))
        dtype = wide_enough(_dtype(schema, self.columns, gaps), _extremes(self._table))
        super().__init__((table.num_rows, sum(widths)), dtype, name, _pieces(table.num_rows, sum(widths)), spec)
        self.gaps = "null" if gaps else ""

    def band(self, i: int) -> np.ndarray:
        start, stop = self._begin[i], self._begin[i + 1]
        return to_numpy(self._table.slice(start, stop - start), self.dtype, self.shape[1], self.name)


class ParquetSource(BandSource):
    """A .parquet file, read by row groups."""

    def __init__(self, path: str, names: str | None = None):
        parquet = library("pyarrow.parquet", "pyarrow", f"reading {path}, a Parquet file,")
        name = path if names is None else f"{path}:{names}"
        with reading(path):
            self._file = parquet.ParquetFile(path)
            schema, meta = self._file.schema_arrow, self._file.metadata
            self.columns = _chosen(schema, path, names.split(",") if names else None, f"{path}:{{joined}}")
            rows = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
            lists = [column for column in self.columns if _is_list(schema.field(column).type)]
            first = self._file.read_row_group(0, columns=lists) if lists and rows else None
            D = len(self.columns) - len(lists) + sum(_width(first.column(c)) for c in lists if first is not None)
            nulls = _may_have_nulls(meta, self.columns)
            dtype = wide_enough(
                _dtype(schema, self.columns, bool(lists) or nulls), _stored_extremes(meta, self.columns)
            )
        super().__init__((meta.num_rows, D), dtype, name, rows, {"data": name})
        self.gaps = "null" if nulls else ""

    def band(self, i: int) -> np.ndarray:
        return to_numpy(self._file.read_row_group(i, columns=self.columns), self.dtype, self.shape[1], self.name)

    def close(self) -> None:
        with self._lock:
            self._file.close(force=True)


def open_arrow(path: str, names: str | None) -> Source:
    """A Feather or Arrow file (or stream, as of Hugging Face's data sets), held in memory."""
    purpose = f"reading {path}, an Arrow file,"
    with reading(path):
        ipc, feather = library("pyarrow.ipc", "pyarrow", purpose), library("pyarrow.feather", "pyarrow", purpose)
        with open(path, "rb") as file:
            stream = file.read(4) == b"\xff\xff\xff\xff"
            file.seek(0)
            table = ipc.open_stream(file).read_all() if stream else feather.read_table(file)
    name = path if names is None else f"{path}:{names}"
    return ArrowTable(table, name, names.split(",") if names else None, {"data": name})


def to_numpy(table: Any, dtype: np.dtype, D: int, name: str) -> np.ndarray:
    """The columns of a table side by side: (N, D) array."""
    parts = [_column(table.column(i), table.column_names[i], dtype, name) for i in range(table.num_columns)]
    if sum(part.shape[1] for part in parts) != D:
        raise DataError(f"{name}: lists of other lengths than in the first rows: a row has {D} numbers")
    return np.concatenate(parts, axis=1)


def _chosen(schema: Any, name: str, names: list[str] | None, pick: str) -> list[str]:
    """The columns that are numbers: all of them, but those that pandas stored as its index."""
    names = names and [n if n in schema.names else n.strip("/") for n in names]
    if names is not None and (unknown := [n for n in names if n not in schema.names]):
        raise DataError(f"{name} has no column {', '.join(unknown[:10])}; there are {', '.join(schema.names[:10])}")
    if not schema.names:
        raise DataError(f"{name} has no columns: there is nothing to learn from")
    index = _pandas_index(schema)
    columns = names or [column for column in schema.names if column not in index]
    if len(set(schema.names)) < len(schema.names):
        raise DataError(f"{name} has columns of the same name: rename them, Y.rename_columns([...])")
    check_columns({column: _numpy_type(schema.field(column).type) for column in columns}, name, pick)
    tell_columns(name, columns)
    return columns


def _pandas_index(schema: Any) -> list[str]:
    meta = (schema.metadata or {}).get(b"pandas")
    stored = json.loads(meta).get("index_columns", []) if meta else []
    return [column for column in stored if isinstance(column, str)]


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)


def _numpy_type(kind: Any) -> Any:
    """The NumPy type of a column of numbers or of lists of them; a word for any other."""
    from pyarrow import types

    inner = kind.value_type if _is_list(kind) else kind
    if types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner):
        return np.dtype(inner.to_pandas_dtype())
    if types.is_decimal(inner):
        return np.dtype(np.float64)
    return Other(str(kind))


def _dtype(schema: Any, columns: Iterable[str], gaps: bool) -> np.dtype:
    dtype = np.result_type(*(_numpy_type(schema.field(column).type) for column in columns))
    return np.result_type(dtype, np.float16 if dtype.kind == "f" else np.float64) if gaps else dtype


def _extremes(table: Any) -> list[tuple[int, int]]:
    """The least and the largest number of each column of whole numbers of 64 bits."""
    compute = import_module("pyarrow.compute")
    found = [compute.min_max(c).as_py() for c in table.columns if str(c.type) in ("int64", "uint64")]
    return [(ends["min"], ends["max"]) for ends in found if ends["min"] is not None]


def _stored_extremes(meta: Any, columns: list[str]) -> list[tuple[int, int]]:
    """The same, as far as a Parquet file tells them."""
    chunks = [meta.row_group(g).column(i) for g in range(meta.num_row_groups) for i in range(meta.num_columns)]
    told = [
        c.statistics for c in chunks if c.path_in_schema in columns and c.physical_type == "INT64" and c.is_stats_set
    ]
    ends = [(s.min, s.max) for s in told if s.has_min_max]
    return [(low, high) for low, high in ends if isinstance(low, int) and isinstance(high, int)]


def _may_have_nulls(meta: Any, columns: list[str]) -> bool:
    for g in range(meta.num_row_groups):
        group = meta.row_group(g)
        for i in range(group.num_columns):
            chunk = group.column(i)
            if chunk.path_in_schema.split(".")[0] in columns:
                known = chunk.is_stats_set and chunk.statistics.has_null_count
                if not known or chunk.statistics.null_count:
                    return True
    return False


def _gaps(column: Any) -> bool:
    return bool(column.null_count) or _is_list(column.type)


def _width(column: Any) -> int:
    """How many numbers a row of the column has."""
    if not _is_list(column.type) or len(column) == 0:
        return 1
    first = column[0].as_py()
    return len(first) if first is not None else 1


def _column(column: Any, title: str, dtype: np.dtype, name: str) -> np.ndarray:
    """A column as (N, 1), or (N, D) if it holds lists, all of the same length."""
    N = len(column)
    if not _is_list(column.type):
        return _flat(column, dtype).reshape(N, 1)
    compute = import_module("pyarrow.compute")
    lengths = compute.unique(compute.list_value_length(column)).to_pylist()
    if N and (len(lengths) != 1 or lengths[0] is None):
        raise DataError(
            f"{name}: the lists of column {title} have several lengths, {lengths[:10]}: a row has D numbers"
        )
    values = [_flat(chunk.flatten(), dtype) for chunk in column.chunks]
    return np.concatenate(values or [np.empty(0, dtype)]).reshape(N, -1)


def _flat(column: Any, dtype: np.dtype) -> np.ndarray:
    from pyarrow import types

    valid = None if not column.null_count else np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    if valid is not None:
        filler = False if types.is_boolean(column.type) else 0
        column = column.fill_null(filler)
    if types.is_decimal(column.type):  # by way of text: pyarrow's own cast is off by a last digit in one of eight
        column = column.cast("string").cast("float64")
    numbers = np.array(column.to_numpy(zero_copy_only=False), dtype=dtype)
    if valid is not None:
        numbers[~valid] = np.nan
    return numbers


def _pieces(N: int, D: int) -> list[int]:
    rows = max(1, 2**19 // max(1, D))
    return [min(rows, N - begin) for begin in range(0, N, rows)]
