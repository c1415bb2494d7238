"""The bars test: in how many of 20 random starts does BSC find all ten bars, with and without annealing?

    python -m benchmarks.bars [--seeds 20]

5 × 5 pixels, H = 10 bars, N = 1000, π = 0.2, W = 10, σ = 2, H' = 8, γ = 5; 150 steps, Ncut 0 → 1 by 2/3 of them,
T 5 → 1 over 80 % of them (of the likelihood alone: anneal_prior=False) or 1 throughout.
(Földiák, Biol. Cybern. 64, 1990; Henniges et al., LVA/ICA 2010.)
"""

from __future__ import annotations

import argparse

import numpy as np

import gem
from gem.models import BSC

SIDE, VALUE = 5, 10.0
NCUT = [(0, 0.0), (2 / 3, 1.0)]
SCHEDULES = {"annealed (T 5 → 1)": [(0, 5.0), (0.8, 1.0)], "not annealed (T = 1)": 1.0}


def bars(side: int = SIDE, value: float = VALUE) -> np.ndarray:
    """The (side², 2 side) fields: a horizontal and a vertical bar for each position."""
    W = np.zeros((side, side, 2 * side))
    for i in range(side):
        W[i, :, i] = value
        W[:, i, side + i] = value
    return W.reshape(side * side, 2 * side)


def found(W: np.ndarray, truth: np.ndarray) -> int:
    """How many true bars have a field of their own that differs by less than half a bar's contrast in every pixel."""
    distance = np.abs(truth[:, :, None] - W[:, None, :]).max(axis=0)
    return int((distance.min(axis=1) < np.abs(truth).max() / 2).sum())


def trial(schedule: object, seed: int) -> int:
    """Bars found from the random start of `seed`, in data of that seed."""
    truth = bars()
    model = BSC(D=SIDE**2, H=2 * SIDE, Hprime=8, gamma=5)
    Y, _ = model.generate_data({"W": truth, "pi": 0.2, "sigma": 2.0}, N=1000, seed=1000 + seed)
    anneal = gem.Annealing(steps=150, T=schedule, Ncut=NCUT, anneal_prior=False)
    em = gem.EM(model, Y, anneal, backend="numpy", dtype="float64", seed=seed).run()
    return found(em.params["W"], truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    for name, schedule in SCHEDULES.items():
        counts = [trial(schedule, seed) for seed in range(args.seeds)]
        print(
            f"{name}: all {2 * SIDE} bars in {counts.count(2 * SIDE)} of {args.seeds} seeds; found {counts}", flush=True
        )


if __name__ == "__main__":
    main()
