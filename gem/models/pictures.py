"""What a model knows of patches of pictures: how large it should be, where it begins, what known noise leaves of it.

Hooks of every model, with defaults for those of Gaussian noise. The noise is known: what a model learns beyond it is
held down where noise by itself would give as much.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from gem.models.parameters import Parameter, Params, of_role

STRONG = 20.0  # noise, in 255ths of the range, from which fields are fewer
POINTS_PER_FIELD = 10


class OfPictures(ABC):
    """How a model restores pictures, patch by patch; y is what is seen of a patch, x what it would be without noise."""

    unfit_for_pictures: ClassVar[str] = ""  # why patches are none of its data; empty: they are

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Parameter]:
        """See `Model`."""

    @classmethod
    def sizes_for_patches(cls, count: int, noise: float, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The constructor's arguments for so many patches and this noise (in 255ths of the range), but D and missing.

        `settings` are those that a user gave; they come first.
        """
        return {}

    def begin_on_patches(self, params: Params, Y: np.ndarray, noise: float, rng: np.random.Generator) -> Params:
        """Where learning begins, from what `Model.start` gave, and the patches (n, D), NaN in gaps."""
        return params

    def with_known_noise(self, params: Params, noise: float, count: int) -> Params:
        """Parameters learned from `count` patches, as noise of known strength allows: what is left over is no less."""
        name = of_role(self.parameters, "noise")
        return params if name is None else {**params, name: np.array(max(noise, float(params[name])))}

    def signal(
        self, params: Params, Y: np.ndarray, explained: np.ndarray, mean: np.ndarray, noise: float
    ) -> np.ndarray:
        """E[x | y] of patches (n, D), from E[y | y] as the model explains it, and its posterior mean (n, H).

        A model that explains y by E[y | s] and a rest of variance σ_m² owes σ² of it to the noise: the signal keeps the
        share 1 − σ²/σ_m² of what was not explained.
        """
        name = of_role(self.parameters, "noise")
        share = 0.0 if name is None else max(0.0, 1 - noise**2 / float(params[name]) ** 2)
        return explained + share * np.nan_to_num(Y - explained)


def fields_for(count: int, noise: float) -> int:
    """How many fields so many patches and this noise can tell."""
    return max(1, min(128 if noise >= STRONG else 256, count // POINTS_PER_FIELD))


def contrasted(Y: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the patches as fields (D, count), those of much contrast above all: what stands out of the noise."""
    energy = np.nansum(Y**2, axis=1) ** 2
    total = energy.sum()
    again = bool(np.count_nonzero(energy) < count)  # else no two fields are the same patch
    rows = rng.choice(len(Y), size=count, replace=again, p=energy / total if total > 0 else None)
    return np.nan_to_num(Y[rows]).T


def of_signal(cov: np.ndarray, noise: float, points: float) -> np.ndarray:
    """The covariance of signal and noise behind that of a sample of n points.

    Of noise σ² I a sample of dimension D has eigenvalues up to σ² (1 + √g)², g = D/n: up to there they count as σ².
    Larger ones are λ = ℓ (1 + g σ²/(ℓ − σ²)) on the average, which is solved for ℓ (Donoho, Gavish & Johnstone,
    Annals of Statistics 46, 2018, equation 1.10).
    """
    values, vectors = np.linalg.eigh(cov)
    g = len(cov) / max(points, 1.0)
    ratio = values / noise**2
    b = ratio + 1 - g
    above = ratio > (1 + np.sqrt(g)) ** 2
    root = np.sqrt(np.where(above, b**2 - 4 * ratio, 0.0))
    spike = np.where(above, np.maximum((b + root) / 2, 1.0), 1.0)
    return (vectors * (noise**2 * spike)) @ vectors.T
