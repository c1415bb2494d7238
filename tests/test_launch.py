"""What launchers say of themselves: who is one of many, and who is not; many that find themselves alone are refused."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.scaling import unlaunched
from gem import cores, launch
from gem.cores import Room, share

BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}  # the script of sbatch -n 4
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "size", "rank", "program"),
    [
        (OPEN_MPI, 3, 1, "mpiexec"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2"}, 2, 1, "mpiexec"),
        ({"MPI_LOCALNRANKS": "2"}, 2, 0, "mpiexec"),
        ({"PMIX_RANK": "2"}, 3, 2, "mpiexec"),  # at least
        ({"PMIX_RANK": "0"}, None, 0, "mpiexec"),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, 1, 0, "mpiexec"),
        ({**STEP, "SLURM_PROCID": "3"}, 4, 3, "srun"),
        ({"SLURM_NTASKS": "3", "SLURM_PROCID": "2"}, 3, 2, "srun"),
        ({**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 1, 0, "srun"),  # srun -n 1 in a job of 4
        ({**STEP, **OPEN_MPI, "SLURM_STEP_NUM_TASKS": "2"}, 3, 1, "mpiexec"),  # mpiexec starts its daemons by srun
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1", **OPEN_MPI}, 3, 1, "mpiexec"),
        ({"FLUX_JOB_SIZE": "2", "FLUX_TASK_RANK": "1"}, 2, 1, "flux run"),
    ],
)
def test_what_a_launcher_tells(environment, size, rank, program):
    assert launch.launch(environment)[:3] == (size, rank, program)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},  # a shell of salloc
        {**STEP, "SLURM_STEP_ID": "4294967290"},  # an interactive step
        {**OPEN_MPI, "GEM_MPI": "0"},
        {"PMI_SIZE": "many"},
    ],
)
def test_what_is_no_launch(environment):
    assert launch.launch(environment) is None


FIT = "-m gem.cli fit bsc y.npy --H 4 --steps 3 -q --backend numpy -o run.h5"


def gem_(folder, line: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    np.save(folder / "y.npy", np.random.default_rng(0).standard_normal((100, 8)))
    return subprocess.run(
        [sys.executable, *line],
        cwd=folder,
        env={**unlaunched(), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.serial
@pytest.mark.parametrize(
    ("environment", "line"),
    [(OPEN_MPI, "mpiexec -n 3"), ({"SLURM_NTASKS": "3", "SLURM_PROCID": "2"}, "-n 3")],
)
def test_one_of_many_that_finds_itself_alone_is_refused(tmp_path, mpiexec, environment, line):
    done = gem_(tmp_path, FIT.split(), **environment)
    assert done.returncode == 1
    assert "started 3 processes" in done.stderr
    assert line in done.stderr
    assert FIT in done.stderr  # the line to write
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize(
    ("library", "loaded", "there", "line"),
    [
        ("MPICH", "env/lib/libmpi.so.12.5", ["env/bin/mpiexec", "bin/mpiexec"], "env/bin/mpiexec"),
        ("Open MPI", "lib/x86/libmpi.so.40", ["bin/mpiexec", "bin/mpiexec.openmpi"], "bin/mpiexec.openmpi"),
        ("Open MPI", "lib/x86/libmpi_cxx.so.40", ["bin/mpiexec"], None),
        ("MPICH", "lib/libmpich.so.12", [], None),
    ],
)
def test_the_launcher_in_a_message_is_of_the_library_in_use(tmp_path, library, loaded, there, line):
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = ["/somewhere/libc.so.6", str(tmp_path / loaded)]
    assert launch.launcher_of(library, given) == (
        f"(the mpiexec of {library})" if line is None else str(tmp_path / line)
    )


@pytest.mark.serial
@pytest.mark.parametrize("environment", [BATCH, {**OPEN_MPI, "GEM_MPI": "0"}])
def test_one_that_is_meant_to_be_alone_is_not(tmp_path, environment):
    done = gem_(tmp_path, FIT.split(), **environment)
    assert done.returncode == 0, done.stderr


NO_MPI = "import sys; sys.modules['mpi4py'] = None; from gem.cli import main; sys.exit(main())"


@pytest.mark.serial
@pytest.mark.parametrize(("size", "status"), [("3", 1), ("1", 0)])
def test_without_mpi4py(tmp_path, size, status):
    line = ["-c", NO_MPI, *FIT.split()[2:]]
    done = gem_(tmp_path, line, OMPI_COMM_WORLD_SIZE=size, OMPI_COMM_WORLD_RANK="0")
    assert done.returncode == status, done.stderr
    if status:
        assert "started 3 processes" in done.stderr
        assert "mpi4py" in done.stderr


# Cores


def test_cores_that_a_launcher_bound_are_not_shared_out_again():
    first, second, all_ = Room(0b00001111, {}), Room(0b11110000, {}), Room(0b11111111, {})
    assert share(first, [first, second]) == 4
    assert share(all_, [all_, all_]) == 4
    assert share(all_, [all_]) == 8
    assert share(all_, [all_] * 3) == 2
    assert share(first, [first] * 9) == 1
    assert share(first, [first, first, second, second]) == 2  # bound by sockets
    assert share(all_, [all_, first]) == 6  # one of the two is bound


def test_a_quota_is_shared_out_among_those_under_it():
    eight = 0b11111111
    job, alone = Room(eight, {"job": 4.0}), Room(eight, {"job": 4.0, "job/task": 1.5})
    assert share(job, [job]) == 4
    assert share(job, [job, job]) == 2
    assert share(alone, [job, alone]) == 1
    assert share(Room(eight, {"job": 0.5}), [job]) == 1


@pytest.mark.parametrize(
    ("own", "files", "quotas"),
    [
        ("0::/a/b\n", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000"}, {"a": 2.5}),
        (
            "3:cpu,cpuacct:/a\n2:memory:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            {"cpu,cpuacct/a": 1.5},
        ),
        (
            "3:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            {},
        ),
        ("0::/gone\n", {}, {}),
    ],
)
def test_quotas_are_those_of_all_groups_around(tmp_path, monkeypatch, own, files, quotas):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cores, "GROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN_GROUPS", tmp_path / "own")
    assert cores.room().quotas == {str(tmp_path / name): value for name, value in quotas.items()}


def test_ranks_share_the_cores_of_their_host(world, monkeypatch):
    sets = {rank: {2 * rank, 2 * rank + 1} for rank in range(world.size)}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: sets[world.rank], raising=False)
    monkeypatch.setattr(cores, "_quotas", dict)
    assert world.threads == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert world.threads == 8 // world.size
