"""Sources read what was written; shards stream it in order, in bounded memory; patches are fair and white."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from gem.data import ArraySource, HDF5Source, ImageSource, Shard, Source, check_finite, from_spec, open_data
from gem.errors import ConfigError, DataError
from gem.images import Patches, find_images, learn_whitening, load_grey

pytestmark = pytest.mark.serial  # files and slabs: ranks change nothing here

N, D = 103, 7
TABLE = np.random.default_rng(0).normal(size=(N, D))


def save_npy(folder: Path) -> str:
    np.save(folder / "x.npy", TABLE)
    return f"{folder}/x.npy"


def save_npy_by_column(folder: Path) -> str:
    np.save(folder / "x.npy", np.asfortranarray(TABLE))
    return f"{folder}/x.npy"


def save_npy_version_2(folder: Path) -> str:
    with open(folder / "x.npy", "wb") as file:
        np.lib.format.write_array(file, TABLE, version=(2, 0))
    return f"{folder}/x.npy"


def save_npy_big_endian(folder: Path) -> str:
    np.save(folder / "x.npy", TABLE.astype(">f8"))
    return f"{folder}/x.npy"


def save_npz(folder: Path) -> str:
    np.savez(folder / "x.npz", Y=TABLE, other=TABLE + 1, labels=np.arange(N))
    return f"{folder}/x.npz:Y"


def save_npz_with_one_table(folder: Path) -> str:
    np.savez_compressed(folder / "x.npz", Y=TABLE, labels=np.arange(N), words=np.array(["a", "b"]))
    return f"{folder}/x.npz"


def save_npz_by_column(folder: Path) -> str:
    np.savez(folder / "x.npz", first=TABLE + 1, Y=np.asfortranarray(TABLE))
    return f"{folder}/x.npz:Y"


def save_npz_compressed_by_column(folder: Path) -> str:
    np.savez_compressed(folder / "x.npz", first=TABLE + 1, Y=np.asfortranarray(TABLE))
    return f"{folder}/x.npz:Y"


def save_hdf5(folder: Path) -> str:
    with h5py.File(folder / "x.h5", "w") as file:
        file["deep/Y"] = TABLE
        file["other"] = TABLE + 1
    return f"{folder}/x.h5:/deep/Y"


def save_hdf5_with_one_table(folder: Path) -> str:
    with h5py.File(folder / "x.hdf5", "w") as file:
        file.create_dataset("deep/Y", data=TABLE, chunks=(10, 3), compression="gzip")
        file["labels"] = np.arange(N)
        file["nothing"] = h5py.Empty("f8")
        file["words"] = np.array([[b"a", b"b"]])
    return f"{folder}/x.hdf5"


def save_hdf5_link(folder: Path) -> str:
    save_hdf5(folder)
    with h5py.File(folder / "x.h5", "a") as file:
        file["link"] = h5py.SoftLink("/deep/Y")
    return f"{folder}/x.h5:/link"


SAVERS = [
    save_npy,
    save_npy_by_column,
    save_npy_version_2,
    save_npy_big_endian,
    save_npz,
    save_npz_with_one_table,
    save_npz_by_column,
    save_npz_compressed_by_column,
    save_hdf5,
    save_hdf5_with_one_table,
    save_hdf5_link,
]


@pytest.fixture(params=SAVERS, ids=lambda save: save.__name__[5:])
def path(request, tmp_path):
    return request.param(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("gem.data.shard.BLOCK", 1000)  # bytes: a few batches of the small table
    monkeypatch.setattr("gem.data.numpy_files.PIECE", 100)


def save_image(path: Path, values: np.ndarray, **options) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


# ------------------------------------------------------------------------------------------------ sources


def test_every_file_reads_as_it_was_written(path):
    with open_data(path) as source:
        assert source.shape == (N, D)
        for start, stop in [(0, N), (3, 50), (N - 1, N), (5, 5)]:
            block = source.read(start, stop)
            assert block.dtype == source.dtype
            np.testing.assert_array_equal(block, TABLE[start:stop])


def test_spec_survives_json_and_another_working_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open_data(os.path.relpath(path)) as source:
        spec = json.loads(json.dumps(source.spec))
    monkeypatch.chdir("/")
    with from_spec(spec) as again:
        np.testing.assert_array_equal(again.read(0, N), TABLE)


def test_threads_read_at_once(path):
    with open_data(Path(path)) as source, ThreadPoolExecutor(8) as pool:
        starts = list(range(N - 10)) * 3
        for start, block in zip(starts, pool.map(lambda s: source.read(s, s + 10), starts), strict=True):
            np.testing.assert_array_equal(block, TABLE[start : start + 10])


def test_source_and_one_element_list_pass_through(tmp_path):
    source = ArraySource(TABLE)
    assert open_data(source) is source
    assert open_data([source]) is source
    np.testing.assert_array_equal(open_data([save_npy(tmp_path)]).read(0, N), TABLE)
    np.testing.assert_array_equal(open_data([TABLE]).read(0, N), TABLE)


@pytest.mark.parametrize("save", [save_hdf5, save_npz_with_one_table])
def test_what_was_closed_cannot_be_read(tmp_path, save):
    source = open_data(save(tmp_path))
    source.close()
    with pytest.raises(DataError, match=r"x\.(h5|npz)"):
        source.read(0, 1)


def test_one_thread_at_a_time_is_in_the_hdf5_library(tmp_path):
    class Table:
        inside = threading.Semaphore(1)

        def __getitem__(self, rows):
            assert self.inside.acquire(blocking=False), "two reads at once"
            time.sleep(0.01)
            self.inside.release()
            return TABLE[rows]

    with HDF5Source(*save_hdf5(tmp_path).split(":")) as source, ThreadPoolExecutor(4) as pool:
        source._array._slabs._dataset = Table()
        assert len(list(pool.map(source.read, range(8), range(1, 9)))) == 8


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros(5), [r"\(5,\)", "float64", r"Y\[:, None\]"]),
        (np.zeros((2, 3, 4), "f4"), [r"\(2, 3, 4\)", "float32", r"reshape\(len\(Y\), -1\)"]),
        (np.float64(1.0), [r"\(\)"]),
        (np.zeros((2, 3), complex), ["complex128", "hstack"]),
        (np.array([["a", "b"]]), ["<U1", "astype"]),
        (np.array([[None, 1]]), ["object", "astype"]),
        (np.zeros((2, 3), "M8[s]"), ["datetime64", "astype"]),
        (np.zeros((0, 3)), [r"\(0, 3\)", "at least one row"]),
        (np.zeros((3, 0)), [r"\(3, 0\)", "one column"]),
        (np.ma.masked_invalid([[1.0, np.nan]]), ["masked", "filled"]),
        ([[1.0, 2.0], [3.0, 4.0]], ["list", r"np\.array\(data\)"]),
        ({"Y": TABLE}, ["dict"]),
        (None, ["NoneType"]),
    ],
)
def test_other_forms_are_refused_with_a_remedy(data, words):
    with pytest.raises(DataError) as caught:
        open_data(data)
    for word in words:
        assert caught.match(word)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "folder", "x.png"])
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(DataError, match=name):
        open_data(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5", "x.png", "x.csv"])
@pytest.mark.parametrize("content", [b"", b"1,2,3\n4,5,6\n" * 100])
def test_foreign_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_data(tmp_path / name)


@pytest.mark.parametrize("save", [save_npy, save_npz, save_hdf5])
def test_torn_file_is_named(tmp_path, save):
    path = save(tmp_path)
    file = path.split(":")[0]
    os.truncate(file, os.path.getsize(file) - 1000)
    with pytest.raises(DataError, match=os.path.basename(file)):
        open_data(path)


def test_npy_that_shrinks_while_in_use_is_refused(tmp_path):
    path = save_npy(tmp_path)
    source = open_data(path)
    os.truncate(path, 1000)
    with pytest.raises(DataError, match="shorter"):
        source.read(0, N)


SAVE_NPZ = [np.savez, np.savez_compressed]


@pytest.mark.parametrize("save", SAVE_NPZ)
def test_npz_that_shrinks_while_in_use_is_refused(tmp_path, save):
    large = np.random.default_rng(0).random((20_000, D))  # more than a buffer may have read ahead
    save(tmp_path / "x.npz", Y=large)
    with open_data(tmp_path / "x.npz") as source:
        np.testing.assert_array_equal(source.read(0, 100), large[:100])
        os.truncate(tmp_path / "x.npz", 100_000)
        with pytest.raises(DataError, match=r"x\.npz became shorter"):
            source.read(0, 20_000)
        with pytest.raises(DataError, match=r"x\.npz became shorter"):
            source.read(19_999, 20_000)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_of_an_array_cut_short_is_refused(tmp_path, compression):
    bytes_of = Path(save_npy(tmp_path)).read_bytes()
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
        archive.writestr("Y.npy", bytes_of[:-8])
        archive.writestr("other.npy", bytes_of)
    with pytest.raises(DataError, match=r"x\.npz:Y is cut short"):
        open_data(tmp_path / "x.npz:Y")


def test_damage_in_a_compressed_npz_is_noticed_at_its_end(tmp_path):
    path = save_npz_with_one_table(tmp_path)
    content = bytearray(Path(path).read_bytes())
    content[3000] ^= 1
    Path(path).write_bytes(content)
    with open_data(path) as source, pytest.raises(DataError, match=r"x\.npz"):
        source.read(N - 1, N)


def test_a_pass_over_a_compressed_npz_unpacks_it_once(tmp_path, small_blocks, monkeypatch):
    with open_data(save_npz_with_one_table(tmp_path)) as source:
        sought, seek = [], source._stream.seek
        monkeypatch.setattr(source._stream, "seek", lambda place: sought.append(place) or seek(place))
        shard = Shard(source, 10, 100, "float64", batch=4, memory=0)
        for begun_anew in (0, 1, 2):
            np.testing.assert_array_equal(joined(shard), TABLE[10:100])
            assert sought.count(0) == begun_anew


@pytest.mark.parametrize("save", SAVE_NPZ)
def test_npz_is_never_held_whole(tmp_path, monkeypatch, save):
    """One rank's slab, streamed: what is before it is neither kept nor unpacked in one piece."""
    monkeypatch.setattr("gem.data.shard.BLOCK", 2**19)
    whole = np.arange(2**22, dtype="f4").reshape(-1, 64)  # 16 MB
    save(tmp_path / "x.npz", labels=np.arange(5), Y=whole)
    tracemalloc.start()
    with open_data(tmp_path / "x.npz") as source:
        for first, batch in Shard(source, 2**15, 2**16, "float32", 1024, memory=2**19).batches():
            np.testing.assert_array_equal(batch, whole[first : first + 1024])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole.nbytes / 4


def test_npy_of_objects_is_refused_unread(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[{}, 1]]), allow_pickle=True)
    with pytest.raises(DataError, match="object"):
        open_data(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", a=np.array([[{}, 1]]))
    with pytest.raises(DataError, match="object"):
        open_data(tmp_path / "x.npz:a")


def test_npy_takes_no_dataset(tmp_path):
    with pytest.raises(DataError, match="one array without a name"):
        open_data(save_npy(tmp_path) + ":Y")


@pytest.mark.parametrize(("save", "separator"), [(save_npz, ""), (save_hdf5, "/")])
def test_datasets_to_choose_from_are_listed(tmp_path, save, separator):
    file = save(tmp_path).rsplit(":", 1)[0]
    tables = ["Y", "other"] if save is save_npz else ["/deep/Y", "/other"]
    for asked in (file, f"{file}:{separator}missing", f"{file}:{separator}deep"):
        with pytest.raises(DataError) as caught:
            open_data(asked)
        for table in tables:
            assert f"{file}:{table} ({N}, {D})" in str(caught.value)
        assert "labels" not in str(caught.value)


def test_hdf5_dataset_of_wrong_shape_is_refused(tmp_path):
    path = save_hdf5_with_one_table(tmp_path)
    for name, found in [("/labels", r"\(103,\)"), ("/words", r"\|S1"), ("/nothing", r"has shape \(\)")]:
        with pytest.raises(DataError, match=found):
            open_data(f"{path}:{name}")


def test_options_of_images_only(tmp_path):
    png = save_image(tmp_path / "x.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    for data in (TABLE, ArraySource(TABLE), save_npy(tmp_path), [save_npy(tmp_path)]):
        with pytest.raises(ConfigError, match="patch"):
            open_data(data, patch=8)
    with pytest.raises(ConfigError, match=r"unknown data option size.*patch, count, whitening, onoff, seed"):
        open_data(png, size=8)
    for option, value in [
        ("patch", 1),
        ("patch", 8.0),
        ("count", 0),
        ("count", True),
        ("seed", -1),
        ("whitening", "no"),
    ]:
        with pytest.raises(ConfigError, match=f"{option} = {value!r}"):
            open_data(png, **{option: value})


def test_data_in_memory_has_no_spec():
    assert open_data(TABLE).spec is None
    with pytest.raises(ConfigError, match="in memory"):
        from_spec(None)


def test_missing_libraries_name_the_command(tmp_path, monkeypatch):
    png = save_image(tmp_path / "x.png", np.zeros((8, 8), np.uint8))
    hdf5 = save_hdf5(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r'pip install "pillow>=9"'):
        open_data(png)
    with pytest.raises(ConfigError, match=r'pip install "h5py>=3\.8"'):
        open_data(hdf5)


# ------------------------------------------------------------------------------------------------ shards


def joined(shard: Shard) -> np.ndarray:
    """All batches of a shard put together, having checked that each is what batches() promises."""
    parts, expected = [], shard.start
    for first, batch in shard.batches():
        assert first == expected
        assert batch.flags.c_contiguous
        assert batch.dtype == shard.dtype
        assert 0 < len(batch) <= shard.batch
        parts.append(batch.copy())
        expected += len(batch)
    assert expected == shard.stop
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", ["float32", np.float64])
@pytest.mark.parametrize("memory", [0, 2**20])
@pytest.mark.parametrize(("start", "stop"), [(0, N), (10, 61), (N - 1, N)])
def test_batches_are_the_slab_in_order(path, small_blocks, dtype, memory, start, stop):
    with open_data(path) as source:
        shard = Shard(source, start, stop, dtype, batch=8, memory=memory)
        assert shard.resident == (memory > 0)
        assert (stop - start, D) == (shard.N, shard.D)
        for _ in range(2):  # every pass is the same
            np.testing.assert_array_equal(joined(shard), TABLE[start:stop].astype(dtype))
        assert len(list(shard.batches())) == -(-(stop - start) // 8)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, ">i2"])
@pytest.mark.parametrize("memory", [0, 2**20])
def test_other_numbers_become_floats(small_blocks, dtype, memory):
    Y = (np.random.default_rng(1).random((N, D)) * 100).astype(dtype)
    floats = joined(Shard(open_data(Y), 0, N, "float32", 8, memory))
    np.testing.assert_array_equal(floats, Y.astype(np.float32))


def test_resident_means_that_the_floats_fit():
    source = ArraySource(np.zeros((10, 4), np.uint8))
    assert Shard(source, 0, 10, "float32", 5, memory=160).resident
    assert not Shard(source, 0, 10, "float32", 5, memory=159).resident
    assert Shard(source, 0, 5, "float64", 5, memory=160).resident


@pytest.mark.parametrize("memory", [0, 2**20])
def test_matching_array_is_not_copied(memory):
    for _, batch in Shard(open_data(TABLE), 5, N, "float64", 10, memory).batches():
        assert np.shares_memory(batch, TABLE)
    by_column = np.asfortranarray(TABLE)
    np.testing.assert_array_equal(joined(Shard(open_data(by_column), 0, N, "float64", 10, memory)), TABLE)


def test_resident_batches_are_views():
    shard = Shard(ArraySource(TABLE.astype(np.float32)[::2]), 0, 50, "float32", 8)
    first, again = (next(iter(shard.batches()))[1] for _ in range(2))
    assert np.shares_memory(first, again)


@pytest.mark.parametrize("memory", [0, 2**20])
def test_empty_slab_has_no_batches(memory):
    shard = Shard(ArraySource(TABLE), 7, 7, "float32", 8, memory)
    assert list(shard.batches()) == []
    assert shard.rows(np.array([6, 7])).shape == (0, D)


class Watched(Source):
    """A table that notes each read."""

    def __init__(self) -> None:
        super().__init__(TABLE.shape, TABLE.dtype, "watched")
        self.reads: list[tuple[int, int]] = []
        self.began = threading.Semaphore(0)
        self.first_in_use = threading.Event()
        self.first_in_use.set()
        self.broken_from = N

    def read(self, start: int, stop: int) -> np.ndarray:
        self.reads.append((int(start), int(stop)))
        self.began.release()
        if start > 0 and not self.first_in_use.wait(5):
            raise TimeoutError("the first block is not handed out while the second is being read")
        if stop > self.broken_from:
            raise OSError("the disk is gone")
        return TABLE[start:stop]


def test_streaming_reads_blocks_one_ahead(small_blocks):
    source = Watched()
    source.first_in_use.clear()
    batches = Shard(source, 0, N, "float64", 4, memory=0).batches()
    next(batches)  # 1000 bytes hold 17 rows of 56 bytes: 4 batches of 4
    assert source.began.acquire(timeout=5)
    assert source.began.acquire(timeout=5), "the next block is not read while this one is in use"
    assert not source.began.acquire(timeout=0.1), "more than one block is read ahead"
    assert source.reads == [(0, 16), (16, 32)]
    source.first_in_use.set()
    assert sum(len(batch) for _, batch in batches) == N - 4
    assert source.reads == [(start, min(start + 16, N)) for start in range(0, N, 16)]


def test_abandoned_stream_ends_its_thread(small_blocks):
    before = threading.active_count()
    source = Watched()
    batches = Shard(source, 0, N, "float64", 4, memory=0).batches()
    next(batches)
    batches.close()
    assert threading.active_count() == before
    assert len(source.reads) == 2


def test_error_while_reading_ahead_reaches_the_caller(small_blocks):
    source = Watched()
    source.broken_from = 40
    batches = Shard(source, 0, N, "float64", 4, memory=0).batches()
    assert [next(batches)[0] for _ in range(8)] == list(range(0, 32, 4))  # all that was read before
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert source.reads[-1] == (32, 48)


@pytest.mark.parametrize("memory", [0, 2**20])
def test_rows_of_the_slab(path, memory):
    wanted = np.array([0, 9, 10, 10, 11, 12, 30, 60, 61, 62, N - 1])
    with open_data(path) as source:
        shard = Shard(source, 10, 61, "float32", 8, memory)
        rows = shard.rows(wanted)
        assert rows.flags.c_contiguous
        np.testing.assert_array_equal(rows, TABLE[[10, 10, 11, 12, 30, 60]].astype(np.float32))
        assert shard.rows(np.array([], dtype=int)).shape == (0, D)
        assert shard.rows(np.array([1, 99])).shape == (0, D)


def test_rows_reads_no_other_rows():
    source = Watched()
    Shard(source, 0, N, "float32", 8, memory=0).rows(np.array([3, 3, 4, 5, 50, 102]))
    assert source.reads == [(3, 6), (50, 51), (102, 103)]


def test_rows_must_ascend():
    with pytest.raises(ConfigError, match="ascend"):
        Shard(ArraySource(TABLE), 0, N, "float32", 8).rows(np.array([3, 2]))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"start": -1}, "-1"),
        ({"stop": N + 1}, "104"),
        ({"start": 9, "stop": 8}, "9, 8"),
        ({"dtype": "float16"}, "float16"),
        ({"dtype": int}, "int"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"batch": 0}, "batch"),
        ({"batch": 2.5}, "batch"),
    ],
)
def test_impossible_shards_are_refused(change, word):
    arguments = {"start": 0, "stop": N, "dtype": "float32", "batch": 8} | change
    with pytest.raises(ConfigError, match=word):
        Shard(ArraySource(TABLE), **arguments)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("kind", ["npy", "npy_by_column", "h5"])
def test_memory_does_not_grow_with_the_file(tmp_path, kind):
    shape = (2**20, 64)  # 256 MB in float32, as holes in the file
    if kind == "h5":
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("Y", shape, "f4", fillvalue=1)[-1] = 1  # contiguous: written out whole
    else:
        by_column = kind == "npy_by_column"
        np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "f4", shape, fortran_order=by_column)

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with open_data(tmp_path / ("x.h5" if kind == "h5" else "x.npy")) as source:
        shard = Shard(source, 0, shape[0], "float32", 4096, memory=2**20)
        before = resident_bytes()
        peak = max(resident_bytes() for _ in shard.batches())
    assert peak - before < 100 * 2**20


def test_check_finite_names_the_first_bad_value():
    Y = TABLE.copy()
    check_finite(Y)
    check_finite(np.ones((2, 2), int))
    Y[40, 3], Y[40, 5], Y[90, 0] = -np.inf, np.nan, np.nan
    with pytest.raises(DataError, match=r"photos: -inf at row 1040, column 3, the first of 3 .*isfinite"):
        check_finite(Y, first_row=1000, name="photos")


# ------------------------------------------------------------------------------------------------ images


@pytest.fixture
def photographs():
    return Path(str(files("sklearn.datasets"))) / "images"


def test_grey_values_of_every_depth(tmp_path):
    ramp = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
    stored = {
        "grey.png": ramp,
        "rgb.png": np.stack([ramp] * 3, axis=2),
        "deep.png": ramp.astype(np.uint16) * 257,
        "deep.tif": ramp.astype(np.uint16) * 257,
        "float.tif": (ramp / 255).astype(np.float32),
    }
    for name, values in stored.items():
        grey = load_grey(save_image(tmp_path / name, values))
        assert grey.dtype == np.float64
        np.testing.assert_allclose(grey, ramp / 255, rtol=1e-6, err_msg=name)


def test_images_are_turned_upright(tmp_path):
    ramp = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise
    turned = load_grey(save_image(tmp_path / "x.png", ramp, exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(ramp, -1) / 255)


@pytest.mark.parametrize("value", [-1.0, 2.0, np.nan])
def test_grey_values_of_unknown_range_are_refused(tmp_path, value):
    path = save_image(tmp_path / "x.tif", np.full((4, 4), value, np.float32))
    with pytest.raises(DataError, match=r"x\.tif.*8- or 16-bit"):
        load_grey(path)


def test_torn_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    path = save_image(tmp_path / "torn.png", noise)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"torn\.png"):
        load_grey(path)


def test_images_are_found_once_and_sorted(tmp_path):
    for name in ("b.png", "deep/a.JPG", "deep/notes.txt", "deep/._a.jpg", "raw.dat"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path, tmp_path / "b.png", str(tmp_path / "raw.dat")])
    assert found == [tmp_path / "b.png", tmp_path / "deep/a.JPG", tmp_path / "raw.dat"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no image in .*empty.*\.png"):
        find_images([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"gone\.png does not exist"):
        find_images([tmp_path, tmp_path / "gone.png"])


def test_patches_are_cut_from_the_images(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 2**16, size).astype(np.uint16) for size in [(9, 14), (6, 5), (20, 7)]]
    paths = [save_image(tmp_path / f"{i}.png", image) for i, image in enumerate(images)]
    possible = {
        tuple((image[r : r + 5, c : c + 5] / 65535).ravel())
        for image in images
        for r in range(image.shape[0] - 4)
        for c in range(image.shape[1] - 4)
    }
    patches = Patches(paths, 5, 2000, seed=3).read(0, 2000)
    assert patches.shape == (2000, 25)
    assert {tuple(patch) for patch in patches} == possible  # 98 places, each drawn about 20 times
    np.testing.assert_array_equal(patches, np.concatenate(list(Patches(paths, 5, 2000, seed=3).blocks(300))))
    assert not np.array_equal(patches, Patches(paths, 5, 2000, seed=4).read(0, 2000))


def test_every_position_is_equally_likely(tmp_path):
    small = save_image(tmp_path / "a.png", np.zeros((10, 10), np.uint8))
    large = save_image(tmp_path / "b.png", np.full((20, 30), 255, np.uint8))
    bright = Patches([small, large], 8, 20_000, seed=0).read(0, 20_000).mean()
    share = (13 * 23) / (13 * 23 + 3 * 3)
    assert abs(bright - share) < 4 * np.sqrt(share * (1 - share) / 20_000)


def test_image_smaller_than_the_patch_is_refused_by_name(tmp_path):
    fits = save_image(tmp_path / "fits.png", np.zeros((8, 8), np.uint8))
    small = save_image(tmp_path / "small.png", np.zeros((7, 20), np.uint8))
    assert Patches([fits], 8, 3, seed=0).read(0, 3).shape == (3, 64)
    with pytest.raises(DataError, match=r"small\.png has 20 x 7 pixels"):
        Patches([fits, small], 8, 3, seed=0)


def test_a_slab_decodes_its_own_images_alone(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    paths = [save_image(tmp_path / f"{i}.png", rng.integers(0, 255, (20, 20)).astype(np.uint8)) for i in range(5)]
    decoded = []

    def counting(path):
        decoded.append(paths.index(path))
        return load_grey(path)

    monkeypatch.setattr("gem.images.load_grey", counting)
    with open_data(tmp_path, patch=4, count=1000, seed=1) as source:
        assert decoded == [0, 1, 2, 3, 4]  # once each, to learn the whitening
        decoded.clear()
        slabs = [source.read(start, start + 250) for start in range(0, 1000, 250)]
        assert decoded == [0, 1, 2, 3, 4]
        decoded.clear()
        whole = source.read(0, 1000)
        assert decoded == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(np.concatenate(slabs), whole, rtol=1e-6, atol=1e-6)


def test_patches_are_not_kept(photographs):
    tracemalloc.start()
    try:
        with open_data(photographs, patch=16, count=200_000) as source:  # 205 MB
            rows = source.read(100_000, 102_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.shape == (2000, 256)
    assert peak < 60e6


def correlated(n: int = 3000, d: int = 20) -> np.ndarray:
    rng = np.random.default_rng(5)
    return 3 + rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.geomspace(1, 1e-3, d)


def whiten(X, variance=0.95, rows=700):
    """Learned block by block."""
    whitening = learn_whitening((X[i : i + rows] for i in range(0, len(X), rows)), variance)
    return whitening.apply(X), whitening


def test_whitening_equals_its_definition():
    X = correlated()
    Y, whitening = whiten(X, variance=0.9)
    centred = X - X.mean(axis=1, keepdims=True)
    centred -= centred.mean(axis=0)
    U, singular, Vt = np.linalg.svd(centred, full_matrices=False)  # another way to the principal components
    share = np.cumsum(singular**2) / np.sum(singular**2)
    k = next(i for i in range(20) if share[i] >= 0.9) + 1
    assert 1 < k < 19
    np.testing.assert_allclose(Y, np.sqrt(len(X) * 20 / k) * U[:, :k] @ Vt[:k], atol=1e-9)
    np.testing.assert_allclose(Y.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(Y.var(axis=0).mean(), 1)
    np.testing.assert_allclose(Y, (X - X.mean(axis=1, keepdims=True) - whitening.mean) @ whitening.forward)
    np.testing.assert_allclose(Y @ whitening.inverse, centred @ Vt[:k].T @ Vt[:k], atol=1e-9)


def test_whitening_never_divides_by_next_to_nothing():
    X = correlated(n=10)  # fewer patches than pixels: half of the eigenvalues are rounding
    for variance in (0.5, 0.99, 1 - 1e-9):
        Y, _ = whiten(X, variance)
        covariance = Y.T @ Y / np.trace(Y.T @ Y)
        k = round(1 / np.sum(covariance**2))  # white over k directions: every eigenvalue is 1 / k or 0
        assert 1 <= k < 10
        np.testing.assert_allclose(covariance @ covariance, covariance / k, atol=1e-9)


def test_whitening_keeps_its_argument_and_refuses_nonsense():
    X = correlated(n=50)
    before = X.copy()
    whiten(X)
    np.testing.assert_array_equal(X, before)
    flat = np.random.default_rng(0).random((50, 1)) * np.ones(16)
    for alike in (flat, flat + np.sin(np.arange(16)), np.zeros((5, 16))):
        with pytest.raises(DataError, match="nothing to whiten"):
            whiten(alike)
    for variance in (0, 1, np.nan):
        with pytest.raises(ConfigError, match="variance"):
            whiten(X, variance)


def test_photographs_end_to_end(photographs):
    with open_data(photographs, patch=12, count=3000, seed=7) as source:
        assert isinstance(source, ImageSource)
        assert source.shape == (3000, 144)
        assert source.dtype == np.float32
        Y = source.read(0, 3000)
        check_finite(Y)
        assert abs(Y.std() - 1) < 1e-3
        spectrum = np.linalg.eigvalsh(np.cov(Y.T))
        kept = spectrum > spectrum.max() / 2
        np.testing.assert_allclose(spectrum[kept], 144 / kept.sum(), rtol=1e-3)  # white ...
        np.testing.assert_allclose(spectrum[~kept], 0, atol=1e-3)  # ... or cut
        raw = open_data(
            [photographs / "china.jpg", photographs / "flower.jpg"], patch=12, count=3000, seed=7, whitening=False
        )
        X = raw.read(0, 3000)
        assert raw.whitening is None
        assert X.min() >= 0
        assert 0.5 < X.max() <= 1
        assert source.whitening is not None
        again = (X - X.mean(axis=1, keepdims=True) - source.whitening.mean) @ source.whitening.forward
        np.testing.assert_allclose(again, Y, atol=1e-3)
        np.testing.assert_array_equal(from_spec(json.loads(json.dumps(source.spec))).read(0, 3000), Y)
        assert [Path(file).name for file in source.spec["data"]] == ["china.jpg", "flower.jpg"]


def test_spec_of_one_image(photographs, monkeypatch):
    monkeypatch.chdir(photographs)
    source = open_data(["china.jpg"], count=100, patch=8)
    assert source.spec == {
        "data": [str(photographs / "china.jpg")],
        "patch": 8,
        "count": 100,
        "whitening": True,
        "seed": 0,
    }
    np.testing.assert_array_equal(from_spec(source.spec).read(0, 100), source.read(0, 100))


def test_on_and_off_channels(photographs):
    options = {"patch": 8, "count": 100, "seed": 3}
    with (
        open_data(photographs / "china.jpg", **options) as plain,
        open_data(photographs / "china.jpg", onoff=True, **options) as split,
        from_spec(split.spec) as again,
    ):
        on, off = np.split(split.read(0, 100), 2, axis=1)
        np.testing.assert_array_equal(on - off, plain.read(0, 100))
        assert min(on.min(), off.min()) == 0
        assert not np.any((on > 0) & (off > 0))
        np.testing.assert_array_equal(again.read(0, 100), split.read(0, 100))
