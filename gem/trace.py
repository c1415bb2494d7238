"""The runtime trace: what every rank did when, in the Trace Event format (Perfetto and chrome://tracing open it)."""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from gem.errors import ConfigError, DataError
from gem.parallel import Communicator

log = logging.getLogger("gem")

Event = dict[str, Any]
MAX_SPANS = 1_000_000  # of all ranks together: about 120 MB as a file, what Perfetto still opens with ease
_NOTHING: AbstractContextManager[None] = nullcontext()


class Trace:
    """A trace that is off: spans cost a call and leave nothing."""

    on = False

    def span(self, name: str, **about: Any) -> AbstractContextManager[None]:
        """A context whose begin and end are recorded under `name`, with what is known `about` it."""
        return _NOTHING

    def write(self) -> None:
        """Store what was recorded."""

    def write_alone(self) -> None:
        """Store what this rank recorded, where the others cannot be asked any more."""


OFF = Trace()


class Recording(Trace):
    """The spans of this rank, kept in memory until `write` brings those of all ranks together in one file.

    Of a long run the latest spans are kept, MAX_SPANS on all ranks together; the file says how many came before.

    Parameters
    ----------
    path : path
        Written at once (empty), so that a bad folder shows before any work is done, and again by `write`.
    comm : Communicator
        Made, and written, by all its ranks together. The ranks of a host share its clock; the clocks of hosts start
        when all ranks have met.

    Raises
    ------
    ConfigError
        If the file cannot be written, or holds something else.
    """

    on = True

    def __init__(self, path: str | os.PathLike[str], comm: Communicator):
        self.path, self._comm = Path(path), comm
        self._spans: deque[Event] = deque(maxlen=max(1000, MAX_SPANS // comm.size))
        self._lock, self._seen = threading.Lock(), 0
        if comm.rank == 0:
            self._refuse_foreign()
            self._store(self.path, [])
        comm.allgather(None)
        clocks = comm.allgather((platform.node(), time.perf_counter()))  # a host's processes read one clock
        self._origin = min(clock for host, clock in clocks if host == platform.node())

    @contextmanager
    def span(self, name: str, **about: Any) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            event = {
                "name": name,
                "ph": "X",
                "ts": (began - self._origin) * 1e6,
                "dur": (time.perf_counter() - began) * 1e6,
                "pid": self._comm.rank,
                "tid": _thread(),
                "args": about,
            }
            with self._lock:
                self._spans.append(event)
                self._seen += 1

    def write(self) -> None:
        """Store all ranks' spans (every rank calls this), one rank's after another's: rank 0 never holds them all.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        if self._comm.rank == 0:
            self._store(self.path, self._of_all_ranks())
        else:
            for _ in self._of_all_ranks():
                pass

    def write_alone(self) -> None:
        """Store this rank's spans without asking the others: rank 0 in the file itself, rank 3 in FILE.rank3.json.

        A file that cannot be written is told to the log: what made the run end is the error to be raised.
        """
        rank = self._comm.rank
        try:
            self._store(self.path if rank == 0 else self.path.with_suffix(f".rank{rank}.json"), self._own())
        except ConfigError as error:
            log.warning("%s", error)

    def _own(self) -> list[Event]:
        """This rank's events: its name, what was dropped, its spans."""
        about: Event = {"ph": "M", "pid": self._comm.rank, "tid": 0}
        events = [{**about, "name": "process_name", "args": {"name": f"rank {self._comm.rank}"}}]
        with self._lock:
            dropped, spans = self._seen - len(self._spans), list(self._spans)
        if dropped:
            labels = f"the first {dropped:,} spans were not kept"
            events.append({**about, "name": "process_labels", "args": {"labels": labels}})
        return events + spans

    def _of_all_ranks(self) -> Iterator[Event]:
        for rank in range(self._comm.size):
            yield from self._comm.allgather(self._own() if rank == self._comm.rank else [])[rank]

    def _refuse_foreign(self) -> None:
        if self.path.exists():
            try:
                read_spans(self.path)
            except DataError as error:
                raise ConfigError(f"{self.path} exists and is no trace: name another file for the trace") from error

    def _store(self, path: Path, events: Iterable[Event]) -> None:
        try:
            with path.open("w", encoding="utf-8") as file:
                file.write('{"displayTimeUnit": "ms", "traceEvents": [')
                for i, event in enumerate(events):
                    file.write(",\n" * (i > 0) + json.dumps(event))
                file.write("]}\n")
        except OSError as error:
            raise ConfigError(f"cannot write the trace {path} ({error.strerror}): check the path") from error


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
    return sorted(_read(path, "X"), key=lambda e: (e["pid"], e["tid"], e["ts"], -e["dur"]))


def read_notes(path: str | os.PathLike[str]) -> list[str]:
    """What a trace file says of its ranks' spans: how many were dropped."""
    return [f"rank {e['pid']}: {e['args']['labels']}" for e in _read(path, "M") if e["name"] == "process_labels"]


def _read(path: str | os.PathLike[str], kind: str) -> list[Event]:
    try:
        return [event for event in json.loads(Path(path).read_text())["traceEvents"] if event["ph"] == kind]
    except OSError as error:
        raise DataError(f"cannot read the trace {path} ({error.strerror}): check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no trace in the Trace Event format: `gem fit --trace` makes one") from error


class Account(NamedTuple):
    """Where time went, in seconds summed over the ranks. A span counts without the spans within it.

    Attributes
    ----------
    steps : of all EM steps
    within : span → of the steps' time, on the ranks' main threads; "EM step" itself is what no other span covers
    outside : span → of the main threads' time beside the steps
    pool : span → of the time of pool threads, which work while a main thread waits within its E-step
    threads : pool threads that a rank had at the most
    """

    steps: float
    within: dict[str, float]
    outside: dict[str, float]
    pool: dict[str, float]
    threads: int


def account(spans: Sequence[Event]) -> Account:
    """Share out the time of a trace's spans, which are in the order of `read_spans`."""
    within: dict[str, float] = defaultdict(float)
    outside: dict[str, float] = defaultdict(float)
    pool: dict[str, float] = defaultdict(float)
    around: list[int] = []  # the spans that hold the present one, outermost first
    own, in_step = [span["dur"] / 1e6 for span in spans], []
    for i, span in enumerate(spans):
        while around and not _holds(spans[around[-1]], span):
            around.pop()
        if around:
            own[around[-1]] -= span["dur"] / 1e6
        around.append(i)
        in_step.append(any(spans[j]["name"] == "EM step" for j in around))
    for span, seconds, inside in zip(spans, own, in_step, strict=True):
        where = pool if span["tid"] else within if inside else outside
        where[span["name"]] += max(seconds, 0.0)
    threads = len({span["tid"] for span in spans} - {0})
    return Account(sum(within.values()), dict(within), dict(outside), dict(pool), threads)


def _holds(outer: Event, inner: Event) -> bool:
    same = (outer["pid"], outer["tid"]) == (inner["pid"], inner["tid"])
    return same and inner["ts"] < outer["ts"] + outer["dur"]
