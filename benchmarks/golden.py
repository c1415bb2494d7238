"""The reference numbers of an independent implementation (tests/golden/README.md), and how far a backend is from them.

The tests assert what `deviations` finds; benchmarks.accuracy prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import gem
from gem.models import MODELS, Model, make

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
DTYPES = ("float64", "float32")
BOUNDS = {"mca": (0, np.inf), "noisyor": (1e-5, 1 - 1e-5)}  # of W; the reference updates without them
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz") if path.name.split("_")[0] in MODELS)


def kind_of(name: str) -> str:
    """The model of a case, by its name in MODELS."""
    return name.split("_", maxsplit=1)[0]


def asked(kind: str, dtype: str) -> float:
    """The relative deviation that a model may have; of candidates, none may differ."""
    if dtype == "float64":
        return 1e-8
    return 2e-4 if kind in ("bsc", "mog") else 5e-4


def model_of(name: str, case: dict[str, np.ndarray]) -> tuple[Model, dict[str, np.ndarray]]:
    """The model of a case: its sizes are those of the parameters, its settings are in the file or its name."""
    kind = kind_of(name)
    params = {key[6:]: value for key, value in case.items() if key.startswith("param_")}
    if kind in ("mog", "mop"):
        K, D = params["lam" if kind == "mop" else "mu"].shape
        return make(kind, {"D": D, "K": K} | ({"covariance": name.split("_")[1]} if kind == "mog" else {})), params
    D, H = params["W"].shape
    settings = {"D": D, "H": H, "Hprime": int(case["Hprime"]), "gamma": int(case["gamma"])}
    return make(kind, settings | ({"values": case["values"].tolist()} if kind == "dsc" else {})), params


def deviation(found: Any, wanted: Any) -> float:
    """Largest deviation relative to the largest entry; infinite where the shapes differ."""
    if np.shape(found) != np.shape(wanted):
        return np.inf
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))


def deviations(name: str, dtype: str, backend: Any, comm: Any = None) -> dict[str, float]:
    """One EM step and the posterior of a case against the reference.

    Returns
    -------
    Deviations of "log evidence", "mean" (⟨s⟩, or the responsibilities), "product" (where there is one), "free energy",
    and of each new parameter ("new W"); "candidates": the share of them that differ.
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        case = dict(file)
    model, params = model_of(name, case)
    T = float(case["T"])
    post = gem.posterior(model, params, case["Y"], backend=backend, dtype=dtype, T=T, anneal_prior=True)
    found = {"log evidence": deviation(post.log_evidence, case["logZ"])}
    if "candidates" in case:
        found["candidates"] = float(np.mean(post.candidates != case["candidates"]))
    found["mean"] = deviation(post.mean, case["resp" if "resp" in case else "Es"])
    if "Esz" in case:
        found["product"] = deviation(post.product, case["Esz"])

    new, info = gem.em_step(model, params, case["Y"], backend=backend, dtype=dtype, T=T, anneal_prior=True, comm=comm)
    wanted = {key[4:]: value for key, value in case.items() if key.startswith("new_")}
    if kind_of(name) in BOUNDS:
        wanted["W"] = np.clip(wanted["W"], *BOUNDS[kind_of(name)])
    for key in sorted(wanted | new):
        found[f"new {key}"] = deviation(new[key], wanted[key]) if key in wanted and key in new else np.inf
    found["free energy"] = deviation(info.free_energy, case["logZ"].sum())
    return found
