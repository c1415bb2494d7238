"""A run's memory beside its file: a folder for the step it is of, one array per name, rows by global index."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from gem.errors import RunFileError
from gem.memory import Memory
from gem.parallel import Communicator


def folder_of(path: Path) -> Path:
    """Where the memory of the run file `path` lies."""
    return path.with_name(f"{path.name}.memory")


def store(path: Path, step: int, memory: Memory, N: int, comm: Communicator) -> None:
    """Write all ranks' rows of N in all; called by every rank. Those of other steps stay as they are.

    Raises
    ------
    RunFileError
        On all ranks, if one cannot write.
    """
    folder, problem = folder_of(path) / str(step), ""
    try:
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for name, rows in memory.arrays.items():
                np.lib.format.open_memmap(folder / f"{name}.npy", "w+", rows.dtype, (N, *rows.shape[1:])).flush()
    except OSError as error:
        problem = str(error)
    _all_well(folder, problem, comm)
    try:
        for name, rows in memory.arrays.items():
            whole = np.lib.format.open_memmap(folder / f"{name}.npy", "r+")
            whole[memory.start : memory.start + len(rows)] = rows
            whole.flush()
    except OSError as error:
        problem = str(error)
    _all_well(folder, problem, comm)


def _all_well(folder: Path, problem: str, comm: Communicator) -> None:
    for said in comm.allgather(problem):
        if said:
            raise RunFileError(f"{folder} cannot be written ({said}): the memory of the run needs its place there")


def forget_others(path: Path, step: int | None) -> None:
    """Remove what is there of other steps than the one that the run file has now."""
    for other in folder_of(path).glob("*"):
        if other.name != str(step):
            shutil.rmtree(other, ignore_errors=True)


def load(path: Path, step: int, memory: Memory, N: int) -> Memory:
    """The rows of `memory`, of the same data points, as they were stored after this step.

    Raises
    ------
    RunFileError
        If they are not there, or of other sizes.
    """
    folder, arrays = folder_of(path) / str(step), {}
    for name, rows in memory.arrays.items():
        try:
            whole = np.load(folder / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise RunFileError(
                f"{path} is a run that keeps states, and those of step {step} are not in {folder} ({error}): "
                "copy that folder along with the file, or begin again"
            ) from error
        if whole.shape != (N, *rows.shape[1:]) or whole.dtype != rows.dtype:
            raise RunFileError(f"{folder}/{name}.npy is of another run: {whole.shape}, {whole.dtype}")
        arrays[name] = np.array(whole[memory.start : memory.start + len(rows)])
    return Memory(memory.start, arrays, step)
