"""The models. A new one is a class in a file here and a line in `MODELS`."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from gem.errors import ConfigError
from gem.models.base import Model, Step
from gem.models.estep import EStep, Posterior
from gem.models.gaussian_mixture import MoG
from gem.models.linear import BSC, DSC, TSC
from gem.models.maximal import MCA, MMCA
from gem.models.noisyor import NoisyOR
from gem.models.poisson_causes import PMCA
from gem.models.poisson_mixture import MoP
from gem.models.sparse import SC
from gem.models.spike_slab import GSC

UNIONS = (Union, UnionType)

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
    "EStep",
    "MoG",
    "MoP",
    "Model",
    "NoisyOR",
    "Posterior",
    "Step",
    "known_options",
    "make",
    "option_kinds",
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
    known = {option: p for option, p in MODELS[name].arguments().items() if option not in fixed}
    for option in given:
        if option not in known:
            raise ConfigError(f"{name} has no option {option!r}: there are {', '.join(known)}")
    return known


def option_kinds() -> dict[str, type]:
    """What a user can set of any model, by its constructor, and of which type: float also takes an int.

    Types are int, float, str, bool, list (of numbers), and object, for what is a number or a word.
    """
    kinds: dict[str, type] = {}
    for cls in MODELS.values():
        hints = get_type_hints(cls.__init__)
        kinds.update({name: _kind(hints[name]) for name in cls.arguments() if name != "D"})
    return kinds


def _kind(hint: Any) -> type:
    """The type of a flag for an argument with this annotation."""
    choices = [
        choice for choice in (get_args(hint) if get_origin(hint) in UNIONS else (hint,)) if choice is not NoneType
    ]
    if len(choices) > 1:
        return object
    return choices[0] if choices[0] in (bool, int, float, str) else list
