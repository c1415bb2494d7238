"""Sparse matrices in HDF5 groups, of AnnData, 10x Genomics and MATLAB, read as dense blocks of rows."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import IO, Any

import numpy as np

from gem.data.hdf5_array import HDF5Array
from gem.data.hdf5_order import matlab_class
from gem.data.source import reading
from gem.errors import DataError

PIECE = 2**20  # entries read at once
HELD = 64 * 2**20  # bytes of sorted entries kept
log = logging.getLogger("gem")

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns, values


@dataclass(frozen=True)
class SparseLayout:
    """How a group holds a sparse matrix.

    Attributes
    ----------
    shape : of the table: a row per data point.
    by_row : whether the entries of a row lie together (CSR of the table); else those of a column.
    data, indices, pointers : names of the three datasets.
    told : what the log says of it; may be empty.
    """

    shape: tuple[int, int]
    by_row: bool
    data: str = "data"
    indices: str = "indices"
    pointers: str = "indptr"
    told: str = ""


def sparse_layout(group: Any, name: str) -> SparseLayout | None:
    """How a group holds a sparse matrix; None if it holds none.

    Raises
    ------
    DataError
        A shape that is not two whole numbers, or does not go with the number of pointers.
    """
    if "MATLAB_sparse" in group.attrs:
        if "jc" not in group or "data" not in group:  # all zeros
            return None
        size = _shape([int(group.attrs["MATLAB_sparse"]), len(group["jc"]) - 1], name)
        return SparseLayout(size, False, "data", "ir", "jc", f"a sparse {matlab_class(group)} of MATLAB")
    if not all(key in group and len(group[key].shape or ()) == 1 for key in ("data", "indices", "indptr")):
        return None
    layout = _of_anndata(group, name) or _of_shape(group, name)
    pointers = len(group["indptr"]) - 1
    if layout and pointers != layout.shape[0 if layout.by_row else 1]:
        raise DataError(
            f"{name} is a sparse matrix of shape {layout.shape} with {pointers + 1} pointers to rows or columns, which "
            "do not go together: write it again"
        )
    return layout


def _of_anndata(group: Any, name: str) -> SparseLayout | None:
    """CSR or CSC, as the attributes of AnnData's groups, or of those of h5sparse before it, say."""
    for kind, shape in (("encoding-type", "shape"), ("h5sparse_format", "h5sparse_shape")):
        said = _text(group.attrs.get(kind, ""))[:3]
        if said in ("csr", "csc") and shape in group.attrs:
            return SparseLayout(_shape(group.attrs[shape], name), said == "csr")
    return None


def _of_shape(group: Any, name: str) -> SparseLayout | None:
    """With the shape as a dataset: of 10x Genomics, or such that the number of pointers tells rows from columns."""
    if "shape" not in group:
        return None
    rows, columns = _shape(group["shape"][...], name)
    if "barcodes" in group:
        told = f"10x Genomics, {rows} genes or features × {columns} cells; each cell is a data point"
        return SparseLayout((columns, rows), True, told=told)
    return None if rows == columns else SparseLayout((rows, columns), len(group["indptr"]) == rows + 1)


def _shape(values: Any, name: str) -> tuple[int, int]:
    sizes = np.ravel(values)
    if sizes.size != 2 or sizes.dtype.kind not in "ui" or np.any(sizes < 0):
        raise DataError(f"{name} is a sparse matrix whose shape is given as {sizes}: two whole numbers are needed")
    return int(sizes[0]), int(sizes[1])


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class SparseTable:
    """A group that is a sparse matrix, as a table of which blocks of rows are read, dense.

    A matrix that is stored by column is sorted by row once, into a temporary file if that takes more than 64 MiB.

    Parameters
    ----------
    group : h5py.Group in an open file.
    name : what messages call it.
    close : what to close with it.

    Attributes
    ----------
    shape, dtype, name : of the table.
    gaps : empty.

    Raises
    ------
    DataError
        The group holds no sparse matrix of real numbers, or one whose parts do not go together.
    """

    def __init__(self, group: Any, name: str, close: Any = None):
        self.name, self.gaps, self._close = name, "", close
        self._lock = Lock()
        with reading(name):
            layout = sparse_layout(group, name)
            if layout is None:
                raise DataError(f"{name} is a group, not a sparse matrix: name a dataset in it")
            self.shape, self._by_row = layout.shape, layout.by_row
            parts = (layout.data, layout.indices, layout.pointers)
            self._data, self._indices, self._pointers = (HDF5Array(group[part], f"{name}/{part}") for part in parts)
            self.dtype = self._data.dtype
            self._check_parts()
            if layout.told:
                log.info(f"{name}: {layout.told}")
        self._sorted: _SortedByRow | None = None

    def _check_parts(self) -> None:
        """What can be told of the three parts without reading them."""
        parts = (self._data, self._indices, self._pointers)
        if self.dtype.kind not in "buif" or any(part.dtype.kind not in "ui" for part in parts[1:]):
            raise DataError(f"{self.name} is a sparse matrix of {self.dtype}, not of real numbers with whole indices")
        if any(len(part.shape) != 1 for part in parts):
            raise DataError(f"{self.name} is a sparse matrix with a part of more than one axis: write it again")
        count, last = self._data.shape[0], self._pointers.shape[0] - 1
        first, end = (int(self._pointers.read(place, place + 1)[0]) for place in (0, last))
        if self._indices.shape[0] != count or first != 0 or end != count:
            raise DataError(
                f"{self.name} is a sparse matrix of {count} values, {self._indices.shape[0]} indices, whose pointers "
                f"go from {first} to {end}: these must agree; write it again"
            )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), dense; entries given twice are added up.

        Raises
        ------
        DataError
            An index outside the matrix, or pointers that do not ascend.
        """
        block = np.zeros((stop - start, self.shape[1]), self.dtype)
        if start < stop:
            with self._lock, reading(self.name):
                for rows, columns, values in self._entries(start, stop):
                    _add(block.reshape(-1), (rows - start) * self.shape[1] + columns, values)
        return block

    def close(self) -> None:
        """Let go of the file; nothing is read after this."""
        with self._lock:
            if self._sorted is not None:
                self._sorted.close()
            if self._close is not None:
                self._close.close()

    def _entries(self, start: int, stop: int) -> Iterator[Entries]:
        """The entries of these rows: rows, columns, values, in pieces."""
        if self._by_row:
            yield from self._pieces(start, stop, self.shape[1])
            return
        if self._sorted is None:
            N, D = self.shape
            by_column = lambda: ((rows, columns, v) for columns, rows, v in self._pieces(0, D, N))  # noqa: E731
            self._sorted = _SortedByRow(by_column, N, self._data.shape[0], self.dtype, self.name)
        yield from self._sorted.read(start, stop)

    def _pieces(self, start: int, stop: int, below: int) -> Iterator[Entries]:
        """Entries as they are stored, of the stored rows (or columns) [start, stop); other indices lie `below`."""
        pointers = self._pointers.read(start, stop + 1)
        if pointers.max() > self._data.shape[0] or np.any(pointers[1:] < pointers[:-1]):
            raise DataError(f"{self.name} is a sparse matrix whose pointers do not ascend: write it again")
        pointers = pointers.astype(np.int64)
        for begin in range(pointers[0], pointers[-1], PIECE):
            end = min(begin + PIECE, pointers[-1])
            indices = self._indices.read(begin, end)
            if indices.max() >= below or indices.min() < 0:
                raise DataError(
                    f"{self.name} is a sparse matrix with an index outside [0, {below}), in entries {begin}-{end - 1}"
                )
            major = np.searchsorted(pointers, np.arange(begin, end), side="right") - 1 + start
            yield major, indices.astype(np.int64), self._data.read(begin, end)


class _SortedByRow:
    """Entries of any order, sorted by row once: into buckets of neighbouring rows, in a temporary file.

    Parameters
    ----------
    pieces : gives the entries, in pieces, each time it is called.
    rows, count : numbers of rows and of entries.
    """

    def __init__(self, pieces: Callable[[], Iterator[Entries]], rows: int, count: int, dtype: np.dtype, name: str):
        self._record = np.dtype([("row", "<i8"), ("column", "<i8"), ("value", dtype)])
        self._check_room(count * self._record.itemsize, name)
        counts = np.zeros(rows, np.int64)
        for found, _, _ in pieces():
            counts += np.bincount(found, minlength=rows)
        before = np.concatenate([[0], np.cumsum(counts)])  # entries before each row
        self._bucket = before[:-1] // (HELD // self._record.itemsize)  # of each row; ascends
        firsts = np.searchsorted(self._bucket, np.arange(self._bucket[-1] + 2))  # first row of each bucket, and the end
        self._places = before[firsts]
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=HELD)  # noqa: SIM115 (open with the source)
        self._held: tuple[int, np.ndarray] | None = None
        self._write(pieces())

    def read(self, start: int, stop: int) -> Iterator[Entries]:
        for bucket in range(self._bucket[start], self._bucket[stop - 1] + 1):
            if self._held is None or self._held[0] != bucket:
                self._held = None  # before its successor is there
                self._held = bucket, self._load(bucket)
            entries = self._held[1]
            begin, end = np.searchsorted(entries["row"], [start, stop])
            part = entries[begin:end]
            yield part["row"], part["column"], part["value"]

    def close(self) -> None:
        self._held = None
        self._file.close()

    def _write(self, pieces: Iterator[Entries]) -> None:
        filled = self._places[:-1].copy()
        for rows, columns, values in pieces:
            buckets = self._bucket[rows]
            order = np.argsort(buckets, kind="stable")
            entries = np.empty(len(rows), self._record)
            entries["row"], entries["column"], entries["value"] = rows[order], columns[order], values[order]
            present, begins = np.unique(buckets[order], return_index=True)
            for bucket, begin, end in zip(present, begins, [*begins[1:], len(rows)], strict=True):
                self._file.seek(int(filled[bucket]) * self._record.itemsize)
                self._file.write(entries[begin:end].tobytes())
                filled[bucket] += end - begin

    def _load(self, bucket: int) -> np.ndarray:
        begin, end = (int(place) * self._record.itemsize for place in self._places[bucket : bucket + 2])
        self._file.seek(begin)
        entries = np.frombuffer(self._file.read(end - begin), self._record)
        return entries[np.argsort(entries["row"], kind="stable")]

    @staticmethod
    def _check_room(size: int, name: str) -> None:
        folder = tempfile.gettempdir()
        if size <= HELD:
            return
        remedy = "save it by row (scipy: X.tocsr()), or name another folder in TMPDIR"
        if shutil.disk_usage(folder).free < 1.1 * size:
            raise DataError(
                f"{name} is a sparse matrix stored by column, and {folder} has no room for the {size / 1e9:.1f} GB of "
                f"its entries by row: {remedy}"
            )
        log.info(f"{name} is stored by column: it is sorted by row, {size / 1e9:.1f} GB in {folder}; {remedy}")


def _add(block: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
    """block[places] += values, also where a place comes twice."""
    if np.all(places[1:] > places[:-1]) or len(np.unique(places)) == len(places):
        block[places] += values
    else:
        np.add.at(block, places, values)
