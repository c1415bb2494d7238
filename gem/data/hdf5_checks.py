"""What is asked of an HDF5 dataset before it is read: numbers, filters that are there, and all of its parts."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np

from gem.data.cf import OFFSET, SCALE
from gem.data.named_columns import NamedColumns
from gem.errors import DataError, GemError
from gem.extras import install_hint

log = logging.getLogger("gem")

DEPTH = 8  # virtual datasets of virtual datasets ...
HDF5PLUGIN = f"{install_hint('hdf5-filters')}, which gem then loads by itself"
PYTABLES = "pip install tables, and import tables before the data are opened"
FILTERS = {
    4: ("szip", "install an h5py that is built with it, such as that of conda-forge"),
    305: ("LZO", PYTABLES),
    307: ("bzip2", HDF5PLUGIN),
    32000: ("LZF", "install h5py anew, which brings it"),
    32001: ("Blosc", HDF5PLUGIN),
    32004: ("LZ4", HDF5PLUGIN),
    32008: ("Bitshuffle", HDF5PLUGIN),
    32013: ("ZFP", HDF5PLUGIN),
    32015: ("Zstandard", HDF5PLUGIN),
    32017: ("SZ", HDF5PLUGIN),
    32018: ("FCIDECOMP", HDF5PLUGIN),
    32024: ("SZ3", HDF5PLUGIN),
    32026: ("Blosc2", HDF5PLUGIN),
    32028: ("SPERR", HDF5PLUGIN),
}


@contextmanager
def opening(path: str, context: str = "") -> Iterator[None]:
    """What HDF5 says of a file that it does not open, in terms of what to do; `context` comes before it."""
    try:
        yield
    except GemError:
        raise
    except Exception as error:
        raise DataError(context + _why_not(path, error)) from error


def _why_not(path: str, error: Exception) -> str:
    said = str(error)
    if isinstance(error, FileNotFoundError) or not os.path.exists(path):
        return f"{path} does not exist: check the path"
    if os.path.isdir(path):
        return f"{path} is a folder: name a file in it"
    if os.path.getsize(path) == 0:
        return f"{path} is empty (0 bytes): write or copy it again"
    remedies = {
        "unable to lock file": "it is open for writing in another program, or its file system has no locks: close it "
        "there; if nobody writes to it, set HDF5_USE_FILE_LOCKING=FALSE before Python starts",
        "already open for": "it is open for writing in another program, or that one was killed: close it there (or set "
        f"swmr_mode = True there); if nobody writes to it any more, h5clear --status {path}",
        "truncated file": "it is cut short: copy it again",
        "file signature not found": "it is not an HDF5 file, or its beginning was overwritten",
        "ermission denied": f"this user may not read it: chmod u+r {path}",
    }
    remedy = next(
        (remedy for words, remedy in remedies.items() if words in said), "is it there, whole, and of that kind?"
    )
    return f"cannot read {path}: {remedy} ({said})"


def check_dataset(dataset: Any, name: str) -> None:
    """Refuse a dataset that holds no numbers, or whose numbers would be something else than what was written.

    Parameters
    ----------
    dataset : h5py.Dataset.
    name : of it, for messages.

    Raises
    ------
    DataError
        A type that is no number, a filter that is not there, a source of a virtual dataset or an external file
        that is gone or too short.
    """
    check_numbers(dataset, name)
    _check_storage(dataset, name, 0)


# ------------------------------------------------------------------------------------------------ types


def check_numbers(dataset: Any, name: str) -> None:
    """Refuse by name a type that is no real number."""
    import h5py

    try:
        dtype = dataset.dtype
    except TypeError as error:
        raise DataError(f"{name} holds what is no number: {error}; convert it and save it again") from error
    form = f"{name} has shape {dataset.shape or ()} and dtype {dtype}"
    if dtype.subdtype is not None:
        dtype = dtype.subdtype[0]
    if dtype.names:
        _check_complex(dtype, name)
        return  # its fields are asked one by one: see `columns_of`
    if (names := h5py.check_enum_dtype(dtype)) is not None:
        few = ", ".join(f"{value} = {key}" for key, value in list(names.items())[:10])
        what = f"an enumeration ({few}): its numbers are names; a column of 0 and 1 for each name can be data"
    elif h5py.check_string_dtype(dtype) is not None or dtype.kind in "SU":
        what = "text, not numbers: Y.astype(float) converts digits; leave other columns out"
    elif h5py.check_ref_dtype(dtype) is not None:
        what = "references to other datasets (as MATLAB's cells have them): name one of those"
    elif h5py.check_vlen_dtype(dtype) is not None:
        what = "rows of different lengths (vlen): bring them to one length, np.stack, and save that"
    elif dtype.kind in "mM":
        what = "times, not numbers: Y.astype('int64') makes numbers of them, in the unit of the type"
    elif dtype.kind in "VO":
        what = "opaque bytes: np.frombuffer makes numbers of them, if you know which"
    else:
        return  # complex numbers are refused with their shape, as in every source
    raise DataError(f"{form}, {what}")


def _check_complex(dtype: np.dtype, name: str) -> None:
    if tuple(dtype.names or ()) in (("real", "imag"), ("r", "i")):
        real, imag = dtype.names or ()
        raise DataError(
            f"{name} holds complex numbers (as MATLAB writes them), which are not supported: "
            f"np.hstack([Y[{real!r}], Y[{imag!r}]]) puts the parts side by side"
        )


def columns_of(dataset: Any, name: str) -> NamedColumns | None:
    """The named columns of a dataset (a compound of HDF5); None if it has none.

    The index that pandas puts first is no column of a table.

    Raises
    ------
    DataError
        A column that is no number, named.
    """
    import h5py

    dtype = dataset.dtype if dataset.dtype.subdtype is None else dataset.dtype.subdtype[0]
    if not dtype.names:
        return None
    fields = [field for field in dtype.names if field != "index" or not _of_pandas(dataset)]
    named = {field: "an enumeration" for field in fields if h5py.check_enum_dtype(dtype[field].base) is not None}
    pick = f"h5py.File({dataset.file.filename!r})[{dataset.name!r}].fields({{names}})[:]"
    return NamedColumns.of(((dataset.shape or ()) + dataset.dtype.shape, dtype[fields]), name, pick, named)


def _of_pandas(dataset: Any) -> bool:
    """Whether pandas wrote this table: its first field is then the index, the others mostly blocks of values."""
    fields = dataset.dtype.names
    blocks = any(field.startswith("values_block_") for field in fields)
    return fields[0] == "index" and (blocks or "pandas_type" in dataset.parent.attrs)


# ------------------------------------------------------------------------------------------------ storage


def _check_storage(dataset: Any, name: str, depth: int) -> None:
    if dataset.shape is None:
        return
    if dataset.is_virtual:
        _check_sources(dataset, name, depth)
    elif dataset.external:
        _check_external(dataset, name)
    else:
        _check_filters(dataset, name)
        _tell_unwritten(dataset, name)


def missing_filters(dataset: Any) -> str:
    """What is needed to unpack a dataset and is not there, as "filter: remedy"; hdf5plugin is imported if it helps."""
    from h5py import h5z

    plist = dataset.id.get_create_plist()
    used = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    absent = [one for one in used if not _decodes(one[0])]
    if absent:
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401  its import registers the filters
        absent = [one for one in absent if not h5z.filter_avail(one[0])]
    said = []
    for code, _, _, label in absent:
        known, remedy = FILTERS.get(
            code,
            (
                label.decode("utf-8", "replace").split(";")[0] or "an unknown filter",
                f"{HDF5PLUGIN} if it has it; else put its plugin into a folder that HDF5_PLUGIN_PATH names",
            ),
        )
        said.append(f"{known} (HDF5 filter {code}): {remedy}")
    return "; ".join(said)


def not_installed(name: str, absent: str) -> DataError:
    """The error of a dataset whose filters, as `missing_filters` names them, are not there."""
    return DataError(f"{name} is compressed with a filter that is not installed, {absent}")


def _decodes(code: int) -> bool:
    from h5py import h5z

    return bool(h5z.filter_avail(code)) and bool(h5z.get_filter_info(code) & h5z.FILTER_CONFIG_DECODE_ENABLED)


def _check_filters(dataset: Any, name: str) -> None:
    """Refuse what cannot be unpacked; chunks that an optional filter left as they were can be read without it."""
    absent = missing_filters(dataset)
    if not absent or 0 in dataset.shape:
        return
    try:
        dataset[(0,) * len(dataset.shape)]
    except OSError as error:
        raise not_installed(name, absent) from error


def _tell_unwritten(dataset: Any, name: str) -> None:
    """The log says what was never written: HDF5 reads the fill value there."""
    if not dataset.size:
        return
    if dataset.chunks:
        there = dataset.id.get_num_chunks()
        whole = int(np.prod([-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]))
    else:
        there, whole = int(dataset.id.get_storage_size() > 0), 1
    if there < whole:
        part = f"{whole - there} of {whole} chunks" if dataset.chunks else "all"
        log.warning(f"{name}: {part} were never written; they read as the fill value, {dataset.fillvalue}")


def _folders(dataset: Any, variable: str, prefix: bytes | str | None) -> list[str]:
    """Where HDF5 looks for a dataset's other files: what the environment or the program asked for."""
    home = os.path.dirname(os.path.realpath(dataset.file.filename))
    asked = (os.environ.get(variable) or os.fsdecode(prefix or b"")).split(":")
    if len(asked) > 1:  # HDF5 puts ${ORIGIN} into a single one only
        return [folder for folder in asked if folder and "${ORIGIN}" not in folder]
    return [folder.replace("${ORIGIN}", home) for folder in asked if folder]


def _check_external(dataset: Any, name: str) -> None:
    prefix = dataset.id.get_access_plist().get_efile_prefix()
    folders = _folders(dataset, "HDF5_EXTFILE_PREFIX", prefix) or [""]
    left = int(np.prod(dataset.shape, dtype=object)) * dataset.id.get_type().get_size()
    for file, offset, size in dataset.external:
        if left <= 0:
            return
        wanted = min(left, size)
        path = file if os.path.isabs(file) else os.path.join(folders[0], file)
        remedy = "copy the file there, or name its folder in HDF5_EXTFILE_PREFIX"
        if not os.path.isfile(path):
            raise DataError(f"{name} keeps its values in {file}, which is not at {os.path.abspath(path)}: {remedy}")
        there = os.path.getsize(path) - offset
        if there < wanted:
            raise DataError(
                f"{name} keeps its values in {path}, which is too short: {max(0, there)} bytes from {offset} on, of "
                f"{wanted}; copy it again (HDF5 would read zeros)"
            )
        left -= wanted


def prefixes(dataset: Any) -> tuple[str, str]:
    """Folders that HDF5 does not find by itself: (of external files, of a virtual dataset's sources); empty for none.

    External files may lie beside the HDF5 file, and not in the working directory, where HDF5 looks. It reads
    HDF5_VDS_PREFIX when it is loaded: one that was set afterwards is taken too.
    """
    if dataset.is_virtual:
        folders = _folders(dataset, "HDF5_VDS_PREFIX", b"")
        return "", folders[0] if len(folders) == 1 else ""
    if not dataset.external or os.environ.get("HDF5_EXTFILE_PREFIX"):
        return "", ""
    home = os.path.dirname(os.path.realpath(dataset.file.filename))
    names = [file for file, _, _ in dataset.external if not os.path.isabs(file)]
    there = all(os.path.isfile(os.path.join(home, name)) for name in names)
    return home if there and not all(map(os.path.isfile, names)) else "", ""


# ------------------------------------------------------------------------------------------------ virtual datasets


def _check_sources(dataset: Any, name: str, depth: int) -> None:
    """Each source of a virtual dataset is there, as large as it is taken for, and packed as the whole says."""
    import h5py

    if depth >= DEPTH:
        raise DataError(
            f"{name} is a virtual dataset of virtual ones, more than {DEPTH} deep: h5repack copies the values"
        )
    mapped = 0
    with ExitStack() as stack:
        opened = {".": dataset.file}
        for source in dataset.virtual_sources():
            mapped += _mapped(source)
            if re.search(r"%\d*b", source.file_name + source.dset_name):
                continue  # a series of files, as many as there are: the shape counts those found
            if source.file_name not in opened:
                path = _find_source(dataset, source.file_name, name)
                with opening(path, f"{name} is a virtual dataset: "):
                    opened[source.file_name] = stack.enter_context(h5py.File(path, "r"))
            _check_source(opened[source.file_name], source, dataset, name, depth)
    size = int(np.prod(dataset.shape, dtype=object))
    if 0 <= mapped < size and not _reads_as_gap(dataset):
        raise DataError(
            f"{name} is a virtual dataset, and no file gives {size - mapped} of its {size} values: HDF5 would read "
            f"{dataset.fillvalue} there; make it only of its sources, or with fillvalue=numpy.nan"
        )


def _reads_as_gap(dataset: Any) -> bool:
    """Whether what no source gives reads as NaN, in all columns."""
    parts = [dataset.fillvalue[field] for field in dataset.dtype.names or ()] or [dataset.fillvalue]
    return all(np.asarray(part).dtype.kind == "f" and bool(np.all(np.isnan(part))) for part in parts)


def _mapped(source: Any) -> int:
    """How many values a source gives; so many that nothing is amiss, where that is not limited."""
    try:
        return int(source.vspace.get_select_npoints()) if source.vspace.get_select_bounds() else 0
    except (RuntimeError, ValueError):
        return 2**63


def _find_source(dataset: Any, file: str, name: str) -> str:
    """The path of a source, where HDF5 looks for it."""
    file = file.replace("%%", "%")
    main = os.path.abspath(dataset.file.filename)
    places = [file] if os.path.isabs(file) else []
    relative = os.path.basename(file) if os.path.isabs(file) else file
    prefix = dataset.id.get_access_plist().get_virtual_prefix()
    homes = [os.path.dirname(main), "", os.path.dirname(os.path.realpath(main))]
    places += [os.path.join(folder, relative) for folder in _folders(dataset, "HDF5_VDS_PREFIX", prefix) + homes]
    for place in places:
        if os.path.exists(place):
            return place
    raise DataError(
        f"{name} is a virtual dataset, and one of the files that it is put together from is gone: {file}; copy it "
        f"beside {dataset.file.filename}, or name its folder in HDF5_VDS_PREFIX (HDF5 would read {dataset.fillvalue})"
    )


def _check_source(file: Any, source: Any, dataset: Any, name: str, depth: int) -> None:
    import h5py

    inside = source.dset_name.replace("%%", "%")
    label = f"{source.file_name}:{inside}"
    found = file.get(inside)
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{name} is a virtual dataset, and its source {label} is no dataset that can be found there")
    if _shrunk(source, found):
        raise DataError(
            f"{name} is a virtual dataset, and its source {label} has become smaller, {found.shape}: not all that is "
            f"read of it is there (HDF5 would read {dataset.fillvalue})"
        )
    for key in (*SCALE, *OFFSET):
        if key in found.attrs and not np.array_equal(found.attrs[key], dataset.attrs.get(key)):
            raise DataError(
                f"{name} is a virtual dataset, and its source {label} has {key} = {found.attrs[key]}, which "
                f"the whole has not: its values would not be scaled; give {name} the attribute, or unpack the sources"
            )
    _check_storage(found, f"{label} (a source of {name})", depth + 1)


def _shrunk(source: Any, found: Any) -> bool:
    """Whether a source selects more of a dataset than there is."""
    from h5py import h5s

    try:
        if source.src_space.get_select_type() == h5s.SEL_ALL:
            return bool((found.size or 0) < source.vspace.get_select_npoints())
        last = source.src_space.get_select_bounds()[1]
    except (RuntimeError, ValueError):  # not limited
        return False
    return found.shape is None or any(end >= size for end, size in zip(last, found.shape, strict=False))
