"""Preselected, evolved and sampled states at equal numbers of joints: BSC on bars.

    python -m benchmarks.sets [--seeds 5] [--first 1000] [--side 8] [--N 400] [--joints 10000] [--backend numpy]

Every kind of states does as many EM steps as make `--joints` log joints for each data point, from the same start; T and
noise are those of `Annealing.auto`. F of its own states, a bound from below on the log likelihood, is told per point.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean

import numpy as np

from benchmarks.bars import bars, found
from gem import EM, Annealing
from gem.models import BSC
from gem.sets import AnySets, Evolve, Kept, Preselect, Sample
from gem.states import state_table

VALUE, NOISE, ACTIVE = 10.0, 2.0, 2.0  # of a bar's pixels; sigma; bars in a data point
SMALL = {"states": 32, "parents": 5, "generations": 2}
KINDS: dict[str, AnySets] = {
    "ET: Preselect(8, 4)": Preselect(8, 4),
    "EVO: fit, randflip": Evolve(**SMALL, children=4),
    "EVO: rand, randflip": Evolve(**SMALL, children=4, selection="rand"),
    "EVO: fit, sparseflip": Evolve(**SMALL, children=4, mutation="sparseflip"),
    "EVO: fit, cross": Evolve(**SMALL, mutation="cross"),
    "TVS: prior 20, marginal 20": Sample(states=32, prior=20, marginal=20),
    "mix: EVO, Preselect(6, 2)": Evolve(states=32, parents=5, children=4, generations=1, preselect=Preselect(6, 2)),
}


def joints(sets: AnySets, H: int) -> int:
    """Log joints that a step takes for each data point."""
    if isinstance(sets, Preselect):
        return 1 + H + state_table(sets.Hprime or 8, sets.gamma or 5).S
    proposed = 0 if sets.preselect is None else state_table(sets.preselect.Hprime or 8, sets.preselect.gamma or 5).S
    proposed += 0 if sets.preselect is None else sets.preselect.Hprime or 8
    generations = sets.generations if isinstance(sets, Evolve) else 1
    return sets.states + proposed + generations * sets.proposed


def run(sets: AnySets, seed: int, args: argparse.Namespace) -> tuple[int, float, int, float]:
    """Steps, F per point, bars found and seconds of a run."""
    truth = bars(VALUE, side=args.side)
    D, H = truth.shape
    drawn = {"W": truth, "pi": np.array(ACTIVE / H), "sigma": np.array(NOISE)}
    Y, _ = BSC(D, H).generate_data(drawn, args.N, seed=seed)
    steps = max(2, args.joints // joints(sets, H))
    began = time.perf_counter()
    em = EM(BSC(D, H, sets=sets), Y, Annealing.auto(steps), seed=seed, backend=args.backend, dtype="float64").run()
    F = em.history["free_energy"][-1] / args.N
    return steps, float(F), found(em.params["W"], truth), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("seeds", 5), ("first", 1000), ("side", 8), ("N", 400), ("joints", 10000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--backend", default="numpy")
    args = parser.parse_args()
    print(f"| states | kept | joints a step | steps | F/N | bars of {2 * args.side} | all | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name, sets in KINDS.items():
        told = [run(sets, seed, args) for seed in range(args.first, args.first + args.seeds)]
        steps, F, number, seconds = zip(*told, strict=True)
        kept = sets.states if isinstance(sets, Kept) else "–"
        every = sum(n == 2 * args.side for n in number)
        print(
            f"| {name} | {kept} | {joints(sets, 2 * args.side)} | {steps[0]} | {mean(F):.3f} | {mean(number):.1f} "
            f"| {every} of {args.seeds} | {mean(seconds):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
