"""The models. A new one is a class in a file here and a line in `MODELS`."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter, signature
from typing import Any

from gem.errors import ConfigError
from gem.models.base import Model, Posterior, Step
from gem.models.causes import MCA, MMCA, PMCA
from gem.models.linear import BSC, DSC, TSC
from gem.models.mixtures import MoG, MoP
from gem.models.noisyor import NoisyOR
from gem.models.sparse import SC
from gem.models.spike_slab import GSC

MODELS: dict[str, type[Model]] = {
    cls.__name__.lower(): cls for cls in (BSC, TSC, DSC, MoG, MoP, GSC, SC, MCA, MMCA, NoisyOR, PMCA)
}

__all__ = [
    "BSC",
    "DSC",
    "GSC",
    "MCA",
    "MMCA",
    "MODELS",
    "PMCA",
    "SC",
    "TSC",
    "MoG",
    "MoP",
    "Model",
    "NoisyOR",
    "Posterior",
    "Step",
    "known_options",
    "make",
]


def make(name: str, settings: dict[str, Any]) -> Model:
    """The model of that name (any case).

    Raises
    ------
    ConfigError
        If there is none of that name, or it has no such setting.
    """
    cls = MODELS.get(name.lower())
    if cls is None:
        raise ConfigError(f"unknown model {name!r}: choose among {', '.join(MODELS)}")
    try:
        return cls(**settings)
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {str(error).split('() ')[-1]}") from error


def known_options(name: str, given: Iterable[str], fixed: Iterable[str] = ("D",)) -> dict[str, Parameter]:
    """What a user can set of the model of that name: all that its constructor takes but what is `fixed`.

    Raises
    ------
    ConfigError
        If one of those `given` is not among them.
    """
    known = {option: p for option, p in signature(MODELS[name]).parameters.items() if option not in fixed}
    for option in given:
        if option not in known:
            raise ConfigError(f"{name} has no option {option!r}: there are {', '.join(known)}")
    return known
