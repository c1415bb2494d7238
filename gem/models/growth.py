"""A larger model from a smaller one: components are split, latents doubled, the most used or the largest first."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gem.errors import ConfigError
from gem.models.base import Model
from gem.models.mixtures import Mixture
from gem.models.parameters import DOMAINS, Params, of_role

ASIDE = 0.5  # of a field's length: how far its halves lie from it, each its own way


def grown(model: Model, smaller: Model, params: Mapping[str, np.ndarray], rng: np.random.Generator) -> Params:
    """Parameters of `model` from those of the same kind of model with fewer components or latents.

    A component becomes two of half its weight, at one standard deviation from each other; a field two that lie to both
    sides of it, with its length. Latents are active as rarely as they must be so that as many are active as before.

    Raises
    ------
    ConfigError
        If the models are not of one kind, or differ in more than that number.
    """
    count = "K" if isinstance(model, Mixture) else "H"
    before, after = getattr(smaller, count, 0), getattr(model, count)
    if smaller.name != model.name or before > after or not _alike(model, smaller, before, after):
        raise ConfigError(
            f"start: a run of {smaller!r} cannot begin one of {model!r}: it must be the same model with the same "
            f"settings, but for a {count} of at most {after}"
        )
    checked = smaller.check(params)
    if before == after:
        return checked
    return _split(model, checked, before, rng) if isinstance(model, Mixture) else _doubled(model, checked, before, rng)


def _alike(model: Model, smaller: Model, before: int, after: int) -> bool:
    """Whether the shapes of all parameters differ in the number of components or latents only."""
    return list(model.shapes) == list(smaller.shapes) and all(
        len(shape) == len(smaller.shapes[name])
        and all(n == m or (m, n) == (before, after) for n, m in zip(shape, smaller.shapes[name], strict=True))
        for name, shape in model.shapes.items()
    )


def _split(model: Mixture, params: Params, before: int, rng: np.random.Generator) -> Params:
    new: Params = {}
    own = [name for name, about in model.parameters.items() if about.latents == 0]
    for name, value in params.items():
        more = np.repeat(value[:1], model.K - before, axis=0) if name in own else value[:0]
        new[name] = np.concatenate([value, more]) if name in own else value
    new["pi"][before:] = 0
    for k in range(before, model.K):
        big = int(np.argmax(new["pi"]))
        centre = model.beside(new, big, rng)
        for name in own:
            new[name][k] = new[name][big]
        new[model.centre][k] = centre
        new["pi"][k] = new["pi"][big] = new["pi"][big] / 2
    return new


def _doubled(model: Model, params: Params, before: int, rng: np.random.Generator) -> Params:
    fields = str(of_role(model.parameters, "fields"))
    H = model.parameters[fields].shape[1]
    order = np.argsort(-np.linalg.norm(params[fields], axis=0), kind="stable")
    parents = np.concatenate([np.arange(before), np.resize(order, H - before)])
    shares = np.bincount(parents, minlength=before)[parents]  # of how many each is one
    new: Params = {}
    for name, about in model.parameters.items():
        value = params[name]
        if about.latents is not None:
            value = np.take(value, parents, axis=about.latents)
            if about.role == "prior":
                value = value / shares
        elif about.role == "prior" and about.domain == "probability":
            value = value * before / H
        new[name] = value
    new[fields] = _apart(new[fields], shares > 1, model.parameters[fields].domain, rng)
    return new


def _apart(W: np.ndarray, twins: np.ndarray, domain: str, rng: np.random.Generator) -> np.ndarray:
    """Fields moved off their twins, each its own way, at their lengths."""
    length = np.linalg.norm(W, axis=0)
    way = rng.standard_normal(W.shape) * length / np.sqrt(len(W)) * ASIDE
    moved = W + np.where(twins, way, 0)
    if domain == "nonnegative":
        moved = np.abs(moved)
    if domain in ("positive", "probability"):
        low, high = DOMAINS[domain]
        return np.where(twins, np.clip(moved, max(low, 1e-3), min(high, 1 - 1e-3) if high < np.inf else high), W)
    now = np.linalg.norm(moved, axis=0)
    return moved * np.where(twins & (now > 0), length / np.where(now > 0, now, 1), 1)
