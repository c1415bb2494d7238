"""What a file is, told by its first bytes and never by its suffix; and PATH:NAME, an array within a file."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from importlib import import_module
from typing import Any

from gem.errors import ConfigError, DataError
from gem.extras import package_hint

HEAD = 4096  # bytes of a file that are looked at
VAN_HATEREN = (1024, 1536)  # rows and columns of the pictures of van Hateren's set, raw big-endian uint16
TABLES = ("npy", "npz", "hdf5", "mat", "zarr", "parquet", "arrow")  # kinds that hold arrays or columns
PICTURES = ("image", "tiff", "fits", "raw")  # kinds that hold pictures

SIGNATURES = [  # offset, bytes, kind
    (0, b"\x93NUMPY", "npy"),
    (0, b"SIMPLE  =", "fits"),
    (0, b"PK\x03\x04", "zip"),
    (0, b"PK\x05\x06", "zip"),
    (0, b"MATLAB 5.0", "mat"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"II+\0", "tiff"),
    (0, b"MM\0+", "tiff"),
    (0, b"PAR1", "parquet"),
    (0, b"ARROW1", "arrow"),
    (0, b"FEA1", "arrow"),
    (0, b"\xff\xff\xff\xff", "arrow"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"7z\xbc\xaf", "7z"),
    (257, b"ustar", "tar"),
    (0, b"CDF\x01", "netcdf3"),
    (0, b"CDF\x02", "netcdf3"),
    (0, b"CDF\x05", "netcdf3"),
    (344, b"n+1\0", "nifti"),
    (344, b"ni1\0", "nifti"),
    (128, b"DICM", "dicom"),
    (0, b"SQLite format 3", "sqlite"),
    (0, b"RDX", "r"),
    (0, b"%PDF", "pdf"),
    (0, b"\xd0\xcf\x11\xe0", "office"),
    (0, b"version https://git-lfs", "lfs"),
]
REFUSED = {  # kind → what it is, and what to do; {path} is the file
    "empty": "is empty: copy or save it again",
    "archive": "is a zip archive without a .npy array in it: unzip it and name what is inside",
    "office": "is an Office document: save its numbers as text, then {text}",
    "torch": "is a PyTorch file, and a pickle, which runs code when it is loaded: {save}torch.load({path!r})['NAME']"
    ".numpy())",
    "zipped zarr": "is a zarr array in a zip archive: unzip it and name the folder",
    "gzip": "is compressed by gzip: gunzip {path}",
    "bzip2": "is compressed by bzip2: bunzip2 {path}",
    "xz": "is compressed by xz: unxz {path}",
    "zstd": "is compressed by Zstandard: unzstd {path}",
    "7z": "is a 7z archive: unpack it and name what is inside",
    "tar": "is a tar archive: unpack it and name what is inside",
    "netcdf3": "is a netCDF file of version 3 (no HDF5): nccopy -k nc4 {path} OUT.nc makes version 4 of it, or "
    "{save}xarray.open_dataset({path!r})['NAME'].to_numpy())",
    "nifti": "is a NIfTI volume: {save}numpy.moveaxis(nibabel.load({path!r}).get_fdata(), 2, 0)) "
    "saves its slices as a stack of pictures",
    "dicom": "is a DICOM picture: {save}pydicom.dcmread({path!r}).pixel_array)",
    "sqlite": "is an SQLite database: pandas.read_sql('SELECT ...', sqlite3.connect({path!r})) is a table",
    "r": "is a file of R: write the matrix with write.csv(Y, 'OUT.csv', row.names=FALSE), then {text}",
    "pdf": "is a PDF document: its pictures have to be taken out first, as pdfimages does",
    "pickle": "is a pickle, which runs code when it is loaded: where you trust it, "
    "{save}numpy.asarray(pickle.load(open({path!r}, 'rb'))))",
    "text": "is text: {text}",
    "json": "is JSON: {save}numpy.array(json.load(open({path!r}))))",
    "lfs": "is a pointer of Git LFS, not the file itself: git lfs pull",
}
SAVE, TEXT = "numpy.save('OUT.npy', ", "numpy.save('OUT.npy', numpy.loadtxt({path!r}, delimiter={delimiter!r}{skip}))"


def library(module: str, package: str, purpose: str) -> Any:
    """An optional library, imported when it is used.

    Raises
    ------
    ConfigError
        It is missing: with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"{purpose} needs {package} ({error}): {package_hint(package)}") from error


def split_name(given: str) -> tuple[str, str | None]:
    """``PATH`` or ``PATH:NAME`` as an absolute path and the name: what exists is the path, as much of it as does.

    Raises
    ------
    DataError
        Nothing of that path is there.
    """
    if not given or "\0" in given:
        raise DataError(f"{given!r} is no path: name a file or a folder")
    if given.startswith("~") and not os.path.exists(given):
        given = os.path.expanduser(given)  # the home folder, where no shell has put it
    path = os.path.abspath(given)
    if os.path.exists(path):
        return path, None
    place = given.rfind(":")
    while place > 0:
        path = os.path.abspath(given[:place])
        if os.path.isfile(path) or is_zarr(path):
            if place + 1 == len(given):
                raise DataError(f"{given} ends in a colon: name what is behind it, or leave it out")
            return path, given[place + 1 :]
        place = given.rfind(":", 0, place)
    raise DataError(
        f"cannot read {os.path.abspath(given)}: No such file or directory; {given} does not exist: name a file of "
        "pictures or of a table, PATH:NAME for an array in it, or a folder of them"
    )


def kind_of(path: str) -> str:
    """One of TABLES or PICTURES, or "folder": by the first bytes. "image" is what Pillow is to be asked about.

    Raises
    ------
    DataError
        The file cannot be read, or is of a kind that gem does not take: named, with what to do.
    """
    if os.path.isdir(path):
        return "zarr" if is_zarr(path) else "folder"
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            size = os.fstat(file.fileno()).st_size
            kind = "hdf5" if _is_hdf5(file, size) else _by_signature(head)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; is it there, and may you read it?") from error
    if kind == "zip":
        kind = _of_zip(path)
    elif kind == "gzip" and _gunzipped(path).startswith(b"SIMPLE  ="):
        kind = "fits"
    elif kind is None:
        kind = _without_signature(path, head, size)
    if kind in REFUSED:
        raise DataError(f"{path} {_remedy(kind, path, head)}")
    return kind


def is_zarr(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in ("zarr.json", ".zarray", ".zgroup"))


def _is_hdf5(file: Any, size: int) -> bool:
    """The signature stands at 0, 512, 1024, 2048, ...: before it is what the user has put there."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        if file.read(8) == b"\x89HDF\r\n\x1a\n":
            return True
        place = max(512, 2 * place)
    return False


def _by_signature(head: bytes) -> str | None:
    if not head:
        return "empty"
    return next((kind for place, sign, kind in SIGNATURES if head.startswith(sign, place)), None)


def _of_zip(path: str) -> str:
    """What a zip archive is: one that holds a .npy member is a .npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"cannot read {path}: {error}; is it there, whole, and of that kind?") from error
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if ends & {"zarr.json", ".zarray", ".zgroup"}:
        return "zipped zarr"
    if "data.pkl" in ends:
        return "torch"
    if "[Content_Types].xml" in ends:
        return "office"
    return "npz" if any(name.endswith(".npy") for name in names) else "archive"


def _gunzipped(path: str) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(16)
    except (OSError, EOFError, zlib.error):
        return b""


def _without_signature(path: str, head: bytes, size: int) -> str:
    if path.lower().endswith((".iml", ".imc")) and size == 2 * VAN_HATEREN[0] * VAN_HATEREN[1]:
        return "raw"
    if _is_matlab_4(head):
        return "mat"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 1:
        return "pickle"
    if _is_text(head):
        return "json" if head.lstrip()[:1] in (b"{", b"[") else "text"
    return "image"


def _is_matlab_4(head: bytes) -> bool:
    """A header of 5 whole numbers, MOPT first, and the matrix's name; MATLAB 4 has no signature."""
    for order in "<>":
        if len(head) >= 20:
            mopt, rows, columns, imaginary, length = struct.unpack(f"{order}5i", head[:20])
            name = head[20 : 20 + length] if 2 <= length <= 64 else b""
            fits = 0 <= mopt < 5000 and mopt % 10 <= 2 and (mopt // 100) % 10 == 0 and imaginary in (0, 1)
            if fits and rows > 0 and columns > 0 and name[-1:] == b"\0" and name[:-1].isalnum():
                return True
    return False


def _is_text(head: bytes) -> bool:
    """Numbers or words in lines, which no image begins with; but PGM and XBM, which are text, begin with P or #."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8-sig")
    if any(c < " " and c not in "\t\r\n\f" for c in text):
        return False
    return not text.lstrip().startswith(
        ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "Pf", "PF", "#define", "<", "/* XPM")
    )


def _remedy(kind: str, path: str, head: bytes) -> str:
    lines = head.decode("utf-8", "ignore").lstrip("\ufeff").splitlines() or [""]
    delimiter = next((mark for mark in ",;\t" if mark in lines[0]), None)
    numbers = all(_is_number(word) for word in lines[0].split(delimiter))
    text = TEXT.format(path=path, delimiter=delimiter, skip="" if numbers or kind != "text" else ", skiprows=1")
    return REFUSED[kind].format(path=path, save=SAVE, text=f"{text} makes a table of it")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
