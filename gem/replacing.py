"""Files that are whole at any moment: a new state is made beside the old one and takes its name by a rename.

What had the name before may stay, hidden, as a spare: the next state is made from it by adding what it lacks, which
costs as much as that and not as the whole file. No file is edited that anybody can see or has open (see `unread`).
"""

from __future__ import annotations

import errno
import glob
import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gem.errors import RunFileError

CHECKSUMMED = ("v110", "v110")  # readable since HDF5 1.10 (2016), which gave its own structures checksums
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def rewriting(
    path: Path,
    size: int,
    remains: str,
    fresh: bool = False,
    place: Callable[[Path, Path], None] | None = None,
    spare: Path | None = None,
) -> Iterator[Any]:
    """Yield a copy of the HDF5 file (fresh: an empty file) that takes its place once it is whole and on the disk.

    Parameters
    ----------
    path : Path
        The file.
    size : int
        Bytes that will be added to it.
    remains : str
        Tells the user what is there if that fails.
    fresh : bool
        Begin with an empty file.
    place : function of (temporary, path), optional
        Gives the new file its name (default: os.replace).
    spare : Path, optional
        Where the former file stays. If there is one already it is taken in place of a copy: it may lack what was added
        to the file since.

    Raises
    ------
    RunFileError
        If the file cannot be written; the one in place is as it was, and there is no spare.
    """
    import h5py

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    placed = False
    try:
        if fresh and path.exists():
            temporary.touch()
            shutil.copymode(path, temporary)
        if not fresh and not (spare is not None and _taken(spare, temporary, path)):
            size += path.stat().st_size
            shutil.copy(path, temporary)
        with Disk(temporary, "w+" if fresh else "r+") as disk:
            with h5py.File(disk, "w" if fresh else "r+", libver=CHECKSUMMED) as file:
                yield file
            os.fsync(disk.fileno())
        if spare is not None:
            with suppress(OSError):  # a file system without links
                os.link(path, spare)
        (place or os.replace)(temporary, path)
        placed = True
    except RunFileError:
        raise
    except (OSError, RuntimeError) as error:
        reason = "cannot be written"
        if getattr(error, "errno", None) in NO_SPACE:
            reason = f"has no space: {path.parent} needs about {max(0.1, size / 2**20):.1f} MiB free"
        detail = getattr(error, "strerror", None) or error
        raise RunFileError(f"{path} {reason} ({detail}). {remains}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        if not placed:
            remove(spare)
    sync_folder(path.parent)


def remove(spare: Path | None) -> None:
    """Remove a spare, if it is there."""
    with suppress(OSError):
        if spare is not None:
            spare.unlink()


def _taken(spare: Path, temporary: Path, path: Path) -> bool:
    """Whether the spare could be taken as the temporary file, with the permissions of the file: nobody else has it."""
    try:
        with open(spare, "r+b") as raw:
            free = os.fstat(raw.fileno()).st_nlink == 1 and unread(raw)
        if free:
            os.rename(spare, temporary)
            shutil.copymode(path, temporary)
        else:
            spare.unlink()
    except OSError:
        return False
    return free


def unread(raw: Any) -> bool:
    """Whether nobody else has this open file open: no process that reads it slowly, to copy it, say.

    The kernel tells by a lease, which it grants for such files only. False where it does not know leases.
    """
    try:
        from fcntl import F_SETLEASE, F_SETSIG, F_UNLCK, F_WRLCK, fcntl

        fcntl(raw, F_SETSIG, signal.SIGURG)  # if another opens it now: of no effect, where SIGIO would end us
        fcntl(raw, F_SETLEASE, F_WRLCK)
        fcntl(raw, F_SETLEASE, F_UNLCK)
    except (ImportError, OSError):
        return False
    return True


class Disk(io.FileIO):
    """A file for HDF5 to write to that seems never to fail: HDF5 can't close a file that it can't write.

    The first error waits until this file is closed; what HDF5 writes after it is dropped.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if self.error is not None:
            raise self.error


def remove_stale(path: Path) -> None:
    """Remove what a killed process left in the middle of a checkpoint, and its spare."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if _alive(stale.suffixes[-2][1:]):
            continue  # of a process that begins the same file right now: one of the two is told
        with suppress(OSError):  # what keeps us from it keeps us from writing too, and is reported there
            stale.unlink()


def _alive(process: str) -> bool:
    """Whether another process of this host has that number."""
    if not process.isdigit() or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Put a rename on the disk too. Some network file systems refuse this; the file is whole either way."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
