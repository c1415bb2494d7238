"""Settings as they are given: a whole number, a number, a yes or no, or an error that says which it must be."""

from __future__ import annotations

from contextlib import suppress
from math import inf, isfinite
from numbers import Real
from typing import Any

import numpy as np

from gem.errors import ConfigError


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`.

    Raises
    ------
    ConfigError
        If it is none.
    """
    value = _unwrapped(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} = {value!r} must be a whole number, at least {least}")
    return int(value)


def number(name: str, value: Any, what: str, low: float = -inf, high: float = inf, inside: bool = False) -> float:
    """A finite number from `low` to `high`, or strictly `inside` them; `what` says what it must be.

    Raises
    ------
    ConfigError
        If it is none.
    """
    value = _unwrapped(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number may be larger than any float
            found = float(value)
            if isfinite(found) and (low < found < high if inside else low <= found <= high):
                return found
    raise ConfigError(f"{name} = {value!r} must be {what}")


def yes_or_no(name: str, value: Any) -> bool:
    """True or False, and not a word for it.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    value = _unwrapped(value)
    if not isinstance(value, bool | np.bool_) and not (isinstance(value, int) and value in (0, 1)):
        raise ConfigError(f"{name} = {value!r} must be True or False")
    return bool(value)


def _unwrapped(value: Any) -> Any:
    """What a file of arrays gives for a number: an array of no dimensions."""
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value
