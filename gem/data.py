"""Arrays, .npy, .npz, HDF5 and images as one kind of Source; a Shard is one rank's slab of it, in batches."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from threading import Lock
from typing import IO, Any

import numpy as np

from gem.errors import ConfigError, DataError, GemError
from gem.images import Patches, find_images, learn_whitening

BLOCK = 16 * 2**20  # bytes read at once: long enough to stream from disk, short enough to hold a few
PIECE = 2**18  # bytes unpacked at once
PIXELS = 2**20  # of patches, cut and whitened at once
IMAGE_OPTIONS = ("patch", "count", "whitening", "onoff", "seed")
NUMERIC = "buif"  # dtype kinds: bool, unsigned, integer, float
TABLE_FILE = re.compile(r"(?P<path>.+?\.(?P<kind>npy|npz|h5|hdf5))(:(?P<name>.+))?", re.IGNORECASE)

Spec = dict[str, Any]
Form = tuple[tuple[int, ...], np.dtype]  # shape and dtype
Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, whether stored by column (Fortran order), dtype


class Source(ABC):
    """An (N, D) table that can be read in slices of rows, by several threads at once.

    Attributes
    ----------
    shape : (N, D).
    dtype : as stored; a Shard converts.
    name : what messages call it.
    spec : JSON-able dict from which `from_spec` rebuilds the source; None for an array in memory.

    Raises
    ------
    DataError
        Not two axes, no row or no column, or not real numbers.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, name: str, spec: Spec | None = None):
        _check_form(shape, dtype, name)
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = dtype
        self.name = name
        self.spec = spec

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) within [0, N): a (stop - start, D) array of `dtype`, not to be edited."""

    def close(self) -> None:  # noqa: B027 (most sources hold nothing open)
        """Let go of an open file; nothing is read after this."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_form(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    if len(shape) == 1:
        problem = "data is (N, D), a row per data point: Y[:, None] makes N points with D = 1 of it"
    elif len(shape) != 2:
        problem = "data is (N, D), a row per data point: Y.reshape(len(Y), -1) flattens each point"
    elif 0 in shape:
        problem = "there is nothing to learn from: data has at least one row and one column"
    elif dtype.kind == "c":
        problem = "complex numbers are not supported: np.hstack([Y.real, Y.imag]) puts the parts side by side"
    elif dtype.kind not in NUMERIC:
        problem = "data is real numbers: convert it, Y.astype(float), or pick the numeric columns"
    else:
        return
    raise DataError(f"{name} has shape {tuple(shape)} and dtype {dtype}; {problem}")


class ArraySource(Source):
    """An (N, D) array in memory; `read` returns views of it."""

    def __init__(self, array: np.ndarray, name: str = "data", spec: Spec | None = None):
        super().__init__(array.shape, array.dtype, name, spec)
        self._array = array

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._array[start:stop]


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
        with _reading(self._path):
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
        with _reading(path), open(path, "rb") as file:
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
        with _reading(path), zipfile.ZipFile(path) as archive:
            arrays = _npz_arrays(archive)
            if array is None or array not in arrays:
                forms = {name: (shape, dtype) for name, (_, (shape, _, dtype), _) in arrays.items()}
                array = _only_table(path, array, forms)
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
        with self._lock, _reading(self._path):
            try:
                _fill(numbers, self._stream, self._offset + first * self.dtype.itemsize)
            except EOFError as error:
                raise self._shorter() from error
        return numbers

    def close(self) -> None:
        with self._lock:
            if self._stream:
                self._stream.close()


class HDF5Source(Source):
    """A dataset of an HDF5 file, by default its only 2-D numeric one."""

    def __init__(self, path: str, dataset: str | None = None):
        try:
            import h5py
        except ImportError as error:
            raise ConfigError(f"reading {path} needs h5py: pip install h5py") from error
        with _reading(path), h5py.File(path, "r") as file:
            if dataset is None or not isinstance(file.get(dataset), h5py.Dataset):
                dataset = _only_table(path, dataset, _hdf5_tables(file))
            name = f"{path}:{dataset}"
            super().__init__(file[dataset].shape or (), file[dataset].dtype, name, {"data": name})
        self._file = h5py.File(path, "r")
        self._table = self._file[dataset]
        self._lock = Lock()  # HDF5 is not thread-safe, and close() must not come amid a read

    def read(self, start: int, stop: int) -> np.ndarray:
        with self._lock, _reading(self.name):
            return self._table[start:stop]

    def close(self) -> None:
        with self._lock:
            self._file.close()


class ImageSource(Source):
    """Random patches of images, as float32; cut, and whitened, when they are read: memory does not grow with them.

    The patches lie in the order of their images and of their places therein, so a slab needs its own images
    alone. The whitening is learned in one pass over all patches when the source is opened, by each rank.

    Parameters
    ----------
    paths : image files and folders. The spec lists the files found, so a folder may grow before a resume.
    patch : side length in pixels; D = patch * patch.
    count : number of patches N.
    whitening : whiten the patches; `self.whitening` then is the record that undoes it. Else they are grey
        values in [0, 1], and it is None.
    onoff : split the values into channels max(x, 0) and max(−x, 0), as the retina does: D = 2 patch * patch
        numbers that are not negative, for models with W ≥ 0.
    seed : same images and seed, same patches: all ranks of a run draw the same ones.
    """

    def __init__(
        self,
        paths: list[str],
        patch: int = 16,
        count: int = 50_000,
        whitening: bool = True,
        onoff: bool = False,
        seed: int = 0,
    ):
        patch, count = _integer("patch", patch, 2), _integer("count", count, 1)
        seed = _integer("seed", seed, 0)
        for option, value in {"whitening": whitening, "onoff": onoff}.items():
            if not isinstance(value, bool):
                raise ConfigError(f"{option} = {value!r}: choose True or False")
        files = [str(file) for file in find_images(paths)]
        name = files[0] if len(files) == 1 else f"{len(files)} images"
        spec = {"data": files, "patch": patch, "count": count, "whitening": whitening, "seed": seed}
        if onoff:
            spec["onoff"] = True
        super().__init__((count, patch**2 * (1 + onoff)), np.dtype(np.float32), f"patches of {name}", spec)
        self._patches = Patches(files, patch, count, seed)
        self._rows = max(1, PIXELS // patch**2)
        self._onoff = onoff
        self.whitening = learn_whitening(self._patches.blocks(self._rows)) if whitening else None

    def read(self, start: int, stop: int) -> np.ndarray:
        table = np.empty((stop - start, self.shape[1]), self.dtype)
        done = 0
        for block in self._patches.blocks(self._rows, start, stop):
            values = self.whitening.apply(block) if self.whitening else block
            if self._onoff:
                values = np.concatenate([np.maximum(values, 0), np.maximum(-values, 0)], axis=1)
            table[done : done + len(block)] = values
            done += len(block)
        return table


def open_data(data: Any, **options: Any) -> Source:
    """Open data of any kind.

    Parameters
    ----------
    data : one of
        a Source, returned as it is; an (N, D) array;
        ``x.npy``; ``x.npz`` or ``x.npz:name``; ``x.h5`` or ``x.h5:/dataset``, as str or Path;
        an image, a folder of images (searched through), or a list of these.
    **options : for images: patch=16, count=50_000, whitening=True, onoff=False, seed=0; see
        ImageSource.

    Raises
    ------
    ConfigError
        An unknown option, an image option with data that is not images, or a missing library.
    DataError
        Data that is missing, unreadable, or not an (N, D) table of real numbers.
    """
    unknown = sorted(set(options) - set(IMAGE_OPTIONS))
    if unknown:
        raise ConfigError(f"unknown data option {', '.join(unknown)}; there are: {', '.join(IMAGE_OPTIONS)}")
    if isinstance(data, (list, tuple)) and len(data) == 1:
        return open_data(data[0], **options)

    paths = data if isinstance(data, (list, tuple)) else [data]
    if all(isinstance(path, (str, os.PathLike)) for path in paths):
        table = TABLE_FILE.fullmatch(os.path.abspath(paths[0])) if len(paths) == 1 else None
        if table is None:
            return ImageSource([os.fspath(path) for path in paths], **options)
        _refuse_image_options(options, paths[0])
        return _open_table(table["path"], table["kind"].lower(), table["name"])
    _refuse_image_options(options, f"a {type(data).__name__}")
    return data if isinstance(data, Source) else _from_memory(data)


def _refuse_image_options(options: Spec, data: Any) -> None:
    if options:
        raise ConfigError(f"{', '.join(options)}: such options apply when images are opened, not to {data}")


def from_spec(spec: Spec | None) -> Source:
    """Open the data that `spec` (of a Source) describes.

    Raises
    ------
    ConfigError
        The data was an array in memory, which has no spec.
    """
    if spec is None:
        raise ConfigError("the data was an array in memory and cannot be opened again: pass it once more")
    return open_data(**spec)


def _open_table(path: str, kind: str, name: str | None) -> Source:
    if kind == "npz":
        return NpzSource(path, name)
    if kind == "npy":
        if name is not None:
            raise DataError(f"{path}:{name}: a .npy file holds one array without a name; use {path}")
        return NpySource(path)
    return HDF5Source(path, name)


def _from_memory(data: Any) -> Source:
    if isinstance(data, np.ma.MaskedArray):
        raise DataError("data is a masked array, and its mask would be lost: Y.filled(np.nan) marks the gaps")
    if not hasattr(data, "__array__"):
        raise DataError(
            f"data is a {type(data).__name__}, neither an array nor a path nor a list of image "
            "paths; np.array(data) makes an array of nested lists"
        )
    return ArraySource(np.asarray(data))


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


def _hdf5_tables(file: Any) -> dict[str, Form]:
    from h5py import Dataset

    tables = {}

    def note(name: str, node: Any) -> None:
        if isinstance(node, Dataset):
            tables[f"/{name}"] = node.shape or (), node.dtype

    file.visititems(note)
    return tables


def _only_table(path: str, asked: str | None, tables: dict[str, Form]) -> str:
    """The name of the only 2-D numeric table in a file; an error that lists them if another was asked for."""
    usable = [name for name, (shape, dtype) in tables.items() if len(shape) == 2 and dtype.kind in NUMERIC]
    if asked is None and len(usable) == 1:
        return usable[0]
    problem = f"has no dataset {asked}" if asked else f"has {len(usable)} datasets to choose from"
    listed = ", ".join(f"{path}:{name} {tables[name][0]}" for name in usable) or "none"
    raise DataError(f"{path} {problem}; name one of its 2-D numeric datasets: {listed}")


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Errors of the file system and of the format name the file."""
    try:
        yield
    except GemError:
        raise
    except Exception as error:  # broken files raise OSError, ValueError, RuntimeError, BadZipFile, ...
        raise DataError(f"cannot read {path}: {error}; is it there, whole, and of that kind?") from error


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} = {value!r}: give an integer of at least {least}")
    return int(value)


class Shard:
    """The rows [start, stop) of a source as floats: one rank's slab.

    A slab that fits is read once and kept; a larger one is streamed at every pass, a thread reading the next
    block of rows while the present one is used.

    Parameters
    ----------
    source : where the rows come from; it stays open and is the caller's to close.
    start, stop : global indices; an empty slab is fine (more ranks than data points).
    dtype : float32 or float64.
    batch : rows per batch.
    memory : bytes up to which the slab is kept.

    Attributes
    ----------
    N, D : shape of the slab.
    start, stop, dtype, batch : as given.
    resident : whether the slab is kept in memory.

    Raises
    ------
    ConfigError
        A slab outside the source, another dtype, a batch below 1.
    DataError
        The source cannot be read.
    """

    def __init__(self, source: Source, start: int, stop: int, dtype: Any, batch: int, memory: int = 256 * 2**20):
        if not 0 <= start <= stop <= source.shape[0]:
            raise ConfigError(f"rows [{start}, {stop}) are not in {source.name}, which has {source.shape[0]}")
        if dtype not in ("float32", "float64", np.float32, np.float64):
            raise ConfigError(f"dtype = {dtype!r}: choose float32 or float64")
        self.source = source
        self.start, self.stop = int(start), int(stop)
        self.N, self.D = self.stop - self.start, source.shape[1]
        self.dtype = np.dtype(dtype)
        self.batch = _integer("batch", batch, 1)
        row = self.D * self.dtype.itemsize
        self._block = self.batch * max(1, BLOCK // (self.batch * row))  # rows; no batch straddles two blocks
        self.resident = self.N * row <= memory
        if self.resident:
            self._slab = self._read(self.start, self.stop)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return self.batches()

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in order: (global index of the first row, (n, D) C-contiguous array); not to be edited."""
        for first, block in self._blocks():
            for offset in range(0, len(block), self.batch):
                yield first + offset, block[offset : offset + self.batch]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Those of the rows `indices` (global, ascending) that lie in the slab, in that order: (n, D) array.

        Raises
        ------
        ConfigError
            `indices` do not ascend.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if np.any(np.diff(indices) < 0):
            raise ConfigError("row indices must ascend: np.sort(indices)")
        mine = indices[(self.start <= indices) & (indices < self.stop)]
        if self.resident:
            return self._slab[mine - self.start]
        found = np.empty((len(mine), self.D), self.dtype)
        ends = np.flatnonzero(np.diff(mine, append=self.stop + 1) > 1) + 1  # a run of neighbours is one read
        for begin, end in pairwise([0, *ends]):
            run = mine[begin:end]
            found[begin:end] = self._read(run[0], run[-1] + 1)[run - run[0]]
        return found

    def _read(self, start: int, stop: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # what is no float32 becomes Inf, which is refused by row and column
            return np.ascontiguousarray(self.source.read(start, stop), dtype=self.dtype)  # copies only if it must

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        if self.resident:
            yield self.start, self._slab
            return
        starts = range(self.start, self.stop, self._block)
        spans = [(start, min(start + self._block, self.stop)) for start in starts]
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(self._read, *spans[0])
            for span, following in zip_longest(spans, spans[1:]):
                block = ahead.result()
                if following:
                    ahead = reader.submit(self._read, *following)
                yield span[0], block


def fingerprint(source: Source) -> list[float]:
    """Absolute sums of the first, middle and last rows: they tell changed data from those a run began with.

    Sums, not a hash: whitened patches may differ by rounding from machine to machine.
    """
    N = source.shape[0]
    parts = (source.read(start, min(N, start + 16)) for start in (0, N // 2, max(0, N - 16)))
    return [float(np.abs(rows.astype(np.float64)).sum()) for rows in parts]


def check_finite(Y: np.ndarray, first_row: int = 0, name: str = "data", missing: bool = False) -> None:
    """Refuse NaN and Inf.

    Parameters
    ----------
    Y : (n, D) array.
    first_row : global index of its first row, for the message.
    name : what the message calls the data.
    missing : whether NaN marks missing entries and is let through.

    Raises
    ------
    DataError
        Naming row and column of the first such value, the value, and how many there are.
    """
    bad = np.isinf(Y) if missing else ~np.isfinite(Y)
    if not bad.any():
        return
    row, column = np.unravel_index(bad.argmax(), bad.shape)
    raise DataError(
        f"{name}: {Y[row, column]} at row {first_row + row}, column {column}, the first of {bad.sum()} such "
        f"values in rows {first_row} to {first_row + len(Y) - 1}; drop these rows, "
        "Y[np.isfinite(Y).all(axis=1)], or give the model missing=True for NaN that marks "
        "gaps; if the file has no inf there, use dtype float64"
    )
