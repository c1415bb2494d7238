"""What a model says of its parameters, and what follows from it: whether some fit, noise on them, their shift."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gem.errors import ConfigError

Params = dict[str, np.ndarray]
MIN_PROBABILITY = 1e-10  # a prior of 0 or 1 could never change again
MOST_NOISE = 300.0  # on a logarithmic scale: no factor leaves the range of a float
TINY = float(np.finfo(np.float64).tiny)
SMALL = 1e-150  # its square is a number still
DOMAINS = {  # lowest and highest value
    "real": (-np.inf, np.inf),
    "nonnegative": (0.0, np.inf),
    "positive": (TINY, np.inf),
    "deviation": (SMALL, np.inf),  # a standard deviation
    "probability": (TINY, 1.0),
    "distribution": (TINY, 1.0),  # and the entries add up to 1
    "covariance": (-np.inf, np.inf),  # and each matrix (..., D, D) is positive definite
}
ROLES = ("fields", "centres", "prior", "noise", "spread", "strength", "strength variance", "scale", "shape")


@dataclass(frozen=True)
class Parameter:
    """What a model says of one of its parameters: the one place that knows.

    Attributes
    ----------
    shape : tuple of int
    domain : str
        A key of `DOMAINS`.
    role : str
        What it is to whoever draws it, restores pictures with it, or begins a latent anew, one of `ROLES`: "fields"
        (D, H), a column for each latent; "centres" (K, D), a row for each component; "prior", how probable latents or
        components are; "noise", the standard deviation of the data about their mean; "spread", variances or
        covariances of components; "strength" and "strength variance" (H,), of latents that are active; "scale", of
        continuous latents; "shape", of a distribution of the data about their mean.
    latents : int or None
        The axis along which latents or components are listed; None: it belongs to no single one.
    shifts : bool
        Whether it moves with the data, while nothing else changes: by a vector (D,) along its last axis.
    """

    shape: tuple[int, ...]
    domain: str
    role: str
    latents: int | None = None
    shifts: bool = False

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS or self.role not in ROLES:
            raise ValueError(f"a Parameter has a domain of {', '.join(DOMAINS)} and a role of {', '.join(ROLES)}")

    @property
    def noisy(self) -> bool:
        """Whether noise leaves it in its domain; a covariance with noise on it may be none."""
        return self.domain != "covariance"


def of_role(table: Mapping[str, Parameter], role: str) -> str | None:
    """The name of the parameter of this role, the first if there are several; None if there is none."""
    return next((name for name, about in table.items() if about.role == role), None)


def shifting(table: Mapping[str, Parameter]) -> str | None:
    """The name of the parameter that moves with the data, if there is one."""
    return next((name for name, about in table.items() if about.shifts), None)


def checked(model: Any, params: Mapping[str, Any]) -> Params:
    """A float64 copy of the parameters of a `model`.

    Raises
    ------
    ConfigError
        If one is missing, unknown, of a wrong shape, not finite, or outside its domain.
    """
    table: Mapping[str, Parameter] = model.parameters
    unknown, missing = sorted(set(params) - set(table)), sorted(set(table) - set(params))
    if unknown or missing:
        raise ConfigError(
            f"{model.name} has the parameters {', '.join(table)}: "
            + "; ".join([f"{n} is missing" for n in missing] + [f"{n} is not one of them" for n in unknown])
        )
    return {name: _checked(model, name, about, params[name]) for name, about in table.items()}


def _checked(model: Any, name: str, about: Parameter, given: Any) -> np.ndarray:
    """A float64 copy of one parameter."""
    try:
        value = np.asarray(given)
        if value.dtype.kind not in "buifO":
            raise TypeError(f"they are {value.dtype}")
        value = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"parameter {name} must be an array of real numbers: {error}") from error
    if value.shape != about.shape:
        raise ConfigError(f"parameter {name} of {model!r} must have shape {about.shape}, not {value.shape}")
    if not np.all(np.isfinite(value)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ConfigError(f"parameter {name} is {value[where]} at {where}: every entry must be finite")
    low, high = DOMAINS[about.domain]
    if not np.all((value >= low) & (value <= high)):
        raise ConfigError(f"parameter {name} must lie in [{low:g}, {high:g}]: it spans {value.min()} to {value.max()}")
    if about.domain == "distribution" and abs(value.sum() - 1) > 1e-6:
        raise ConfigError(f"the probabilities {name} must add up to 1, not {value.sum()}")
    if about.domain == "covariance":
        try:
            np.linalg.cholesky(value)
        except np.linalg.LinAlgError as error:
            raise ConfigError(f"parameter {name} must be positive definite") from error
    return value


def perturbed(
    table: Mapping[str, Parameter], params: Params, noise: Mapping[str, float], rng: np.random.Generator
) -> Params:
    """Parameters with annealing noise, `<name>_noise` of each that `noise` names: each stays in its domain.

    A real parameter gets noise of that standard deviation added, and so does a non-negative one, reflected
    at 0; a positive one is multiplied by its exponential, and a probability moved on the logit scale; those of
    a distribution are then brought to the sum 1.

    Raises
    ------
    ConfigError
        If there is to be noise on covariances.
    """
    out = dict(params)
    for name, about in table.items():
        scale = noise.get(f"{name}_noise", 0.0)
        if scale == 0:
            continue
        if not about.noisy:
            raise ConfigError(f"{name}_noise must be 0: a covariance with noise on it may be none")
        out[name] = _noisy(about.domain, params[name], scale * rng.standard_normal(params[name].shape))
    return out


def _noisy(domain: str, value: np.ndarray, e: np.ndarray) -> np.ndarray:
    """A parameter of this domain with the noise `e` on it."""
    if domain in ("positive", "deviation"):
        return np.clip(value * np.exp(np.clip(e, -MOST_NOISE, MOST_NOISE)), DOMAINS[domain][0], 1 / TINY)
    if domain in ("probability", "distribution"):
        p = np.clip(value, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        moved = 1 / (1 + np.exp(-np.clip(np.log(p) - np.log1p(-p) + e, -MOST_NOISE, MOST_NOISE)))
        moved = np.clip(moved, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        return moved / moved.sum() if domain == "distribution" else moved
    return np.abs(value + e) if domain == "nonnegative" else value + e


def moved(table: Mapping[str, Parameter], params: Params, by: np.ndarray | None) -> Params:
    """The parameters of data to which `by` (D,) was added; None: nothing was."""
    name = shifting(table)
    return params if by is None or name is None else {**params, name: params[name] + by}


def noise_names(models: Iterable[Any]) -> list[str]:
    """Names of the parameters that may have noise, of any of these models, each once."""
    return list(dict.fromkeys(name for model in models for name, about in model.parameters.items() if about.noisy))
