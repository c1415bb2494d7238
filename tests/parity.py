"""Kernels against their twins, as a program: for another interpreter, under a simulator, with another folder's text.

python tests/parity.py FOLDER BACKEND KERNEL ...    in float64
--case N    only the case of this number    --few    of each case as few data points as show all
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

import numpy as np
import test_kernels as kernels

from gem.backends import _device
from gem.backends._numpy import NumpyBackend
from gem.kernels import source

MANY = 60  # states of several causes that a simulator walks over: more show no other mistakes
SWEEPS = 9  # of a search; Oclgrind remembers each access to memory, and had taken 20 GB


def few(backend: Any, name: str) -> Any:
    """A kernel's cases, each with a full tile and one more data point; where groups walk over tiles, one takes two."""
    for make, (N, *sizes) in kernels.CASES[name]:
        constants = make(np.random.default_rng(0), 1, *sizes).constants
        if constants.get("MANY", 0) > MANY or (name == "lasso" and sizes[1] > SWEEPS):
            continue
        plan = backend.plan(name, constants)
        least = plan.tile + 1 if plan.groups is None else plan.tile * plan.groups + 1
        yield make, (1 if N == 1 else least, *sizes)


def same(backend: Any, name: str, make: Any, sizes: Any) -> bool:
    case = make(np.random.default_rng(0), *sizes)
    found, wanted = (kernels.run(b, name, case, "float64") for b in (backend, NumpyBackend("float64")))
    return all(
        np.allclose(f, w, rtol=1e-9, atol=1e-9 * max(1, np.abs(w).max(initial=0, where=np.isfinite(w))))
        for f, w in zip(found, wanted, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--case", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("backend")
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    source.FOLDER = args.folder
    backend = kernels.device(args.backend, "float64")
    if args.few:
        _device.GROUPS_PER_UNIT = 2  # of a simulator's one unit
    for name in args.names:
        cases = few(backend, name) if args.few else kernels.CASES[name]
        for make, sizes in cases if args.case is None else [cases[args.case]]:
            if not same(backend, name, make, sizes):
                sys.exit(f"{name} {sizes} DIFFERS")
    print("the same")


if __name__ == "__main__":
    main()
