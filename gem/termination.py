"""Termination: SIGTERM while a run lasts. The steps done are stored at once; the step at hand is the last one."""

from __future__ import annotations

import dis
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, NamedTuple

log = logging.getLogger("gem")
PATIENCE = 10.0  # seconds for a suspended loop to go on, after SIGTERM, before the signal does what it did before
CACHED = 2  # bytes of a FOR_ITER that follow it: Python 3.12 may point at these
ENDING = (signal.SIGTERM, signal.SIGINT)


class Termination:
    """A context in which SIGTERM sets an event, and has `save` called in a thread of its own.

    Python lets signals in only between two operations of the main thread, and one such operation may be the whole
    E-step: so a thread waits for the byte that the interpreter writes the moment a signal comes. Outside the main
    thread nothing is changed: Python delivers signals there.

    Parameters
    ----------
    save : callable, optional
        Stores what is done; called from another thread, at any moment.
    """

    def __init__(self, save: Callable[[], None] | None = None):
        self._save = save
        self._event = threading.Event()
        self._process = os.getpid()
        self._installed = False
        self._before: Any = None
        self._watch: _Watch | None = None
        self._loop: _Loop | None = None  # whose body has the floor

    def is_set(self) -> bool:
        """Whether SIGTERM has come."""
        return self._event.is_set()

    def __enter__(self) -> Termination:
        self._install()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop = None
        self._give_back()

    def suspend(self) -> None:
        """Called by a generator right before it yields.

        While a `for` loop goes through its body, SIGTERM stays ours. Who calls `next` may never come back: until he
        does, SIGTERM does what it did before.
        """
        self._loop = _loop_at(sys._getframe(1).f_back)
        if self._loop is None:
            self._give_back()

    def take_up(self) -> None:
        """Called by a generator right after it was resumed."""
        self._loop = None
        self._install()

    def _install(self) -> None:
        if self._installed or threading.current_thread() is not threading.main_thread():
            return
        self._before = signal.signal(signal.SIGTERM, self._handle)
        self._installed = True
        if self._save is not None:
            self._watch = _Watch(self._save)

    def _give_back(self) -> None:
        """Put back what SIGTERM did before: at once, or, if this is not the main thread, when the signal comes."""
        self._installed = False
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._former())

    def _former(self) -> Any:
        """What SIGTERM did before; not what another run left here that has ended since."""
        before = self._before
        while isinstance(owner := getattr(before, "__self__", None), Termination) and not owner._installed:
            before = owner._before
        return signal.SIG_DFL if before is None else before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._installed or os.getpid() != self._process:  # left behind, or inherited by a forked process
            self._pass_on(number, frame)
            return
        self._event.set()
        if self._loop is not None and not self._loop.holds(frame):
            timer = threading.Timer(PATIENCE, self._lose_patience, [self._loop])
            timer.daemon = True
            timer.start()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Let the signal do what it did before."""
        if callable(self._before):
            self._before(number, frame)
        elif self._before != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _lose_patience(self, loop: _Loop) -> None:
        """The loop was left without a word (its iterator is kept in a variable): end as if it had not been there."""
        if self._loop is loop:
            if self._save is not None:
                with suppress(Exception):  # told where it was first tried
                    self._save()  # or waits until the other thread has
            self._installed = False
            os.kill(self._process, signal.SIGTERM)


class _Watch:
    """A thread that calls `save` the moment a signal to end comes, whatever the main thread does."""

    def __init__(self, save: Callable[[], None]):
        self._save = save
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._wait, name="gem-termination", daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        while (number := os.read(self._read, 1)) > b"\0":
            if self._before != -1:  # someone else's, such as an event loop's
                with suppress(OSError):
                    os.write(self._before, number)
            if number[0] in ENDING:
                try:
                    self._save()
                except Exception as error:
                    log.warning("signal %d: the steps done could not be stored at once: %s", number[0], error)

    def close(self) -> None:
        """End the thread, when it has stored what it is at."""
        os.write(self._write, b"\0")
        self._thread.join()
        if threading.current_thread() is not threading.main_thread():  # only it may set the descriptor
            _ended[self._write] = self
            return
        now = signal.set_wakeup_fd(-1)
        if now == self._write:
            signal.set_wakeup_fd(self._former())
        else:  # someone came after us, and will put this one back
            signal.set_wakeup_fd(now)
            _ended[self._write] = self

    def _former(self) -> int:
        """The descriptor that was there before; those of watches that have ended since, and this one, are closed."""
        for end in (self._write, self._read):
            os.close(end)
        ended = _ended.pop(self._before, None)
        return self._before if ended is None else ended._former()


_ended: dict[int, _Watch] = {}  # by descriptor: watches that ended before one that began after them


class _Loop(NamedTuple):
    """A `for` loop of somebody's: where its body is. It holds no frame, which would hold the loop's iterator."""

    frame: int
    code: CodeType
    head: int
    end: int

    def holds(self, frame: FrameType | None) -> bool:
        """Whether the main thread, which is at `frame`, is in the loop's body."""
        while frame is not None and not (id(frame) == self.frame and frame.f_code is self.code):
            frame = frame.f_back
        return frame is not None and self.head <= frame.f_lasti < self.end


def _loop_at(frame: FrameType | None) -> _Loop | None:
    """The loop at whose head a frame is, if it is at one (and not in a call of `next`)."""
    if frame is None:
        return None
    for head, end in _heads(frame.f_code):
        if head <= frame.f_lasti <= head + CACHED:
            return _Loop(id(frame), frame.f_code, head, end)
    return None


@lru_cache(maxsize=64)  # at every step the same one
def _heads(code: CodeType) -> list[tuple[int, int]]:
    """Where the loops of a function begin and end in its bytecode."""
    return [(each.offset, each.argval) for each in dis.get_instructions(code) if each.opname == "FOR_ITER"]
