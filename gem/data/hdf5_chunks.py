"""Slabs of an HDF5 dataset along one axis: a pass in order unpacks each compressed chunk once, in bounded memory."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from itertools import product
from math import prod
from typing import IO, Any

import numpy as np

HELD = 256 * 2**20  # bytes of unpacked chunks kept in memory; more go through a temporary file

PIECE = 2**17  # bytes that lie together and are worth a read: HDF5 reads 64 KiB for less

log = logging.getLogger("gem")


class Slabs:
    """Slabs [start, stop) of a dataset along any axis, all of the other axes.

    What HDF5 cannot read piece by piece is read in bands along the axis: chunks that it takes as a whole (compressed
    ones, and others that fit its cache), and what lies in pieces shorter than it reads at once (a contiguous table, by
    column). The band that a read ends in is kept for the next read, as one that begins there would need it again. A
    band of compressed chunks of more than `HELD` bytes, such as a table in chunks of one long column, is unpacked once
    into a temporary file and read from there; where that does not fit, every read unpacks it, and the log says so.

    Parameters
    ----------
    dataset : h5py.Dataset.
    name : of the dataset, for the log.
    """

    def __init__(self, dataset: Any, name: str):
        self._dataset, self._name = dataset, name
        self._shape, self._item = dataset.shape, dataset.dtype
        self._chunks, self._whole = dataset.chunks, _taken_whole(dataset)
        self._held: tuple[int, int, np.ndarray] | None = None  # axis, first index, the band
        self._unpacked: dict[int, _Unpacked | None] = {}  # by axis; None: no room for it

    def read(self, axis: int, start: int, stop: int) -> np.ndarray:
        """The slab, in the order of the stored axes."""
        height = self._height(axis) if start < stop else 1
        if height == 1:
            return self._plain(axis, start, stop)
        if height * self._row(axis) > HELD:
            return self._from_file(axis, start, stop)
        slab = np.empty((*self._shape[:axis], stop - start, *self._shape[axis + 1 :]), self._item)
        for first, end, band in self._bands(axis, height, start, stop):
            slab[_along(axis, first - start, end - start)] = band
        return slab

    def _row(self, axis: int) -> int:
        """Bytes of one index along the axis."""
        return prod(self._shape) // self._shape[axis] * self._item.itemsize

    def _height(self, axis: int) -> int:
        """How many indices along the axis are read at once, from a multiple of so many on."""
        if self._item.subdtype is not None:
            return 1
        if self._whole:
            return int(min(self._chunks[axis], self._shape[axis]))
        run = prod((self._chunks or self._shape)[axis + 1 :]) * self._item.itemsize  # bytes that lie together
        if run == self._row(axis):
            return 1
        return int(max(1, min(-(-PIECE // run), HELD // self._row(axis), self._shape[axis])))

    def close(self) -> None:
        """Delete the temporary files."""
        self._held = None
        for unpacked in self._unpacked.values():
            if unpacked is not None:
                unpacked.close()
        self._unpacked.clear()

    def _plain(self, axis: int, start: int, stop: int) -> np.ndarray:
        return np.asarray(self._dataset[_along(axis, start, stop)])

    def _bands(self, axis: int, height: int, start: int, stop: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first, end, values): the slab in parts, whole bands in one; what a part leaves of its last band is kept."""
        N = self._shape[axis]
        while start < stop:
            first = start // height * height
            last = min(first + height, N)
            if self._held is not None and self._held[:2] == (axis, first):
                end = min(stop, last)
                yield start, end, self._held[2][_along(axis, start - first, end - first)]
            elif stop >= last:  # to the end of the last band that is asked for whole
                end = stop if stop == N else stop // height * height
                yield start, end, self._plain(axis, start, end)
            else:
                self._held = None  # before its successor is there
                self._held = axis, first, self._plain(axis, first, last)
                continue
            start = end

    def _from_file(self, axis: int, start: int, stop: int) -> np.ndarray:
        if axis not in self._unpacked:
            self._unpacked[axis] = self._make_room(axis)
        unpacked = self._unpacked[axis]
        return self._plain(axis, start, stop) if unpacked is None else unpacked.read(start, stop)

    def _make_room(self, axis: int) -> _Unpacked | None:
        """A temporary file for the unpacked dataset, if the disk has room for it."""
        size, folder = prod(self._shape) * self._item.itemsize, tempfile.gettempdir()
        better = (
            f"chunks of whole rows need neither: h5repack -l {self._dataset.name}:CHUNK="
            f"{'x'.join(map(str, _better(self._shape, axis, self._item.itemsize)))} OLD NEW"
        )
        about = f"{self._name} is compressed in chunks of {self._chunks}, which blocks of rows cut across"
        if shutil.disk_usage(folder).free < 1.1 * size:
            log.warning(
                f"{about}: every block unpacks them again, as {folder} (TMPDIR) has no room for {size / 1e9:.1f} GB; "
                f"{better}"
            )
            return None
        log.info(f"{about}: they are unpacked once, into a temporary file of {size / 1e9:.1f} GB in {folder}; {better}")
        return _Unpacked(self._dataset, axis)


class _Unpacked:
    """A dataset's chunks, unpacked into a temporary file when they are first asked for; along `axis` they are read in
    part."""

    def __init__(self, dataset: Any, axis: int):
        self._dataset, self._axis = dataset, axis
        self._height, self._item = dataset.chunks[axis], dataset.dtype
        self._row = prod(dataset.shape) // dataset.shape[axis]  # numbers
        self._there: set[int] = set()
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the source)

    def read(self, start: int, stop: int) -> np.ndarray:
        shape = self._dataset.shape
        slab = np.empty((stop - start, *shape[: self._axis], *shape[self._axis + 1 :]), self._item)
        for first in range(start // self._height * self._height, stop, self._height):
            rows = min(first + self._height, shape[self._axis]) - first
            if first not in self._there:
                self._unpack(first, rows)
            begin, end = max(start, first), min(stop, first + rows)
            for tile, lengths, place in self._tiles():
                numbers = prod(lengths)
                self._file.seek((first * self._row + rows * place + (begin - first) * numbers) * self._item.itemsize)
                part = np.empty((end - begin, *lengths), self._item)
                if self._file.readinto(part.view(np.uint8).reshape(-1)) != part.nbytes:  # type: ignore[attr-defined]
                    raise OSError("the temporary file is shorter than what was written to it")
                where = (slice(begin - start, end - start), *tile)
                slab[where] = part
        return np.moveaxis(slab, 0, self._axis)

    def close(self) -> None:
        self._file.close()

    def _unpack(self, first: int, rows: int) -> None:
        """The chunks of one band, one after the other, the axis first."""
        for tile, _, place in self._tiles():
            where = (*tile[: self._axis], slice(first, first + rows), *tile[self._axis :])
            values = self._dataset[where]
            self._file.seek((first * self._row + rows * place) * self._item.itemsize)
            self._file.write(np.ascontiguousarray(np.moveaxis(values, self._axis, 0)).data)
        self._there.add(first)

    def _tiles(self) -> Iterator[tuple[tuple[slice, ...], list[int], int]]:
        """The chunks of a band: slices of the other axes, their lengths, and numbers per row before them."""
        sizes, chunks = list(self._dataset.shape), list(self._dataset.chunks)
        del sizes[self._axis], chunks[self._axis]
        place = 0
        for begins in product(*(range(0, size, chunk) for size, chunk in zip(sizes, chunks, strict=True))):
            ends = [min(b + chunk, size) for b, chunk, size in zip(begins, chunks, sizes, strict=True)]
            lengths = [end - b for b, end in zip(begins, ends, strict=True)]
            yield tuple(map(slice, begins, ends)), lengths, place
            place += prod(lengths)


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, stop))


def _taken_whole(dataset: Any) -> bool:
    """Whether HDF5 takes each chunk as a whole: to undo its filters, or as it fits the cache of chunks."""
    if dataset.chunks is None:
        return False
    size = prod(dataset.chunks) * dataset.dtype.itemsize
    cache = dataset.id.get_access_plist().get_chunk_cache()[1]
    return bool(dataset.id.get_create_plist().get_nfilters() > 0 or size <= cache)


def _better(shape: tuple[int, ...], axis: int, itemsize: int) -> list[int]:
    """A chunk of about a megabyte that is whole along the other axes, as far as that goes."""
    chunk = [min(size, 2**20) for size in shape]
    chunk[axis] = int(max(1, min(shape[axis], 2**20 // max(1, itemsize * (prod(shape) // shape[axis])))))
    return chunk
