"""The live line of a run: step, free energy, points per second, time left."""

from __future__ import annotations

import time
from typing import Any

from gem.notes import kind


class Progress:
    """A context manager; `update` after each step. Silent, and without rich, unless `show`.

    Of the notes the first of each kind is shown, on a terminal.
    """

    def __init__(self, total: int, done: int, show: bool):
        self._total, self._done, self._show = total, done, show
        self._bar: Any = None
        self._last_printed = 0.0
        self._said: set[str] = set()

    def __enter__(self) -> Progress:
        if not self._show:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        if self._console.is_terminal:
            text = TextColumn("step {task.completed}/{task.total}"), BarColumn(24), TextColumn("{task.fields[state]}")
            self._bar = Progress(*text, TextColumn("left"), TimeRemainingColumn(), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._done, state="")
        self._began = time.monotonic()
        return self

    def update(self, step: int, info: Any) -> None:
        """Show a step's `Info`: on a terminal as a live line, elsewhere as a printed one every few seconds."""
        if not self._show:
            return
        state = f"F/N {info.free_energy / info.N:.4f}   T {info.T:.2f}   {info.N / info.seconds:,.0f} points/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, state=state)
            for note in info.notes:
                if kind(note) not in self._said:  # all of them are counted at the end
                    self._said.add(kind(note))
                    self._bar.console.print(f"step {step}: {note}", highlight=False)
            return
        now = time.monotonic()
        if now - self._last_printed > 5 or step == self._total:
            self._last_printed = now
            left = (now - self._began) / max(1, step - self._done) * (self._total - step)
            self._console.print(
                f"step {step}/{self._total}   {state}   {left:.0f} s left", highlight=False, soft_wrap=True
            )

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
