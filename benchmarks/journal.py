"""One EM step at the size of the journal: BSC and MMCA, 20 × 20 patches, N = 100,000, H = 600, H' = 12, γ = 10.

    python -m benchmarks.journal [--models bsc mmca] [--backend opencl] [--steps 3]

The set-up of Bornschein, Henniges & Lücke, PLOS Comput. Biol. 9, 2013, who report about 90 s a step for 16 × 16
patches on 160 cores. Data are whitened patches of scikit-learn's two photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import sklearn.datasets

import gem
from gem.data import open_data
from gem.models import make

SIZES = {"H": 600, "Hprime": 12, "gamma": 10}
PATCH, COUNT = 20, 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bsc", "mmca"])
    parser.add_argument("--backend", default="opencl")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--count", type=int, default=COUNT, help="data points (default: %(default)s)")
    args = parser.parse_args()
    folder = Path(sklearn.datasets.__file__).parent / "images"
    photographs = [str(folder / name) for name in ("china.jpg", "flower.jpg")]
    with open_data(photographs, patch=PATCH, count=args.count) as source:
        for name in args.models:
            model = make(name, {"D": PATCH**2, **SIZES})
            em = gem.EM(model, source, gem.Annealing(steps=args.steps), backend=args.backend)
            seconds = [info.seconds for info in em]
            print(
                f"{model!r}, N = {args.count:,}, {em.backend.name} ({em.backend.describe()['device']}), float32: "
                f"{np.median(seconds[1:] or seconds):.2f} s a step (all: {', '.join(f'{s:.2f}' for s in seconds)})",
                flush=True,
            )


if __name__ == "__main__":
    main()
