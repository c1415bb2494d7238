"""Arrays, frames and matrices of other libraries: taken, or refused with the line to write."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gem.data.bands import SlicedSource
from gem.data.hdf5 import HDF5Source
from gem.data.hdf5_names import find
from gem.data.hdf5_sparse import sparse_layout
from gem.data.named_columns import NamedColumns
from gem.data.source import NUMERIC, ArraySource, Source, Spec, check_form, wide_enough
from gem.data.stacks import NotPicturesError, Stack, can_be_pictures
from gem.errors import DataError, GemError

ROWS = 4096  # of a sparse matrix, made dense at once
GAPS = "Y.astype(float).filled(numpy.nan)"


class SparseSource(Source):
    """A sparse matrix of SciPy, made dense by blocks of rows as they are read."""

    def __init__(self, matrix: Any, name: str = "data", spec: Spec | None = None):
        super().__init__(tuple(matrix.shape), np.dtype(matrix.dtype), name, spec)
        self._rows = matrix.tocsr()  # the matrix itself, if it is one

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._rows[start:stop].toarray()


def open_object(data: Any) -> Source:
    """A Source of what is in memory, or behind an object that reads or computes it.

    Raises
    ------
    DataError
        It is no (N, D) table of real numbers: with the line that makes one of it.
    """
    for fits, take in TAKEN:
        if fits(data):
            return take(data)
    array = as_array(data)
    if array.dtype.names:
        array = plain(array)
    return ArraySource(array)


def open_object_stack(data: Any, patch: int) -> Stack | str:
    """The pictures of an array of any library; of a data set in a file its PATH:/NAME.

    Raises
    ------
    ConfigError
        It is a table, of which no patches can be taken.
    DataError
        As of `open_object`.
    """
    if _of("h5py", "Dataset")(data) and data and data.file.driver != "core" and os.path.isfile(data.file.filename):
        return f"{os.path.abspath(data.file.filename)}:{data.name}"
    if _of("xarray", "DataArray")(data):
        data = data.data
    array = data if _is_lazy(data) else as_array(data)
    if not can_be_pictures(tuple(array.shape), patch):
        raise NotPicturesError("data", f"an array of shape {tuple(array.shape)}")
    return Stack(array, "data", patch)


def as_array(data: Any) -> np.ndarray:
    """A NumPy array of anything that gives one, by whichever protocol it has.

    Raises
    ------
    DataError
        It gives none: with the line that does.
    """
    if isinstance(data, np.ma.MaskedArray):
        if np.ma.is_masked(data):
            raise DataError(f"data is a masked array, and its mask would be lost: {GAPS} marks the gaps")
        return np.asarray(data.data)
    kind = _kind(data)
    if isinstance(data, np.ndarray):
        return np.asarray(data)
    remedy = _remedy(data)
    try:
        if any(hasattr(data, name) for name in ("__array__", "__array_interface__", "__array_struct__")):
            array = np.asarray(data)
        elif hasattr(data, "__dlpack__"):
            array = np.from_dlpack(data)
        elif isinstance(data, memoryview):
            array = np.asarray(data)
        else:
            raise DataError(f"data is a {kind}, {remedy}")
    except GemError:
        raise
    except Exception as error:  # of any library: TypeError, RuntimeError, BufferError, ValueError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data is a {kind} that gives no NumPy array ({reason}): {remedy}") from error
    if array.dtype == object and not isinstance(data, np.ndarray) and array.ndim == 0:
        raise DataError(f"data is a {kind}, {remedy}")
    return array


def plain(table: np.ndarray, name: str = "data") -> np.ndarray:
    """A structured array (N,) of plain numbers as an array (N, D), its columns in order.

    Raises
    ------
    DataError
        A column that is no number, named; with the line that picks the others.
    """
    records = np.asarray(table)
    return NamedColumns.of((records.shape, records.dtype), name, "Y[{names}]", records=records).table(records)


def _of(package: str, *names: str) -> Callable[[Any], bool]:
    """Whether an object is of a class of these names of a package, or of one derived from it; imports nothing."""

    def fits(data: Any) -> bool:
        return any(c.__module__.split(".")[0] == package and c.__name__ in names for c in type(data).__mro__)

    return fits


def _is_lazy(data: Any) -> bool:
    return any(fits(data) for fits in (_of("h5py", "Dataset"), _of("zarr", "Array"), _of("dask", "Array")))


# -- what is taken in a way of its own -------------------------------------------------------------------------


def _kind(data: Any) -> str:
    kind = type(data)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]} {kind.__name__}"


def _sparse(data: Any) -> Source:
    if len(data.shape) != 2:
        raise DataError(f"data is a sparse array of shape {data.shape}: Y.reshape(1, -1) is a row, (N, D) a table")
    return SparseSource(data)


def _hdf5(data: Any) -> Source:
    """A dataset, group or file of h5py, read in the open file; what lies on disk can be resumed."""
    if not data:
        raise DataError("data is an HDF5 object of a file that was closed: open it again, or give PATH:/NAME")
    if not hasattr(data, "shape") and not sparse_layout(data, "data"):
        table, _ = find(data, data.file.filename, None)
        return _hdf5(table)
    return HDF5Source.of(data)


def _dask(data: Any) -> Source:
    if any(math.isnan(n) for n in data.shape):
        raise DataError(
            "data is a dask array whose chunks have unknown sizes: Y.compute_chunk_sizes() finds them, or "
            "frame.to_dask_array(lengths=True)"
        )
    if len(data.shape) != 2 or 0 in data.shape:
        check_form(tuple(data.shape), np.dtype(data.dtype), "data")
    return SlicedSource(data, "data", tuple(int(n) for n in data.chunks[0]))


def _xarray(data: Any) -> Source:
    return open_object(data.data)  # NumPy's, dask's, or what it computes lazily


def _pandas(frame: Any) -> Source:
    """A pandas DataFrame of numbers; gaps of any kind are NaN."""
    types = list(frame.dtypes)
    numbers = [_is_pandas_number(kind) for kind in types]
    if not all(numbers):
        other = [f"{c!r} ({kind})" for c, kind, fine in zip(frame.columns, types, numbers, strict=True) if not fine]
        some = any(numbers)
        raise _other_columns("Y.select_dtypes(['number', 'bool'])" if some else "Y.astype(float)", other)
    wide = wide_enough(np.dtype(np.float64), _pandas_extremes(frame))
    if len(set(types)) <= 1 and all(isinstance(kind, np.dtype) for kind in types):
        return ArraySource(frame.to_numpy())
    columns = []
    for _, column in frame.items():
        gaps = not isinstance(column.dtype, np.dtype) and bool(column.isna().any())
        gaps |= str(column.dtype).startswith("decimal")
        columns.append(np.asarray(column.to_numpy(dtype=wide, na_value=np.nan) if gaps else column.to_numpy()))
    return _side_by_side(columns)


def _pandas_extremes(frame: Any) -> list[tuple[int, int]]:
    whole = [column for _, column in frame.items() if str(column.dtype).lower().startswith(("int64", "uint64"))]
    return [(int(column.min()), int(column.max())) for column in whole if column.notna().any()]


def _side_by_side(columns: list[np.ndarray]) -> Source:
    whole = [column for column in columns if column.dtype.kind in "iu" and column.dtype.itemsize == 8 and column.size]
    dtype = wide_enough(np.result_type(*columns), [(int(c.min()), int(c.max())) for c in whole])
    return ArraySource(np.stack([column.astype(dtype, copy=False) for column in columns], axis=1))


def _is_pandas_number(kind: Any) -> bool:
    if isinstance(kind, np.dtype):
        return kind.kind in NUMERIC + "c"
    inner = getattr(kind, "subtype", None)  # of a sparse column
    if isinstance(inner, np.dtype):
        return inner.kind in NUMERIC
    if str(kind).startswith("decimal"):  # of Arrow
        return True
    letter = getattr(kind, "kind", "O")
    return letter in NUMERIC and bool(getattr(kind, "_is_numeric", False) or getattr(kind, "_is_boolean", False))


def _other_columns(pick: str, other: list[str]) -> DataError:
    more = f" and {len(other) - 10} more" if len(other) > 10 else ""
    return DataError(f"data has columns that are no numbers: {', '.join(other[:10])}{more}; {pick} is what is numbers")


def _polars(frame: Any) -> Source:
    """A polars DataFrame of numbers, or of arrays of D numbers, which are D columns; nulls are NaN."""
    other = [f"{c!r} ({kind})" for c, kind in frame.schema.items() if not _is_polars_number(_in_array(kind))]
    if other:
        lists = [c for c, kind in frame.schema.items() if str(kind).startswith("List(")]
        if len(lists) == len(other):
            made = f"polars.col({', '.join(map(repr, lists))}).list.to_array(D)"
            raise _other_columns(f"Y.with_columns({made}), D the length of every list,", other)
        raise _other_columns("Y.select(polars.selectors.numeric() | polars.selectors.boolean())", other)
    columns = []
    for series in frame.iter_columns():
        D = series.dtype.size if str(series.dtype).startswith("Array(") else None
        for part in [series] if D is None else [series.arr.get(d) for d in range(D)]:
            unknown = str(part.dtype).startswith(("Decimal", "Int128", "UInt128"))  # to NumPy
            column = part.cast(_polars_float(part)) if part.null_count() or unknown else part
            columns.append(np.asarray(column.to_numpy()))
    return _side_by_side(columns) if columns else ArraySource(np.empty((frame.height, 0)))


def _is_polars_number(kind: Any) -> bool:
    return kind.is_numeric() or str(kind) == "Boolean"


def _in_array(kind: Any) -> Any:
    """The type of what a polars Array of one axis holds; any other type as it is."""
    return kind.inner if str(kind).startswith("Array(") and len(kind.shape) == 1 else kind


def _polars_float(series: Any) -> Any:
    from polars import Float32, Float64

    return Float32 if str(series.dtype) == "Float32" else Float64


def _arrow(table: Any) -> Source:
    from gem.data.columns import ArrowTable

    return ArrowTable(table)


def _zarr(data: Any) -> Source:
    from gem.data.zarr_arrays import open_zarr_object

    return open_zarr_object(data)


def _series(data: Any) -> Source:
    raise DataError(f"data is a {_kind(data)}, a single column: Y.to_numpy()[:, None] makes N points with D = 1 of it")


def _collect(data: Any) -> Source:
    raise DataError("data is a polars LazyFrame, a query that has not run: Y.collect() runs it")


def _dask_frame(data: Any) -> Source:
    raise DataError("data is a dask DataFrame: Y.to_dask_array(lengths=True) is the array of its columns")


def _xarray_dataset(data: Any) -> Source:
    raise DataError(
        f"data is an xarray Dataset of several arrays: give one, Y['NAME'], of {', '.join(map(str, data.data_vars))}"
    )


TAKEN: list[tuple[Callable[[Any], bool], Callable[[Any], Source]]] = [
    (lambda data: type(data).__module__.startswith("scipy.sparse") and hasattr(data, "tocsr"), _sparse),
    (_of("h5py", "Dataset", "Group", "File"), _hdf5),
    (_of("dask", "Array"), _dask),
    (_of("dask_expr", "FrameBase", "DataFrame"), _dask_frame),
    (_of("dask", "DataFrame", "FrameBase", "_Frame"), _dask_frame),
    (_of("xarray", "DataArray", "Variable"), _xarray),
    (_of("xarray", "Dataset"), _xarray_dataset),
    (_of("pandas", "DataFrame"), _pandas),
    (_of("pandas", "Series", "Index"), _series),
    (_of("polars", "DataFrame"), _polars),
    (_of("polars", "Series"), _series),
    (_of("polars", "LazyFrame"), _collect),
    (_of("pyarrow", "Table", "RecordBatch"), _arrow),
    (_of("pyarrow", "Array", "ChunkedArray"), _series),
    (_of("zarr", "Array", "Group"), _zarr),
]


# -- what to write instead -------------------------------------------------------------------------------------


METHODS = {  # of arrays that give no NumPy array unasked
    "copy_to_host": "copies it from the device",
    "get": "copies it from the device",
    "todense": "is its array",
    "numpy": "is its array",
    "to_numpy": "is its array",
    "asnumpy": "copies it from the device",
    "compute": "is its array",
}
PROTOCOLS = {
    "__cuda_array_interface__": "it is on a CUDA device: cupy.asarray(Y).get() copies it from there",
    "__dlpack__": "it is on a device: numpy.from_dlpack(Y.to_device('cpu')), or the copy to the host of its library",
}


def _remedy(data: Any) -> str:
    """The line that makes a NumPy array of `data`."""
    if hasattr(data, "requires_grad") and hasattr(data, "detach"):
        return f"{_torch(data)} is its array"
    if hasattr(data, "shape"):  # an array of some kind; a mapping has a method get, too
        for method, does in METHODS.items():
            if callable(getattr(data, method, None)):
                return f"Y.{method}() {does}"
    for protocol, remedy in PROTOCOLS.items():
        if hasattr(data, protocol):
            return remedy
    return _of_python(data)


def _torch(tensor: Any) -> str:
    """PyTorch's tensor, step by step: without its gradient, dense, on the host, of a type that NumPy has."""
    steps = ["Y"]
    if tensor.requires_grad:
        steps.append("detach()")
    if "sparse" in str(getattr(tensor, "layout", "")):
        steps.append("to_dense()")
    if str(getattr(tensor, "device", "cpu")) != "cpu":
        steps.append("cpu()")
    if getattr(tensor, "is_quantized", False):
        steps.append("dequantize()")
    if any(short in str(getattr(tensor, "dtype", "")) for short in ("bfloat16", "float8")):
        steps.append("float()")
    return ".".join([*steps, "numpy()"])


def _of_python(data: Any) -> str:
    if isinstance(data, Mapping):
        names = ", ".join(repr(name) for name in list(data)[:10])
        return f"not an array: give one of its arrays, Y[NAME], of {names or 'none'}"
    if isinstance(data, (list, tuple)):
        if data and all(isinstance(part, np.ndarray) for part in data):
            return "not an array: np.concatenate(data) puts tables of the same columns one below the other"
        return "neither an array nor a path nor a list of paths; np.array(data) makes an array of nested lists"
    if hasattr(data, "read") and callable(data.read):
        return "not an array: give the path of the file, or what it holds, loaded"
    if hasattr(data, "__next__") or hasattr(data, "__iter__"):
        return "not an array: numpy.array(list(data)) makes one of rows that come one by one"
    return "neither an array nor a path nor a list of paths; np.array(data) makes an array of nested lists"
