"""HDF5 datasets are looked at when they are opened: read as they are meant, or refused with what to do."""

from __future__ import annotations

import logging
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.sparse

import gem
from gem.data import HDF5Source, Shard, from_spec, open_data
from gem.data.hdf5 import open_hdf5
from gem.errors import DataError
from gem.models import BSC

pytestmark = pytest.mark.serial  # files: ranks change nothing here

N, D = 60, 5
TABLE = np.random.default_rng(0).normal(size=(N, D))


def read(path, dataset=None) -> np.ndarray:
    with HDF5Source(str(path), dataset) as source:
        whole = source.read(0, source.shape[0])
        assert whole.shape == source.shape
        assert whole.dtype == source.dtype
        step = 7  # blocks add up to the whole
        parts = [source.read(start, min(start + step, len(whole))) for start in range(0, len(whole), step)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        return whole


def one(path: Path, values=TABLE, name="x", attributes=None, **options) -> Path:
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=values, **options).attrs.update(attributes or {})
    return path


def refused(path, *words, dataset=None) -> str:
    with pytest.raises(DataError) as caught, HDF5Source(str(path), dataset) as source:
        source.read(0, source.shape[0])
    for word in (os.path.basename(path), *words):
        assert word in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ order of axes


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 16), "compression": "gzip"}])
def test_a_matrix_of_matlab_has_the_rows_that_matlab_shows(tmp_path, options, caplog):
    caplog.set_level(logging.INFO, "gem")
    path = one(tmp_path / "x.mat", TABLE.T, attributes={"MATLAB_class": np.bytes_("double")}, **options)
    np.testing.assert_array_equal(read(path), TABLE)
    assert "MATLAB stores matrices by column: read as 60 × 5" in caplog.text


def test_logical_matrices_are_numbers(tmp_path):
    attributes = {"MATLAB_class": np.bytes_("logical"), "MATLAB_int_decode": np.int32(1)}
    path = one(tmp_path / "x.mat", (TABLE.T > 0).astype("u1"), attributes=attributes)
    np.testing.assert_array_equal(read(path), TABLE > 0)


def test_a_matrix_of_octave(tmp_path):
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file.create_group("X").attrs["OCTAVE_NEW_FORMAT"] = np.uint8(1)
        file["X/type"] = np.bytes_("matrix")
        file["X/value"] = TABLE.T
    for name in (None, "/X", "/X/value"):
        np.testing.assert_array_equal(read(tmp_path / "x.mat", name), TABLE)


def test_cells_are_the_data_points_of_a_loom_file(tmp_path):
    with h5py.File(tmp_path / "x.loom", "w") as file:
        file.create_dataset("matrix", data=TABLE.T, chunks=(2, 8), compression="gzip")
        file["layers/spliced"] = TABLE.T
        file["row_attrs/Gene"], file["col_attrs/CellID"] = np.arange(D), np.arange(N)
    for name in ("/matrix", "/layers/spliced"):
        np.testing.assert_array_equal(read(tmp_path / "x.loom", name), TABLE)


@pytest.mark.parametrize(
    ("kind", "values", "attributes"),
    [
        ("char", np.ones((3, 4), "u2"), {"MATLAB_int_decode": np.int32(2)}),
        ("cell", None, {}),
        ("containers.Map", np.ones((1, 6), "u4"), {"MATLAB_object_decode": np.int32(3)}),
        ("empty", np.zeros((2,), "u8"), {"MATLAB_class": np.bytes_("double"), "MATLAB_empty": np.uint8(1)}),
    ],
)
def test_what_matlab_keeps_besides_numbers_is_refused(tmp_path, kind, values, attributes):
    path = tmp_path / "x.mat"
    with h5py.File(path, "w") as file:
        x = (
            file.create_dataset("x", (3, 4), h5py.ref_dtype)
            if values is None
            else file.create_dataset("x", data=values)
        )
        x.attrs.update({"MATLAB_class": np.bytes_(kind), **attributes})
    refused(path, "MATLAB", kind, dataset="x")
    one(path, TABLE.T, "y", {"MATLAB_class": np.bytes_("double")})
    np.testing.assert_array_equal(read(path), TABLE)  # the only matrix of numbers


def test_arrays_of_any_dimension_are_read_along_any_axis(tmp_path):
    stack = np.arange(3 * 4 * 5.0).reshape(3, 4, 5)
    one(tmp_path / "x.h5", stack, chunks=(2, 3, 2), compression="gzip")
    one(tmp_path / "x.h5", stack.T, "m", {"MATLAB_class": np.bytes_("double")}, chunks=(2, 3, 2), compression="gzip")
    for name in ("x", "m"):
        array = open_hdf5(str(tmp_path / "x.h5"), name)
        assert array.shape == (3, 4, 5)
        for axis in range(3):
            for start in range(2):
                part = stack[(*[slice(None)] * axis, slice(start, start + 2))]
                np.testing.assert_array_equal(array.slab(axis, start, start + 2), part)
        array.close()
    with pytest.raises(DataError, match="2 datasets to choose from"):
        open_hdf5(str(tmp_path / "x.h5"), None, dims=(3,))
    refused(tmp_path / "x.h5", "(3, 4, 5)", "reshape", dataset="x")


# ------------------------------------------------------------------------------------------------ packed numbers

F4, F8 = np.float32, np.float64


@pytest.mark.parametrize(
    ("stored", "attributes", "meant"),
    [
        (
            np.array([[1, -32768]], "i2"),
            {"scale_factor": 0.01, "_FillValue": np.array([-32768], "i2")},
            [[0.01, np.nan]],
        ),
        (np.array([[1, 2]], ">i2"), {"add_offset": F4(280), "scale_factor": F4(0.5)}, F8([[280.5, 281]])),
        (np.array([[1, 2]], "i4"), {"scale_factor": "0.5"}, F8([[0.5, 1]])),
        (np.array([[1, 99, 98]], "i2"), {"missing_value": np.array([99, 98], "i2")}, F4([[1, np.nan, np.nan]])),
        (np.array([[1, 2**24 + 1, -9]], "i4"), {"_FillValue": np.int32(-9)}, F8([[1, 2**24 + 1, np.nan]])),
        (np.array([[1, -9]], "i2"), {"missing_value": -9.0}, F4([[1, np.nan]])),
        (np.array([[1, 255]], "u1"), {"missing_value": -9999.0}, np.uint8([[1, 255]])),
        (np.array([[1, 1e20]], "f4"), {"_FillValue": 1e20}, F4([[1, np.nan]])),
        (np.array([[1, np.nan, 3]], "f8"), {"_FillValue": np.nan}, F8([[1, np.nan, 3]])),
        (np.array([[1, -1, -2]], "i1"), {"_Unsigned": "true", "_FillValue": np.int8(-1)}, F4([[1, np.nan, 254]])),
        (np.array([[1, 255]], "u1"), {"_Unsigned": "false"}, F4([[1, -1]])),
        (np.array([[1, 5, 9]], "i2"), {"valid_range": np.array([2, 8], "i2")}, F4([[np.nan, 5, np.nan]])),
        (np.array([[1, 5, 9]], "f4"), {"valid_min": 2.0, "valid_max": F4(8)}, F4([[np.nan, 5, np.nan]])),
        (np.array([[1, 5, 9]], "i2"), {"scale_factor": 0.1, "valid_max": 0.6}, F8([[0.1, 0.5, np.nan]])),
        (np.array([[1, -7]], "f4"), {"MissingValue": F4(-7), "ScaleFactor": 2.0, "Offset": 1.0}, F8([[3, np.nan]])),
        (np.array([[1, 2]], "i2"), {"units": "K", "scale_factor": 1.0, "add_offset": 0.0}, np.int16([[1, 2]])),
        (np.array([[1, 2]], "i2"), {"missing_value": "none"}, np.int16([[1, 2]])),
    ],
)
def test_packed_numbers_are_unpacked(tmp_path, stored, attributes, meant):
    values = read(one(tmp_path / "x.nc", np.repeat(stored, 9, axis=0), attributes=attributes))
    meant = np.repeat(np.asarray(meant), 9, axis=0)
    assert values.dtype == meant.dtype
    np.testing.assert_allclose(values, meant, rtol=1e-15)


def test_time_series_of_nwb_are_in_their_unit(tmp_path):
    stored = np.arange(12, dtype="i2").reshape(4, 3) - 5
    with h5py.File(tmp_path / "x.nwb", "w") as file:
        series = file.create_group("acquisition/series")
        series.attrs["neurodata_type"] = "ElectricalSeries"
        series["data"] = stored
        series["data"].attrs.update({"conversion": 1.0, "offset": 0.0, "resolution": -1.0, "unit": "volts"})
        elsewhere = file.create_dataset("elsewhere/data", data=stored)
        elsewhere.attrs["conversion"] = 2.0
    named = tmp_path / "x.nwb", "acquisition/series/data"
    assert read(*named).dtype == np.int16
    for factors in ([1, 1, 1], [1, 2, 0.5]):
        with h5py.File(tmp_path / "x.nwb", "r+") as file:
            file["acquisition/series/data"].attrs.update({"conversion": 1e-6, "offset": 0.25})
            file["acquisition/series"].pop("channel_conversion", None)
            file["acquisition/series/channel_conversion"] = np.array(factors, "f4")
        np.testing.assert_allclose(read(*named), stored * (1e-6 * np.array(factors)) + 0.25, rtol=1e-15)
    with h5py.File(tmp_path / "x.nwb", "r+") as file:
        del file["acquisition/series/channel_conversion"]
        file["acquisition/series/channel_conversion"] = [1.0, 2.0]
    refused(named[0], "channel_conversion", "multiply", dataset=named[1])
    np.testing.assert_array_equal(read(named[0], "elsewhere/data"), stored)


@pytest.mark.parametrize("attributes", [{"scale_factor": 0.0}, {"add_offset": [1.0, 2.0]}, {"scale_factor": "much"}])
def test_factors_that_cannot_be_meant_are_refused(tmp_path, attributes):
    refused(one(tmp_path / "x.nc", attributes=attributes), *attributes)


NETCDF = {"_NCProperties": "version=2,netcdf=4.9.2,hdf5=1.14.3"}


@pytest.mark.parametrize(
    ("dtype", "fill", "root", "gap"),
    [
        ("f4", 9.9692099683868690e36, {}, True),
        ("i4", -2147483647, NETCDF, True),
        ("u2", 65535, NETCDF, True),
        ("i1", -127, NETCDF, False),  # of bytes every value may be meant
        ("i4", -2147483647, {}, False),
        ("i4", 0, NETCDF, False),
    ],
)
def test_rows_never_written_to_netcdf_are_gaps(tmp_path, dtype, fill, root, gap, caplog):
    with h5py.File(tmp_path / "x.nc", "w") as file:
        file.attrs.update(root)
        file.create_dataset("x", (9, 2), dtype, chunks=(3, 2), fillvalue=fill)[:6] = 1
    values = read(tmp_path / "x.nc")
    assert np.all(values[:6] == 1)
    assert np.all(np.isnan(values[6:]) if gap else values[6:] == fill)
    assert "x: 1 of 3 chunks were never written" in caplog.text


# ------------------------------------------------------------------------------------------------ types


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", np.longdouble, "?", "u1", ">i8"])
def test_every_number_is_read(tmp_path, dtype):
    values = (TABLE * 9).astype(dtype)
    np.testing.assert_array_equal(read(one(tmp_path / "x.h5", values)), values)


def test_an_array_in_each_entry_is_a_row(tmp_path):
    rows = np.dtype(("f8", (D,)))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (N,), rows, chunks=(8,), compression="gzip")[:] = TABLE
    np.testing.assert_array_equal(read(tmp_path / "x.h5"), TABLE)


def test_a_float_that_numpy_has_not_is_read_as_one_that_it_has(tmp_path):
    short = h5py.h5t.IEEE_F32LE.copy()
    short.set_fields(15, 7, 8, 0, 7)
    short.set_size(2)  # bfloat16
    with h5py.File(tmp_path / "x.h5", "w") as file:
        h5py.h5d.create(file.id, b"x", short, h5py.h5s.create_simple((2, 2)))
        file["x"][...] = [[1, -2.5], [3, 1e30]]
    np.testing.assert_allclose(read(tmp_path / "x.h5"), [[1, -2.5], [3, 1e30]], rtol=0.01)


COLUMNS = np.dtype([("x", "f4"), ("label", "S3"), ("blocks", "f8", (2,))])
PANDAS = np.dtype([("index", "i8"), ("values_block_0", "f8", (3,))])


@pytest.mark.parametrize(
    ("dtype", "word"),
    [
        (h5py.string_dtype(), "text"),
        ("S5", "text"),
        (h5py.vlen_dtype("f4"), "different lengths"),
        (h5py.ref_dtype, "references"),
        (h5py.regionref_dtype, "references"),
        (h5py.enum_dtype({"rest": 0, "run": 1}), "0 = rest, 1 = run"),
        (h5py.opaque_dtype("M8[s]"), "times"),
        ("V7", "opaque"),
        ("c8", "complex"),
        ([("real", "f8"), ("imag", "f8")], "np.hstack([Y['real'], Y['imag']])"),
        ([("a", "S3")], "a (|S3); those that are: none is"),
    ],
)
def test_what_is_no_number_is_refused_by_name(tmp_path, dtype, word):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (3, 2), dtype)
    refused(tmp_path / "x.h5", "x.h5:/x", word, dataset="x")


@pytest.mark.parametrize("dtype", [[("x", "f4"), ("y", "f8"), ("z", "i4")], PANDAS])
@pytest.mark.parametrize("options", [{}, {"chunks": (5,), "compression": "gzip"}])
def test_named_columns_of_numbers_are_a_table(tmp_path, dtype, options, caplog):
    rows = np.zeros(11, dtype)
    fields = [name for name in rows.dtype.names if name != "index"]  # that of pandas is no column
    numbers = np.arange(33.0).reshape(11, 3)
    for k, field in enumerate(fields):
        rows[field] = numbers if len(fields) == 1 else numbers[:, k]
    one(tmp_path / "x.h5", rows, "deep/table", **options)
    one(tmp_path / "x.h5", np.zeros((0, 3)), "index/bounds")  # as PyTables has them: nothing to choose
    with caplog.at_level(logging.INFO, "gem"):
        np.testing.assert_array_equal(read(tmp_path / "x.h5"), numbers)
    assert "3 columns in this order: " + ("x, y, z" if len(fields) > 1 else "values_block_0[3]") in caplog.text
    one(tmp_path / "x.h5", rows, "other")
    refused(tmp_path / "x.h5", "/deep/table (11, ", "/other (11, ")
    one(tmp_path / "x.h5", TABLE, "array")  # goes before named columns
    np.testing.assert_array_equal(read(tmp_path / "x.h5"), TABLE)


def test_named_columns_that_are_no_numbers_are_refused_by_name(tmp_path):
    labels = h5py.enum_dtype({"rest": 0, "run": 1})
    rows = np.zeros(4, np.dtype([*COLUMNS.descr, ("state", labels)]))
    rows["x"] = np.arange(4)
    one(tmp_path / "x.h5", rows)
    line = refused(tmp_path / "x.h5", "label (|S3), state (an enumeration)").split("those that are: ")[1]
    with open_data(eval(line, {"h5py": h5py})) as source:
        np.testing.assert_array_equal(source.read(0, 4), np.arange(4)[:, None] * [1, 0, 0])
    one(tmp_path / "several.h5", rows[["x", "blocks"]].reshape(2, 2))
    refused(tmp_path / "several.h5", "Y.reshape(-1)")


# ------------------------------------------------------------------------------------------------ parts elsewhere


def virtual(folder: Path, fillvalue: float = 0, rows: int = 60, **attributes) -> Path:
    """x.h5 of a.h5 and b.h5, 30 rows each."""
    layout = h5py.VirtualLayout((rows, D), "f8")
    for i, name in enumerate("ab"):
        one(folder / f"{name}.h5", TABLE[30 * i : 30 * (i + 1)], attributes=attributes)
        layout[30 * i : 30 * (i + 1)] = h5py.VirtualSource(f"{name}.h5", "x", (30, D))
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_virtual_dataset("x", layout, fillvalue)
    return folder / "x.h5"


def replace(folder: Path, values: np.ndarray, **options) -> None:
    (folder / "b.h5").unlink()
    one(folder / "b.h5", values, **options)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_whole_virtual_dataset_is_read(tmp_path, monkeypatch, elsewhere):
    path = virtual(tmp_path)
    if elsewhere:
        (tmp_path / "parts").mkdir()
        (tmp_path / "b.h5").rename(tmp_path / "parts/b.h5")
        monkeypatch.setenv("HDF5_VDS_PREFIX", "${ORIGIN}/parts")
    np.testing.assert_array_equal(read(path), TABLE)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "b.h5").unlink(), ["b.h5", "gone"]),
        (lambda folder: os.truncate(folder / "b.h5", 500), ["b.h5", "cannot read"]),
        (lambda folder: replace(folder, TABLE[:30], name="y"), ["b.h5:x", "no dataset"]),
        (lambda folder: replace(folder, TABLE[:20]), ["b.h5:x", "smaller", "(20, 5)"]),
        (lambda folder: replace(folder, TABLE[:30], attributes={"scale_factor": 2.0}), ["b.h5:x", "scale_factor"]),
    ],
)
def test_a_virtual_dataset_without_all_of_its_sources_is_refused(tmp_path, damage, words):
    path = virtual(tmp_path)
    damage(tmp_path)
    refused(path, *words)


def test_a_virtual_dataset_with_a_hole_is_refused_unless_that_reads_as_nan(tmp_path):
    refused(virtual(tmp_path, rows=70), "no file gives 50 of its 350 values")
    for file in ("a.h5", "b.h5"):
        (tmp_path / file).unlink()
    values = read(virtual(tmp_path, fillvalue=np.nan, rows=70))
    np.testing.assert_array_equal(values[:60], TABLE)
    assert np.isnan(values[60:]).all()


def test_sources_of_sources_are_looked_at(tmp_path):
    virtual(tmp_path)
    layout = h5py.VirtualLayout((60, D), "f8")
    layout[:] = h5py.VirtualSource("x.h5", "x", (60, D))
    with h5py.File(tmp_path / "top.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
        inner = h5py.VirtualLayout((60, D), "f8")
        inner[:] = h5py.VirtualSource(".", "y", (60, D))
        file.create_virtual_dataset("y", inner)  # of itself
    np.testing.assert_array_equal(read(tmp_path / "top.h5", "x"), TABLE)
    (tmp_path / "a.h5").unlink()
    refused(tmp_path / "top.h5", "x.h5:x", "a.h5", dataset="x")
    refused(tmp_path / "top.h5", "deep", dataset="y")


def external(folder: Path) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        half = TABLE.nbytes // 2
        parts = [(f"{name}.raw", 8, half) for name in "ab"]
        file.create_dataset("x", TABLE.shape, "f8", external=parts)
    for i, name in enumerate("ab"):
        (folder / f"{name}.raw").write_bytes(b"12345678" + TABLE.tobytes()[half * i : half * (i + 1)])
    return folder / "x.h5"


def test_values_in_external_files_are_read_from_any_folder(tmp_path, monkeypatch):
    path = external(tmp_path)
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):  # HDF5 by itself looks only in the working directory
        monkeypatch.chdir(folder)
        np.testing.assert_array_equal(read(path), TABLE)
    (tmp_path / "b.raw").rename(tmp_path / "other/b.raw")
    monkeypatch.chdir(tmp_path)
    refused(path, "b.raw", "HDF5_EXTFILE_PREFIX")


def test_an_external_file_that_is_too_short_is_refused(tmp_path, monkeypatch):
    path = external(tmp_path)
    monkeypatch.chdir(tmp_path)
    os.truncate("b.raw", 1000)
    refused(path, "b.raw", "too short: 992 bytes from 8 on, of 1200")


def test_links_are_followed_and_told(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gem")
    one(tmp_path / "data.h5", name="deep/x")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["outside"] = h5py.ExternalLink("data.h5", "/deep/x")
        file["folder"] = h5py.ExternalLink("data.h5", "/deep")
        file["nowhere"] = h5py.SoftLink("/gone")
        file["no_file"] = h5py.ExternalLink("gone.h5", "/y")
    for name, told in [
        ("outside", "/outside is a link to /deep/x of the file data.h5"),
        ("folder/x", "link to /deep of"),
    ]:
        np.testing.assert_array_equal(read(tmp_path / "x.h5", name), TABLE)
        assert told in caplog.text
    refused(tmp_path / "x.h5", "/nowhere is a link to /gone", dataset="nowhere")
    refused(tmp_path / "x.h5", "/no_file is a link to /y of the file gone.h5", dataset="no_file")
    refused(tmp_path / "x.h5", "2 datasets", "/outside (60, 5)", "/folder/x (60, 5)")


# ------------------------------------------------------------------------------------------------ files


def elsewhere(script: str) -> subprocess.Popen:
    """Another process that runs the script, says "ready", and waits for the end of its input."""
    script = f"import h5py, numpy, os, sys\n{script}\nprint('ready', flush=True)\nsys.stdin.read()\nos._exit(0)"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_files_that_another_program_writes(tmp_path, caplog):
    """Locked, with what to do; in SWMR mode they are read; left open by a program that died, with what to do."""
    caplog.set_level(logging.INFO, "gem")
    paths = [str(tmp_path / name) for name in ("locked.h5", "swmr.h5", "dead.h5")]
    process = elsewhere(
        f"locked, swmr, dead = (h5py.File(path, 'w', libver='latest') for path in {paths})\n"
        "for file in (locked, swmr, dead):\n"
        f"    file.create_dataset('x', data=numpy.ones((9, 2)), maxshape=(None, 2)); file.flush()\n"
        "swmr.swmr_mode = True"
    )
    try:
        refused(paths[0], "close it there", "HDF5_USE_FILE_LOCKING=FALSE")
        assert read(paths[1]).shape == (9, 2)
        assert "SWMR" in caplog.text
    finally:
        process.communicate("")
    refused(paths[2], "h5clear")


def test_what_does_not_open_is_told_apart(tmp_path):
    path = one(tmp_path / "whole.h5")
    content = path.read_bytes()
    for name, damaged, word in [
        ("empty.h5", b"", "is empty"),
        ("short.h5", content[:-100], "cut short"),
        ("other.h5", b"PK" + content[2:], "not an HDF5 file"),
    ]:
        (tmp_path / name).write_bytes(damaged)
        refused(tmp_path / name, word)
    refused(one(tmp_path / "none.h5", np.zeros((0, 3))), "(0, 3)", "at least one row")
    refused(tmp_path / "gone.h5", "does not exist")
    refused(tmp_path, "is a folder")
    with h5py.File(tmp_path / "block.h5", "w", userblock_size=1024) as file:
        file["x"] = TABLE
    np.testing.assert_array_equal(read(tmp_path / "block.h5"), TABLE)


@pytest.mark.parametrize(
    ("code", "word"), [(305, "LZO (HDF5 filter 305): pip install tables"), (999, "HDF5_PLUGIN_PATH")]
)
def test_filters_that_are_not_there_are_named(tmp_path, code, word):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        x = file.create_dataset("x", TABLE.shape, "f8", chunks=(30, D), compression=code, allow_unknown_filter=True)
        for row in (0, 30):
            x.id.write_direct_chunk((row, 0), b"packed")
        y = file.create_dataset("y", (30, D), "f8", chunks=(30, D), compression=code, allow_unknown_filter=True)
        y.id.write_direct_chunk((0, 0), TABLE[:30].tobytes(), filter_mask=1)  # left out, as the filter is optional
    refused(tmp_path / "x.h5", f"filter {code}", word, dataset="x")
    np.testing.assert_array_equal(read(tmp_path / "x.h5", "y"), TABLE[:30])


def test_hdf5plugin_is_loaded_where_a_file_needs_it(tmp_path):
    raw = TABLE.tobytes()
    frame = struct.pack("<IBI", 0xFD2FB528, 0xA0, len(raw)) + struct.pack("<I", len(raw) << 3 | 1)[:3] + raw
    with h5py.File(tmp_path / "x.h5", "w") as file:  # Zstandard, one block that is not compressed
        x = file.create_dataset("x", TABLE.shape, "f8", chunks=(N, D), compression=32015, allow_unknown_filter=True)
        x.id.write_direct_chunk((0, 0), frame)
    script = (
        "import sys; from gem.data import open_data; sys.modules['hdf5plugin'] = None\n"
        f"path = {str(tmp_path / 'x.h5')!r}\n"
        "try: open_data(path)\n"
        "except ValueError as error: print(error)\n"
        "del sys.modules['hdf5plugin']\n"
        f"print(repr(open_data(path).read(0, {N}).sum()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    refusal, total = done.stdout.splitlines()
    assert 'Zstandard (HDF5 filter 32015): pip install "hdf5plugin' in refusal
    assert total == repr(TABLE.sum())


def test_messages_name_ten_datasets_the_largest_first(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i in range(1, 40):
            file[f"#refs#/{i}"] = np.zeros((i, 2))
    said = refused(tmp_path / "x.h5", "39 datasets", "and 29 smaller ones")
    assert said.count("/#refs#/") == 10
    assert said.index("/#refs#/39 ") < said.index("/#refs#/30 ")


def test_an_open_dataset_is_a_source(tmp_path):
    path = one(tmp_path / "x.h5", (TABLE * 100).astype("i2"), attributes={"scale_factor": 0.01})
    with h5py.File(path) as file:
        with HDF5Source.of(file["x"]) as source:
            np.testing.assert_allclose(source.read(0, N), TABLE, atol=0.011)
            with (
                from_spec(source.spec)
                if str(path).endswith(".h5")
                else HDF5Source(*source.spec["data"].split(":")) as again
            ):
                np.testing.assert_array_equal(again.read(0, N), source.read(0, N))
        assert file["x"].shape == (N, D)  # the file stays open
        closed = file["x"]
    with pytest.raises(DataError, match="closed"):
        HDF5Source.of(closed)
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        file["x"] = TABLE
        assert HDF5Source.of(file["x"]).spec is None


# ------------------------------------------------------------------------------------------------ chunks


class Counted:
    """A dataset that counts how often it reads every chunk."""

    def __init__(self, dataset):
        self._dataset, self.reads = (
            dataset,
            np.zeros([-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]),
        )

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def __getitem__(self, where):
        where = (*where, *[slice(None)] * (self.reads.ndim - len(where)))
        spans = [s.indices(n) for s, n in zip(where, self._dataset.shape, strict=True)]
        self.reads[
            tuple(slice(a // c, -(-b // c)) for (a, b, _), c in zip(spans, self._dataset.chunks, strict=True))
        ] += 1
        return self._dataset[where]


@pytest.mark.parametrize("chunks", [(1000, 1), (64, 5), (300, 2), (7, 3)])
@pytest.mark.parametrize("held", [2**20, 1000])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_pass_unpacks_each_chunk_once(tmp_path, monkeypatch, chunks, held, transposed):
    """Also where blocks of rows cut across them; beyond the limit of memory by way of a temporary file."""
    monkeypatch.setattr("gem.data.hdf5_chunks.HELD", held)
    monkeypatch.setattr("gem.data.shard.BLOCK", 2000)
    table = np.random.default_rng(0).normal(size=(1000, 5)).astype("f4")
    stored, order = (table.T, chunks[::-1]) if transposed else (table, chunks)
    attributes = {"MATLAB_class": np.bytes_("single")} if transposed else {}
    path = one(tmp_path / "x.h5", stored, chunks=order, compression="gzip", attributes=attributes)
    with open_data(path) as source:
        array = source._array
        array._slabs._dataset = counted = Counted(array._dataset)
        shard = Shard(source, 130, 990, "float32", batch=16, memory=0)
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate([Y for _, Y in shard.batches()]), table[130:990])
        assert counted.reads.max() <= 2  # in two passes
        np.testing.assert_array_equal(shard.rows(np.arange(140, 980, 40)), table[140:980:40])


def test_without_room_for_a_temporary_file_the_log_tells_a_better_layout(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("gem.data.hdf5_chunks.HELD", 100)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    path = one(tmp_path / "x.h5", chunks=(60, 1), compression="gzip")
    np.testing.assert_array_equal(read(path), TABLE)
    assert "h5repack -l /x:CHUNK=60x5" in caplog.text


# ------------------------------------------------------------------------------------------------ sparse matrices

SPARSE = scipy.sparse.random(40, 9, 0.2, format="csr", random_state=0, dtype=np.float32)


def put(group, matrix, names=("data", "indices", "indptr"), **attributes):
    for name, part in zip(names, (matrix.data, matrix.indices, matrix.indptr), strict=True):
        group.create_dataset(name, data=part, chunks=(len(part) // 2,), compression="gzip")
    group.attrs.update(attributes)


def write_anndata(file, csc=False):
    kind = "csc" if csc else "csr"
    put(file.create_group("X"), SPARSE.asformat(kind), **{"encoding-type": f"{kind}_matrix", "shape": SPARSE.shape})


def write_anndata_by_column(file):
    write_anndata(file, csc=True)


def write_h5sparse(file):
    put(file.create_group("X"), SPARSE, h5sparse_format=np.bytes_("csr"), h5sparse_shape=SPARSE.shape)


def write_10x_3(file):
    group = file.create_group("matrix")
    put(group, SPARSE.T.tocsc())
    group["shape"] = np.array([9, 40], "i4")
    group["barcodes"], group["features/id"] = np.full(40, b"A"), np.full(9, b"g")


def write_10x_2(file):
    group = file.create_group("GRCh38")
    put(group, SPARSE.T.tocsc())
    group["shape"] = np.array([9, 40], "i4")
    group["barcodes"], group["genes"] = np.full(40, b"A"), np.full(9, b"g")


def write_matlab(file):
    attributes = {"MATLAB_sparse": np.uint64(40), "MATLAB_class": np.bytes_("double")}
    put(file.create_group("X"), SPARSE.tocsc(), ("data", "ir", "jc"), **attributes)


def write_parts(file):
    put(file.create_group("X"), SPARSE.tocsc())
    file["X/shape"] = np.array(SPARSE.shape)


WRITERS = [write_anndata, write_anndata_by_column, write_h5sparse, write_10x_3, write_10x_2, write_matlab, write_parts]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__[6:])
@pytest.mark.parametrize("small", [False, True])
def test_sparse_matrices_are_read_dense(tmp_path, monkeypatch, write, small):
    if small:  # several pieces, buckets, and a file on disk
        monkeypatch.setattr("gem.data.hdf5_sparse.PIECE", 10)
        monkeypatch.setattr("gem.data.hdf5_sparse.HELD", 400)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write(file)
    np.testing.assert_array_equal(read(tmp_path / "x.h5"), SPARSE.toarray())
    with h5py.File(tmp_path / "x.h5") as file, HDF5Source.of(next(iter(file.values()))) as source:
        np.testing.assert_array_equal(source.read(3, 9), SPARSE.toarray()[3:9])


def test_entries_given_twice_are_added_up(tmp_path):
    twice = scipy.sparse.csr_matrix((np.arange(1.0, 5), [2, 0, 2, 1], [0, 3, 4]), (2, 3))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        put(file.create_group("X"), twice, **{"encoding-type": "csr_matrix", "shape": (2, 3)})
    np.testing.assert_array_equal(read(tmp_path / "x.h5"), [[2, 0, 4], [0, 4, 0]])


@pytest.mark.parametrize(
    ("part", "change", "word"),
    [
        ("indices", lambda values: values + 5, "an index outside [0, 9)"),
        ("indices", lambda values: values - 5, "an index outside [0, 9)"),
        ("indices", lambda values: values[:-1], "agree"),
        ("indptr", lambda values: values[:-1], "do not go together"),
        ("indptr", lambda values: values + 1, "agree"),
        ("indptr", lambda values: np.r_[0, values[-2:0:-1], values[-1]], "ascend"),
        ("indptr", lambda values: values.astype("f8"), "whole indices"),
        ("data", lambda values: values.astype("S3"), "text"),
    ],
)
@pytest.mark.parametrize("write", [write_anndata, write_10x_3], ids=["anndata", "10x"])
def test_broken_sparse_matrices_are_refused(tmp_path, part, change, word, write):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write(file)
        group = next(iter(file.values()))
        values = group[part][:]
        del group[part]
        group[part] = change(values)
        name = group.name
    refused(tmp_path / "x.h5", word, dataset=name)


def test_a_sparse_matrix_is_never_dense_as_a_whole(tmp_path):
    rows, genes = 20_000, 2_000  # 160 MB in float32
    with h5py.File(tmp_path / "x.h5", "w") as file:
        ones = scipy.sparse.csr_matrix(
            (np.ones(rows, "f4"), np.arange(rows) % genes, np.arange(rows + 1)), (rows, genes)
        )
        put(file.create_group("X"), ones.tocsc(), **{"encoding-type": "csc_matrix", "shape": (rows, genes)})
    tracemalloc.start()
    with HDF5Source(str(tmp_path / "x.h5")) as source:
        total = sum(source.read(start, start + 500).sum() for start in range(0, rows, 500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == rows
    assert peak < 20e6


# ------------------------------------------------------------------------------------------------ gaps and models


@pytest.mark.parametrize("given", [False, True])
def test_gaps_are_told_where_the_model_takes_none(tmp_path, given):
    stored = np.where(np.arange(N)[:, None] == 7, -99, TABLE * 100).astype("i2")
    path = one(tmp_path / "x.h5", stored, attributes={"scale_factor": 0.01, "_FillValue": np.int16(-99)})
    some = {"W": np.eye(D, 4), "pi": 0.2, "sigma": 1.0} if given else None
    with pytest.raises(
        DataError, match=r"row 7, column 0.*x\.h5:/x marks gaps by _FillValue = -99.*missing=True.*--missing"
    ):
        gem.EM(
            BSC(D=D, H=4, Hprime=3, gamma=2), str(path), gem.Annealing(steps=1), params=some, output=tmp_path / "run.h5"
        )
    assert not (tmp_path / "run.h5").exists()
    with pytest.raises(DataError, match=r"marks gaps by _FillValue = -99"):
        gem.EM(BSC(D=D, H=4, Hprime=3, gamma=2), str(path), gem.Annealing(steps=1), params=some).run()
    with pytest.raises(DataError, match=r"marks gaps by _FillValue = -99"):
        gem.posterior(BSC(D=D, H=4, Hprime=3, gamma=2), {"W": np.eye(D, 4), "pi": 0.2, "sigma": 1.0}, str(path))
    em = gem.EM(BSC(D=D, H=4, Hprime=3, gamma=2, missing=True), str(path), gem.Annealing(steps=1), backend="numpy")
    em.run()
    assert np.isfinite(em.history["free_energy"]).all()
