"""What is told at the end of a run: its notes, counted by kind as many are alike, and why it ended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from gem.store import USED_UP

NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Told(NamedTuple):
    """Notes of one kind.

    Attributes
    ----------
    when : str
        The step, or the first and the last one.
    what : str
        The note, with the number of notes where there are several: the last one stands for all.
    """

    when: str
    what: str


def kind(note: str) -> str:
    """What a note says, whatever its numbers: notes of one kind differ in these only."""
    return NUMBER.sub("#", note)


def counted(notes: Iterable[tuple[int, str]]) -> list[Told]:
    """One entry for each kind of note, in the order of their first appearance.

    Parameters
    ----------
    notes : (step, note) pairs, in the order of the steps
        As in `EM.notes`.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for step, note in notes:
        found.setdefault(kind(note), []).append((step, note))
    return [_told(alike) for alike in found.values()]


def ending(reason: str, step: int, steps: int) -> str:
    """Why a run ended, and when: 'settled after 57 of 200 steps'."""
    return f"{reason}: {step} of {steps}" if reason == USED_UP else f"{reason} after {step} of {steps} steps"


def _told(alike: list[tuple[int, str]]) -> Told:
    (first, _), (last, note) = alike[0], alike[-1]
    differ = len({text for _, text in alike}) > 1
    count = f"{len(alike)} × " if len(alike) > 1 else ""
    return Told(
        f"step {first}" if first == last else f"steps {first} to {last}",
        f"{count}{note}{' (the last of them)' if differ else ''}",
    )
