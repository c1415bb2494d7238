"""What the runtime trace costs: an EM step with it off, off once more (which shows the noise), and on.

python -m benchmarks.trace_cost [--backend numpy] [--N 20000] [--D 256] [--H 300] [--repeats 15]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import gem
from benchmarks.model_step import problem
from benchmarks.timing import BREATH, interleaved, spread
from gem.models import BSC


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numpy")
    for name, value in {"N": 20_000, "D": 256, "H": 300, "repeats": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args(arguments)
    model = BSC(args.D, args.H)
    params, Y = problem(model, args.N)
    y, anneal = Y.astype("float32"), gem.Annealing(steps=10**6)
    with TemporaryDirectory() as folder:
        traces = {"off": None, "off again": None, "on": Path(folder) / "trace.json"}
        runs = {
            name: iter(gem.EM(model, y, anneal, params=params, backend=args.backend, trace=trace))
            for name, trace in traces.items()
        }
        steps = {name: (lambda run=run: next(run)) for name, run in runs.items()}
        times = interleaved(steps, args.repeats, pauses=dict.fromkeys(steps, BREATH))
        for run in runs.values():
            run.close()  # writes the trace, while its folder is there
    print(f"{model!r} on N = {args.N:,}, backend {args.backend}: a step takes {np.median(times['off']) * 1e3:.2f} ms")
    for name in ("off again", "on"):
        change = np.median(times[name]) / np.median(times["off"]) - 1
        print(f"trace {name}: {change:+.1%} (medians); step by step {spread(times[name] / times['off'])} × off")


if __name__ == "__main__":
    main()
