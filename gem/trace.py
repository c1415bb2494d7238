"""The runtime trace: what every rank did when, in the Trace Event format (Perfetto and chrome://tracing open it)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from gem.errors import ConfigError, DataError
from gem.parallel import Communicator

Event = dict[str, Any]
_NOTHING: AbstractContextManager[None] = nullcontext()


class Trace:
    """A trace that is off: spans cost a call and leave nothing."""

    on = False

    def span(self, name: str, **about: Any) -> AbstractContextManager[None]:
        """A context whose begin and end are recorded under `name`, with what is known `about` it."""
        return _NOTHING

    def write(self) -> None:
        """Store what was recorded."""


OFF = Trace()


class Recording(Trace):
    """The spans of this rank, kept in memory until `write` gathers those of all ranks in one file.

    Parameters
    ----------
    path : path
        Written at once (empty), so that a bad folder shows before any work is done, and again by `write`.
    comm : Communicator
        Made, and written, by all its ranks together. Their clocks start when all have met.

    Raises
    ------
    ConfigError
        If the file cannot be written, or holds something else.
    """

    on = True

    def __init__(self, path: str | os.PathLike[str], comm: Communicator):
        self.path, self._comm = Path(path), comm
        self._events: list[Event] = []
        if comm.rank == 0:
            self._refuse_foreign()
            self._store([])
        comm.allgather(None)
        self._origin = time.perf_counter()

    @contextmanager
    def span(self, name: str, **about: Any) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._events.append(
                {
                    "name": name,
                    "ph": "X",
                    "ts": (began - self._origin) * 1e6,
                    "dur": (time.perf_counter() - began) * 1e6,
                    "pid": self._comm.rank,
                    "tid": _thread(),
                    "args": about,
                }
            )

    def write(self) -> None:
        """Gather all ranks' spans (every rank calls this) and store them.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        gathered = self._comm.allgather(self._events)
        if self._comm.rank == 0:
            names = [
                {"name": "process_name", "ph": "M", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
                for rank in range(self._comm.size)
            ]
            self._store(names + [event for events in gathered for event in events])

    def _refuse_foreign(self) -> None:
        if self.path.exists():
            try:
                read_spans(self.path)
            except DataError as error:
                raise ConfigError(f"{self.path} exists and is no trace: name another file for the trace") from error

    def _store(self, events: list[Event]) -> None:
        try:
            self.path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
        except OSError as error:
            raise ConfigError(f"cannot write the trace {self.path} ({error.strerror}): check the path") from error


def _thread() -> int:
    """0 for the main thread; a pool's threads by their number in it, which their names end in: pools come and go."""
    number = threading.current_thread().name.rpartition("_")[2]
    return 1 + int(number) if number.isdigit() else 0


def read_spans(path: str | os.PathLike[str]) -> list[Event]:
    """The spans of a trace file, in the order of their beginnings.

    Raises
    ------
    DataError
        If there is no such file, or it is no trace.
    """
    try:
        events = json.loads(Path(path).read_text())["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        return sorted(spans, key=lambda e: (e["pid"], e["tid"], e["ts"], -e["dur"]))
    except OSError as error:
        raise DataError(f"cannot read the trace {path} ({error.strerror}): check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no trace in the Trace Event format: `gem fit --trace` makes one") from error
