"""What a run is asked for, checked before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gem.annealing import NOISE, Annealing
from gem.em import Info, check_options
from gem.errors import ConfigError
from gem.models import Model

MAX_SEED = 2**63  # the run file keeps it as a signed integer


def check_kinds(model: Any, anneal: Any, **given: Any) -> None:
    """Refuse what is no model and no annealing, or do not go together, or with other arguments that are given.

    Raises
    ------
    ConfigError
    """
    if not isinstance(model, Model) or not isinstance(anneal, Annealing):
        raise ConfigError(f"EM(model, data, anneal) takes a Model and an Annealing, not {model!r} and {anneal!r}")
    check_noise(model, anneal.noisy)
    check_options(model, anneal.ever("Ncut"), anneal.reseed)
    refuse_with_sets(model, **given)


def refuse_with_sets(model: Model, **given: Any) -> None:
    """Refuse what a model that keeps states from step to step cannot do yet.

    Raises
    ------
    ConfigError
        With the first argument that is given.
    """
    asked = next((name for name, value in given.items() if value is not None), None)
    if model.bytes_kept and asked is not None:
        raise ConfigError(f"{asked}: of a model that keeps states from step to step ({model!r}) it is not there yet")


def one_of(params: Any, start: Any) -> Any:
    """`start`, as long as there are no parameters, too.

    Raises
    ------
    ConfigError
    """
    if params is not None and start is not None:
        raise ConfigError("params and start both say where to begin: give one of them")
    return start


def place_on_disk(given: Any) -> str | None:
    """The absolute path, of what is one."""
    return str(Path(given).resolve()) if isinstance(given, str | Path) else None


def check_numbers(seed: Any, checkpoint: Any, checkpoint_seconds: Any) -> None:
    """Refuse what is no seed, no number of steps, no number of seconds.

    Raises
    ------
    ConfigError
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < MAX_SEED:
        raise ConfigError(f"seed = {seed!r} must be a whole number, 0 to 2^63 - 1")
    if not isinstance(checkpoint, int | np.integer) or checkpoint < 1:
        raise ConfigError(f"checkpoint = {checkpoint!r} must be a whole number of steps, at least 1")
    if not isinstance(checkpoint_seconds, int | float | np.number) or not checkpoint_seconds > 0:
        raise ConfigError(f"checkpoint_seconds = {checkpoint_seconds!r} must be a number of seconds above 0")


def functions_of(callbacks: Any) -> list[Callable[[Info], object]]:
    """The callbacks of a run, which may be any iterable of functions."""
    try:
        functions = list(callbacks)
    except TypeError:
        functions = [None]
    if not all(map(callable, functions)):
        raise ConfigError(f"callbacks = {callbacks!r} must be a list of functions, each called with the Info of a step")
    return functions


def check_noise(model: Model, noisy: list[str]) -> None:
    """Refuse noise of what the model does not have, or of what noise would spoil.

    Raises
    ------
    ConfigError
        With the names of what it has.
    """
    able = ", ".join(name for name, about in model.parameters.items() if about.noisy)
    for name in noisy:
        if name not in model.parameters:
            raise ConfigError(f"{name}{NOISE} has nothing to act on: {model.name} has the parameters {able}")
        if not model.parameters[name].noisy:
            raise ConfigError(
                f"{name}{NOISE}: a covariance with noise on it may be none; of {model.name} {able} may have it"
            )


def refuse_own_data(outputs: Iterable[Any], specs: Iterable[Any]) -> None:
    """Refuse files of a run that would take the place of data it is learned from.

    Raises
    ------
    ConfigError
    """
    data = [spec["data"] for spec in specs if spec is not None]
    names = [name for each in data for name in ([each] if isinstance(each, str) else each)]
    for output in outputs:
        target = None if output is None else str(Path(output).resolve())
        if target is not None and any(name == target or name.startswith(f"{target}:") for name in names):
            raise ConfigError(f"the output {output} is the data file itself: choose another name for the run file")
