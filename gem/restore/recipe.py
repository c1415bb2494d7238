"""Which model restores a picture, of which size, how it begins, and what it says of a patch.

The noise is known: what a model learns beyond it is held down where noise alone would give as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np

from gem.backends import blas
from gem.em import posterior
from gem.errors import ConfigError
from gem.models import MODELS, Model, known_options, make
from gem.models.parameters import Params
from gem.models.truncated import Truncated
from gem.philox import generator
from gem.restore.cover import Cover

AUTO = "auto"
WITHOUT_GAPS, WITH_GAPS = "mog", "gsc"  # what `auto` means
SURE = 1e-6  # responsibility below which a component is not asked
POINTS_PER_FIELD = 10
POINTS_PER_COMPONENT = 2000
COMPONENTS = (8, 20)  # of a mixture: at least (where there are patches), at most
STRONG = 20.0  # noise, in 255ths of the range, from which patches are 8 × 8 pixels and fields fewer
NO_RECIPE = {
    "mop": "its data are counts",
    "pmca": "its data are counts",
    "noisyor": "its data are 0 or 1",
}


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
    if name not in MODELS or name in NO_RECIPE:
        reason = f"{name} cannot restore pictures: {NO_RECIPE[name]}" if name in MODELS else f"unknown model {model!r}"
        raise ConfigError(f"{reason}; choose among {', '.join(sorted(set(MODELS) - set(NO_RECIPE)))}")
    if missing and not _learns_from_gaps(name):
        able = sorted(n for n in MODELS if n not in NO_RECIPE and _learns_from_gaps(n))
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
    usual: dict[str, Any] = {"D": cover.D}
    size = max(1, min(128 if noise >= STRONG else 256, count // POINTS_PER_FIELD))
    if name == "mog":
        least, most = COMPONENTS
        K = max(1, min(max(least, count // POINTS_PER_COMPONENT), most, count // POINTS_PER_FIELD))
        # Σ_k = Cov[x | k] + σ² I: the floor makes it so
        usual |= {"K": K, "covariance": "full", "reg": noise**2 or 1.0}
    elif name == "sc":
        usual |= {"H": size, "penalty": 1.2 * (noise or 1.0)}
    else:
        H = int(settings.get("H") or size)
        usual |= {"H": H, "Hprime": min(H, 8), "gamma": min(H, 3 if name in ("gsc", "dsc") else 5)}
        if name == "dsc":
            usual["values"] = [-2, -1, 0, 1, 2]
        usual["gamma"] = min(usual["gamma"], int(settings.get("Hprime") or usual["Hprime"]))
    return make(name, {**usual, **({"missing": True} if missing else {}), **settings})


def start(model: Model, Y: np.ndarray, noise: float, seed: int) -> Params:
    """Fields at patches of much contrast: what stands out of the noise."""
    params = model.init_params(Y, seed)
    if isinstance(model, Truncated):
        energy = np.nansum(Y**2, axis=1) ** 2
        total = energy.sum()
        again = bool(np.count_nonzero(energy) < model.H)  # else no two fields are the same patch
        rows = generator(seed, "fields").choice(
            len(Y), size=model.H, replace=again, p=energy / total if total > 0 else None
        )
        fields = np.nan_to_num(Y[rows]).T
        params["W"] = np.maximum(fields, 0) if model.fields_are_nonnegative else fields.copy()
    if "b" in params:  # σ²/b is the penalty: it stays
        params["b"] = noise**2 * params["b"] / params["sigma"] ** 2
        params["sigma"] = np.array(noise)
    return known_noise(params, noise, len(Y))


def known_noise(params: Params, noise: float, count: int) -> Params:
    """Parameters learned from `count` patches, as noise of known strength allows.

    Strengths explain the signal: what is left is noise. Switches do not: more than the noise may be left. Gaussians
    have mean 0 (as many patches are x as −x) and the covariances of `_of_signal`.
    """
    if noise == 0:
        return params
    if "cov" in params and params["cov"].ndim == 3:
        mu, cov = params["mu"], params["cov"] + params["mu"][:, :, None] * params["mu"][:, None, :]
        with blas.limited(1):  # more threads only wait for each other on matrices this small
            shrunk = [_of_signal(c, noise, count * float(pi)) for c, pi in zip(cov, params["pi"], strict=True)]
        return {**params, "mu": np.zeros_like(mu), "cov": np.array(shrunk)}
    if "sigma" not in params:
        return params
    known = noise if "psi" in params else max(noise, float(params["sigma"]))
    return {**params, "sigma": np.array(known)}


def _of_signal(cov: np.ndarray, noise: float, points: float) -> np.ndarray:
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


def clean_patches(
    model: Model, params: Params, Y: np.ndarray, sigma: float, backend: Any = None, dtype: Any = "auto"
) -> np.ndarray:
    """E[x | y] of patches y = x + noise, (n, D); NaN marks what was not seen.

    A model that explains y by E[y | s] and a rest of variance σ_m² owes σ² of it to the noise: the signal keeps the
    share 1 − σ²/σ_m² of what was not explained. A Gaussian of covariance Σ_k keeps (Σ_k − σ² I) Σ_k⁻¹ of y − μ_k.
    """
    found = posterior(model, params, Y, backend=backend, dtype=dtype, reconstruct=True)
    explained = np.asarray(found.reconstruction, dtype=np.float64)
    if "cov" in params:
        with blas.limited(1):
            return _wiener(params, np.where(np.isnan(Y), explained, Y), np.asarray(found.mean, np.float64), sigma)
    share = max(0.0, 1 - sigma**2 / float(params["sigma"]) ** 2)
    return explained + share * np.nan_to_num(Y - explained)


def _wiener(params: Params, Y: np.ndarray, responsibilities: np.ndarray, sigma: float) -> np.ndarray:
    """Σ_k q_k (μ_k + (Σ_k − σ² I)₊ Σ_k⁻¹ (y − μ_k))."""
    estimates = np.zeros(Y.shape)
    for q, mu, cov in zip(responsibilities.T, params["mu"], params["cov"], strict=True):
        asked = q > SURE
        values, vectors = np.linalg.eigh(cov)
        gain = (vectors * np.maximum(1 - sigma**2 / values, 0)) @ vectors.T
        estimates[asked] += q[asked, None] * (mu + (Y[asked] - mu) @ gain)
    return estimates
