"""The notes of a run, many of them alike: counted by kind, for whoever reads them at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

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


def _told(alike: list[tuple[int, str]]) -> Told:
    (first, _), (last, note) = alike[0], alike[-1]
    differ = len({text for _, text in alike}) > 1
    count = f"{len(alike)} × " if len(alike) > 1 else ""
    return Told(
        f"step {first}" if first == last else f"steps {first} to {last}",
        f"{count}{note}{' (the last of them)' if differ else ''}",
    )
