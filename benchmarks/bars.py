"""The bars test: from how many of 20 random starts does a model find all bars?

    python -m benchmarks.bars --auto [MODEL ...] [--seeds 20] [--first 1000] [--N 1000] [--flags="--T 1"]
    python -m benchmarks.bars [MODEL ...] [--seeds 20] [--no-annealing] [--T 5] [--anneal-prior] [--backend numpy]

5 × 5 pixels, H = 10 bars, N data points a seed; a row of `TRIALS` a model says how its data are made. --auto is what
`gem fit MODEL bars.npy --H 10` does, with no other setting (but the values of DSC) and no flag of annealing; what more
flags of it do, --flags tells. The schedules were chosen on seeds below 20: by default it begins with 1000.

Without it the row also says how a model is annealed, and Ncut rises from 0 to 1 by 2/3 of the steps. --no-annealing
keeps T = 1 throughout: the pair shows what annealing is worth. --T 5 begins every model at that temperature;
--anneal-prior lets T act on the prior as well.
(Földiák, Biol. Cybern. 64, 1990; Henniges et al., LVA/ICA 2010.)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import gem
from gem import cli
from gem.models import Model, make
from gem.store import read_run

SIDE = 5
H = 2 * SIDE
NCUT = [(0, 0.0), (2 / 3, 1.0)]


def cooling(T: float) -> dict[str, Any]:
    """From a temperature to 1 over 80 % of the steps."""
    return {"T": [(0, T), (0.8, 1.0)]}


@dataclass(frozen=True)
class Trial:
    """A model's bars test: what the bars are made of, and how they are sought."""

    value: float = 10.0  # of a bar's pixels
    truth: dict[str, Any] = field(default_factory=lambda: {"pi": 0.2, "sigma": 2.0})  # the other parameters
    settings: dict[str, Any] = field(default_factory=lambda: {"Hprime": 8, "gamma": 5})
    annealing: dict[str, Any] = field(default_factory=lambda: cooling(5.0))
    N: int = 1000
    steps: int = 150


TRIALS: dict[str, Trial] = {
    "bsc": Trial(),
    "tsc": Trial(settings={"Hprime": 8, "gamma": 3}, annealing=cooling(3.0)),
    "dsc": Trial(truth={"pi": [0.8, 0.1, 0.1], "sigma": 2.0}, settings={"Hprime": 8, "gamma": 3, "values": [0, 1, 2]}),
    "mca": Trial(annealing=cooling(3.0)),
    "mmca": Trial(),
    "gsc": Trial(truth={"pi": [0.2] * H, "mu": [1.0] * H, "psi": [0.1] * H, "sigma": 2.0}, annealing=cooling(2.0)),
    "noisyor": Trial(value=0.8, truth={"pi": [0.2] * H}, annealing={"T": 1.0}, N=2000),
}


def bars(value: float, background: float = 0.0, side: int = SIDE) -> np.ndarray:
    """The (side², 2 side) fields: a horizontal and a vertical bar for each position."""
    W = np.full((side, side, 2 * side), background)
    for i in range(side):
        W[i, :, i] = value
        W[:, i, side + i] = value
    return W.reshape(side * side, 2 * side)


def found(W: np.ndarray, truth: np.ndarray) -> int:
    """How many true bars have a field that, scaled to fit, is nowhere off by half a bar's contrast."""
    norms = np.einsum("dh,dh->h", W, W)
    scale = np.divide(truth.T @ W, norms, out=np.zeros((truth.shape[1], W.shape[1])), where=norms > 0)
    distance = np.abs(truth[:, :, None] - W[:, None, :] * scale).max(axis=0)
    return int((distance.min(axis=1) < np.ptp(truth) / 2).sum())


def problem(name: str, seed: int, N: int | None = None) -> tuple[Model, np.ndarray, np.ndarray]:
    """The model, the true fields, and data of `seed`: N points, or as many as the trial says."""
    trial = TRIALS[name]
    model = make(name, {"D": SIDE**2, "H": H, **trial.settings})
    truth = bars(trial.value, 0.01 if model.parameters["W"].domain == "probability" else 0.0)
    Y, _ = model.generate_data({"W": truth, **trial.truth}, N=N or trial.N, seed=1000 + seed)
    return model, truth, Y


def run(name: str, seed: int, annealing: dict[str, Any] | None = None, backend: str = "numpy") -> int:
    """Bars found from the random start of `seed`, in data of that seed; `annealing` overrules the trial's."""
    trial = TRIALS[name]
    model, truth, Y = problem(name, seed)
    anneal = gem.Annealing(steps=trial.steps, **{"Ncut": NCUT, **trial.annealing, **(annealing or {})})
    em = gem.EM(model, Y, anneal, backend=backend, dtype="float64", seed=seed).run()
    return found(em.params["W"], truth)


def fit(name: str, seed: int, N: int | None = None, flags: tuple[str, ...] = ()) -> int:
    """Bars found by `gem fit NAME bars.npy --H 10 --seed SEED` with these flags more, in data of that seed."""
    _, truth, Y = problem(name, seed, N)
    values = TRIALS[name].settings.get("values")
    of_model = [] if values is None else ["--values=" + ",".join(map(str, values))]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        data, output = Path(folder, "bars.npy"), str(Path(folder, "run.h5"))
        np.save(data, Y)
        command = ["fit", name, str(data), "--H", str(H), *of_model, "--seed", str(seed), "--quiet", "-o", output]
        if cli.main([*command, *flags]):
            raise SystemExit(f"gem {' '.join(command)} failed")
        return found(read_run(output).params["W"], truth)


def by_default(args: argparse.Namespace) -> None:
    """--auto: a line a model."""
    flags = ("--backend", args.backend, *args.flags.split())
    for name in args.models or TRIALS:
        counts = [fit(name, args.first + n, args.N, flags) for n in range(args.seeds)]
        print(f"{name}: all {H} bars in {counts.count(H)} of {args.seeds} seeds from {args.first}; found {counts}")
        print(f"    gem fit {name} bars.npy --H {H} {args.flags}, N = {args.N or TRIALS[name].N}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(TRIALS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=20)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--no-annealing", action="store_true", help="T = 1 throughout")
    how.add_argument("--T", type=float, help="temperature of the first step (default: the trial's own)")
    parser.add_argument("--anneal-prior", action="store_true", help="T acts on the prior, too")
    how.add_argument("--auto", action="store_true", help="gem fit without a flag of annealing, and for it:")
    parser.add_argument("--first", type=int, default=1000, help="the first seed (default: 1000)")
    parser.add_argument("--N", type=int, help="data points (default: the trial's)")
    parser.add_argument("--flags", default="", help="more flags of gem fit, as --flags='--T 1 --steps 50'")
    parser.add_argument("--backend", default="numpy")
    args = parser.parse_args()
    unknown = sorted(set(args.models) - set(TRIALS))
    if unknown:
        parser.error(f"there is no bars test for {unknown[0]!r}: {', '.join(TRIALS)}")
    if args.auto:
        return by_default(args)
    changed = {"T": 1.0} if args.no_annealing else cooling(args.T) if args.T else {}
    changed |= {"anneal_prior": True} if args.anneal_prior else {}
    for name in args.models or TRIALS:
        trial = TRIALS[name]
        counts = [run(name, seed, changed, args.backend) for seed in range(args.seeds)]
        how = f"{trial.annealing | changed}"
        print(f"{name}: all {H} bars in {counts.count(H)} of {args.seeds} seeds; found {counts}")
        print(f"    N = {trial.N}, {trial.steps} steps, {how}, {trial.settings}, {trial.truth}", flush=True)


if __name__ == "__main__":
    main()
