"""Held parameters: entries that keep the values they began with, while all else is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gem.errors import ConfigError
from gem.models import Model
from gem.models.held import put_back
from gem.models.parameters import Params
from gem.statistics import Statistics

WANTED = "the names of parameters, or a dict of name and mask, True where an entry is held"


class Hold:
    """Which entries of a model's parameters are held.

    Attributes
    ----------
    masks : dict of name to bool array, of the parameter's shape
    record : dict
        The same as plain data, True where all entries are held, for the run file.
    """

    def __init__(self, model: Model, masks: dict[str, np.ndarray]):
        self._model = model
        self.masks = masks
        self.record = {name: True if mask.all() else mask.tolist() for name, mask in masks.items()}

    @classmethod
    def of(cls, model: Model, asked: Any, noisy: Iterable[str] = ()) -> Hold | None:
        """What a user asked for: names (also as one string, with commas), or name → True or a mask; None: nothing.

        Raises
        ------
        ConfigError
            If a name is none of the model's, a mask does not fit, the model cannot hold these entries, or a parameter
            that is held as a whole is to be `noisy`.
        """
        if asked is None:
            return None
        if isinstance(asked, str):
            asked = [name.strip() for name in asked.split(",") if name.strip()]
        if not isinstance(asked, Mapping):
            asked = dict.fromkeys(_names(asked), True)
        masks = {name: _mask(model, name, mask) for name, mask in asked.items()}
        masks = {name: mask for name, mask in masks.items() if mask.any()}
        for name, mask in masks.items():
            if why := model.refuses_to_hold(name, mask):
                raise ConfigError(f"hold: {name}: {why}")
        for name in noisy:
            if name in masks and masks[name].all():
                raise ConfigError(f"{name}_noise has nothing to act on: {name} is held")
        return cls(model, masks) if masks else None

    @property
    def whole(self) -> list[str]:
        """The parameters of which all entries are held."""
        return [name for name, mask in self.masks.items() if mask.all()]

    def put_back(self, new: Params, old: Params) -> Params:
        """`new` with the held entries of `old`; bit for bit, as the last of all that a step does."""
        return put_back(new, old, self.masks, self._model.parameters)

    def settled(self, new: Params, old: Params) -> Params:
        """`Model.settle`, unless it moves what is held."""
        moved = self._model.settle(new, old)
        held = all(np.array_equal(moved[name][mask], new[name][mask]) for name, mask in self.masks.items())
        return self.put_back(moved if held else new, old)

    def after(self, new: Params, old: Params, moments: Statistics, step: Any) -> Params:
        """What an M-step gives if these entries are held: those that depend on them follow."""
        return self._model.hold(new, old, self.masks, moments, step)


def _names(asked: Any) -> list[str]:
    try:
        names = list(asked)
    except TypeError:
        names = [None]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"hold = {asked!r:.80} must be {WANTED}")
    return names


def _mask(model: Model, name: Any, asked: Any) -> np.ndarray:
    """A mask of the parameter's shape.

    Raises
    ------
    ConfigError
    """
    if name not in model.shapes:
        raise ConfigError(f"hold: {name!r} is no parameter of {model.name}: it has {', '.join(model.shapes)}")
    shape = model.shapes[name]
    try:
        mask = np.asarray(asked)
    except ValueError:
        mask = np.zeros(0)
    if mask.dtype != bool or (mask.ndim and mask.shape != shape):
        raise ConfigError(
            f"hold: the mask of {name} must be True, or a boolean array of shape {shape}, True where an entry is held; "
            f"not {mask.dtype} of shape {mask.shape}"
        )
    return np.broadcast_to(mask, shape).copy()
