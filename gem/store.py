"""The run file: parameters and diagnostics of every EM step in one HDF5 file, whole at any moment.

Layout (T steps stored; open it with h5py or any other HDF5 reader):

    attributes      format "gem-run" · format_version 1 · gem_version · created (ISO 8601, UTC) · seed
                    model (class name) · config, machine (JSON)
                    checkpoint (T, the last step stored) · finished (bool)
                    reason (why no step follows: "settled", "steps used up", "ended by finish()", "stopped by SIGTERM",
                    or empty)
                    writer (who alone continues it) · job, rank (of the launch that it was begun in)
    /params/NAME    (T + 1, *shape) float64: row 0 is the start, row t the parameters after step t
    /history/NAME   (T,) float64: one scalar per step (free_energy, N_use, T, ...), NaN where a step had none.
                    free_energy is that of the parameters a step began with, row t of /params; that of the last step of
                    a finished run belongs to those it ended with, the last row
    /history/notes  (T,) strings: a JSON list of the events of each step, e.g. re-seeded components

The file in place is never edited. A checkpoint copies it to a temporary file in the same folder, appends the
steps since the last one, and renames the copy over the original once it is on the disk: a process killed at
any moment leaves either the old file or the new one. No file is open in between: there is nothing to close.
"""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import platform
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from math import nan, prod
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from gem._version import __version__
from gem.errors import ConfigError, RunFileError
from gem.launch import launch, same_job

FORMAT, FORMAT_VERSION = "gem-run", 1
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
CHECKSUMMED = ("v110", "v110")  # readable since HDF5 1.10 (2016), which gave its own structures checksums
CHECKPOINT_SECONDS = 300.0  # between two checkpoints, however few the steps
SETTLED, USED_UP, FINISHED = ENDED = ("settled", "steps used up", "ended by finish()")  # why a run is over
STOPPED = "stopped by SIGTERM"  # and may be taken up
CHUNK_BYTES = 4096  # small rows share a chunk of this size, a larger row is a chunk of its own
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and the like: amid HDF5's work, an exception from a signal handler can crash Python."""
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # the one where Python handles signals
        for ending in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(ending)):
                handlers[ending] = handler
    caught: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda *what: caught.append(what))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in caught[:1]:
            handlers[number](number, frame)


class RunFile:
    """A run file being written: `create` begins one, `open` continues one.

    Attributes
    ----------
    path : Path
        The file, absolute and with symbolic links followed.
    checkpointed : int
        Last step stored in the file; the steps after it are in memory.
    finished : bool
        Whether the run has come to its end.
    reason : str or None
        Why no step follows the last one: one of ENDED, or STOPPED.
    """

    def __init__(
        self, path: Path, shapes: dict[str, tuple[int, ...]], step: int, finished: bool, every: int, seconds: float
    ):
        if every < 1:
            raise ConfigError(f"every = {every}: the steps from one checkpoint to the next must be 1 or more")
        if not seconds > 0:
            raise ConfigError(f"seconds = {seconds}: the time from one checkpoint to the next must be more than 0")
        self.path = path
        self.checkpointed = step
        self.finished = finished
        self.reason: str | None = None
        self._shapes = shapes
        self._every, self._seconds = every, seconds
        self._written = time.monotonic()
        self._writer: str | None = None  # until the file is ours
        self._rows: list[_Row] = []
        self._amended: _Row | None = None
        self._lock = threading.RLock()  # a signal's thread stores what is done, while the run goes on

    @property
    def step(self) -> int:
        """Last step recorded."""
        return self.checkpointed + len(self._rows)

    @classmethod
    @_uninterrupted()
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        model: str,
        config: Mapping[str, Any],
        machine: Mapping[str, Any],
        seed: int,
        params: Mapping[str, Any],
        every: int = 10,
        seconds: float = CHECKPOINT_SECONDS,
        overwrite: bool = False,
    ) -> RunFile:
        """Begin a run file, and write it at once: a bad folder or a full disk shows before any work is done.

        Parameters
        ----------
        path : path
            The file to write; its folder must exist.
        model : str
            Class name of the model.
        config, machine : dict
            Settings of the run, and what it runs on; anything that JSON can hold.
        seed : int
            Seed of the run.
        params : dict of name to array
            Where the run starts; their names and shapes hold for the whole run.
        every : int
            Steps from one checkpoint to the next; each copies the whole file once.
        seconds : float
            Seconds from one checkpoint to the next, at most, if a step is done by then.
        overwrite : bool
            Replace an existing file; it stays until the new one is on the disk.

        Raises
        ------
        RunFileError
            The file exists, or cannot be written.
        """
        try:
            path = Path(path).resolve()
            there = path.exists()
        except (OSError, TypeError, ValueError) as error:
            raise RunFileError(f"output = {path!r:.80} cannot be the name of a file: {error}") from error
        if path.is_dir():
            raise RunFileError(f"{path} is a folder: give the run file a name in it, such as {path / 'run.h5'}")
        if there and not overwrite:
            raise RunFileError(
                f"{path} exists: continue it with `gem resume` (`gem fit --resume`), or replace it with --overwrite "
                f"(overwrite=True){_of_same_job(path)}"
            )
        if there and not _is_run_file(path):
            raise RunFileError(f"{path} exists and is no run file of gem: it is not overwritten, choose another name")
        if there and (others := _of_same_job(path)):
            raise RunFileError(f"{path} is not overwritten{others}")
        _check_names(params)
        start = _float64(params)
        run = cls(path, _shapes(start), 0, False, every, seconds)
        run._writer, started = uuid.uuid4().hex, launch()
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "gem_version": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": model,
            "config": json.dumps(config),
            "machine": json.dumps(machine),
            "seed": seed,
            "checkpoint": 0,
            "finished": False,
            "reason": "",
            "writer": run._writer,
            "job": same_job(),
            "rank": started.rank if started else 0,
        }
        _remove_stale(path)
        place = None if overwrite else _place_new
        with _rewriting(path, _nbytes(start), "Nothing was written.", fresh=True, place=place) as file:
            file.attrs.update(attributes)
            for name, value in start.items():
                _append(_dataset(file, f"params/{name}", value.shape), [value], end=1)
            _dataset(file, "history/notes", (), text=True)
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, every: int = 10, seconds: float = CHECKPOINT_SECONDS) -> RunFile:
        """Continue a run file after its last checkpoint.

        It is written anew at once: a bad folder or a full disk shows before any work is done.

        Raises
        ------
        RunFileError
            The file cannot be read (see `read_run`) or written.
        """
        path = Path(path).resolve()
        found = read_run(path)
        _remove_stale(path)
        run = cls(path, _shapes(found.params), found.step, found.finished, every, seconds)
        run.reason = found.reason
        run.checkpoint()
        return run

    def record(
        self,
        step: int,
        params: Mapping[str, Any],
        diagnostics: Mapping[str, float],
        notes: Sequence[str] = (),
        reason: str | None = None,
    ) -> None:
        """Keep one step in memory, and checkpoint if its turn has come (`step % every == 0`, or the time).

        `reason` says why no step will follow, where that is known.

        Raises
        ------
        RunFileError
            The step does not follow the last one, the parameters have changed their names or shapes, or the
            checkpoint failed; in this last case the step is kept in memory.
        """
        with self._lock:
            if step != self.step + 1:
                raise RunFileError(f"{self.path}: step {step} cannot follow step {self.step}; record each in order")
            _check_names(diagnostics)
            row = _Row(_float64(params), {name: float(value) for name, value in diagnostics.items()}, list(notes))
            if _shapes(row.params) != self._shapes:
                raise RunFileError(
                    f"{self.path}: step {step} has parameters of shapes {_shapes(row.params)}, "
                    f"the run began with {self._shapes}; they must stay"
                )
            self.finished, self.reason = False, reason
            self._rows.append(row)
            if step % self._every == 0 or time.monotonic() - self._written >= self._seconds:
                self.checkpoint()

    def amend(self, diagnostics: Mapping[str, float], notes: Sequence[str]) -> None:
        """Have the last step recorded tell something else, from the next checkpoint on; its parameters stay."""
        with self._lock:
            _check_names(diagnostics)
            values = {name: float(value) for name, value in diagnostics.items()}
            if self._rows:
                self._rows[-1] = self._rows[-1]._replace(diagnostics=values, notes=list(notes))
            elif self.checkpointed:
                self._amended = _Row({}, values, list(notes))

    def save(self) -> None:
        """Checkpoint if there is a step that is not stored; from any thread.

        Raises
        ------
        RunFileError
            As `checkpoint`.
        """
        with self._lock:
            if self._rows:
                self.checkpoint()

    @_uninterrupted()
    def checkpoint(self) -> None:
        """Store the steps kept in memory.

        Raises
        ------
        RunFileError
            The file cannot be written: the disk is full, say. It still holds every step up to `checkpointed`,
            and the later steps stay in memory: a checkpoint after space was made stores them.
        """
        with self._lock:
            with _reading(self.path) as file:
                stored, writer = int(file.attrs["checkpoint"]), file.attrs.get("writer")
            if stored != self.checkpointed or (self._writer is not None and writer != self._writer):
                raise RunFileError(
                    f"{self.path} stands at step {stored}, this run left it at {self.checkpointed}: another "
                    f"process writes it too. Let one of them end, then `gem resume {self.path}`."
                )
            size = sum(_nbytes(row.params) for row in self._rows)
            remains = (
                f"The file still holds every step up to {self.checkpointed}; "
                f"once this is put right, `gem resume {self.path}` continues from there."
            )
            with _rewriting(self.path, size, remains) as file:
                if self._amended is not None:
                    _amend_last(file, self._amended, self.checkpointed)
                self._append_rows(file)
                mine = self._writer or uuid.uuid4().hex
                about = {"finished": self.finished, "reason": self.reason or ""}
                file.attrs.update(checkpoint=self.step, writer=mine, **about)
            self.checkpointed, self._rows, self._amended = self.step, [], None
            self._writer, self._written = mine, time.monotonic()

    def finish(self, reason: str = USED_UP) -> None:
        """Checkpoint, and mark the run as finished; recording a further step takes the mark away.

        Raises
        ------
        RunFileError
            As `checkpoint`; `finish` can then be called again.
        """
        with self._lock:
            self.finished, self.reason = True, reason
            try:
                self.checkpoint()
            except BaseException:
                self.finished = False
                raise

    def _append_rows(self, file: Any) -> None:
        for name in self._shapes:
            _append(file["params"][name], [row.params[name] for row in self._rows], end=self.step + 1)
        _append(file["history"]["notes"], [json.dumps(row.notes) for row in self._rows], end=self.step)
        names = set(file["history"]).union(*(row.diagnostics for row in self._rows)) - {"notes"}
        for name in sorted(names):
            values = [row.diagnostics.get(name, nan) for row in self._rows]
            _append(_dataset(file, f"history/{name}", ()), values, end=self.step)


class _Row(NamedTuple):
    """One step, waiting for its checkpoint."""

    params: dict[str, np.ndarray]
    diagnostics: dict[str, float]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Run:
    """What a run file holds at its last checkpoint.

    Attributes
    ----------
    path : Path
        The file.
    model : str
        Class name of the model.
    config, machine : dict
        Settings of the run, and what it ran on when it began.
    seed : int
        Seed of the run.
    created : str
        When the run began (ISO 8601, UTC).
    gem_version : str
        The gem that began it.
    step : int
        Last step stored, T.
    finished : bool
        Whether the run came to its end.
    reason : str or None
        Why no step follows the last one: "settled", "steps used up", "ended by finish()"; or "stopped by SIGTERM",
        after which it may be taken up. None of a run that goes on, or was killed.
    params : dict of name to float64 array
        The parameters after the last step; `load_params` reads those of every step.
    history : dict of name to (T,) float64 array
        Diagnostics per step, NaN where a step had none.
    notes : list of T lists of str
        The events of each step.
    """

    path: Path
    model: str
    config: dict[str, Any]
    machine: dict[str, Any]
    seed: int
    created: str
    gem_version: str
    step: int
    finished: bool
    reason: str | None
    params: dict[str, np.ndarray]
    history: dict[str, np.ndarray]
    notes: list[list[str]]


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read a run file, finished or not, also while it is being written.

    Raises
    ------
    RunFileError
        The file is missing, torn, not HDF5, not a run of gem, or of a newer gem; the message says which.
    """
    with _reading(path) as file:
        about, params, history = file.attrs, file["params"], file["history"]
        step = int(about["checkpoint"])
        for group, rows in (params, step + 1), (history, step):
            for dataset in group.values():
                if len(dataset) != rows:
                    raise RunFileError(
                        f"{path} is damaged: {dataset.name} has {len(dataset)} rows instead of {rows}; "
                        "take an earlier copy, or begin a new run"
                    )
        return Run(
            path=Path(path),
            model=str(about["model"]),
            config=json.loads(about["config"]),
            machine=json.loads(about["machine"]),
            seed=int(about["seed"]),
            created=str(about["created"]),
            gem_version=str(about["gem_version"]),
            step=step,
            finished=bool(about["finished"]),
            reason=_reason(about),
            params={name: np.asarray(dataset[step]) for name, dataset in params.items()},
            history={name: dataset[:] for name, dataset in history.items() if name != "notes"},
            notes=[json.loads(events) for events in history["notes"].asstr()[:]],
        )


def _reason(about: Mapping[str, Any]) -> str | None:
    """Why no step follows the last one; before gem stored it, a run that had come to its end had done all its steps."""
    reason = str(about.get("reason", "")) or None
    return USED_UP if about["finished"] and reason not in ENDED else reason


def load_params(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """Read one parameter at every step.

    Returns
    -------
    (T + 1, *shape) float64 array
        Row 0 is the start, row t follows step t.

    Raises
    ------
    RunFileError
        As `read_run`, or the run has no such parameter.
    """
    with _reading(path) as file:
        if name not in file["params"]:
            raise RunFileError(f"{path} has no parameter {name!r}; it has {', '.join(file['params'])}")
        return np.asarray(file["params"][name][:])


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a run file for reading, known to be one."""
    import h5py

    try:
        # Through a file of Python's, HDF5 takes no locks: the run file is never edited in place.
        with open(path, "rb") as raw, h5py.File(raw, "r") as file:
            _check_format(path, file.attrs)
            yield file
    except RunFileError:
        raise
    except Exception as error:  # h5py answers damage with almost any exception
        raise RunFileError(f"{path} {_diagnosis(path, error)}") from error


def _diagnosis(path: str | os.PathLike[str], error: Exception) -> str:
    """Why this file could not be read as a run file, and what to do."""
    try:
        with open(path, "rb") as raw:
            start = raw.read(len(HDF5_SIGNATURE))
    except OSError as reason:
        return f"cannot be read ({reason.strerror}): check the path"
    if start != HDF5_SIGNATURE:
        return f"is no HDF5 file, so no run of gem (it starts with {start!r}): check the path"
    if isinstance(error, KeyError):
        return f"has a part missing or damaged ({error}): take an earlier copy, or begin a new run"
    return f"is torn or damaged ({error}), maybe cut short in a copy: copy it again, or begin a new run"


def _check_format(path: str | os.PathLike[str], attributes: Mapping[str, Any]) -> None:
    if attributes.get("format") != FORMAT:
        raise RunFileError(f"{path} is HDF5, but no run of gem (no attribute format = {FORMAT!r}): check the path")
    version = int(attributes["format_version"])
    if version > FORMAT_VERSION:
        raise RunFileError(f"{path} has format {version}, this gem reads up to {FORMAT_VERSION}: upgrade gem")


@contextmanager
def _rewriting(
    path: Path, size: int, remains: str, fresh: bool = False, place: Callable[[Path, Path], None] | None = None
) -> Iterator[Any]:
    """Yield a copy of the file (fresh: an empty file) that takes its place once it is whole and on the disk.

    `size` is what will be added to it, in bytes; `remains` tells the user what is there if that fails.
    """
    import h5py

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if not fresh:
            size += path.stat().st_size
            shutil.copy(path, temporary)
        with _Disk(temporary, "w+" if fresh else "r+") as disk:
            with h5py.File(disk, "w" if fresh else "r+", libver=CHECKSUMMED) as file:
                yield file
            os.fsync(disk.fileno())
        (place or os.replace)(temporary, path)
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
    _sync_folder(path.parent)


def _place_new(temporary: Path, path: Path) -> None:
    """Give a file its name, unless another process took that first."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise RunFileError(f"{path} exists: another process has begun it just now{_of_same_job(path)}") from error
    except OSError:  # a file system without links
        os.replace(temporary, path)


def _of_same_job(path: Path) -> str:
    """What to do if the file was begun by another process of this very launch; else empty."""
    started = launch()
    if started is None:
        return ""
    try:
        with _reading(path) as file:
            job, rank = file.attrs.get("job", ""), int(file.attrs.get("rank", 0))
            finished = bool(file.attrs["finished"])
    except RunFileError:
        return ""
    if job != same_job() or rank == started.rank or finished:
        return ""
    return (
        f': it was begun by process {rank} of those that {started.program} started together. Pass comm="world" for one '
        "run of them all, or give each an output of its own"
    )


class _Disk(io.FileIO):
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


def _is_run_file(path: Path) -> bool:
    """Whether a file may be replaced by a run: one that holds a run, whole or torn, and nothing else."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("format") == FORMAT
    except OSError:
        start = path.read_bytes()[: 1 << 16]
        return not start or (start.startswith(HDF5_SIGNATURE) and FORMAT.encode() in start)


def environment() -> dict[str, Any]:
    """The machine and the versions a run depends on, as plain data."""
    import h5py

    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "gem": __version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if not name.isidentifier() or name == "notes":
            raise ConfigError(f"{name!r} can't name a parameter or diagnostic: letters, digits, _ can, but not 'notes'")


def _float64(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(value, dtype=np.float64) for name, value in params.items()}


def _shapes(params: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in params.items()}


def _nbytes(params: Mapping[str, np.ndarray]) -> int:
    return sum(value.nbytes for value in params.values())


def _dataset(file: Any, name: str, shape: tuple[int, ...], text: bool = False) -> Any:
    """The dataset of that name, made with no rows of the given shape if it isn't there."""
    import h5py

    if name in file:
        return file[name]
    rows = max(1, CHUNK_BYTES // (8 * prod(shape)))
    return file.create_dataset(
        name,
        shape=(0, *shape),
        maxshape=(None, *shape),
        chunks=(rows, *shape),
        dtype=h5py.string_dtype() if text else np.float64,
        fillvalue=None if text else nan,
        fletcher32=not text,  # a checksum of each chunk; HDF5 has none for strings
    )


def _append(dataset: Any, rows: Sequence[Any], end: int) -> None:
    """Make `rows` the last of `end` rows."""
    if rows:
        dataset.resize(end, axis=0)
        dataset[end - len(rows) :] = rows


def _amend_last(file: Any, row: _Row, rows: int) -> None:
    """Overwrite what the last of so many rows tells."""
    told: dict[str, Any] = {"notes": json.dumps(row.notes), **row.diagnostics}
    for name, value in told.items():
        dataset = _dataset(file, f"history/{name}", ())
        dataset.resize(rows, axis=0)
        dataset[rows - 1] = value


def _remove_stale(path: Path) -> None:
    """Remove what a killed process left in the middle of a checkpoint."""
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


def _sync_folder(folder: Path) -> None:
    """Put the rename on the disk too. Some network file systems refuse this; the file is whole either way."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
