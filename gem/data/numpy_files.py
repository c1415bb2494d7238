"""Tables in .npy and .npz files, read by offset."""

from __future__ import annotations

import os
import struct
import zipfile
from threading import Lock
from typing import IO

import numpy as np

from gem.data.source import Source, only_table, reading
from gem.errors import DataError

PIECE = 2**18  # bytes unpacked at once

Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, whether stored by column (Fortran order), dtype


class _LaidOut(Source):
    """A table whose numbers lie as .npy has them: one after the other, by rows or by columns."""

    def __init__(self, path: str, name: str, header: Header, offset: int, there: int):
        shape, self._by_column, dtype = header
        super().__init__(shape, dtype, name, {"data": name})
        self._path, self._offset = path, offset
        needed = offset + self.shape[0] * self.shape[1] * dtype.itemsize
        if there < needed:
            raise DataError(f"{name} is cut short: {there} bytes of {needed}; copy or save it again")

    def read(self, start: int, stop: int) -> np.ndarray:
        N, D = self.shape
        if self._by_column:  # saved in Fortran order: a piece of every column
            return np.stack([self._numbers(d * N + start, stop - start) for d in range(D)], axis=1)
        return self._numbers(start * D, (stop - start) * D).reshape(-1, D)

    def _numbers(self, first: int, count: int) -> np.ndarray:
        """So many of the numbers, in the order in which they are stored.

        The file is opened, read and closed: threads share nothing, and there is no memory map whose touched
        pages would let resident memory grow with the file, and a disk error kill the process.
        """
        with reading(self._path):
            offset = self._offset + first * self.dtype.itemsize
            numbers = np.fromfile(self._path, self.dtype, count, offset=offset)
        if numbers.size < count:
            raise self._shorter()
        return numbers

    def _shorter(self) -> DataError:
        return DataError(f"{self._path} became shorter while in use; start again with the whole file")


class NpySource(_LaidOut):
    """A .npy file, read by offset."""

    def __init__(self, path: str):
        with reading(path), open(path, "rb") as file:
            header, offset = _npy_header(file), file.tell()
            there = os.path.getsize(path)
        super().__init__(path, path, header, offset, there)


class NpzSource(_LaidOut):
    """An array of a .npz file, by default its only 2-D numeric one; read by offset where it is not compressed.

    A compressed one is unpacked up to the rows asked for, in small pieces that are dropped. The place is kept, so that
    a pass over a slab in order unpacks once what lies before the slab's end; rows before the place begin the array
    anew. Its checksum comes after the last row: only who reads that one checks it. One that is compressed and in
    Fortran order is held whole.
    """

    def __init__(self, path: str, array: str | None = None):
        self._stream: IO[bytes] | None = None  # where it is compressed; kept open
        self._lock = Lock()  # there is one place in the stream
        with reading(path), zipfile.ZipFile(path) as archive:
            arrays = _npz_arrays(archive)
            if array is None or array not in arrays:
                forms = {name: (shape, dtype) for name, (_, (shape, _, dtype), _) in arrays.items()}
                array = only_table(path, array, forms)
            member, header, offset = arrays[array]
            there = member.file_size
            if member.compress_type != zipfile.ZIP_STORED:
                self._stream = archive.open(member)  # outlives the archive
            else:
                begin = _begin_of(path, member)
                offset, there = begin + offset, min(begin + there, os.path.getsize(path))
        super().__init__(path, f"{path}:{array}", header, offset, there)
        self._whole = None
        if self._stream and self._by_column:
            # each block of rows has a piece of every column, so it would unpack nearly all: once for all, then
            self._whole = self._numbers(0, self.shape[0] * self.shape[1]).reshape(self.shape[::-1]).T

    def read(self, start: int, stop: int) -> np.ndarray:
        return super().read(start, stop) if self._whole is None else self._whole[start:stop]

    def _numbers(self, first: int, count: int) -> np.ndarray:
        if self._stream is None:
            return super()._numbers(first, count)
        numbers = np.empty(count, self.dtype)
        with self._lock, reading(self._path):
            try:
                _fill(numbers, self._stream, self._offset + first * self.dtype.itemsize)
            except EOFError as error:
                raise self._shorter() from error
        return numbers

    def close(self) -> None:
        with self._lock:
            if self._stream:
                self._stream.close()


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
        with archive.open(member) as file:
            arrays[member.filename.removesuffix(".npy")] = member, _npy_header(file), file.tell()
    return arrays


def _begin_of(path: str, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header, the last of which are of a length told there alone."""
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
