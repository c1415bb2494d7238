"""Which model restores a picture, of which size, how it begins, and what it says of a patch.

What a model knows of patches stands in its own file: `gem.models.pictures` names the hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np

from gem.em import posterior
from gem.errors import ConfigError
from gem.models import MODELS, Model, known_options, make
from gem.models.parameters import Params
from gem.models.pictures import STRONG
from gem.philox import generator
from gem.restore.cover import Cover

AUTO = "auto"
WITHOUT_GAPS, WITH_GAPS = "mog", "gsc"  # what `auto` means


def check_model(model: str, missing: bool) -> None:
    """Refuse a model that cannot restore pictures.

    Raises
    ------
    ConfigError
        With the reason.
    """
    name = model.lower()
    if name == AUTO:
        return
    fit = sorted(known for known, kind in MODELS.items() if not kind.unfit_for_pictures)
    if name not in fit:
        known = name in MODELS
        why = (
            f"{name} cannot restore pictures: {MODELS[name].unfit_for_pictures}"
            if known
            else f"unknown model {model!r}"
        )
        raise ConfigError(f"{why}; choose among {', '.join(fit)}")
    if missing and not _learns_from_gaps(name):
        able = [known for known in fit if _learns_from_gaps(known)]
        raise ConfigError(f"{name} cannot learn from patches with gaps; choose among {', '.join(able)}")


def _learns_from_gaps(name: str) -> bool:
    return "missing" in signature(MODELS[name]).parameters


def choose(model: str, missing: bool, settings: Mapping[str, Any]) -> str:
    """The model's name: `auto` is a mixture of Gaussians without gaps, spike-and-slab with gaps or for settings of it.

    Raises
    ------
    ConfigError
        For a model that cannot do it, or settings that it does not have.
    """
    check_model(model, missing)
    name = model.lower()
    if name == AUTO:
        of_causes = set(settings) & {"H", "Hprime", "gamma"}
        name = "dsc" if "values" in settings else "gsc" if of_causes else "mog" if "K" in settings else ""
        name = name or (WITH_GAPS if missing else WITHOUT_GAPS)
    known_options(name, dict(settings), fixed=("D", "missing"))  # refuses others
    return name


def usual_patch(noise: float, gaps: bool) -> int:
    """The side of the patches for noise in 255ths of the picture's range."""
    return 8 if noise >= STRONG and not gaps else 6


def make_model(name: str, cover: Cover, count: int, noise: float, missing: bool, settings: Mapping[str, Any]) -> Model:
    """The model with its usual sizes for `count` patches and this noise, but for what `settings` says."""
    usual = MODELS[name].sizes_for_patches(count, noise, settings)
    return make(name, {"D": cover.D, **usual, **({"missing": True} if missing else {}), **settings})


def start(model: Model, Y: np.ndarray, noise: float, seed: int) -> Params:
    """Where the model begins on these patches."""
    params = model.begin_on_patches(model.init_params(Y, seed), Y, noise, generator(seed, "fields"))
    return known_noise(model, params, noise, len(Y))


def known_noise(model: Model, params: Params, noise: float, count: int) -> Params:
    """Parameters learned from `count` patches, as noise of known strength allows; 0: there is none."""
    return params if noise == 0 else model.with_known_noise(params, noise, count)


def clean_patches(
    model: Model, params: Params, Y: np.ndarray, sigma: float, backend: Any = None, dtype: Any = "auto"
) -> np.ndarray:
    """E[x | y] of patches y = x + noise, (n, D); NaN marks what was not seen."""
    found = posterior(model, params, Y, backend=backend, dtype=dtype, reconstruct=True)
    explained, mean = (np.asarray(array, dtype=np.float64) for array in (found.reconstruction, found.mean))
    return model.signal(params, Y, explained, mean, sigma)
