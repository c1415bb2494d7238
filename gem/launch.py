"""Launchers: how many processes were started together, as their environment tells before MPI is touched."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ALONE = "GEM_MPI"  # = 0: each process makes a run of its own, whatever started it
SIZES = {  # variable → who sets it; the innermost launcher comes first
    "OMPI_COMM_WORLD_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpiexec",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "PMI_SIZE": "mpiexec",
    "MPI_LOCALNRANKS": "mpiexec",  # of this host: the job has so many or more
    "FLUX_JOB_SIZE": "flux run",
}
RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "JSM_NAMESPACE_RANK", "FLUX_TASK_RANK")
NO_STEP = ("4294967290", "4294967291")  # SLURM_STEP_ID of a job's interactive shell, and of its batch script
MANAGED = ("PMI", "PMIX", "OMPI_", "MPI_LOCAL", "PALS_")  # variables by which MPI finds the other processes
COMMAND_LENGTH = 200  # of what a message repeats


class Launch(NamedTuple):
    """What the environment tells of this process's launcher."""

    size: int | None  # processes that were started together; None: it does not tell
    rank: int  # this one's number among them, 0 where nobody tells
    program: str  # such as mpiexec
    variable: str  # where the size, or the rank, was read


def launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What started this process, if a launcher of parallel programs did.

    A task of a Slurm step is launched; a batch script, or a shell of an allocation, is not, whatever SLURM_NTASKS says.
    """
    if environment.get(ALONE) == "0":
        return None
    found = [
        Launch(size, _rank(environment), program, name)
        for name, program in SIZES.items()
        if (size := _number(environment, name)) is not None
    ]
    found += _slurm(environment)
    found += [
        Launch(rank + 1 if rank else None, rank, "mpiexec", name)  # with a rank beyond 0 there is more than one
        for name in RANKS
        if (rank := _number(environment, name)) is not None
    ]
    if not found:
        return None
    return max(found, key=lambda each: each.size or 0)  # of equals the first


def launched() -> bool:
    """Whether a launcher started this process together with others, so that MPI is to be asked (it is not touched)."""
    found = launch()
    return found is not None and found.size != 1


def same_job(environment: Mapping[str, str] = os.environ) -> str:
    """A name that the processes of one launch share; empty where nothing launched this one."""
    if launch(environment) is None:
        return ""
    names = ("PMIX_NAMESPACE", "I_MPI_HYDRA_UUID", "FLUX_JOB_ID")
    found = next((environment[name] for name in names if environment.get(name)), "")
    if not found and "SLURM_STEP_ID" in environment:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        found = ".".join(environment.get(name, "0") for name in names)
    return found or f"{os.uname().nodename}:{os.getppid()}"


def alone_among(found: Launch, library: str, why: str) -> str:
    """The message for processes that were started together, and of which each finds itself alone.

    Parameters
    ----------
    found : Launch
    library : str
        The MPI library's name, empty if there is none.
    why : str
        What is in the way.
    """
    whole = f"all {found.size} would make the whole run, into one file"
    return (
        f"{found.program} started {found.size} processes ({found.variable}), and each finds itself alone: {why}; "
        f"{whole}. Start them so: {_line(found, library)}   (or set {ALONE}=0, if each is to make a run of its own, "
        "into a file of its own)"
    )


def refuses_before_start(found: Launch, library: str) -> str:
    """Why this library's MPI_Init would end the process, or find it alone; empty where it is to be tried.

    MPI_Init of MPICH and of Open MPI 4 aborts under a launcher that it does not know, with a message that helps nobody.
    """
    theirs = library == "Open MPI"
    if found.program == "srun" and theirs and not any(name.startswith(MANAGED) for name in os.environ):
        return "srun offers Open MPI no PMIx"
    if found.variable.startswith("OMPI_") and library in ("MPICH", "Intel MPI"):
        return f"that is the mpiexec of Open MPI, and mpi4py uses {library}"
    if library == "MPICH" and "PMIX_NAMESPACE" in os.environ and "PMI_FD" not in os.environ and not _knows_pmix():
        return f"{found.program} offers PMIx, which this MPICH was built without"
    return ""


def _knows_pmix() -> bool:
    from mpi4py import MPI

    return "pmix" in MPI.Get_library_version()


def _line(found: Launch, library: str) -> str:
    """What to write instead, in the words of the library's own launcher."""
    command = shlex.join(sys.orig_argv)
    if len(command) > COMMAND_LENGTH:
        command = f"{shlex.join(sys.orig_argv[:2])[:COMMAND_LENGTH]} ..."
    if found.program == "srun" and library in ("MPICH", "Open MPI"):
        kind = "pmi2" if library == "MPICH" else "pmix"
        launcher = launcher_of(library)
        return f"srun --mpi={kind} -n {found.size} {command}, or in the job's script {launcher} -n {found.size} ..."
    return f"{launcher_of(library)} -n {found.size} {command}"


def launcher_of(library: str, loaded: Iterable[str] | None = None) -> str:
    """The mpiexec that belongs to an MPI library: of the folders above the one that is loaded, the nearest that has it.

    Parameters
    ----------
    library : str
        Its name, empty if there is none.
    loaded : paths of libraries, optional
        By default those of this process, as Linux tells them.

    Returns
    -------
    str
        A path, or words for one: the mpiexec that the user has on his PATH may be of another library.
    """
    if not library:
        return "mpiexec"
    suffix = library.lower().replace(" ", "")  # as Debian tells them apart: mpiexec.openmpi, mpiexec.mpich
    for path in _loaded() if loaded is None else loaded:
        if re.fullmatch(r"libmpi(ch|_abi)?\.so[.\d]*", os.path.basename(path)):
            for folder in list(Path(path).parents)[:-1]:
                for name in (f"mpiexec.{suffix}", "mpiexec"):
                    if (folder / "bin" / name).exists():
                        return str(folder / "bin" / name)
    return f"(the mpiexec of {library})"


def _loaded() -> list[str]:
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    return list(dict.fromkeys(parts[5] for line in lines if len(parts := line.split(maxsplit=5)) == 6))


def _slurm(environment: Mapping[str, str]) -> list[Launch]:
    step = environment.get("SLURM_STEP_ID")
    if step in NO_STEP or (step is None and "SLURM_JOB_ID" in environment):
        return []
    rank = _number(environment, "SLURM_PROCID")
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    name = next((name for name in names if _number(environment, name) is not None), None)
    if rank is None or name is None:
        return []
    return [Launch(_number(environment, name), rank, "srun", name)]


def _rank(environment: Mapping[str, str]) -> int:
    return next((rank for name in RANKS if (rank := _number(environment, name)) is not None), 0)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """A variable's whole number; None where it is not set, or holds something else."""
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None
