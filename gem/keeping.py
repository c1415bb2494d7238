"""Which steps' parameters a run file keeps: of all, of every k-th, of the last one only."""

from __future__ import annotations

from typing import Any

import numpy as np

from gem.checks import whole_number, yes_or_no
from gem.errors import ConfigError

Keep = str | int  # "all", "last", or every so many steps
AUTO_BYTES = 8_000_000  # what the parameters of a run may take in its file, unless another choice is made
FEW = 4  # steps: if no more of them fit, only the last one is kept


def checked(keep: Any) -> Keep | None:
    """What a user asked for, as one of "all", "last", a number of steps, or None: to be chosen by `automatic`.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    if keep is None or (isinstance(keep, str) and keep in ("all", "last")):
        return keep
    if isinstance(keep, str) and keep.isdigit():
        keep = int(keep)
    if isinstance(keep, bool) or not isinstance(keep, int | np.integer):
        raise ConfigError(
            f"keep = {keep!r} must be 'all', 'last' or a number k, the parameters of every k-th step: it says which "
            "of them the run file holds; or 'best', to end with the best ones"
        )
    k = whole_number("keep", keep)
    return "all" if k == 1 else k


def with_best(keep: Any, keep_best: Any) -> tuple[Keep | None, bool]:
    """What a user asked for: the steps, and whether the run ends with its best parameters; keep="best" asks for that.

    Raises
    ------
    ConfigError
    """
    best = isinstance(keep, str) and keep == "best"
    return checked(None if best else keep), yes_or_no("keep_best", keep_best) or best


def automatic(steps: int, nbytes: int) -> Keep:
    """The choice for a run of so many steps, whose parameters have so many bytes: all of them while they are small.

    Else those of every 2nd, 5th, 10th, 20th, ... step, so that they take `AUTO_BYTES` at most, or of the last one.
    """
    room = AUTO_BYTES // max(1, nbytes)
    if steps + 1 <= room:
        return "all"
    if room < FEW:
        return "last"
    scale = 1
    while True:
        for digit in (1, 2, 5):
            k = digit * scale
            if k > 1 and steps // k + 2 <= room:
                return k
        scale *= 10


def lasting(keep: Keep, step: int) -> bool:
    """Whether the parameters of this step stay in the file when another step follows."""
    return keep == "all" or (keep != "last" and step % int(keep) == 0)


def lasting_rows(keep: Keep, step: int) -> int:
    """How many of the steps 0 … `step` stay."""
    if keep == "last":
        return 0
    return step + 1 if keep == "all" else step // int(keep) + 1


def kept_steps(keep: Keep, step: int) -> list[int]:
    """The steps whose parameters a file holds that stands at `step`: those that stay, and this one."""
    steps = list(range(0, step + 1, 1 if keep == "all" else int(keep))) if keep != "last" else []
    return steps if lasting(keep, step) else [*steps, step]
