"""The run file of long runs: which parameters it keeps, what a checkpoint costs, and that nobody sees half of one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_store import ABOUT, create, params_at, record, spares, temporaries

import gem.store
from gem import EM, Annealing
from gem.cli import main
from gem.errors import ConfigError, RunFileError
from gem.keeping import AUTO_BYTES, automatic
from gem.models import BSC, MoG
from gem.replacing import Disk
from gem.store import RunFile, load_params, load_steps, read_run

pytestmark = pytest.mark.serial  # files: ranks change nothing here


def kept(keep, last: int) -> list[int]:
    """The steps that a file holds, as a user would count them."""
    if keep == "all":
        return list(range(last + 1))
    multiples = [] if keep == "last" else list(range(0, last + 1, keep))
    return sorted({*multiples, last})


def assert_keeps(path: Path, keep, last: int) -> None:
    steps, run = kept(keep, last), read_run(path)
    assert run.step == last
    assert load_steps(path).tolist() == steps
    assert run.kept is None if keep == "all" else run.kept.tolist() == steps
    for name in ("W", "pi"):
        np.testing.assert_array_equal(load_params(path, name), [params_at(step)[name] for step in steps])
        np.testing.assert_array_equal(run.params[name], params_at(last)[name])
    np.testing.assert_array_equal(run.history.get("free_energy", []), [-1 / t for t in range(1, last + 1)])
    assert [len(notes) for notes in run.notes] == [t % 3 == 0 for t in range(1, last + 1)]


# What is kept


@pytest.mark.parametrize("keep", ["all", "last", 2, 3, 7, 100])
@pytest.mark.parametrize("every", [1, 3, 4])
def test_a_file_holds_the_steps_that_were_asked_for(tmp_path, keep, every):
    """At every checkpoint, however they fall, also of a run that was taken up in between."""
    path = tmp_path / "run.h5"
    run = create(path, every=every, keep=keep)
    for last in range(1, 12):
        record(run, last)
        assert_keeps(path, keep, last // every * every)
    run = record(RunFile.open(path, every=every, keep=keep), 17)
    run.checkpoint()
    assert_keeps(path, keep, 17)
    run.amend({"free_energy": -1 / 17, "N_use": 0}, [])
    record(run, 23).finish()
    assert_keeps(path, keep, 23)
    assert read_run(path).history["N_use"][16] == 0


def test_a_file_that_keeps_all_is_what_older_versions_read(tmp_path):
    for keep, version in (("all", 1), ("last", 2), (5, 2)):
        with h5py.File(record(create(tmp_path / f"{keep}.h5", every=1, keep=keep), 6).path) as file:
            assert (file.attrs["format_version"], "steps" in file) == (version, version == 2)


def test_a_file_is_continued_as_it_began(tmp_path):
    create(tmp_path / "run.h5", keep=3)
    with pytest.raises(RunFileError, match="keep = 'all'"):
        RunFile.open(tmp_path / "run.h5")


@pytest.mark.parametrize("wrong", [[0, 3, 5], [0, 6, 3, 7], [-1, 7], []])
def test_steps_that_cannot_be_are_damage(tmp_path, wrong):
    path = record(create(tmp_path / "run.h5", every=1, keep=3), 7).path
    with h5py.File(path, "r+") as file:
        file["steps"].resize(len(wrong), axis=0)
        file["steps"][:] = wrong
    with pytest.raises(RunFileError, match="damaged: /steps does not ascend to 7"):
        read_run(path)
    with h5py.File(path, "r+") as file:
        del file["steps"]
    with pytest.raises(RunFileError, match="damaged"):
        read_run(path)


@pytest.mark.parametrize("steps", [1, 50, 200, 10**5])
@pytest.mark.parametrize("nbytes", [8, 5_000, 409_616, 3_000_000, 10**9])
def test_the_choice_keeps_a_file_small(steps, nbytes):
    """The demo's parameters have 409,616 bytes: its file stays far below 10 MB."""
    keep = automatic(steps, nbytes)
    rows = len(kept(keep, steps))
    assert rows * nbytes <= AUTO_BYTES or keep == "last"
    if (steps + 1) * nbytes <= AUTO_BYTES:
        assert keep == "all"
    elif keep != "last":  # a smaller number would not do
        smaller = {"1": "5", "2": "1", "5": "2"}[str(keep)[0]] + str(keep)[1:]
        k = int(smaller) // (10 if str(keep)[0] == "1" else 1)
        assert k == 1 or (steps // k + 2) * nbytes > AUTO_BYTES
    else:
        assert 4 * nbytes > AUTO_BYTES


@pytest.mark.parametrize("wrong", [0, -3, 2.5, "some", True, [1]])
def test_what_cannot_be_kept_is_refused(wrong):
    with pytest.raises(ConfigError, match="keep = "):
        EM(BSC(D=4, H=3), np.eye(4), Annealing(3), keep=wrong)


# What a checkpoint costs


def written(monkeypatch) -> list[int]:
    """Bytes that go to the disk, to be added up."""
    sizes: list[int] = []
    write = Disk.write

    def counted(disk, data):
        sizes.append(len(data))
        return write(disk, data)

    monkeypatch.setattr(Disk, "write", counted)
    return sizes


def test_a_checkpoint_costs_what_is_new(tmp_path, monkeypatch):
    """Two times, once for each of the two states; no copy but the first."""
    copies, copy = [], shutil.copy
    monkeypatch.setattr(shutil, "copy", lambda *names: copies.append(names) or copy(*names))
    sizes, cost, W = written(monkeypatch), {}, np.random.default_rng(0).normal(size=(100, 100))
    run = RunFile.create(tmp_path / "run.h5", **ABOUT, params={"W": W}, every=10)
    for step in range(1, 201):
        sizes.clear()
        run.record(step, {"W": W}, {"free_energy": 1.0}, [])
        cost[step] = sum(sizes)
    assert len(copies) == 1
    new = 10 * W.nbytes
    assert all(cost[step] < 2.2 * new for step in range(10, 201, 10)), cost
    assert cost[200] < 1.1 * cost[20]
    assert run.path.stat().st_size > 200 * W.nbytes


def test_of_parameters_that_are_not_kept_there_is_one_copy(tmp_path, monkeypatch):
    W = np.random.default_rng(0).normal(size=(100, 100))
    run = RunFile.create(tmp_path / "run.h5", **ABOUT, params={"W": W}, every=5, keep="last")
    sizes = written(monkeypatch)
    for step in range(1, 101):
        run.record(step, {"W": W}, {"free_energy": 1.0}, [])
        assert sum(row.params != {} for row in run._rows) <= 1  # nor in memory
    assert run.path.stat().st_size < 2 * W.nbytes
    assert sum(sizes) < 20 * 2 * W.nbytes


@pytest.mark.parametrize("keep", ["all", 3])
def test_a_finished_file_has_no_unused_space(tmp_path, monkeypatch, keep):
    """Each checkpoint leaves some behind: HDF5 begins a heap of strings for each. The content stays, and the mode."""
    path = record(create(tmp_path / "run.h5", every=1, keep=keep), 150).path
    path.chmod(0o640)
    before, run = path.stat().st_size, record(RunFile.open(path, keep=keep), 151)
    monkeypatch.setattr("gem.store.WASTE", 10_000)
    run.finish()
    assert path.stat().st_size < before / 3
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
    assert_keeps(path, keep, 151)
    assert read_run(path).finished


# Nobody sees half of it


def test_who_reads_slowly_or_has_a_link_reads_what_was_there(tmp_path):
    run = record(create(tmp_path / "run.h5", every=1), 3)
    before = run.path.read_bytes()
    os.link(run.path, tmp_path / "backup.h5")
    record(run, 4)
    with open(run.path, "rb") as raw:
        start, at_4 = raw.read(100), run.path.read_bytes()
        record(run, 9)
        assert start + raw.read() == at_4
    record(run, 12)
    assert (tmp_path / "backup.h5").read_bytes() == before
    assert_keeps(tmp_path / "backup.h5", "all", 3)
    assert_keeps(run.path, "all", 12)


def test_without_leases_a_copy_is_made_each_time(tmp_path, monkeypatch):
    copies, copy = [], shutil.copy
    monkeypatch.setattr(shutil, "copy", lambda *names: copies.append(names) or copy(*names))
    monkeypatch.setattr("gem.replacing.unread", lambda raw: False)
    run = record(create(tmp_path / "run.h5", every=1), 6)
    assert len(copies) == 6
    monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(1, "no links here")))
    record(run, 9)
    assert_keeps(run.path, "all", 9)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child uses none of BLAS's threads
@pytest.mark.parametrize(
    ("function", "after"),
    [("unlink", False), *((name, after) for name in ("rename", "link", "replace", "fsync") for after in (False, True))],
)
def test_killed_before_or_after_each_change_of_a_name(tmp_path, function, after):
    """At the third checkpoint: there is a spare by then. Plain HDF5 readers find a whole file, too."""
    path = tmp_path / "run.h5"
    child = os.fork()
    if child == 0:
        try:
            run, real = record(create(path, every=2, keep=3), 5), getattr(os, function)

            def killed(*names):
                if after:
                    real(*names)
                os._exit(9)

            setattr(os, function, killed)
            record(run, 6)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with h5py.File(path) as file:
        stands = int(file.attrs["checkpoint"])
        assert file["params/W"][-1].tolist() == params_at(stands)["W"].tolist()
    assert stands in (4, 6)
    assert_keeps(path, 3, stands)
    run = RunFile.open(path, every=2, keep=3)
    assert list(tmp_path.iterdir()) == [path] or spares(tmp_path)
    record(run, 9).finish()
    assert_keeps(path, 3, 9)
    assert list(tmp_path.iterdir()) == [path]


def test_a_chmod_holds(tmp_path):
    run = record(create(tmp_path / "run.h5", every=1), 3)
    run.path.chmod(0o640)
    assert record(run, 5).path.stat().st_mode & 0o777 == 0o640


# Runs


def points() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(60, 4))


def fit(path: Path | None, steps: int = 20, **options) -> EM:
    options = {"backend": "numpy", "dtype": "float64", "checkpoint": 3, **options}
    return EM(BSC(D=4, H=3), points(), Annealing(steps), output=path, **options)


def test_a_run_leaves_its_file_and_nothing_beside_it(tmp_path):
    """Whether it is done, was left, or failed; and one whose iterator is kept, once it is gone."""
    fit(tmp_path / "done.h5").run()
    for _ in (left := fit(tmp_path / "left.h5")):
        if left.step == 7:
            break
    failed = fit(tmp_path / "failed.h5")
    with pytest.raises(KeyError):
        failed.run(callbacks=[lambda info: {}[3] if failed.step == 7 else None])
    kept_open = fit(tmp_path / "open.h5")
    loop = iter(kept_open)
    for _ in range(7):
        next(loop)
    assert len(spares(tmp_path)) == 1
    del loop, kept_open
    assert spares(tmp_path) == temporaries(tmp_path) == []
    assert {name.name: read_run(name).step for name in tmp_path.iterdir()} == {
        "done.h5": 20,
        "left.h5": 7,
        "failed.h5": 7,
        "open.h5": 7,
    }


@pytest.mark.parametrize("keep", [None, "last", 4])
def test_a_run_is_taken_up_whatever_is_kept(tmp_path, keep):
    whole = fit(tmp_path / "whole.h5", keep="all").run()
    run = fit(tmp_path / "run.h5", keep=keep)
    loop = iter(run)
    for _ in range(13):
        next(loop)
    shutil.copy(tmp_path / "run.h5", tmp_path / "copy.h5")
    loop.close()
    resumed = EM.resume(tmp_path / "copy.h5", points())
    assert resumed.step == 12
    np.testing.assert_array_equal(resumed.run().params["W"], whole.params["W"])
    steps = kept(keep or "all", 20)
    assert load_steps(tmp_path / "copy.h5").tolist() == steps
    np.testing.assert_array_equal(
        load_params(tmp_path / "copy.h5", "W"), load_params(tmp_path / "whole.h5", "W")[steps]
    )


def test_large_parameters_are_thinned_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("gem.keeping.AUTO_BYTES", 1000)  # 112 bytes a step
    fit(tmp_path / "few.h5").run()
    fit(tmp_path / "all.h5", keep="all").run()
    assert load_steps(tmp_path / "few.h5").tolist() == kept(5, 20)
    assert load_steps(tmp_path / "all.h5").tolist() == kept("all", 20)


def test_keep_from_the_shell(tmp_path, capsys):
    np.save(tmp_path / "x.npy", points())
    path = str(tmp_path / "run.h5")
    command = [
        "fit",
        "mog",
        str(tmp_path / "x.npy"),
        "--K",
        "2",
        "--steps",
        "7",
        "--backend",
        "numpy",
        "-q",
        "-o",
        path,
    ]
    assert main([*command, "--keep", "3"]) == 0
    assert load_steps(path).tolist() == [0, 3, 6, 7]
    assert main([*command, "--keep", "3", "--resume"]) == 0
    for other in ("last", "1"):
        assert main([*command, "--keep", other, "--resume"]) == 1
        assert "keep = " in capsys.readouterr().err
    assert main([*command, "--keep", "some", "--overwrite"]) == 1
    assert "keep = 'some' must be 'all', 'last' or a number" in capsys.readouterr().err
    assert main(["info", path]) == main(["show", path]) == 0


def test_a_file_of_before_there_was_a_choice_goes_on(tmp_path):
    run = EM(MoG(D=4, K=2), points(), Annealing(9), backend="numpy", output=tmp_path / "run.h5", checkpoint=4)
    loop = iter(run)
    for _ in range(5):
        next(loop)
    shutil.copy(tmp_path / "run.h5", tmp_path / "old.h5")
    loop.close()
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        config = gem.store.json.loads(file.attrs["config"])
        del config["keep"], config["asked"]["keep"]
        file.attrs["config"] = gem.store.json.dumps(config)
    EM.resume(tmp_path / "old.h5", points()).run()
    assert load_steps(tmp_path / "old.h5").tolist() == list(range(10))
