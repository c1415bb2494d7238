"""A step of a mixture of Gaussians beside scikit-learn's GaussianMixture, at many sizes, in one process and by turns.

    python -m benchmarks.mixtures [--covariance tied full] [--D 16 64 256] [--K 10 50 200] [--seconds 0.3]

Each does one EM step from the same parameters, which have seen one step; their likelihoods are compared before times
are. N is such that scikit-learn's step takes so many seconds. Prints how many times as fast each backend is, and the
worst of each covariance and type: of the better backend, and of either.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning

import gem
from benchmarks.peers import differs, sklearn_mixture
from benchmarks.timing import interleaved
from gem.models import MoG

COVARIANCES = ("diag", "spherical", "tied", "full")
FEW, MOST = 1000, 400_000  # data points at the least, at the most
VALUES = 1 << 26  # of numbers in the data at the most
SPREAD = 1e-2  # that scikit-learn adds to variances: a component may have fewer points than dimensions, and it refuses


def problem(covariance: str, D: int, K: int, N: int) -> tuple[MoG, dict[str, np.ndarray], np.ndarray]:
    """Clusters about random centres, and the parameters after one step."""
    model, rng = MoG(D, K, covariance), np.random.default_rng(0)
    Y = (3 * rng.standard_normal((K, D)))[rng.integers(K, size=N)]
    Y += rng.standard_normal(Y.shape)
    some = Y[: max(20 * D, 50 * K)] if covariance == "full" else Y[: max(2000, 20 * K)]
    params, _ = gem.em_step(model, model.init_params(some, seed=0), some, dtype="float64", backend="numpy")
    return model, params, Y


def seconds(function: Callable[[], object]) -> float:
    """The least of three runs."""
    return float(interleaved({"": function}, 3, warmup=1, pauses={"": 0.0})[""].min())


def cell(
    covariance: str, D: int, K: int, dtype: str, backends: list[str], wanted: float, repeats: int
) -> dict[str, Any]:
    """Times and ratios of one size."""
    most = max(FEW, min(MOST, VALUES // D))
    model, params, Y = problem(covariance, D, K, most)
    Y = Y.astype(dtype)
    few, more = (seconds(sklearn_mixture(model, params, Y[: n * FEW], SPREAD)) for n in (1, 4))  # some do not grow
    N = int(np.clip(FEW + (wanted - few) * 3 * FEW / max(more - few, 1e-3), FEW, most))
    y = Y[:N]
    theirs = sklearn_mixture(model, params, y, SPREAD)
    ours = {name: gem.backends.select(name, dtype) for name in backends}

    def step(backend: Any) -> Callable[[], Any]:
        return lambda: gem.em_step(model, params, y, backend=backend)

    reference = theirs()["likelihood"]
    for name, backend in ours.items():
        found = step(backend)()[1].free_energy / N
        if reason := differs({"likelihood": found}, {"likelihood": reference}, dtype):
            raise SystemExit(f"{name}, {covariance} D={D} K={K} {dtype}: {reason}")
    functions = {"scikit-learn": theirs, **{name: step(backend) for name, backend in ours.items()}}
    times = interleaved(functions, repeats, warmup=1)
    ratios = {name: float(np.median(times["scikit-learn"] / times[name])) for name in ours}
    return {"N": N, "ms": 1e3 * float(np.median(times["scikit-learn"])), **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--covariance", nargs="+", choices=COVARIANCES, default=list(COVARIANCES))
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float64"), default=["float32", "float64"])
    parser.add_argument("--D", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--K", nargs="+", type=int, default=[10, 50, 200])
    parser.add_argument("--backend", nargs="+", default=["numpy", "opencl"])
    parser.add_argument("--seconds", type=float, default=0.3, help="of scikit-learn's step")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    console, worst = Console(), Table("covariance", "type", "worst of the better", "worst of either")
    table = Table("covariance", "type", "D", "K", "N", "scikit-learn, ms", *(f"{name}, ×" for name in args.backend))
    for covariance, dtype in product(args.covariance, args.dtype):
        rows = []
        for D, K in product(args.D, args.K):
            found = cell(covariance, D, K, dtype, args.backend, args.seconds, args.repeats)
            rows.append([found[name] for name in args.backend])
            cells = [f"{found['N']:,}", f"{found['ms']:.0f}", *(f"{ratio:.1f}" for ratio in rows[-1])]
            table.add_row(covariance, dtype, str(D), str(K), *cells)
            console.print(covariance, dtype, f"D={D} K={K}", *cells)
        worst.add_row(covariance, dtype, f"{np.max(rows, axis=1).min():.1f}", f"{np.min(rows):.1f}")
    console.print(table, worst)


if __name__ == "__main__":
    main()
