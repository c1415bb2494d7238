"""Parameters some of whose entries are held: what the others then are, so that F is as large as it can be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gem.models.parameters import Parameter

Masks = Mapping[str, np.ndarray]  # parameter → which of its entries are held, of its shape


def put_back(
    new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray], masks: Masks, table: Mapping[str, Parameter]
) -> dict[str, np.ndarray]:
    """`new` with the held entries as they are in `old`; the free ones of a distribution share what these leave."""
    out = dict(new)
    for name, mask in masks.items():
        value = np.where(mask, old[name], new[name])
        free = ~np.asarray(mask)
        if table[name].domain == "distribution" and free.any() and not free.all():
            rest = max(1.0 - float(old[name][~free].sum()), 0.0)
            total = float(value[free].sum())
            value[free] = value[free] * (rest / total) if total > 0 else rest / free.sum()
            value[free] = np.maximum(value[free], np.finfo(np.float64).tiny)
        out[name] = value
    return out


def held_fields(free: np.ndarray, old: np.ndarray, mask: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Fields W (D, H), of which the entries of `mask` (D, H) are those of `old`, that minimise Σ⟨‖y − Ws‖²⟩.

    Each row is a problem of its own, and rows of one mask are solved together.

    Parameters
    ----------
    free : (D, H) array
        The minimum without a mask.
    second : (H, H) array
        Σ⟨ssᵀ⟩.
    """
    W = np.where(mask, old, free)
    patterns, which = np.unique(mask, axis=0, return_inverse=True)
    for number, held in enumerate(patterns):
        if held.any() and not held.all():
            rows = which.reshape(-1) == number
            shift = (W - free)[np.ix_(rows, held)] @ second[np.ix_(held, ~held)]
            inner = second[np.ix_(~held, ~held)]
            W[np.ix_(rows, ~held)] -= shift @ np.linalg.pinv(inner, hermitian=True)
    return W


def added_variance(W: np.ndarray, free: np.ndarray, second: np.ndarray, terms: float) -> float:
    """What σ² is larger with fields W than with those at the minimum, `free`; see `held_fields`."""
    change = W - free
    return max(float(np.sum((change @ second) * change)), 0.0) / terms


def held_centres(free: np.ndarray, old: np.ndarray, mask: np.ndarray, precision: np.ndarray | None) -> np.ndarray:
    """Centres (K, D), of which the entries of `mask` are those of `old`, and the others the best beside them.

    Parameters
    ----------
    precision : (K, D, D) array, or None
        Inverse covariances of the components about their free centres; None: dimensions are independent.
    """
    mu = np.where(mask, old, free)
    if precision is None:
        return mu
    for k in np.flatnonzero(mask.any(axis=1) & ~mask.all(axis=1)):
        held = mask[k]
        inner, cross = precision[k][np.ix_(~held, ~held)], precision[k][np.ix_(~held, held)]
        mu[k, ~held] -= np.linalg.solve(inner, cross @ (mu[k] - free[k])[held])
    return mu
