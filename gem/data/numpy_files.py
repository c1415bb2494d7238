"""Tables and pictures in .npy and .npz files, read by offset."""

from __future__ import annotations

import os
import struct
import zipfile
from math import prod
from threading import Lock
from typing import IO, Any

import numpy as np

from gem.data.choice import only_table
from gem.data.named_columns import NamedColumns
from gem.data.source import Source, reading
from gem.data.stacks import NotPicturesError, Stack, can_be_pictures, choose_stack
from gem.errors import DataError

PIECE = 2**18  # bytes unpacked at once

Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, whether stored by column (Fortran order), dtype


class _LaidOut(Source):
    """A table whose numbers lie as .npy has them: one after the other, by rows or by columns.

    An array (N,) with named columns of plain numbers is a table, too.
    """

    def __init__(self, path: str, name: str, header: Header, offset: int, there: int, column: bool = False):
        shape, self._by_column, self._stored = header
        if column and len(shape) == 1 and not self._stored.names:
            shape = (*shape, 1)
        self._path, self._offset = path, offset
        self._columns = None
        form = shape, self._stored
        if self._stored.names:
            array = name.removeprefix(path)[1:]  # of a .npz
            loaded = f"numpy.load({path!r})" + (f"[{array!r}]" if array else "")
            self._columns = NamedColumns.of(form, name, f"{loaded}[{{names}}]")
            form, self._by_column = ((*shape, self._columns.D), self._columns.dtype), False
        super().__init__(*form, name, {"data": name})
        needed = offset + prod(shape) * self._stored.itemsize
        if there < needed:
            raise DataError(f"{name} is cut short: {there} bytes of {needed}; copy or save it again")

    def read(self, start: int, stop: int) -> np.ndarray:
        N, D = self.shape
        if self._columns:
            return self._columns.table(self._numbers(start, stop - start))
        if self._by_column:  # saved in Fortran order: a piece of every column
            return np.stack([self._numbers(d * N + start, stop - start) for d in range(D)], axis=1)
        return self._numbers(start * D, (stop - start) * D).reshape(-1, D)

    def _numbers(self, first: int, count: int) -> np.ndarray:
        """So many of the numbers, in the order in which they are stored.

        The file is opened, read and closed: threads share nothing, and there is no memory map whose touched
        pages would let resident memory grow with the file, and a disk error kill the process.
        """
        with reading(self._path):
            offset = self._offset + first * self._stored.itemsize
            numbers = np.fromfile(self._path, self._stored, count, offset=offset)
        if numbers.size < count:
            raise self._shorter()
        return numbers

    def _shorter(self) -> DataError:
        return DataError(f"{self._path} became shorter while in use; start again with the whole file")


class NpySource(_LaidOut):
    """A .npy file, read by offset; an array (N,) is refused, or, if asked for, a `column`."""

    def __init__(self, path: str, column: bool = False):
        with reading(path), open(path, "rb") as file:
            header, offset = _npy_header(file), file.tell()
            there = os.path.getsize(path)
        super().__init__(path, path, header, offset, there, column)


class NpzSource(_LaidOut):
    """An array of a .npz file, by default its only 2-D numeric one; read by offset where it is not compressed.

    A compressed one is unpacked up to the rows asked for, in small pieces that are dropped. The place is kept, so that
    a pass over a slab in order unpacks once what lies before the slab's end; rows before the place begin the array
    anew. Its checksum comes after the last row: only who reads that one checks it. One that is compressed and in
    Fortran order is held whole. An array (N,) is refused, or, if asked for, a `column`.
    """

    def __init__(self, path: str, array: str | None = None, column: bool = False):
        self._stream: IO[bytes] | None = None  # where it is compressed; kept open
        self._lock = Lock()  # there is one place in the stream
        with reading(path), zipfile.ZipFile(path) as archive:
            arrays = _npz_arrays(archive)
            if array not in arrays and array is not None:
                array = array.strip("/")  # as of HDF5
            if array is None or array not in arrays:
                forms = {name: (shape, dtype) for name, (_, (shape, _, dtype), _) in arrays.items()}
                array = only_table(path, array, forms, (1, 2) if column else (2,))
            member, header, offset = arrays[array]
            there = member.file_size
            if member.compress_type != zipfile.ZIP_STORED:
                self._stream = archive.open(member)  # outlives the archive
            else:
                begin = _begin_of(path, member)
                offset, there = begin + offset, min(begin + there, os.path.getsize(path))
        super().__init__(path, f"{path}:{array}", header, offset, there, column)
        self._whole = None
        if self._stream and self._by_column:
            # each block of rows has a piece of every column, so it would unpack nearly all: once for all, then
            self._whole = self._numbers(0, self.shape[0] * self.shape[1]).reshape(self.shape[::-1]).T

    def read(self, start: int, stop: int) -> np.ndarray:
        return super().read(start, stop) if self._whole is None else self._whole[start:stop]

    def _numbers(self, first: int, count: int) -> np.ndarray:
        if self._stream is None:
            return super()._numbers(first, count)
        numbers = np.empty(count, self._stored)
        with self._lock, reading(self._path):
            try:
                _fill(numbers, self._stream, self._offset + first * self._stored.itemsize)
            except EOFError as error:
                raise self._shorter() from error
        return numbers

    def close(self) -> None:
        with self._lock:
            if self._stream:
                self._stream.close()


def open_npy_stack(path: str, patch: int) -> Stack:
    """The pictures of a .npy file, read one at a time where each lies in a piece.

    Raises
    ------
    ConfigError
        It is a table, of which no patches can be taken.
    """
    with reading(path), open(path, "rb") as file:
        array = _Array(path, _npy_header(file), file.tell())
    if not can_be_pictures(array.shape, patch):
        raise NotPicturesError(path, f"an array of shape {array.shape}")
    return Stack(array, path, patch)


def open_npz_stack(path: str, name: str | None, patch: int) -> Stack:
    """The pictures of an array of a .npz file, which is held in memory; by default the only one that can be such."""
    with reading(path), np.load(path, allow_pickle=False) as archive:
        with zipfile.ZipFile(path) as members:
            headers = {member: header for member, (_, header, _) in _npz_arrays(members).items()}
        if name not in headers and name is not None:
            name = name.strip("/")
        if name is None or name not in headers:
            forms = {member: (shape, dtype) for member, (shape, _, dtype) in headers.items()}
            name = choose_stack(path, forms, patch) if name is None else only_table(path, name, forms)
        array = archive[name]
    if not can_be_pictures(array.shape, patch):
        raise NotPicturesError(f"{path}:{name}", f"an array of shape {array.shape}")
    return Stack(array, f"{path}:{name}", patch)


class _Array:
    """The array of a .npy file, of which only what its first axes count (its last ones, in Fortran order) is read."""

    def __init__(self, path: str, header: Header, offset: int):
        (self.shape, self._by_column, self.dtype), self._path, self._offset = header, path, offset
        self._whole: np.ndarray | None = None

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        at = tuple(k for k in index if k is not Ellipsis)
        if (Ellipsis in index) != self._by_column and at:
            if self._whole is None:
                self._whole = np.load(self._path, allow_pickle=False)
            return self._whole[index]
        shape, at = (self.shape[::-1], at[::-1]) if self._by_column else (self.shape, at)  # as the numbers lie
        number = int(np.ravel_multi_index(at, shape[: len(at)])) if at else 0
        count = prod(shape[len(at) :])
        offset = self._offset + number * count * self.dtype.itemsize
        numbers = np.fromfile(self._path, self.dtype, count, offset=offset)
        if numbers.size < count:
            raise DataError(f"{self._path} is cut short: copy or save it again")
        picture = numbers.reshape(shape[len(at) :])
        return picture.T if self._by_column else picture


def _npy_header(file: IO[bytes]) -> Header:
    """What a .npy file says of its array; leaves the file at the first number."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _npz_arrays(archive: zipfile.ZipFile) -> dict[str, tuple[zipfile.ZipInfo, Header, int]]:
    """Every array's member, header, and offset of the first number within the member."""
    arrays = {}
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            continue
        with archive.open(member) as file:
            arrays[member.filename.removesuffix(".npy")] = member, _npy_header(file), file.tell()
    return arrays


def _begin_of(path: str, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header, the last of which are of a length told only there."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    return member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))  # its name, and extra fields


def _fill(numbers: np.ndarray, stream: IO[bytes], begin: int) -> None:
    """Read `numbers` from the place `begin` of a compressed member on; EOFError where it ends before."""
    if stream.tell() > begin:
        stream.seek(0)
    for place in range(stream.tell(), begin, PIECE):  # one far seek would unpack 16 MB at a time
        stream.seek(min(place + PIECE, begin))
    left = numbers.view(np.uint8)
    while len(left):
        piece = stream.read(min(PIECE, len(left)))
        if not piece:
            raise EOFError
        left[: len(piece)] = np.frombuffer(piece, np.uint8)
        left = left[len(piece) :]
