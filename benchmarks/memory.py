"""Peak memory of BSC on 2,000,000 × 64 float32 in HDF5 (512 MB), over the interpreter with its imports.

python -m benchmarks.memory [--N 2000000] [--steps 2] [--backend numpy]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path

import h5py
import numpy as np

import gem
from gem.models import BSC


def peak() -> float:
    """Largest resident size of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins at the size of the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(path: Path, N: int, D: int) -> None:
    """Random data, written a block at a time."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("Y", (N, D), dtype="float32")
        for start in range(0, N, 50_000):
            stop = min(N, start + 50_000)
            dataset[start:stop] = rng.standard_normal((stop - start, D), dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--N", type=int, default=2_000_000)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--backend", default="numpy")
    args = parser.parse_args()
    D = 64
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.h5"
        before = peak()  # before anything is written: buffers of the writing are memory too
        write(path, args.N, D)
        model = BSC(D=D, H=100, Hprime=8, gamma=4)
        anneal = gem.Annealing(steps=args.steps, Ncut=[(0, 0.0), (1.0, 1.0)])
        gem.EM(model, f"{path}:/Y", anneal, backend=args.backend, output=Path(folder) / "run.h5").run(progress=True)
        print(
            f"{model!r} on {args.N:,} × {D} float32 ({args.N * D * 4 / 1e6:.0f} MB), {args.steps} steps, backend "
            f"{args.backend}: peak {peak() - before:.0f} MB over the {before:.0f} MB of the interpreter and its imports"
        )


if __name__ == "__main__":
    main()
