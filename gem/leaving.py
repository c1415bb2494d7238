"""Leaving: ranks go through a `for` loop together; one that leaves it on its own ends the job, and nobody waits."""

from __future__ import annotations

import atexit
import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

TAG = 1
GRACE = 3.0  # seconds for the rank that left to say why (an exception is told by its own rank), before others do
EAGER, PAUSE = 0.002, 0.001  # seconds of asking without a pause for the others, and the pause after that


class Together:
    """The ranks in a `for` loop over steps.

    Before each step they agree that all are there. A rank that leaves tells its two neighbours, without waiting: where
    some leave and others stay, one that stays has a neighbour that left, and it ends the job. Where all leave after the
    same step nobody asks any more, and the words are never read.

    A generator is not told why its consumer left: it sees the same of a `break`, a `return` and an exception. So two
    hooks stand as long as the loop does, and stay where it was left early: for exceptions that nobody catches, and for
    `sys.exit`, whose status the interpreter tells nobody. In `sys.exit(main())` the function was looked up before the
    hook was there: there the frames that called the loop are watched for a while.

    Parameters
    ----------
    mpi : module mpi4py.MPI
    side : mpi4py communicator of all ranks, for these words only
    number : int
        Of the loop, the same on all ranks.
    end_job : callable
        Takes an exception that ended this rank: tells it, and ends the job.
    abort : callable
        Takes a message and an exit status: ends the job.
    """

    def __init__(
        self,
        mpi: Any,
        side: Any,
        number: int,
        end_job: Callable[[BaseException], None],
        abort: Callable[[str, int], None],
    ):
        self._mpi, self._side, self.number = mpi, side, number
        self._end_job, self._abort = end_job, abort
        self._step = 0
        self._left = False
        self._sent: list[Any] = []  # what is on its way must not be collected
        self._status: int | None = None  # of a call of sys.exit
        self._hooks = _Hooks(self)

    def __enter__(self) -> Together:
        self._hooks.install()
        atexit.register(self._at_exit)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._left = True  # at the end, as all do
            self._hooks.remove()
            atexit.unregister(self._at_exit)
        else:
            self._leave()

    def agree(self, step: int) -> None:
        """Wait until all ranks are about to do the step after this one; end the job if one has left instead."""
        self._step = step
        request = self._side.Ibarrier()
        began = time.monotonic()
        while not request.Test():
            if (word := self._word()) is not None:
                self._end(*word)
            time.sleep(0 if time.monotonic() - began < EAGER else PAUSE)

    def exiting(self, code: Any) -> None:
        """`sys.exit` was called on this rank: once it has left, the others are told with which status."""
        self._status = status_of(code)
        if self._left and not self._mpi.Is_finalized():
            self._tell(self._status)

    def failing(self, error: BaseException) -> None:
        """An exception that nobody catches ends this rank."""
        self._end_job(error)

    def _leave(self) -> None:
        if self._left or self._mpi.Is_finalized():
            return
        self._left = True
        status = _status_in_flight() if self._status is None else self._status
        if status is None:
            _watch_frames(self.exiting)
        self._tell(status)

    def _at_exit(self) -> None:
        """The interpreter ends while the loop is suspended."""
        with suppress(Exception):
            self._leave()

    def _tell(self, status: int | None) -> None:
        rank, size = self._side.Get_rank(), self._side.Get_size()
        for neighbour in {(rank + 1) % size, (rank - 1) % size} - {rank}:
            self._sent.append(self._side.isend((self.number, self._step, status), dest=neighbour, tag=TAG))

    def _word(self) -> tuple[int, int | None] | None:
        """Who left this loop, and with which exit status if that is known; words of earlier loops are dropped."""
        about = self._mpi.Status()
        while self._side.Iprobe(source=self._mpi.ANY_SOURCE, tag=TAG, status=about):
            number, _, status = self._side.recv(source=about.Get_source(), tag=TAG)
            if number >= self.number:
                return about.Get_source(), status
        return None

    def _end(self, rank: int, status: int | None) -> None:
        end = time.monotonic() + GRACE
        while status is None and time.monotonic() < end:
            time.sleep(PAUSE)
            word = self._word()
            if word is not None:
                rank, status = word if word[1] is not None else (rank, status)
        self._abort(
            f"rank {rank} left the loop over the steps after step {self._step}, and this rank did not: all have to "
            f"leave it after the same step (exit status {status or 'unknown' if status is None else status})",
            status or 1,
        )


class _Hooks:
    """What Python calls when a program ends by an exception, and `sys.exit`, while a loop stands or was left early."""

    def __init__(self, loop: Together):
        self._loop = loop
        self._before: tuple[Any, Any] | None = None

    def install(self) -> None:
        for ours in (sys.excepthook, sys.exit):  # of a loop that was left before: this one takes their place
            former = getattr(ours, "__self__", None)
            if isinstance(former, _Hooks):
                former.remove()
        self._before = sys.excepthook, sys.exit
        sys.excepthook, sys.exit = self.uncaught, self.exit  # type: ignore[assignment]  # a hook, put back later

    def remove(self) -> None:
        if self._before is not None and sys.excepthook == self.uncaught and sys.exit == self.exit:
            sys.excepthook, sys.exit = self._before
            self._before = None

    def uncaught(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        self._loop.failing(error)

    def exit(self, status: Any = None, /) -> None:
        with suppress(Exception):  # whatever MPI says: the program wants to end
            self._loop.exiting(status)
        raise SystemExit(status)


def status_of(code: Any) -> int:
    """The exit status of a process that ends by SystemExit(code)."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _status_in_flight() -> int | None:
    """The status of a SystemExit that is on its way through the frames of this thread; None if there is none.

    The interpreter puts it out of sight while it closes the iterators of the loops that it passes; it is still there.
    """
    stack = set()
    frame = sys._getframe()
    while frame is not None:
        stack.add(frame)
        frame = frame.f_back  # type: ignore[assignment]
    for each in gc.get_objects():
        if type(each) is SystemExit:
            trace = each.__traceback__
            while trace is not None and trace.tb_frame not in stack:
                trace = trace.tb_next
            if trace is not None or each.__traceback__ is None:  # before Python 3.12 it is set when somebody catches it
                return status_of(each.code)
    return None


def _watch_frames(tell: Callable[[Any], None]) -> None:
    """Tell with which status the frames that are at work now end the program, if they soon do, by a SystemExit."""
    if sys.gettrace() is not None:  # a debugger's
        return
    end = time.monotonic() + GRACE

    def see(frame: Any, event: str, about: Any) -> Any:
        if event == "exception" and issubclass(about[0], SystemExit):
            sys.settrace(None)
            with suppress(Exception):  # whatever MPI says: the program wants to end
                error = about[1]  # not made yet, before Python 3.12
                tell(error.code if isinstance(error, SystemExit) else error)
        return see

    def called(frame: Any, event: str, about: Any) -> None:
        if time.monotonic() > end:  # the others do not wait any longer
            sys.settrace(None)

    frame = sys._getframe(1)
    while frame is not None:
        frame.f_trace, frame.f_trace_lines = see, False
        frame = frame.f_back  # type: ignore[assignment]
    sys.settrace(called)
