"""What a checkpoint costs as a run goes on, and how large its file becomes.

    python -m benchmarks.checkpoints [--steps 2000] [--every 10] [--D 256] [--H 20] [--keep all]
    python -m benchmarks.checkpoints --demo      # the sizes of `make demo`, with what it keeps

Nothing is learned: the parameters are random numbers. Beside it stands what a copy of the whole file takes, as it was
made for each checkpoint before there were spares (see `gem.store`).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from gem.keeping import Keep, automatic, checked
from gem.store import RunFile

TOLD = ("free_energy", "N", "N_use", "T", "Ncut", "seconds", "share_at_gamma")


def measure(folder: Path, steps: int, every: int, D: int, H: int, keep: Keep) -> None:
    """Record a run and print the median time of the last checkpoints at some of its steps."""
    W = np.random.default_rng(0).normal(size=(D, H))
    path, took = folder / "run.h5", []
    run = RunFile.create(path, model="BSC", config={}, machine={}, seed=0, params={"W": W}, every=10**9, keep=keep)
    print(f"W is {D} x {H} ({W.nbytes / 1e6:.2f} MB), keep = {keep!r}, a checkpoint every {every} steps")
    for step in range(1, steps + 1):
        run.record(step, {"W": W}, dict.fromkeys(TOLD, 1.0 / step))
        if step % every == 0:
            began = time.perf_counter()
            run.checkpoint()
            took.append(time.perf_counter() - began)
        if step in (steps // 10, steps // 2, steps):
            began = time.perf_counter()
            shutil.copy(path, folder / "copy.h5")
            copied = time.perf_counter() - began
            size = path.stat().st_size / 1e6
            print(
                f"step {step}: {1e3 * median(took[-5:]):.1f} ms; file {size:.1f} MB, a copy {1e3 * copied:.1f} ms more"
            )
    run.finish()
    print(f"finished: {path.stat().st_size / 1e6:.1f} MB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--D", type=int, default=256)
    parser.add_argument("--H", type=int, default=20)
    parser.add_argument("--keep", default="all")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--folder", default=None, help="where the file goes (default: the system's temporary folder)")
    args = parser.parse_args(arguments)
    if args.demo:
        args.steps, args.H, args.keep = 200, 200, automatic(200, 8 * (256 * 200 + 2))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(Path(folder), args.steps, args.every, args.D, args.H, checked(args.keep) or "all")


if __name__ == "__main__":
    main()
