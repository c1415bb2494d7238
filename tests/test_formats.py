"""Files as other programs write them and objects as other libraries hold them: the numbers, or a remedy that works.

Files are made by the libraries that own the format; docs/data.md names the test of each line of its tables.
"""

from __future__ import annotations

import decimal
import io
import json
import logging
import os
import sys
import zipfile
from types import SimpleNamespace

import dask.array
import dask.dataframe
import h5py
import numpy as np
import pandas
import polars
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import scipy.io
import scipy.sparse
import tifffile
import xarray
import zarr
from astropy.io import fits
from conftest import missing
from PIL import Image

import gem
from gem import cli
from gem.data import Shard, from_spec, open_data
from gem.data.fits import read_image
from gem.errors import ConfigError, DataError
from gem.models import MoG

pytestmark = pytest.mark.serial  # files and memory: ranks change nothing here

N, D = 90, 4
Y = np.random.default_rng(0).normal(size=(N, D))
WITH_GAPS = np.where(np.arange(N * D).reshape(N, D) % 7 == 3, np.nan, Y)
NAMES = ["a", "b", "c", "d"]
RECORDS = np.rec.fromarrays(Y.T, names=NAMES)
FRAME = pandas.DataFrame(Y, columns=NAMES, index=np.arange(N)[::-1] + 1000)
ARROW = pyarrow.table(dict(zip(NAMES, Y.T, strict=True)))
ZARR3 = int(zarr.__version__.split(".")[0]) >= 3  # it writes versions 2 and 3, older ones 2 only
ZARR_VERSIONS = [{"zarr_format": 2}, {"zarr_format": 3}] if ZARR3 else [{}]


def read(data, **options):
    with open_data(data, **options) as source:
        return source.read(0, source.shape[0])


# ------------------------------------------------------------------------------------------------ tables in files


def npy(path, array=Y, **options):
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, **options)


def npz(path, **arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def mat(path, compressed=False, version="5", **arrays):
    with open(path, "wb") as file:
        scipy.io.savemat(file, arrays, do_compression=compressed, format=version)


def hdf5(path, block=0, array=Y):
    with h5py.File(path, "w", userblock_size=block) as file:
        file["x"] = array


def fits_table(path, records, kind=fits.BinTableHDU):
    fits.HDUList([fits.PrimaryHDU(), kind(records, name="CATALOGUE")]).writeto(path)


def zarr_array(path, chunks=(20, 3), array=Y, **options):
    stored = zarr.open(str(path), mode="w", shape=array.shape, chunks=chunks, dtype=array.dtype, **options)
    stored[:] = array


def zarr_group(path):
    zarr.open_group(str(path), mode="w").create_group("deep")
    for name, array in {"x": Y, "other": Y + 1}.items():
        zarr_array(path / "deep" / name, chunks=(7, 4), array=array)


def arrow_stream(path):
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, ARROW.schema) as writer:
        writer.write_table(ARROW, max_chunksize=25)


def lists(path):
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(Y.ravel()), D)
    pyarrow.parquet.write_table(pyarrow.table({"embedding": column}), path, row_group_size=25)


TABLES = {  # name of the file → what writes it, and :NAME
    "x.dat": (npy, ""),
    "no_suffix": (npy, ""),
    "x.h5": (npy, ""),  # a name that lies
    "big.npy": (lambda p: npy(p, Y.astype(">f8")), ""),
    "fortran.bin": (lambda p: npy(p, np.asfortranarray(Y), version=(2, 0)), ""),
    "records.npy": (lambda p: npy(p, np.asarray(RECORDS)), ""),
    "zipped.bin": (lambda p: npz(p, Y=Y, labels=np.arange(N)), ""),
    "named.npz": (lambda p: npz(p, Y=Y, other=Y + 1), ":Y"),
    "slash.npz": (lambda p: npz(p, **{"deep/Y": Y, "other": Y + 1}), ":/deep/Y"),
    "records.npz": (lambda p: npz(p, table=np.asarray(RECORDS)), ":table"),
    "records.h5": (lambda p: hdf5(p, array=np.asarray(RECORDS)), ""),
    "records.fits": (lambda p: fits_table(p, np.asarray(RECORDS)), ""),
    "records.fits.gz": (lambda p: fits_table(p, np.asarray(RECORDS)), ":1"),
    "ascii.fits": (lambda p: fits_table(p, np.asarray(RECORDS), fits.TableHDU), ":CATALOGUE"),
    "recording.nwb": (hdf5, ""),
    "userblock.mat": (lambda p: hdf5(p, 512), ":/x"),
    "block.he5": (lambda p: hdf5(p, 2048), ":x"),
    "v5.mat": (lambda p: mat(p, Y=Y, n=3.0, label=np.arange(N), text="words"), ""),
    "several.mat": (lambda p: mat(p, compressed=True, Y=Y, other=Y + 1), ":/Y"),
    "v4.MAT": (lambda p: mat(p, version="4", Y=Y), ""),
    "sparse.mat": (lambda p: mat(p, S=scipy.sparse.csc_matrix(Y)), ""),
    "struct.dat": (lambda p: mat(p, s={"deep": {"Y": Y}, "who": "me"}), ":s.deep.Y"),
    "v3.zarr": (zarr_array, ""),
    "columns.zarr": (lambda p: zarr_array(p, chunks=(N, 1)), ""),
    "records.zarr": (lambda p: zarr_array(p, (20,), np.asarray(RECORDS), **ZARR_VERSIONS[0]), ""),
    "v2": (lambda p: zarr_array(p, **ZARR_VERSIONS[0]), ""),
    "group.zarr": (zarr_group, ":deep/x"),
    "group2.zarr": (zarr_group, ":/deep/x"),
    "x.parquet": (lambda p: pyarrow.parquet.write_table(ARROW, p, row_group_size=25), ""),
    "some.pq": (lambda p: pyarrow.parquet.write_table(ARROW.append_column("w", [["x"] * N]), p), ":a,b,c,d"),
    "pandas.parquet": (FRAME.to_parquet, ""),
    "lists.parquet": (lists, ""),
    "x.feather": (lambda p: pyarrow.feather.write_feather(ARROW, p, chunksize=25), ""),
    "x.arrow": (arrow_stream, ""),
}


@pytest.fixture(params=TABLES)
def table(request, tmp_path):
    write, name = TABLES[request.param]
    write(tmp_path / request.param)
    return f"{tmp_path / request.param}{name}"


def test_tables_are_what_their_bytes_say(table):
    with open_data(table) as source:
        assert source.shape == (N, D)
        for start, stop in [(0, N), (24, 26), (N - 1, N), (5, 5), (0, 1)]:
            block = source.read(start, stop)
            assert block.dtype == source.dtype
            np.testing.assert_array_equal(block, Y[start:stop])
        spec = json.loads(json.dumps(source.spec))
        streamed = np.concatenate([rows for _, rows in Shard(source, 10, 61, "float64", batch=8, memory=0).batches()])
    np.testing.assert_array_equal(streamed, Y[10:61])
    with from_spec(spec) as again:
        np.testing.assert_array_equal(again.read(0, N), Y)


def test_a_run_on_any_file_is_taken_up_again(table, tmp_path):
    path = tmp_path / "run.h5" if not table.endswith("run.h5") else tmp_path / "other.h5"
    model = MoG(D=D, K=2)
    whole = gem.EM(model, table, gem.Annealing(steps=4), backend="numpy").run()
    next(iter(gem.EM(model, table, gem.Annealing(steps=4), backend="numpy", output=path, checkpoint=1)))
    again = gem.EM.resume(path).run()
    np.testing.assert_array_equal(again.history["free_energy"], whole.history["free_energy"])


def test_nulls_are_gaps(tmp_path):
    gaps = pyarrow.table({n: pyarrow.array(c, mask=np.isnan(c)) for n, c in zip(NAMES, WITH_GAPS.T, strict=True)})
    assert gaps["a"].null_count
    pyarrow.parquet.write_table(gaps, tmp_path / "x.parquet", row_group_size=20)
    np.testing.assert_array_equal(read(tmp_path / "x.parquet"), WITH_GAPS)
    with pytest.raises(DataError, match=r"x\.parquet marks gaps by null"):
        gem.EM(MoG(D=D, K=2), tmp_path / "x.parquet", gem.Annealing(steps=1), backend="numpy")
    np.testing.assert_array_equal(read(gaps), WITH_GAPS)
    np.testing.assert_array_equal(read(polars.DataFrame({n: gaps[n].to_pylist() for n in NAMES})), WITH_GAPS)
    numbers = pyarrow.table({"i": pyarrow.array([1, None, 3]), "b": pyarrow.array([True, False, None])})
    expected = np.array([[1, 1], [np.nan, 0], [3, np.nan]])
    pyarrow.parquet.write_table(numbers, tmp_path / "i.parquet")
    for data in (tmp_path / "i.parquet", numbers, polars.DataFrame({"i": [1, None, 3], "b": [True, False, None]})):
        np.testing.assert_array_equal(read(data), expected)
    nullable = pandas.DataFrame({"i": pandas.array([1, None, 3], "Int64"), "b": pandas.array([True, False, None])})
    mixed = pandas.DataFrame({"i": [1, 2], "b": [True, False]})
    np.testing.assert_array_equal(read(mixed), [[1, 1], [2, 0]])
    for frame in (nullable, nullable.astype({"i": "int64[pyarrow]", "b": "bool[pyarrow]"})):
        np.testing.assert_array_equal(read(frame), expected)


def test_decimals_are_numbers(tmp_path):
    """As the float that is nearest, which pyarrow's own cast misses by a digit in some."""
    cents = np.random.default_rng(1).integers(-(10**9), 10**9, 300)
    exact = [decimal.Decimal(int(cent)) / 100 for cent in cents]
    column = pyarrow.array([*exact, None], pyarrow.decimal128(18, 2))
    expected = np.array([*map(float, exact), np.nan])[:, None]
    table = pyarrow.table({"price": column})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "x.feather")
    of_arrow = pandas.DataFrame({"price": pandas.Series([*exact, None], dtype=pandas.ArrowDtype(column.type))})
    for data in (table, tmp_path / "x.parquet", tmp_path / "x.feather", of_arrow, polars.DataFrame({"p": column})):
        np.testing.assert_array_equal(read(data), expected)


def test_whole_numbers_beside_others_keep_their_digits(tmp_path):
    if np.finfo(np.longdouble).nmant < 63:
        missing("longdouble", "no float here holds whole numbers of 64 bits")
    ids = 2**60 + 3 * np.arange(N)
    mixed = pyarrow.table({"id": ids, "y": Y[:, 0], "n": pyarrow.array([1, *[None] * (N - 1)])})
    pyarrow.parquet.write_table(mixed, tmp_path / "x.parquet")
    of_polars = polars.DataFrame({"id": ids, "y": Y[:, 0]})
    some = pyarrow.table({"id": pyarrow.array([*ids[:-1].tolist(), None])})
    frames = [mixed.to_pandas(types_mapper=kinds) for kinds in (None, pandas.ArrowDtype)]
    frames.append(pandas.DataFrame({"id": pandas.array([*ids[:-1].tolist(), None], "Int64")}))
    records = np.rec.fromarrays([ids, Y[:, 0]], names="id,y")
    npy(tmp_path / "x.npy", np.asarray(records))
    hdf5(tmp_path / "x.h5", array=np.asarray(records))
    fits_table(tmp_path / "x.fits", records)
    of_records = [records, *(tmp_path / f"x.{kind}" for kind in ("npy", "h5", "fits"))]
    for data in (mixed, tmp_path / "x.parquet", of_polars, some, *frames, *of_records):
        given = read(data)
        np.testing.assert_array_equal(given[: N - 1, 0] - np.longdouble(2**60), 3 * np.arange(N - 1))
    assert read(pyarrow.table({"id": ids - 2**60, "y": Y[:, 0]})).dtype == np.float64


def test_paths_are_what_python_takes_for_paths(tmp_path, monkeypatch):
    npy(tmp_path / "x.npy")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/x.npy", os.fsencode(tmp_path / "x.npy"), [tmp_path / "x.npy"]):
        with open_data(path) as source:
            assert source.spec == {"data": str(tmp_path / "x.npy")}
            np.testing.assert_array_equal(source.read(0, N), Y)


def test_complex_matrices_of_matlab_are_refused(tmp_path):
    """SciPy leaves their imaginary parts out when it is asked for MATLAB's types."""
    mat(tmp_path / "x.mat", X=Y + 1j, S={"Z": Y * 1j, "R": Y}, P=np.ones((20, 20, 3)) * 1j)
    for name, options in {"X": {}, "S.Z": {}, "P": {"patch": 4}}.items():
        with pytest.raises(DataError, match=rf"x\.mat:{name} holds complex numbers.*real\({name}\)"):
            open_data(f"{tmp_path / 'x.mat'}:{name}", **options)
    np.testing.assert_array_equal(read(f"{tmp_path / 'x.mat'}:S.R"), Y)


def test_parts_are_one_table(tmp_path):
    for i in range(12):
        (tmp_path / "parts").mkdir(exist_ok=True)
        np.save(tmp_path / "parts" / f"part{i}.npy", Y[7 * i : 7 * i + 7])
    (tmp_path / "parts" / "README.txt").write_text("about")
    (tmp_path / "parts" / "_SUCCESS").touch()
    with open_data(tmp_path / "parts") as source:  # part2 before part10
        assert source.shape == (84, D)
        np.testing.assert_array_equal(source.read(5, 80), Y[5:80])
        with from_spec(json.loads(json.dumps(source.spec))) as again:
            np.testing.assert_array_equal(again.read(0, 84), Y[:84])
    hdf5(tmp_path / "x.h5")
    pyarrow.parquet.write_table(ARROW, tmp_path / "x.parquet")
    mixed = [f"{tmp_path}/x.h5:/x", tmp_path / "parts" / "part0.npy", tmp_path / "x.parquet"]
    np.testing.assert_array_equal(read(mixed), np.concatenate([Y, Y[:7], Y]))
    np.save(tmp_path / "odd.npy", Y[:, :3])
    with pytest.raises(DataError, match=r"odd\.npy has 3 columns, the other parts of the table 4"):
        open_data([tmp_path / "odd.npy", *mixed])
    pyarrow.parquet.write_table(ARROW.select(["b", "a", "c", "d"]), tmp_path / "turned.parquet")
    with pytest.raises(DataError, match=r"turned\.parquet has the columns b, a"):
        open_data([tmp_path / "x.parquet", tmp_path / "turned.parquet"])


def test_a_folder_of_several_kinds_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", Y)
    hdf5(tmp_path / "x.h5")
    with pytest.raises(DataError, match=r"several kinds \(1 hdf5, 1 npy\)"):
        open_data(tmp_path)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png is a picture, .*x\.npy a table"):
        open_data([tmp_path / "x.png", tmp_path / "x.npy"])


REFUSED = {  # name → bytes (or what writes them), and words of the refusal
    "data.csv": (b"x;y\n1;2\n3;4\n", ["is text", "loadtxt", "delimiter=';'", "skiprows=1"]),
    "data.npy": (b"1,2\n3,4\n", ["is text", "delimiter=','"]),
    "table.json": (b"[[1, 2], [3, 4]]", ["is JSON", "numpy.array(json.load("]),
    "photo.png": (b"", ["is empty"]),
    "numbers.pkl": (b"\x80\x04\x95\x00\x00", ["pickle", "runs code"]),
    "x.npy.gz": (b"\x1f\x8b\x08\x00" + bytes(20), ["gzip", "gunzip"]),
    "brain.nii": (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0", ["NIfTI", "get_fdata"]),
    "scan.png": (bytes(128) + b"DICM", ["DICOM", "pixel_array"]),
    "old.nc": (b"CDF\x01" + bytes(100), ["netCDF file of version 3", "nccopy"]),
    "lfs.h5": (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    "book.xlsx": (lambda path: zipped(path, "[Content_Types].xml"), ["Office"]),
    "weights.pt": (lambda path: zipped(path, "weights/data.pkl"), ["PyTorch", "torch.load"]),
    "photos.zip": (lambda path: zipped(path, "a.png"), ["zip archive without a .npy", "unzip"]),
    "x.zarr.zip": (lambda path: zipped(path, "zarr.json"), ["zarr", "unzip"]),
    "noise": (bytes(range(256)) * 9, ["cannot read", "as an image"]),
}


def zipped(path, member):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "x")


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_by_name(tmp_path, name):
    content, words = REFUSED[name]
    content(tmp_path / name) if callable(content) else (tmp_path / name).write_bytes(content)
    for given in (tmp_path / name, f"{tmp_path / name}:Y"):
        with pytest.raises(DataError) as caught:
            open_data(given)
        for word in [name, *(words if given == tmp_path / name else ())]:
            assert word in str(caught.value)


def test_the_remedy_for_text_works(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "x.csv")
    monkeypatch.chdir(tmp_path)
    line = str(caught.value).split("is text: ")[1].split(" makes a table")[0]
    exec(line, {"numpy": np})
    np.testing.assert_array_equal(read("OUT.npy"), [[1, 2], [3, 4]])


@pytest.mark.parametrize("module", ["scipy.io", "zarr", "pyarrow.parquet", "tifffile", "astropy.io.fits"])
def test_a_missing_library_is_named_with_the_command(tmp_path, monkeypatch, module):
    write = {
        "scipy.io": lambda p: mat(p, Y=Y),
        "zarr": zarr_array,
        "pyarrow.parquet": lambda p: pyarrow.parquet.write_table(ARROW, p),
        "tifffile": lambda p: tifffile.imwrite(p, np.zeros((20, 20), "u1")),
        "astropy.io.fits": lambda p: fits.PrimaryHDU(np.zeros((20, 20))).writeto(p),
    }[module]
    write(tmp_path / "x")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f'pip install "{module.partition(".")[0]}>'):
        open_data(tmp_path / "x")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: mat(p, A=Y, B=Y), ["2 datasets", ":A (90, 4)", ":B (90, 4)"]),
        (lambda p: mat(p, A=np.array([["x", 1]], dtype=object)), ["none"]),
        (zarr_group, ["2 datasets", ":/deep/x (90, 4)"]),
        (lambda p: pyarrow.parquet.write_table(ARROW.append_column("w", [["x"] * N]), p), ["w (string)", ":a,b,c,d"]),
        (lambda p: pyarrow.feather.write_feather(ARROW.append_column("w", [["x"] * N]), p), ["w (string)", ":a,b,c,d"]),
        (lambda p: npy(p, np.array([(1, "x")], "i4,U1")), ["f1 (<U1)", "['f0']"]),
        (lambda p: npy(p, np.zeros((5, 20, 20))), ["(5, 20, 20)", "--patch 16"]),
        (lambda p: mat(p, I=np.zeros((20, 20, 5))), ["(20, 20, 5)", "--patch 16"]),
    ],
)
def test_what_is_no_table_is_refused_with_what_there_is(tmp_path, write, words):
    write(tmp_path / "x")
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / "x")
    for word in words:
        assert word in str(caught.value)


def test_many_arrays_are_not_all_listed(tmp_path):
    npz(tmp_path / "x", **{f"a{i}": np.zeros((i + 2, 3)) for i in range(200)})
    with pytest.raises(DataError, match=r"200 datasets .*:a199 \(201, 3\), .* and 190 smaller ones") as caught:
        open_data(tmp_path / "x")
    assert "a150 " not in str(caught.value)


@pytest.mark.parametrize("version", ZARR_VERSIONS)
def test_packed_zarr_is_unpacked(tmp_path, version):
    values = np.where(np.isnan(WITH_GAPS), np.nan, np.round(Y, 2))
    encoding = {"x": {"scale_factor": 0.01, "dtype": "i2", "_FillValue": -999}, "y": {"_FillValue": -1.5}}
    stored = xarray.Dataset({"x": (("n", "d"), values), "y": (("n", "d"), WITH_GAPS)})
    stored.to_zarr(tmp_path / "x.zarr", encoding=encoding, consolidated=False, **version)
    with open_data(f"{tmp_path}/x.zarr:x") as source:
        np.testing.assert_allclose(source.read(0, N), values, atol=1e-12)
        assert "_FillValue = -999" in source.gaps
    np.testing.assert_array_equal(read(f"{tmp_path}/x.zarr:y"), WITH_GAPS)


# ------------------------------------------------------------------------------------------------ pictures

STACK = np.random.default_rng(1).normal(size=(5, 24, 20))  # every picture has pixels of its own
SQUARES = np.random.default_rng(2).normal(size=(7, 20, 20))
COUNTS = np.random.default_rng(3).integers(0, 2**16, (5, 24, 20)).astype("u2")
BYTES = (COUNTS >> 8).astype("u1")
RAW = {"patch": 6, "count": 3000, "whitening": False}


def patches_of(stack):
    """Every patch there is, as float32."""
    windows = np.lib.stride_tricks.sliding_window_view(stack, (6, 6), axis=(-2, -1)).reshape(-1, 36)
    return {tuple(patch) for patch in windows.astype(np.float32).tolist()}


def check_patches(data, stack, rtol=None):
    """The patches that gem draws are patches of `stack` (n, h, w), and of each of its pictures some are drawn."""
    with open_data(data, **RAW) as source:
        assert source.shape == (3000, 36)
        drawn = source.read(0, 3000)
        np.testing.assert_array_equal(drawn, np.concatenate([source.read(0, 1234), source.read(1234, 3000)]))
        if source.spec is not None:
            with from_spec(json.loads(json.dumps(source.spec))) as again:
                np.testing.assert_array_equal(again.read(0, 3000), drawn)
    if rtol is None:
        found = {tuple(patch) for patch in drawn.tolist()}
        for picture in stack:
            mine = patches_of(picture.astype(np.float64))
            assert mine & found
            found -= mine
        assert not found
    else:
        every = np.array(sorted(patches_of(stack)))
        nearest = np.abs(drawn[::50, None] - every[None]).max(axis=2).min(axis=1)
        assert nearest.max() < rtol


def hdf5_stack(path, **attributes):
    with h5py.File(path, "w") as file:
        file["labels"] = np.zeros((5, 3))
        file["photos/stack"] = np.swapaxes(STACK, 1, 2) if attributes else STACK
        file["photos/stack"].attrs.update(attributes)


STACKS = {  # name → what writes it, and the pictures (n, h, w)
    "front.npy": (lambda p: npy(p, STACK), STACK),
    "squares_behind.npy": (lambda p: npy(p, np.moveaxis(SQUARES, 0, -1)), SQUARES),
    "fortran.npy": (lambda p: npy(p, np.asfortranarray(np.moveaxis(SQUARES, 0, -1))), SQUARES),
    "movie.npy": (lambda p: npy(p, STACK[:, None]), STACK),
    "one.npy": (lambda p: npy(p, STACK[:1]), STACK[:1]),
    "grey.npy": (lambda p: npy(p, BYTES[..., None]), BYTES / 255),
    "stack.npz": (lambda p: npz(p, labels=np.arange(5), x=STACK), STACK),
    "deep.npz": (lambda p: npz(p, x=COUNTS), COUNTS / 65535),
    "stack.h5": (hdf5_stack, STACK),
    "matlab73.mat": (lambda p: hdf5_stack(p, MATLAB_class=np.bytes_("double")), STACK),
    "IMAGES.mat": (lambda p: mat(p, IMAGES=np.moveaxis(SQUARES, 0, -1)), SQUARES),
    "oblong.mat": (lambda p: mat(p, I=np.moveaxis(STACK, 0, -1)), STACK),
    "columns.mat": (lambda p: mat(p, I=SQUARES.reshape(7, -1).T), np.swapaxes(SQUARES, 1, 2)),
    "fourth_axis.mat": (lambda p: mat(p, I=np.moveaxis(BYTES, 0, -1)[:, :, None]), BYTES / 255),
    "stack.zarr": (lambda p: zarr_array(p, chunks=(2, 10, 10), array=STACK), STACK),
    "cube.fits": (lambda p: fits.PrimaryHDU(STACK).writeto(p), STACK),
    "unsigned.fits": (lambda p: fits.PrimaryHDU(COUNTS).writeto(p), COUNTS / 65535),
    "bytes.fits": (lambda p: fits.PrimaryHDU(BYTES[0]).writeto(p), BYTES[:1] / 255),
    "signed.fits": (lambda p: fits.PrimaryHDU(COUNTS.astype("i4") - 9).writeto(p), COUNTS - 9.0),
    "extension.fits": (lambda p: fits_extension(p, fits.ImageHDU), STACK),
    "packed.fits": (lambda p: fits_extension(p, fits.CompImageHDU, COUNTS.astype("i4")), COUNTS),
    "pages.tif": (lambda p: tifffile.imwrite(p, COUNTS, photometric="minisblack"), COUNTS / 65535),
    "signed.tif": (lambda p: tifffile.imwrite(p, BYTES.astype("i2") - 99), BYTES - 99.0),
    "float.tif": (lambda p: tifffile.imwrite(p, STACK), STACK),
    "imagej.tif": (lambda p: tifffile.imwrite(p, COUNTS[:4].reshape(2, 2, 24, 20), imagej=True), COUNTS[:4] / 65535),
    "ome.tif": (
        lambda p: tifffile.imwrite(p, COUNTS[None, :4], ome=True, metadata={"axes": "TCYX"}),
        COUNTS[:4] / 65535,
    ),
    "packed.tif": (lambda p: tifffile.imwrite(p, COUNTS, compression="lzw", tile=(16, 16)), COUNTS / 65535),
    "big.tif": (lambda p: tifffile.imwrite(p, COUNTS, byteorder=">", bigtiff=True), COUNTS / 65535),
    "white_is_zero.tif": (lambda p: tifffile.imwrite(p, BYTES, photometric="miniswhite"), 1 - BYTES / 255),
    "movie.gif": (lambda p: save_frames(p, BYTES), BYTES / 255),
    "movie.png": (lambda p: save_frames(p, BYTES), BYTES / 255),
    "movie.webp": (lambda p: save_frames(p, BYTES, lossless=True), BYTES / 255),
}


def fits_extension(path, kind, picture=STACK):
    table = fits.BinTableHDU(np.asarray(RECORDS), name="CATALOGUE")
    fits.HDUList([fits.PrimaryHDU(), table, kind(picture, name="SCI")]).writeto(path)


def save_frames(path, frames, **options):
    first, *others = [Image.fromarray(frame) for frame in frames]
    if path.suffix == ".webp":
        first, *others = [frame.convert("RGB") for frame in (first, *others)]
        options["duration"] = 100  # Pillow 9.0 fails without
    first.save(path, save_all=True, append_images=others, **options)


@pytest.mark.parametrize("name", STACKS)
def test_every_picture_is_used(tmp_path, name, caplog):
    write, stack = STACKS[name]
    with caplog.at_level(logging.INFO, "gem"):
        write(tmp_path / name)
        check_patches(tmp_path / name, np.asarray(stack), rtol=0.006 if name == "movie.webp" else None)
    if name.endswith((".npy", ".mat", ".npz", ".h5", ".fits")):
        assert f"{len(stack)} picture" in caplog.text
        assert "kept as they are" in caplog.text or "scaled to [0, 1]" in caplog.text


def test_pictures_of_several_files_and_of_arrays(tmp_path):
    np.save(tmp_path / "a.npy", STACK[:2])
    tifffile.imwrite(tmp_path / "b.tif", STACK[2:], photometric="minisblack")
    check_patches([tmp_path / "a.npy", tmp_path / "b.tif"], STACK)
    check_patches(STACK, STACK)
    check_patches(dask.array.from_array(STACK, chunks=(2, 10, 10)), STACK)
    hdf5_stack(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5") as file:
        assert open_data(file["photos/stack"], **RAW).spec["data"] == [f"{tmp_path}/x.h5:/photos/stack"]
        check_patches(file["photos/stack"], STACK)


@pytest.mark.parametrize(
    "write",
    [
        npy,
        lambda p: npz(p, x=Y),
        hdf5,
        lambda p: mat(p, Y=Y),
        zarr_array,
        lambda p: pyarrow.parquet.write_table(ARROW, p),
        lambda p: pyarrow.feather.write_feather(ARROW, p),
    ],
)
def test_no_patches_are_taken_of_a_table(tmp_path, write):
    write(tmp_path / "x")
    for data in (tmp_path / "x", f"{tmp_path / 'x'}", Y):
        with pytest.raises(ConfigError, match=r"patch: such options apply when images are opened, not to"):
            open_data(data, patch=4)


def test_pictures_of_van_hateren(tmp_path):
    counts = np.random.default_rng(0).integers(0, 2**16, (1024, 1536))
    counts.astype(">u2").tofile(tmp_path / "imk00001.iml")
    with open_data(tmp_path / "imk00001.iml", patch=4, count=50, whitening=False) as source:
        drawn = source.read(0, 50)
    rows, columns = 1024 - 3, 1536 - 3
    values = set((counts / 65535).astype(np.float32).ravel().tolist())
    assert set(drawn.ravel().tolist()) <= values
    for patch in drawn[:5].reshape(-1, 4, 4):
        corners = np.argwhere((counts / 65535).astype(np.float32)[:rows, :columns] == patch[0, 0])
        cut = [(counts[r : r + 4, c : c + 4] / 65535).astype(np.float32) for r, c in corners]
        assert any(np.array_equal(patch, window) for window in cut)
    assert open_data(tmp_path, **{**RAW, "count": 9}).shape == (9, 36)  # the folder finds it


def test_fits_gaps_scales_and_tables(tmp_path):
    unit = fits.PrimaryHDU(np.where(BYTES[0] < 20, -1, BYTES[0].astype("i2")))
    unit.header["BLANK"] = -1
    unit.writeto(tmp_path / "blank.fits")
    drawn = read(tmp_path / "blank.fits", **RAW)
    assert np.isnan(drawn).any()
    assert 20 <= np.nanmin(drawn) < 25
    with pytest.raises(DataError, match=r"NaN or Inf in the pictures.*--no-whitening"):
        open_data(tmp_path / "blank.fits", patch=6)
    unit = fits.PrimaryHDU(BYTES[0] + np.uint16(40000))  # astropy leaves BLANK beside BZERO = 32768 as a count
    unit.header["BLANK"] = int(BYTES[0].max()) + 40000 - 32768
    unit.writeto(tmp_path / "unsigned_blank.fits")
    drawn = read(tmp_path / "unsigned_blank.fits", **RAW)
    assert np.isnan(drawn).any()
    assert 40000 <= np.nanmin(drawn) <= np.nanmax(drawn) < 40000 + int(BYTES[0].max())
    scaled = fits.PrimaryHDU(STACK[0] * 100 // 1)
    scaled.scale("int16", bscale=0.5, bzero=7)
    scaled.writeto(tmp_path / "scaled.fits")
    check_patches(tmp_path / "scaled.fits", (STACK[:1] * 100 // 1))
    fits_extension(tmp_path / "x.fits", fits.ImageHDU)
    check_patches(f"{tmp_path}/x.fits:SCI", STACK)
    check_patches(f"{tmp_path}/x.fits:2", STACK)
    np.testing.assert_array_equal(read(f"{tmp_path}/x.fits:CATALOGUE"), Y)
    with pytest.raises(ConfigError, match="such options apply when images are opened, not to"):
        open_data(f"{tmp_path}/x.fits:CATALOGUE", patch=4)
    fits.HDUList([fits.PrimaryHDU(STACK), fits.ImageHDU(STACK, name="ERR")]).writeto(tmp_path / "two.fits")
    with pytest.raises(DataError, match=r"2 pictures to choose from: .*two\.fits:0 .*two\.fits:1 \(ERR"):
        open_data(tmp_path / "two.fits")


def test_columns_of_a_fits_table_are_read_as_they_are_meant(tmp_path):
    counts = np.array([1, -99, 3], "i2")
    columns = [
        fits.Column("scaled", "I", array=counts, null=-99),
        fits.Column("unsigned", "I", bzero=32768, array=np.array([40000, 0, 65535], "u2")),
        fits.Column("two", "2E", array=np.array([[1, 2], [3, np.nan], [5, 6]])),
        fits.Column("flag", "L", array=np.array([True, False, True])),
        fits.Column("bits", "3X", array=np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], bool)),
        fits.Column("ids", "K", array=np.array([2**53 + 1, 2, 3])),
    ]
    table = fits.BinTableHDU.from_columns(columns)
    table.header["TSCAL1"], table.header["TZERO1"] = 0.5, 10.0  # TNULL is a stored number: it is not scaled
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "x.fits")
    expected = [
        [10.5, 40000, 1, 2, 1, 1, 0, 0, 0],
        [np.nan, 0, 3, np.nan, 0, 0, 1, 1, 2],
        [11.5, 65535, 5, 6, 1, 0, 0, 0, 3],
    ]
    with open_data(tmp_path / "x.fits") as source:
        read = source.read(0, 3)
        assert "TNULL = -99" in source.gaps
    assert int(read[0, 8]) == 2**53 + 1
    read[0, 8] = 0
    np.testing.assert_array_equal(read.astype(float), expected)
    number = fits.Column("n", "I4", array=np.array([7, 1234, 9]), null="--", ascii=True)
    fits.HDUList([fits.PrimaryHDU(), fits.TableHDU.from_columns([number])]).writeto(tmp_path / "ascii.fits")
    path = tmp_path / "ascii.fits"
    path.write_bytes(path.read_bytes().replace(b"1234", b"  --"))
    with open_data(tmp_path / "ascii.fits") as source:
        np.testing.assert_array_equal(source.read(0, 3), [[7], [np.nan], [9]])


def test_what_of_a_fits_file_is_no_table_of_numbers_is_refused(tmp_path, monkeypatch):
    names = fits.Column("name", "3A", array=["a", "b"])
    numbers = [fits.Column(name, "D", array=[1.0, 2.0]) for name in "xy"]
    waves = fits.Column("wave", "PE()", array=np.array([np.ones(2), np.ones(3)], dtype=object))
    table = fits.BinTableHDU.from_columns([names, *numbers, waves])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "x.fits")
    with pytest.raises(DataError, match=r"name \(.U3\), wave \(object\); those that are: ") as caught:
        open_data(tmp_path / "x.fits")
    monkeypatch.chdir(tmp_path)
    import astropy.io

    exec(str(caught.value).split("those that are: ")[1], {"numpy": np, "astropy": astropy})
    np.testing.assert_array_equal(read("OUT.npy"), [[1, 1], [2, 2]])
    fits.HDUList([fits.PrimaryHDU(), table, table]).writeto(tmp_path / "two.fits")
    with pytest.raises(DataError, match=r"2 tables to choose from: name one of them: .*two\.fits:1 .*two\.fits:2"):
        open_data(tmp_path / "two.fits")
    fits.HDUList([fits.PrimaryHDU(STACK), table]).writeto(tmp_path / "both.fits")
    with open_data(tmp_path / "both.fits", **RAW) as source:
        assert source.shape == (RAW["count"], 36)  # its picture
    with pytest.raises(DataError, match="there is no picture in it"):
        read_image(str(tmp_path / "x.fits"))


COLOURED = np.random.default_rng(4).integers(0, 256, (24, 20, 3)).astype("u1")
LUMA = np.asarray(Image.fromarray(COLOURED).convert("L"))[None] / 255


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rgb.npy", lambda p: npy(p, COLOURED)),
        ("rgb.tif", lambda p: tifffile.imwrite(p, COLOURED, photometric="rgb")),
        ("planar.tif", lambda p: tifffile.imwrite(p, np.moveaxis(COLOURED, 2, 0), photometric="rgb")),
        ("alpha.tif", lambda p: Image.fromarray(COLOURED).convert("RGBA").save(p)),
        ("alpha.png", lambda p: Image.fromarray(COLOURED).convert("RGBA").save(p)),
        ("rgb.mat", lambda p: mat(p, I=COLOURED)),
    ],
)
def test_colours_become_grey(tmp_path, name, write):
    write(tmp_path / name)
    check_patches(tmp_path / name, LUMA)


def test_palettes_bits_and_turned_pictures(tmp_path):
    palette = Image.fromarray(COLOURED).quantize(64)
    grey = np.asarray(palette.convert("L"))[None] / 255
    palette.save(tmp_path / "palette.png")
    check_patches(tmp_path / "palette.png", grey)
    palette.save(tmp_path / "palette.tif")
    check_patches(tmp_path / "palette.tif", grey, rtol=0.006)  # colours of 16 bits
    bits = BYTES > 128
    Image.fromarray(bits[0]).save(tmp_path / "bits.png")
    check_patches(tmp_path / "bits.png", bits[:1].astype(float))
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack")
    check_patches(tmp_path / "bits.tif", bits.astype(float))
    tifffile.imwrite(tmp_path / "turned.tif", BYTES, extratags=[(274, 3, 1, 6, False)])
    check_patches(tmp_path / "turned.tif", np.rot90(BYTES, -1, axes=(1, 2)) / 255)
    Image.fromarray(BYTES[0]).convert("LA").save(tmp_path / "grey_alpha.tif")
    check_patches(tmp_path / "grey_alpha.tif", BYTES[:1] / 255)


def test_previews_of_cameras_are_told(tmp_path, caplog):
    Image.init()
    if "MPO" not in Image.SAVE_ALL:
        missing("mpo", "this Pillow writes no MPO")
    first, second = (Image.fromarray(frame).convert("RGB") for frame in BYTES[:2])
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    assert open_data(tmp_path / "phone.jpg", patch=6, count=9).shape == (9, 36)
    assert "the first of its 2 frames is used, 1 are not" in caplog.text


def test_pictures_that_are_left_out_are_told(tmp_path, caplog):
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(BYTES[0], subifds=0)
        file.write(BYTES[0, ::2, ::2], subfiletype=1)
    check_patches(tmp_path / "pyramid.tif", BYTES[:1] / 255)
    assert "1 reduced copies of its pictures are not used" in caplog.text


def test_a_tiff_file_that_lost_pages_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", COUNTS, compression="zlib")
    whole = (tmp_path / "x.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        third = file.pages[2].offset
    (tmp_path / "x.tif").write_bytes(whole[: third - 10])
    with pytest.raises(DataError, match=r"x\.tif is cut short behind its picture 2"):
        open_data(tmp_path / "x.tif", **RAW)


def test_numbers_of_matlab_are_of_its_types(tmp_path):
    mat(tmp_path / "x", I=np.moveaxis(BYTES, 0, -1) > 128)
    check_patches(tmp_path / "x", (BYTES > 128).astype(float))


def test_pages_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", COUNTS, compression="zlib")
    decoded = []
    monkeypatch.setattr("gem.data.tiff.TiffFile.grey", lambda self, i: decoded.append(i) or COUNTS[i] / 65535)
    with open_data(tmp_path / "x.tif", **RAW) as source:
        assert decoded == []
        source.read(0, 3000)
    assert decoded == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------ objects


class OnADevice:  # as CuPy's, in what concerns numpy.asarray
    shape, dtype = Y.shape, Y.dtype

    def __array__(self, *args, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def get(self):
        return Y


class Numba:
    shape, dtype, __cuda_array_interface__ = Y.shape, Y.dtype, {}

    def copy_to_host(self):
        return Y


class Torch:
    """What of a PyTorch tensor says that NumPy cannot have it."""

    shape = Y.shape

    def __init__(self, **attributes):
        self.__dict__ |= {"requires_grad": False, "layout": "torch.strided", "device": "cpu", "dtype": "torch.float32"}
        self.__dict__ |= attributes

    def __array__(self, *args, **options):
        raise RuntimeError("Can't call numpy() on this Tensor.")

    def detach(self):
        return self


class DLPack:
    """An array that has nothing but DLPack."""

    def __dlpack__(self, **options):
        return Y.__dlpack__(**options)

    def __dlpack_device__(self):
        return Y.__dlpack_device__()


class Broken(DLPack):
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **options):
        raise BufferError("the array is on a device")


class Interface:
    __array_interface__ = Y.__array_interface__


def with_missing(frame):
    return frame.mask(np.isnan(WITH_GAPS))


OBJECTS = {  # what → object, and its numbers
    "memory map": (lambda p: np.lib.format.open_memmap(save(p), mode="r"), Y),
    "matrix": (lambda p: scipy.sparse.csr_matrix(Y).todense(), Y),
    "record array": (lambda p: RECORDS, Y),
    "structured array": (lambda p: np.asarray(RECORDS), Y),
    "structured with arrays": (lambda p: Y.view([("x", "f8"), ("pair", "f8", (2,)), ("z", "f8")])[:, 0], Y),
    "h5py dataset of records": (lambda p: h5_object(p, "x", np.asarray(RECORDS)), Y),
    "polars arrays": (lambda p: polars.DataFrame({"y": Y}, schema={"y": polars.Array(polars.Float64, D)}), Y),
    "masked, nothing masked": (lambda p: np.ma.masked_array(Y), Y),
    "csr": (lambda p: scipy.sparse.csr_matrix(Y), Y),
    "csc": (lambda p: scipy.sparse.csc_array(Y), Y),
    "coo": (lambda p: scipy.sparse.coo_matrix(Y), Y),
    "h5py dataset": (lambda p: h5_object(p, "x"), Y),
    "h5py file": (lambda p: h5_object(p, "/"), Y),
    "h5py in memory": (lambda p: h5_object(p, "x", driver="core", backing_store=False), Y),
    "zarr array": (lambda p: zarr.open((zarr_array(p / "x.zarr"), str(p / "x.zarr"))[1], mode="r"), Y),
    "zarr in memory": (lambda p: zarr.array(Y, chunks=(20, 3)), Y),
    "dask array": (lambda p: dask.array.from_array(Y, chunks=((30, 7, 53), 2)), Y),
    "xarray": (lambda p: xarray.DataArray(Y, dims=("n", "d")), Y),
    "xarray of dask": (lambda p: xarray.DataArray(dask.array.from_array(Y, chunks=20)), Y),
    "pandas": (lambda p: FRAME, Y),
    "pandas with NA": (lambda p: with_missing(FRAME.convert_dtypes()), WITH_GAPS),
    "pandas of Arrow": (lambda p: with_missing(FRAME.astype("float64[pyarrow]")), WITH_GAPS),
    "polars": (lambda p: polars.DataFrame(Y, schema=NAMES), Y),
    "pyarrow": (lambda p: ARROW, Y),
    "pyarrow batch": (lambda p: ARROW.to_batches()[0], Y),
    "DLPack": (lambda p: DLPack(), Y),
    "array interface": (lambda p: Interface(), Y),
    "memoryview": (lambda p: memoryview(Y), Y),
}


def save(folder):
    np.save(folder / "x.npy", Y)
    return folder / "x.npy"


def h5_object(folder, name, array=Y, **options):
    file = h5py.File(folder / "x.h5", "w", **options)
    file["x"] = array
    return file[name]


@pytest.mark.parametrize("what", OBJECTS)
def test_objects_are_taken(tmp_path, what):
    make, expected = OBJECTS[what]
    with open_data(make(tmp_path)) as source:
        assert source.shape == (N, D)
        for start, stop in [(0, N), (3, 50), (N - 1, N)]:
            np.testing.assert_array_equal(source.read(start, stop), expected[start:stop])
        if what in ("h5py dataset", "h5py dataset of records", "h5py file", "zarr array"):  # behind them is a file
            with from_spec(json.loads(json.dumps(source.spec))) as again:
                np.testing.assert_array_equal(again.read(0, N), expected)
        else:
            assert source.spec is None


def test_chunks_are_computed_once_in_a_pass():
    computed = []

    def block(number):
        computed.append(number)
        return np.full((100, 3), float(number))

    parts = [dask.array.from_delayed(dask.delayed(block)(i), (100, 3), float) for i in range(8)]
    with open_data(dask.array.concatenate(parts)) as source:
        source._begin = np.arange(0, 900, 100)  # as of chunks too thick to be read together
        for start in range(0, 800, 30):
            rows = source.read(start, min(start + 30, 800))
            np.testing.assert_array_equal(rows[:, 0], np.arange(start, start + len(rows)) // 100)
    assert computed == list(range(8))


NOT_TAKEN = {  # what → object, and words of the remedy
    "masked": (np.ma.masked_invalid(WITH_GAPS), ["Y.astype(float).filled(numpy.nan)"]),
    "CuPy": (OnADevice(), ["Y.get()"]),
    "Numba": (Numba(), ["Y.copy_to_host()"]),
    "CUDA": (SimpleNamespace(__cuda_array_interface__={}), ["cupy.asarray(Y).get()"]),
    "PyTorch": (Torch(), ["Y.numpy()"]),
    "PyTorch with gradient": (Torch(requires_grad=True), ["Y.detach().numpy()"]),
    "PyTorch on a GPU": (Torch(requires_grad=True, device="cuda:0"), ["Y.detach().cpu().numpy()"]),
    "PyTorch bfloat16": (Torch(dtype="torch.bfloat16"), ["Y.float().numpy()"]),
    "PyTorch sparse": (Torch(layout="torch.sparse_csr"), ["Y.to_dense().numpy()"]),
    "DLPack elsewhere": (Broken(), ["to_device('cpu')"]),
    "dask of unknown chunks": (
        dask.array.from_array(Y, chunks=30)[dask.array.from_array(Y[:, 0], chunks=30) > 0],
        ["Y.compute_chunk_sizes()"],
    ),
    "dask frame": (dask.dataframe.from_pandas(FRAME, npartitions=2), ["to_dask_array(lengths=True)"]),
    "xarray Dataset": (xarray.Dataset({"x": ("n", Y[:, 0])}), ["Y['NAME']", "x"]),
    "strings in pandas": (FRAME.assign(w="x"), ["'w'", "select_dtypes"]),
    "categories in pandas": (FRAME.assign(w=pandas.Categorical(["x"] * N)), ["'w' (category)"]),
    "dates in pandas": (FRAME.assign(w=pandas.Timestamp(0)), ["'w' (datetime"]),
    "pandas Series": (FRAME["a"], ["Y.to_numpy()[:, None]"]),
    "strings in polars": (polars.DataFrame({"a": [1.0], "w": ["x"]}), ["'w' (String)", "Y.select("]),
    "lists in polars": (
        polars.DataFrame({"a": [1.0], "e": [[1.0, 2.0]]}),
        ["'e' (List(Float64))", "Y.with_columns(polars.col('e').list.to_array(D))"],
    ),
    "numbers as objects": (FRAME.astype(object), ["'a' (object)", "Y.astype(float)"]),
    "column of pyarrow": (ARROW["a"], ["Y.to_numpy()[:, None]"]),
    "nothing": (pyarrow.table({}), ["no columns"]),
    "LazyFrame": (polars.LazyFrame({"a": [1.0]}), ["Y.collect()"]),
    "strings in Arrow": (ARROW.append_column("w", [["x"] * N]), ["w (string)", "Y.select(['a', 'b', 'c', 'd'])"]),
    "strings in records": (np.array([(1, "x")], "i4,U1"), ["f1 (<U1)", "Y[['f0']]"]),
    "nested list": (Y.tolist(), ["np.array(data)"]),
    "list of arrays": ([Y, Y], ["np.concatenate(data)"]),
    "mixed list": (["x.npy", Y], ["list"]),
    "generator": ((row for row in Y), ["numpy.array(list(data))"]),
    "dict": ({"train": Y, "test": Y}, ["'train', 'test'"]),
    "open file": (io.BytesIO(b"x"), ["the path of the file"]),
    "objects": (np.array([[None, 1]]), ["object", "astype"]),
    "dates": (np.zeros((3, 2), "M8[s]"), ["datetime64", "astype"]),
    "durations": (np.zeros((3, 2), "m8[s]"), ["timedelta64", "astype"]),
    "complex": (Y + 1j, ["hstack"]),
    "number": (3.0, ["float"]),
    "None": (None, ["NoneType"]),
    "set": ({1, 2}, ["set"]),
    "closed": (None, ["closed"]),
}


@pytest.mark.parametrize("what", NOT_TAKEN)
def test_other_objects_are_refused_with_the_line_to_write(tmp_path, what):
    data, words = NOT_TAKEN[what]
    if what == "closed":
        data = h5_object(tmp_path, "x")
        data.file.close()
    with pytest.raises(DataError) as caught:
        open_data(data)
    for word in words:
        assert word in str(caught.value)


REMEDIES = {  # what → the line, of the object Y
    "masked": "Y.astype(float).filled(np.nan)",
    "dask frame": "Y.to_dask_array(lengths=True)",
    "strings in pandas": "Y.select_dtypes(['number', 'bool'])",
    "strings in polars": "Y.select(polars.selectors.numeric() | polars.selectors.boolean())",
    "lists in polars": "Y.with_columns(polars.col('e').list.to_array(2))",
    "strings in Arrow": "Y.select(['a', 'b', 'c', 'd'])",
    "strings in records": "Y[['f0']]",
    "pandas Series": "Y.to_numpy()[:, None]",
    "column of pyarrow": "Y.to_numpy()[:, None]",
    "numbers as objects": "Y.astype(float)",
    "LazyFrame": "Y.collect()",
    "complex": "np.hstack([Y.real, Y.imag])",
    "dates": "Y.astype(float)",
}


@pytest.mark.parametrize("what", REMEDIES)
def test_the_line_works(what):
    made = eval(REMEDIES[what], {"Y": NOT_TAKEN[what][0], "np": np, "polars": polars})
    assert open_data(made).shape[0] > 0


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_tells_tables_from_pictures(tmp_path, capsys):
    npy(tmp_path / "table.dat")
    run = ["--steps", "1", "--backend", "numpy", "-o", str(tmp_path / "run.h5"), "--overwrite"]
    assert cli.main(["fit", "mog", str(tmp_path / "table.dat"), "--K", "2", *run]) == 0
    assert "on 90 data points" in capsys.readouterr().err
    mat(tmp_path / "IMAGES.mat", IMAGES=np.moveaxis(SQUARES, 0, -1))
    images = [str(tmp_path / "IMAGES.mat"), "--H", "4", "--Hprime", "3", "--gamma", "2", *run]
    assert cli.main(["fit", "bsc", *images]) == 1
    assert "--patch 16" in capsys.readouterr().err
    assert cli.main(["fit", "bsc", *images, "--patch", "6", "--count", "300"]) == 0
    told = capsys.readouterr().err
    assert "7 pictures of 20 x 20 (the last axis counts them)" in told
    assert "on 300 data points" in told
    assert cli.main(["fit", "mca", *images, "--patch", "6", "--count", "300"]) == 0  # on and off channels
    assert gem.store.read_run(tmp_path / "run.h5").config["shape"] == [300, 72]
