"""What a step costs where there is little to compute: bars, and a mixture in the plane, beside scikit-learn's.

    python -m benchmarks.small [--backend numpy] [--dtype float32] [--seconds 3] [--profile]

Milliseconds a step: of `gem.em_step`, which opens and loads the data at each call; of the same on data that are loaded;
and of a run, by `EM.run` and by `for info in em`. The least of many counts: what other work of the machine adds is none
of a step's. With --profile, where the time of the last two goes, by function.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

import gem
from benchmarks.bars import TRIALS, H, bars
from benchmarks.peers import sklearn_mixture
from gem.backends import available
from gem.em import Work, local_shard, run_step
from gem.models import Model, MoG, Step, make
from gem.models.parameters import Params
from gem.parallel import Serial

N = 1000
RUN = 20  # steps of a run
LINES = 30  # of a profile


def problems() -> dict[str, tuple[Model, np.ndarray]]:
    """Bars on 5 × 5 pixels, and three clusters in the plane."""
    fields, trial = bars(10.0), TRIALS["bsc"]
    bsc = make("bsc", {"D": len(fields), "H": H, **trial.settings})
    pictures, _ = bsc.generate_data({"W": fields, **trial.truth}, N, seed=0)
    rng = np.random.default_rng(0)
    points = rng.standard_normal((N, 2)) + np.array([[0, 0], [4, 0], [0, 4]])[rng.integers(3, size=N)]
    return {f"BSC, N={N}, D={bsc.D}, H={H}": (bsc, pictures), f"MoG, N={N}, D=2, K=3": (MoG(2, 3), points)}


def timed(function: Callable[[], object], count: int = 1) -> float:
    """Milliseconds of one of so many things that a function does."""
    began = time.perf_counter()
    function()
    return (time.perf_counter() - began) * 1e3 / count


def steps(model: Model, params: Params, Y: np.ndarray, backend: gem.backends.Backend) -> dict[str, Callable[[], float]]:
    """Ways to do a step: each gives the milliseconds of one."""
    shard = local_shard(model, Y, backend, Serial(), None)
    work, step = Work(model, backend.load(shard), backend, Serial()), Step(dtype=str(backend.dtype))

    def of_a_run(do: Callable[[gem.EM], object]) -> float:
        em = gem.EM(model, Y, gem.Annealing(steps=RUN), params=params, backend=backend)
        return timed(partial(do, em), RUN + 1)  # with one more E-step at its end

    def through(em: gem.EM) -> None:
        for _ in em:
            pass

    return {
        "em_step": lambda: timed(lambda: gem.em_step(model, params, Y, backend=backend)),
        "loaded": lambda: timed(lambda: run_step(work, params, step)),
        "EM.run": lambda: of_a_run(gem.EM.run),
        "for info in em": lambda: of_a_run(through),
    }


def least(functions: dict[str, Callable[[], float]], seconds: float) -> dict[str, float]:
    """The least of what each gives, in turn for so long."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    end = time.monotonic() + seconds * len(functions)
    while time.monotonic() < end:
        for name, function in functions.items():
            found[name].append(function())
    return {name: min(values) for name, values in found.items()}


def profile(function: Callable[[], object], seconds: float) -> None:
    """Where the time goes, by function, of their own and with what they call."""
    watch, end = cProfile.Profile(), time.monotonic() + seconds
    while time.monotonic() < end:
        watch.runcall(function)
    pstats.Stats(watch).strip_dirs().sort_stats("tottime").print_stats(LINES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", help="only this one")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    names = [args.backend] if args.backend else [n for n, about in available().items() if "unavailable" not in about]
    for title, (model, data) in problems().items():
        params, Y = model.init_params(data, seed=0), data.astype(args.dtype)
        for name in names:
            functions = steps(model, params, Y, gem.backends.select(name, args.dtype))
            told = ", ".join(f"{what} {ms:.2f}" for what, ms in least(functions, args.seconds).items())
            print(f"{title}, {name} {args.dtype}, ms a step: {told}", flush=True)
            for what in ("loaded", "EM.run") if args.profile else ():
                print(f"{what}:")
                profile(functions[what], args.seconds)
        if isinstance(model, MoG):
            theirs = partial(timed, sklearn_mixture(model, params, Y))
            print(f"{title}, scikit-learn {args.dtype}, ms a step: {least({'': theirs}, args.seconds)['']:.2f}")


if __name__ == "__main__":
    main()
