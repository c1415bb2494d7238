"""The run file: whole at any moment, continued as if never stopped, and legible to any HDF5 reader."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from gem.errors import ConfigError, RunFileError
from gem.store import RunFile, load_params, read_run

pytestmark = pytest.mark.serial  # files and slabs: ranks change nothing here

ABOUT = {"model": "BSC", "config": {"D": 5, "H": 3}, "machine": {"host": "here"}, "seed": 7}


def params_at(step: int) -> dict[str, np.ndarray]:
    return {"W": np.full((5, 3), step) + np.arange(3) / 7, "pi": np.array(1 / (step + 2))}


def create(path: Path, every: int = 10, **options) -> RunFile:
    return RunFile.create(path, **ABOUT, params=params_at(0), every=every, **options)


def record(run: RunFile, last: int) -> RunFile:
    for step in range(run.step + 1, last + 1):
        notes = [f"component {step} re-seeded"] if step % 3 == 0 else []
        run.record(step, params_at(step), {"free_energy": -1 / step, "N_use": 100 - step}, notes)
    return run


def assert_holds(path: Path, steps: int) -> None:
    """The file holds exactly the rows of `steps` steps of `record`."""
    run = read_run(path)
    t = np.arange(1, steps + 1)
    assert run.step == steps
    for name in ("W", "pi"):
        expected = np.stack([params_at(step)[name] for step in range(steps + 1)])
        np.testing.assert_array_equal(load_params(path, name), expected)
        np.testing.assert_array_equal(run.params[name], expected[-1])
    np.testing.assert_array_equal(run.history["free_energy"] if steps else [], -1 / t)
    np.testing.assert_array_equal(run.history["N_use"] if steps else [], 100 - t)
    assert run.notes == [[f"component {step} re-seeded"] if step % 3 == 0 else [] for step in t]


def contents(path: Path) -> dict[str, bytes]:
    """The raw values of every dataset."""
    found = {}
    with h5py.File(path) as file:
        for group in ("params", "history"):
            for name, data in file[group].items():
                found[name] = b"\n".join(data[:]) if name == "notes" else data[:].tobytes()
    return found


def temporaries(folder: Path) -> list[Path]:
    """Checkpoints that are being made, without the spares that wait for the next one."""
    return [file for file in folder.glob(".*.tmp") if not re.search(r"\.[0-9a-f]{8}\.\d+\.tmp$", file.name)]


def spares(folder: Path) -> list[Path]:
    return sorted(set(folder.glob(".*.tmp")) - set(temporaries(folder)))


# What it holds


def test_round_trip(tmp_path):
    path = tmp_path / "run.h5"
    run = record(create(path, every=4), 10)
    assert (run.step, run.checkpointed) == (10, 8)
    assert_holds(path, 8)
    assert not read_run(path).finished
    run.finish()
    assert_holds(path, 10)
    found = read_run(path)
    assert (found.finished, found.model, found.seed) == (True, "BSC", 7)
    assert (found.config, found.machine) == (ABOUT["config"], ABOUT["machine"])
    assert found.params["pi"].shape == ()
    assert [path] == list(tmp_path.iterdir())


def test_layout_is_as_documented_for_any_hdf5_reader(tmp_path):
    record(create(tmp_path / "run.h5"), 3).finish()
    with h5py.File(tmp_path / "run.h5") as file:
        attributes = dict(file.attrs)
        assert attributes.pop("created").endswith("+00:00")
        assert json.loads(attributes.pop("machine")) == ABOUT["machine"]
        assert json.loads(attributes.pop("config")) == ABOUT["config"]
        assert attributes.pop("gem_version")
        assert len(attributes.pop("writer")) == 32
        expected = {"format": "gem-run", "format_version": 1, "model": "BSC", "seed": 7}
        ended = {"finished": True, "reason": "steps used up"}
        assert attributes == expected | {"checkpoint": 3, "job": "", "rank": 0} | ended
        shapes = {name: (data.shape, data.dtype) for name, data in file["params"].items()}
        assert shapes == {"W": ((4, 5, 3), np.float64), "pi": ((4,), np.float64)}
        assert file["history/free_energy"].shape == (3,)
        assert [json.loads(row) for row in file["history/notes"]] == [[], [], ["component 3 re-seeded"]]


def test_diagnostics_may_come_and_go(tmp_path):
    run = create(tmp_path / "run.h5", every=2)
    for step, diagnostics in enumerate([{"a": 1}, {"a": 2}, {"b": np.float32(3)}, {}, {"a": 5}], start=1):
        run.record(step, params_at(step), diagnostics)
    run.checkpoint()
    history = read_run(run.path).history
    np.testing.assert_array_equal(history["a"], [1, 2, np.nan, np.nan, 5])
    np.testing.assert_array_equal(history["b"], [np.nan, np.nan, 3, np.nan, np.nan])


def test_large_rows_and_long_attributes(tmp_path):
    config = {"values": list(range(30_000))}  # HDF5 keeps attributes below 64 KiB unless they are stored apart
    W = np.random.default_rng(0).normal(size=(300, 200))
    run = RunFile.create(tmp_path / "r", **ABOUT | {"config": config}, params={"W": W})
    run.record(1, {"W": W.astype(np.float32)}, {})
    run.finish()
    assert read_run(tmp_path / "r").config == config
    np.testing.assert_array_equal(load_params(tmp_path / "r", "W"), [W, W.astype(np.float32)])


def test_recorded_arrays_are_copies(tmp_path):
    W = np.zeros((2, 2))
    run = RunFile.create(tmp_path / "run.h5", **ABOUT, params={"W": W})
    run.record(1, {"W": W}, {})
    W += 1
    run.checkpoint()
    assert not load_params(run.path, "W").any()


# Continuing


@pytest.mark.parametrize("stop", [0, 4, 7])
def test_continued_run_holds_the_same_bytes_as_one_in_a_piece(tmp_path, stop):
    record(create(tmp_path / "whole.h5", every=4), 11).finish()
    record(create(tmp_path / "parts.h5", every=4), stop)
    run = RunFile.open(tmp_path / "parts.h5", every=3)
    assert run.step == run.checkpointed == stop // 4 * 4
    record(run, 11).finish()
    assert contents(tmp_path / "parts.h5") == contents(tmp_path / "whole.h5")


def test_recording_after_the_end_takes_the_mark_away(tmp_path):
    record(create(tmp_path / "run.h5"), 2).finish()
    run = RunFile.open(tmp_path / "run.h5", every=1)
    assert run.finished
    assert read_run(run.path).finished
    record(run, 3)
    assert not read_run(run.path).finished


@pytest.mark.parametrize("stored", [False, True])
def test_the_last_step_may_tell_something_else(tmp_path, stored):
    """Whether it is on the disk or in memory; also something that no step told before."""
    run = create(tmp_path / "run.h5")
    for step in (1, 2):
        run.record(step, params_at(step), {"a": step}, ["old"])
    if stored:
        run.checkpoint()
    run.amend({"a": 7, "b": 8}, ["new"])
    run.finish("ended by finish()")
    found = read_run(run.path)
    assert (found.step, found.finished, found.reason, found.notes) == (2, True, "ended by finish()", [["old"], ["new"]])
    np.testing.assert_array_equal(found.history["a"], [1, 7])
    np.testing.assert_array_equal(found.history["b"], [np.nan, 8])
    np.testing.assert_array_equal(found.params["W"], params_at(2)["W"])


def test_a_file_of_before_there_were_reasons_has_done_all_steps(tmp_path):
    for finished, reason in ((True, "steps used up"), (False, None)):
        run = record(create(tmp_path / f"{finished}.h5"), 2)
        run.finish() if finished else run.checkpoint()
        with h5py.File(run.path, "r+") as file:
            del file.attrs["reason"]
        assert read_run(run.path).reason == reason


def test_existing_file_is_kept_unless_told_otherwise(tmp_path):
    path = tmp_path / "run.h5"
    record(create(path, every=1), 2)
    with pytest.raises(RunFileError, match=r"gem resume.*--overwrite"):
        create(path)
    assert_holds(path, 2)
    create(path, overwrite=True)
    assert_holds(path, 0)


def test_link_and_permissions_survive_a_checkpoint(tmp_path):
    create(tmp_path / "run.h5")
    (tmp_path / "run.h5").chmod(0o640)
    (tmp_path / "link.h5").symlink_to("run.h5")
    record(RunFile.open(tmp_path / "link.h5", every=1), 2)
    assert (tmp_path / "link.h5").is_symlink()
    assert_holds(tmp_path / "run.h5", 2)
    assert (tmp_path / "run.h5").stat().st_mode & 0o777 == 0o640


def test_steps_names_and_shapes_are_checked(tmp_path):
    run = record(create(tmp_path / "run.h5"), 2)
    for step in (2, 4):
        with pytest.raises(RunFileError, match=f"step {step} cannot follow step 2"):
            run.record(step, params_at(step), {})
    for params in (
        {"W": params_at(3)["W"]},
        params_at(3) | {"W": np.ones((5, 4))},
        params_at(3) | {"mu": 1.0},
    ):
        with pytest.raises(RunFileError, match="the run began with"):
            run.record(3, params, {})
    for name in ("notes", "a/b", ""):
        with pytest.raises(ConfigError, match="can't name"):
            run.record(3, params_at(3), {name: 1.0})
    with pytest.raises(ConfigError, match="can't name"):
        RunFile.create(tmp_path / "other.h5", **ABOUT, params={"a/b": 1.0})
    with pytest.raises(ConfigError, match="every = 0"):
        create(tmp_path / "other.h5", every=0)
    record(run, 3).checkpoint()
    assert_holds(run.path, 3)


def test_second_writer_is_refused(tmp_path):
    ours = record(create(tmp_path / "run.h5"), 2)
    record(RunFile.open(tmp_path / "run.h5", every=1), 3)
    with pytest.raises(RunFileError, match="another process"):
        ours.checkpoint()
    assert_holds(tmp_path / "run.h5", 3)


# Killed


def test_a_run_that_was_taken_up_elsewhere_is_left_alone(tmp_path):
    run = record(create(tmp_path / "run.h5"), 3)
    other = RunFile.open(tmp_path / "run.h5")  # at the very same step
    with pytest.raises(RunFileError, match="another process writes it too"):
        run.checkpoint()
    record(other, 10)
    assert_holds(tmp_path / "run.h5", 10)


def test_of_two_that_begin_a_run_one_is_refused(tmp_path, monkeypatch):
    first = []

    def late(*names):  # between the look whether it exists and the moment it gets its name
        if not first:
            first.append(None)
            (tmp_path / "run.h5").write_bytes(b"another's")
        return link(*names)

    link = os.link
    monkeypatch.setattr(os, "link", late)
    with pytest.raises(RunFileError, match="another process has begun it"):
        create(tmp_path / "run.h5")
    assert (tmp_path / "run.h5").read_bytes() == b"another's"


def test_processes_of_one_launch_do_not_share_a_file_unknowingly(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    create(path)
    create(path, overwrite=True)  # the same process may
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    for overwrite in (False, True):
        with pytest.raises(RunFileError, match=r'begun by process 0 of those that mpiexec started.*comm="world"'):
            create(path, overwrite=overwrite)
    create(tmp_path / "another.h5")


def test_a_checkpoint_is_due_by_time_too(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gem.store.time.monotonic", lambda: now[0])
    run = create(tmp_path / "run.h5", every=1000, seconds=60.0)
    for step in range(1, 6):
        now[0] += 25
        record(run, step)
    assert run.checkpointed == 3  # 75 s after the beginning; the next is due 60 s later
    now[0] += 25
    assert record(run, 6).checkpointed == 6
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="seconds"):
            create(tmp_path / "b.h5", seconds=wrong)


def record_until_killed(path: Path, seconds: float) -> None:
    child = os.fork()
    if child == 0:
        try:
            record(RunFile.open(path, every=1) if path.exists() else create(path, every=1), 10**9)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child failed before it was killed"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child uses none of BLAS's threads
def test_killed_at_any_moment_the_file_is_whole(tmp_path):
    path, rng = tmp_path / "run.h5", random.Random(0)
    reached = torn = 0
    for kill in range(1, 200):
        record_until_killed(path, rng.uniform(0, 0.003 * kill))
        torn += len(temporaries(tmp_path))
        if path.exists():
            before, reached = reached, RunFile.open(path).step
            assert reached >= before
            assert_holds(path, reached)
            assert temporaries(tmp_path) == []
        if kill >= 20 and reached and torn:  # even where the disk is slow, some kills fell into checkpoints
            return
    pytest.fail(f"{torn} kills fell into a checkpoint and {reached} steps were stored: this shows nothing")


def test_only_our_own_temporaries_are_removed(tmp_path):
    create(tmp_path / "run[1].h5")
    alive = f".run[1].h5.{os.getppid()}.tmp"  # of a process that begins this file just now
    (tmp_path / alive).write_bytes(b"half a checkpoint")
    for name in (".run[1].h5.4194305.tmp", ".run1.h5.4194305.tmp", ".run[1].h5.tmp"):
        (tmp_path / name).write_bytes(b"half a checkpoint")
    RunFile.open(tmp_path / "run[1].h5")
    assert {file.name for file in temporaries(tmp_path)} == {".run1.h5.4194305.tmp", ".run[1].h5.tmp", alive}


# No space


def python(program: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths},
        text=True,
        capture_output=True,
        check=False,
    )


def limit_file_size(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


FULL_DISK = """
    import sys
    from pathlib import Path
    from test_store import *
    path = Path(sys.argv[1])
    for limit in range(0, 4096, 512):
        limit_file_size(limit)
        try:
            create(path)
        except RunFileError as error:
            assert "has no space" in str(error) and "Nothing was written" in str(error), error
        assert list(path.parent.iterdir()) == []
    limit_file_size(resource.RLIM_INFINITY)
    run = record(create(path, every=1), 2)
    run._every = 10**9
    record(run, 600)  # more than a chunk of scalars, so that HDF5 writes both before and while it closes
    failures, limit = 0, 0
    while run.checkpointed == 2:
        limit_file_size(limit)
        try:
            run.checkpoint()
        except RunFileError as error:
            failures, limit = failures + 1, limit + 2500
            message = str(error)
            assert "MiB free" in message and "up to 2" in message and "gem resume" in message, error
            assert list(path.parent.iterdir()) == [path]
            assert read_run(path).step == 2
    assert run.step == run.checkpointed == 600
    limit_file_size(resource.RLIM_INFINITY)
    print(failures)
"""


def test_full_disk_at_any_byte(tmp_path):
    """The kernel refuses to let files grow past a limit, which rises until the checkpoint fits."""
    done = python(FULL_DISK, tmp_path / "run.h5")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nor does HDF5 complain at exit
    assert int(done.stdout) > 20
    assert_holds(tmp_path / "run.h5", 600)


DISK_ERRORS = """
    import sys
    from test_store import *
    from gem.replacing import Disk
    limit_file_size(100)
    for use in (lambda disk: disk.write(bytes(200)), lambda disk: disk.truncate(200)):
        try:
            with Disk(sys.argv[1], "w+") as disk:
                print(use(disk))
        except OSError as error:
            print(error.errno == errno.EFBIG)
"""


def test_disk_errors_wait_until_hdf5_has_closed(tmp_path):
    done = python(DISK_ERRORS, tmp_path / "file")
    assert (done.stdout, done.stderr) == ("200\nTrue\n200\nTrue\n", "")


@pytest.mark.parametrize("function", ["shutil.copy", "os.fsync", "os.replace"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"every step up to 10.*gem resume"),
        (OSError(errno.EIO, "Input/output error"), r"cannot be written \(Input/output error"),
    ],
)
def test_failed_checkpoint_can_be_repeated(tmp_path, monkeypatch, function, error, words):
    def fail(*_):
        raise error

    run = record(create(tmp_path / "run.h5"), 13)
    run.release()  # or nothing would be copied
    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(RunFileError, match=words):
            run.checkpoint()
    assert_holds(run.path, 10)
    assert temporaries(tmp_path) == []
    assert (run.step, run.checkpointed) == (13, 10)
    record(run, 17)
    with monkeypatch.context() as patch:
        patch.setattr(function, fail)
        with pytest.raises(RunFileError, match=words):
            run.finish()
    assert not run.finished
    run.finish()
    assert read_run(run.path).finished
    assert_holds(run.path, 17)


def test_interrupt_waits_for_the_checkpoint(tmp_path, monkeypatch):
    def interrupt_twice(_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    run = record(create(tmp_path / "run.h5"), 3)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", interrupt_twice)
            with pytest.raises(KeyboardInterrupt):
                run.checkpoint()
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.checkpointed == 3
    record(run, 5).checkpoint()
    assert_holds(run.path, 5)


def test_full_disk_shows_at_once_and_names_the_space_needed(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    W = np.zeros((1024, 256))  # 2 MiB a row
    run = RunFile.create(tmp_path / "run.h5", **ABOUT, params={"W": W})
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(RunFileError, match=r"needs about 2\.0 MiB free.*Nothing was written"):
        RunFile.create(tmp_path / "other.h5", **ABOUT, params={"W": W})
    with pytest.raises(RunFileError, match=r"needs about 2\.0 MiB free.*up to 0"):
        RunFile.open(tmp_path / "run.h5")
    run.record(1, {"W": W}, {})
    with pytest.raises(RunFileError, match=r"needs about 4\.0 MiB free.*up to 0"):
        run.checkpoint()


def test_file_then_name_then_folder_go_to_the_disk(tmp_path, monkeypatch):
    run, calls = record(create(tmp_path / "run.h5"), 3), []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def seen_replace(old, new):
        calls.append("name")
        replace(old, new)

    monkeypatch.setattr("os.fsync", seen_fsync)
    monkeypatch.setattr("os.replace", seen_replace)
    run.checkpoint()
    assert calls == ["file", "name", "folder"]


def test_create_in_a_missing_folder_says_so_at_once(tmp_path):
    with pytest.raises(RunFileError, match=r"nowhere.*No such file.*Nothing was written"):
        create(tmp_path / "nowhere" / "run.h5")


# Not a run file


def stored(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    record(create(path, every=5), 5)
    return path


def test_missing_file(tmp_path):
    with pytest.raises(RunFileError, match=r"run\.h5 cannot be read \(No such file"):
        read_run(tmp_path / "run.h5")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"D,H\n5,3\n"])
def test_foreign_file(tmp_path, content):
    (tmp_path / "run.h5").write_bytes(content)
    with pytest.raises(RunFileError, match="no HDF5 file"):
        read_run(tmp_path / "run.h5")


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_torn_file(tmp_path, part):
    path = stored(tmp_path)
    os.truncate(path, int(part * path.stat().st_size))
    for use in (read_run, RunFile.open, lambda path: load_params(path, "W")):
        with pytest.raises(RunFileError, match=r"torn or damaged.*copy it again"):
            use(path)


@pytest.mark.parametrize("part", ["rows", "structure"])
@pytest.mark.parametrize("name", ["params/W", "params/pi", "history/free_energy"])
def test_one_wrong_bit_is_noticed(tmp_path, name, part):
    path = stored(tmp_path)
    with h5py.File(path) as file:
        rows = file[name].id.get_chunk_info(0).byte_offset
        at = 21 + (rows if part == "rows" else h5py.h5o.get_info(file[name].id).addr)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFileError, match="damaged"):
        read_run(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.attrs.__delitem__("format"), "HDF5, but no run of gem"),
        (lambda file: file.attrs.__setitem__("format_version", 3), "format 3.*upgrade gem"),
        (lambda file: file.attrs.__delitem__("seed"), "part missing or damaged"),
        (lambda file: file.__delitem__("params"), "part missing or damaged.*params"),
        (lambda file: file.__delitem__("history/notes"), "part missing or damaged.*notes"),
        (lambda file: file["params/W"].resize(3, axis=0), "/params/W has 3 rows instead of 6"),
        (lambda file: file["history/N_use"].resize(6, axis=0), "/history/N_use has 6 rows instead of 5"),
        (lambda file: file.attrs.__setitem__("config", "{"), "torn or damaged"),
    ],
)
def test_other_hdf5_files(tmp_path, spoil, words):
    path = stored(tmp_path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(RunFileError, match=words):
        read_run(path)


def test_unknown_parameter(tmp_path):
    with pytest.raises(RunFileError, match="no parameter 'sigma'; it has W, pi"):
        load_params(stored(tmp_path), "sigma")


def test_reading_goes_on_while_the_file_is_replaced(tmp_path):
    path = stored(tmp_path)
    with h5py.File(path) as file:
        record(RunFile.open(path, every=1), 7)
        assert file["params/W"].shape == (6, 5, 3)
    assert_holds(path, 7)
