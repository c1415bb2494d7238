"""The run file: parameters and diagnostics of every EM step in one HDF5 file, whole at any moment.

Layout (T steps stored; open it with h5py or any other HDF5 reader):

    attributes      format "gem-run" · format_version 1, or 2 where /steps or /carry is there · gem_version
                    created (ISO 8601, UTC) · seed · model (class name) · config, machine (JSON)
                    checkpoint (T, the last step stored) · finished (bool)
                    reason (why no step follows: "settled", "steps used up", "ended by finish()", "F fell at step 17",
                    "stopped by SIGTERM", or empty)
                    writer (the only one who continues it) · job, rank (of the launch that it was begun in)
    /params/NAME    (R, *shape) float64: the parameters after R of the steps 0 (the start) to T, the last after step T
    /steps          (R,) int64: of which steps; not there if of all, T + 1 rows
    /best/NAME      (*shape) float64: of a run that is to end with its best parameters, these so far; attributes step,
                    that began with them, and free_energy
    /history/NAME   (T,) float64: one scalar per step (free_energy, N_use, T, ...), NaN where a step had none.
                    free_energy is that of the parameters a step began with, those after the step before it; that of
                    the last step of a finished run belongs to those it ended with, the last row of /params
    /carry/NAME     float64, where minibatches are learned from: running moments, how far the pass at hand is, and its
                    parameters so far (gem.stepwise)
    /history/notes  (T,) strings: a JSON list of the events of each step, e.g. re-seeded components

The file in place is never edited. A checkpoint takes the file's former state, which stays beside it as a hidden spare
(or, where there is none, makes a copy), adds what it lacks, and gives it the name of the file by a rename, once it is
on the disk: a process killed at any moment leaves either the old file or the new one, and who has the old one open
reads it to its end. So a checkpoint costs what is new, twice. No file is open in between: there is nothing to close.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import nan, prod
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from gem._version import __version__
from gem.errors import ConfigError, RunFileError
from gem.keeping import Keep, kept_steps, lasting, lasting_rows
from gem.launch import launch, same_job
from gem.replacing import remove, remove_stale, rewriting

FORMAT, FORMAT_VERSION = "gem-run", 2
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
CHECKPOINT_SECONDS = 300.0  # between two checkpoints, however few the steps
SETTLED, USED_UP, FINISHED = ENDED = ("settled", "steps used up", "ended by finish()")  # why a run is over
FELL = "F fell at step"  # and its number: another such reason
STOPPED = "stopped by SIGTERM"  # and may be taken up
WASTE = 4 << 20  # bytes that are not worth a copy
NOTE_BYTES = 64  # of a step, about
CHUNK_BYTES = 4096  # small rows share a chunk of this size, a larger row is a chunk of its own


def is_over(reason: str | None) -> bool:
    """Whether a run with this reason is over: no step follows unless more are asked for."""
    return reason is not None and (reason in ENDED or reason.startswith(FELL))


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
        Why no step follows the last one: one that `is_over`, or STOPPED.
    """

    def __init__(
        self,
        path: Path,
        shapes: dict[str, tuple[int, ...]],
        step: int,
        finished: bool,
        every: int,
        seconds: float,
        keep: Keep = "all",
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
        self._every, self._seconds, self._keep = every, seconds, keep
        self._spare = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{os.getpid()}.tmp")
        self._best: tuple[int, float, Mapping[str, Any]] | None = None
        self._config: str | None = None  # if it is another from the next checkpoint on
        self._removed = weakref.finalize(self, remove, self._spare)  # at the latest when Python ends
        self._written = time.monotonic()
        self._writer: str | None = None  # until the file is ours
        self._rows: list[_Row] = []
        self._amended: _Row | None = None
        self._carry: dict[str, np.ndarray] = {}  # the latest, if it is not stored yet
        self._lock = threading.RLock()  # a signal's thread stores what is done, while the run goes on

    def describe(self, config: Mapping[str, Any]) -> None:
        """Store another `config`, at once.

        Raises
        ------
        RunFileError
            As `checkpoint`.
        """
        with self._lock:
            self._config = json.dumps(config)
            self.checkpoint()
            self.release()

    def checkpoint_every(self, every: int) -> None:
        """So many steps from one checkpoint to the next, from now on."""
        self._every = every

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
        keep: Keep = "all",
        carries: bool = False,
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
            Steps from one checkpoint to the next.
        seconds : float
            Seconds from one checkpoint to the next, at most, if a step is done by then.
        overwrite : bool
            Replace an existing file; it stays until the new one is on the disk.
        keep : "all", "last" or int
            Of which steps the parameters are kept: of all, of the last one, of the start and every k-th and the last.
        carries : bool
            Whether there will be a `carry`, which a gem that does not know of it must not leave out.

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
        run = cls(path, _shapes(start), 0, False, every, seconds, keep)
        run._writer, started = uuid.uuid4().hex, launch()
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION if carries or keep != "all" else 1,
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
        remove_stale(path)
        place = None if overwrite else _place_new
        with rewriting(path, _nbytes(start), "Nothing was written.", fresh=True, place=place) as file:
            file.attrs.update(attributes)
            if keep != "all":
                _append(_dataset(file, "steps", (), np.int64), [0], end=1)
            for name, value in start.items():
                _append(_dataset(file, f"params/{name}", value.shape), [value], end=1)
            _dataset(file, "history/notes", (), str)
        return run

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        every: int = 10,
        seconds: float = CHECKPOINT_SECONDS,
        keep: Keep = "all",
        config: Mapping[str, Any] | None = None,
    ) -> RunFile:
        """Continue a run file after its last checkpoint, with the `keep` that it began with.

        With another `config` it is a longer run, which is not finished, even if it was.

        It is written anew at once: a bad folder or a full disk shows before any work is done.

        Raises
        ------
        RunFileError
            The file cannot be read (see `read_run`) or written.
        """
        path = Path(path).resolve()
        found = read_run(path)
        remove_stale(path)
        if (found.kept is None) != (keep == "all"):
            raise RunFileError(f"{path} does not keep the parameters of the steps that keep = {keep!r} says")
        run = cls(path, _shapes(found.params), found.step, found.finished, every, seconds, keep)
        run.reason = found.reason
        if config is not None:
            run.finished, run.reason, run._config = False, None, json.dumps(config)
        run.checkpoint()
        return run

    def record(
        self,
        step: int,
        params: Mapping[str, Any],
        diagnostics: Mapping[str, float],
        notes: Sequence[str] = (),
        reason: str | None = None,
        best: tuple[int, float, Mapping[str, Any]] | None = None,
        carry: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep one step in memory, and checkpoint if its turn has come (`step % every == 0`, or the time).

        `reason` says why no step will follow, where that is known; `best` are step, F and parameters of the best ones
        so far, for a run that is to end with these; `carry` is what outlives the step, see `carry`.

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
            self._best = best or self._best
            if self._rows and not lasting(self._keep, step - 1):
                self._rows[-1] = self._rows[-1]._replace(params={})
            self._rows.append(row)
            if carry is not None:
                self._carry = _float64(carry)
            if step % self._every == 0 or time.monotonic() - self._written >= self._seconds:
                self.checkpoint()

    def carry(self, arrays: Mapping[str, Any]) -> None:
        """Keep in memory what outlives the last step, or part of a step; checkpoint if it is time. Shapes must stay.

        Raises
        ------
        RunFileError
            If the checkpoint failed.
        """
        with self._lock:
            self._carry = _float64(arrays)
            if time.monotonic() - self._written >= self._seconds:
                self.checkpoint()

    def amend(
        self, diagnostics: Mapping[str, float], notes: Sequence[str], params: Mapping[str, Any] | None = None
    ) -> None:
        """Have the last step recorded tell something else, from the next checkpoint on, or leave other parameters."""
        with self._lock:
            _check_names(diagnostics)
            values = {name: float(value) for name, value in diagnostics.items()}
            others = {} if params is None else _float64(params)
            if self._rows:
                others = others or self._rows[-1].params
                self._rows[-1] = self._rows[-1]._replace(diagnostics=values, notes=list(notes), params=others)
            elif self.checkpointed:
                self._amended = _Row(others, values, list(notes))

    def save(self) -> None:
        """Checkpoint if there is a step, or a part of one, that is not stored; from any thread.

        Raises
        ------
        RunFileError
            As `checkpoint`.
        """
        with self._lock:
            if self._rows or self._carry:
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
        with self._lock, _reading(self.path) as file:
            stored, writer = int(file.attrs["checkpoint"]), file.attrs.get("writer")
            if stored != self.checkpointed or (self._writer is not None and writer != self._writer):
                raise RunFileError(
                    f"{self.path} stands at step {stored}, this run left it at {self.checkpointed}: another "
                    f"process writes it too. Let one of them end, then `gem resume {self.path}`."
                )
            size = sum(_nbytes(row.params) for row in self._rows) + _nbytes(self._carry)
            remains = (
                f"The file still holds every step up to {self.checkpointed}; "
                f"once this is put right, `gem resume {self.path}` continues from there."
            )
            mine = self._writer or uuid.uuid4().hex
            with rewriting(self.path, size, remains, spare=self._spare) as new:
                self._complete(new, file)
                about: dict[str, Any] = {"finished": self.finished, "reason": self.reason or ""}
                if self._config is not None:
                    about["config"] = self._config
                new.attrs.update(checkpoint=self.step, writer=mine, **about)
            if self._amended is not None or self.finished:
                remove(self._spare)  # it has what no longer holds, or no more steps follow
            self.checkpointed, self._rows, self._amended, self._carry = self.step, [], None, {}
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
            self._pack()

    @_uninterrupted()
    def _pack(self) -> None:
        """Write the file anew where many checkpoints have left much unused space in it; as it was if that fails."""
        with _reading(self.path) as file, suppress(RunFileError):
            if self.path.stat().st_size - _content(file) < WASTE:
                return
            with rewriting(self.path, _content(file), "", fresh=True) as new:
                for name in file:
                    file.copy(name, new)
                new.attrs.update(file.attrs)

    def release(self) -> None:
        """Give back the space that checkpoints use beside the file; the next one takes it anew."""
        with self._lock:
            remove(self._spare)

    def _complete(self, new: Any, file: Any) -> None:
        """Add to `new`, the file or a former state of it, what it lacks of the file, and the rows in memory."""
        have, history = int(new.attrs["checkpoint"]), file["history"]
        for name in sorted({*history, *(told for row in self._rows for told in row.diagnostics)}):
            kind = str if name == "notes" else float
            missing: list[Any] = []
            if have < self.checkpointed and name in history:
                stored = history[name].asstr() if kind is str else history[name]
                missing = list(stored[have:])
            missing += [json.dumps(row.notes) if kind is str else row.diagnostics.get(name, nan) for row in self._rows]
            _append(_dataset(new, f"history/{name}", (), kind), missing, self.step)
        if self._amended is not None:
            _amend_last(new, self._amended, self.checkpointed)
        self._add_params(new, file["params"], have)
        for name, value in self._carry.items():
            new.require_dataset(f"carry/{name}", value.shape, np.float64, exact=True)[...] = value

    def _add_params(self, new: Any, stored: Any, have: int) -> None:
        """The parameters; a last row that does not stay, as another step has followed, makes room for the next."""
        first, after = lasting_rows(self._keep, have), lasting_rows(self._keep, self.checkpointed)
        if not self._rows:
            after = len(next(iter(stored.values())))
        rows = [row for row in self._rows if row.params]
        for name in self._shapes:
            missing = list(stored[name][first:after]) if first < after else []
            _append(new["params"][name], missing + [row.params[name] for row in rows], after + len(rows))
        if self._keep != "all":
            steps = kept_steps(self._keep, self.step)[first:]
            _append(new["steps"], steps, after + len(rows))
        if self._amended is not None and not self._rows:
            for name, value in self._amended.params.items():
                new["params"][name][after - 1] = value
        if self._best is not None:
            step, F, params = self._best
            group = new.require_group("best")
            if group.attrs.get("step") != step:
                for name, value in _float64(params).items():
                    group.require_dataset(name, value.shape, np.float64)[...] = value
                group.attrs.update(step=step, free_energy=F)


class _Row(NamedTuple):
    """One step, waiting for its checkpoint; `params` are empty if they are not kept."""

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
        Why no step follows the last one: "settled", "steps used up", "ended by finish()", "F fell at step 17"; or
        "stopped by SIGTERM", after which it may be taken up. None of a run that goes on, or was killed.
    params : dict of name to float64 array
        The parameters after the last step; `load_params` reads those of all steps that are kept.
    kept : (R,) int array, or None
        The steps of which they are kept, ascending, 0 for the start; None if they are of all.
    best : (step, F, parameters), or None
        The best so far, of a run that is to end with them, and the step that began with them.
    history : dict of name to (T,) float64 array
        Diagnostics per step, NaN where a step had none.
    carry : dict of name to float64 array
        What outlives a step where minibatches are learned from (`gem.stepwise.Carry`); empty elsewhere.
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
    kept: np.ndarray | None = None
    carry: dict[str, np.ndarray] = field(default_factory=dict)
    best: tuple[int, float, dict[str, np.ndarray]] | None = None

    @property
    def planned(self) -> int:
        """Steps that the run is to have."""
        return int(self.config.get("steps", self.config["annealing"]["steps"]))


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
        kept = _kept(path, file)
        stored = step + 1 if kept is None else len(kept)
        for group, rows in (params, stored), (history, step):
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
            params={name: np.asarray(dataset[stored - 1]) for name, dataset in params.items()},
            history={name: dataset[:] for name, dataset in history.items() if name != "notes"},
            notes=[json.loads(events) for events in history["notes"].asstr()[:]],
            kept=kept,
            carry=_carried(file),
            best=_best(file),
        )


def _carried(file: Any) -> dict[str, np.ndarray]:
    """All that lies under /carry, by its path there."""
    found: dict[str, np.ndarray] = {}
    if "carry" in file:
        file["carry"].visititems(
            lambda name, item: found.update({name: np.asarray(item[()])}) if hasattr(item, "shape") else None
        )
    return found


def _content(file: Any) -> int:
    """About how many bytes the file has to take."""
    notes = len(file["history"]["notes"]) * NOTE_BYTES
    parts = [each.nbytes for name in ("params", "history", "best") for each in file.get(name, {}).values()]
    return notes + sum(parts) + _nbytes(_carried(file))


def _best(file: Any) -> tuple[int, float, dict[str, np.ndarray]] | None:
    """Step, F and parameters of the best ones so far, where they are kept."""
    if "best" not in file:
        return None
    found = file["best"]
    params = {name: np.asarray(dataset[()]) for name, dataset in found.items()}
    return int(found.attrs["step"]), float(found.attrs["free_energy"]), params


def _kept(path: str | os.PathLike[str], file: Any) -> np.ndarray | None:
    """The steps whose parameters the file holds; None: all.

    Raises
    ------
    RunFileError
        If the last one is not that of the checkpoint, or they do not ascend.
    """
    if "steps" not in file:
        return None
    kept, step = np.asarray(file["steps"][:]), int(file.attrs["checkpoint"])
    if not len(kept) or kept[-1] != step or kept[0] < 0 or np.any(np.diff(kept) <= 0):
        raise RunFileError(
            f"{path} is damaged: /steps does not ascend to {step}; take an earlier copy, or begin a new run"
        )
    return kept


def _reason(about: Mapping[str, Any]) -> str | None:
    """Why no step follows the last one; before gem stored it, a run that had come to its end had done all its steps."""
    reason = str(about.get("reason", "")) or None
    return USED_UP if about["finished"] and not is_over(reason) else reason


def load_params(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """Read one parameter at every step that is kept.

    Returns
    -------
    (R, *shape) float64 array
        If those of all steps are kept, row 0 is the start, and row t follows step t; else row i follows step
        `load_steps(path)[i]`. The last row is that of the last step.

    Raises
    ------
    RunFileError
        As `read_run`, or the run has no such parameter.
    """
    with _reading(path) as file:
        if name not in file["params"]:
            raise RunFileError(f"{path} has no parameter {name!r}; it has {', '.join(file['params'])}")
        return np.asarray(file["params"][name][:])


def load_steps(path: str | os.PathLike[str]) -> np.ndarray:
    """The steps whose parameters `load_params` reads, (R,), ascending: 0 is the start, t after step t.

    Raises
    ------
    RunFileError
        As `read_run`.
    """
    with _reading(path) as file:
        kept = _kept(path, file)
        return np.arange(int(file.attrs["checkpoint"]) + 1) if kept is None else kept


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


def _is_run_file(path: Path) -> bool:
    """Whether a file may be replaced by a run: one that holds a run, whole or torn, and nothing else."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("format") == FORMAT
    except OSError:
        start = path.read_bytes()[: 1 << 16]
        return not start or (start.startswith(HDF5_SIGNATURE) and FORMAT.encode() in start)


def is_run_file(path: Any) -> bool:
    """Whether there is a run of gem at that path."""
    try:
        with _reading(path):
            return True
    except RunFileError:
        return False


def is_decided(path: Any) -> bool:
    """Whether a run file is of one run, and not of several of which the best one was not found yet."""
    return bool(read_run(path).config.get("restarts", {}).get("decided", True))


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


def _dataset(file: Any, name: str, shape: tuple[int, ...], kind: type = float) -> Any:
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
        dtype=h5py.string_dtype() if kind is str else np.dtype(kind),
        fillvalue=nan if kind is float else None,
        fletcher32=kind is not str,  # a checksum of each chunk; HDF5 has none for strings
    )


def _append(dataset: Any, rows: Sequence[Any] | np.ndarray, end: int) -> None:
    """Make `rows` the last of `end` rows, and of what was there those before them."""
    if len(dataset) > end or len(rows):
        dataset.resize(end, axis=0)
    if len(rows):
        dataset[end - len(rows) :] = rows


def _amend_last(file: Any, row: _Row, last: int) -> None:
    """Overwrite what the row of step `last` tells."""
    told: dict[str, Any] = {"notes": json.dumps(row.notes), **row.diagnostics}
    for name, value in told.items():
        dataset = _dataset(file, f"history/{name}", ())
        if len(dataset) < last:
            dataset.resize(last, axis=0)
        dataset[last - 1] = value
