"""What four models make of the same photographs: the fields of BSC, MCA, GSC and SC side by side.

    python -m examples.fields [--output docs/fields.png] [--steps 60] [--count 30000]

Whitened 12 × 12 patches of scikit-learn's china.jpg and flower.jpg, 100 fields each, the most used ones first. MCA
sees on and off channels (its fields are not negative), drawn as their difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from matplotlib.figure import Figure

import gem
from gem.data import open_data
from gem.models import make
from gem.plot import fields

PATCH, H = 12, 100
SHOWN = 10_000  # data points that tell how much each field is used
RISING = {"T": [(0, 4.0), (0.6, 1.0)], "anneal_prior": True, "Ncut": [(0, 0.0), (0.66, 1.0)]}
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # model → title, settings, annealing
    "bsc": ("binary sparse coding", {"Hprime": 8, "gamma": 4}, RISING),
    "mca": ("maximal causes", {"Hprime": 8, "gamma": 4}, RISING),
    "gsc": ("spike-and-slab", {"Hprime": 8, "gamma": 4}, {"T": [(0, 2.0), (0.5, 1.0)], "anneal_prior": True}),
    "sc": ("sparse coding", {}, {}),
}


def learn(name: str, photographs: list[str], steps: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The fields (D, H) of a model, on minus off where the data are split so, and how much each is used (H,)."""
    _, settings, schedule = RUNS[name]
    onoff = name == "mca"
    with open_data(photographs, patch=PATCH, count=count, onoff=onoff) as source:
        model = make(name, {"D": source.shape[1], "H": H, **settings})
        em = gem.EM(model, source, gem.Annealing(steps=steps, **schedule)).run(progress=True)
        found = gem.posterior(model, em.params, source.read(0, count)[:: max(1, count // SHOWN)], backend=em.backend)
    W = em.params["W"]
    mean = found.mean if found.product is None else found.product
    return W[: PATCH**2] - W[PATCH**2 :] if onoff else W, np.abs(mean).mean(axis=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="fields.png")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--count", type=int, default=30_000)
    args = parser.parse_args()
    folder = Path(sklearn.datasets.__file__).parent / "images"
    photographs = [str(folder / name) for name in ("china.jpg", "flower.jpg")]
    figure = Figure(figsize=(14, 3.9), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(RUNS)), RUNS, strict=True):
        began = time.perf_counter()
        W, use = learn(name, photographs, args.steps, args.count)
        fields(axes, W, order=np.argsort(-use, kind="stable"))
        axes.set_title(f"{name.upper()}, {RUNS[name][0]}", fontsize=10)
        print(f"{name}: {args.steps} steps in {time.perf_counter() - began:.0f} s", flush=True)
    figure.savefig(args.output, dpi=130)
    print(f"{args.output} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
