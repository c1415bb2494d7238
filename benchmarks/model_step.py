"""One whole EM step of each model as a multiple of the two products Y W and Yᵀ⟨s⟩, in the same process.

Of both the second of two runs in a row is timed.

    python -m benchmarks.model_step [MODEL ...] [--backend opencl] [--N 20000] [--D 256] [--H 300]

Each model has the settings of `SETTINGS` (H' = 8; γ = 5, 4 or 3) unless told others.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import gem
from benchmarks.timing import interleaved, spread
from gem.models import Model, make

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {  # row → model and what it has besides D and H
    "bsc": ("bsc", {"Hprime": 8, "gamma": 5}),
    "bsc 12/4": ("bsc", {"Hprime": 12, "gamma": 4}),
    "tsc": ("tsc", {"Hprime": 8, "gamma": 3}),
    "dsc": ("dsc", {"Hprime": 8, "gamma": 3, "values": [0, 1, 2]}),
    "mca": ("mca", {"Hprime": 8, "gamma": 5}),
    "mmca": ("mmca", {"Hprime": 8, "gamma": 5}),
    "mca smooth": ("mca", {"Hprime": 8, "gamma": 5, "rho": 21.0}),
    "mmca smooth": ("mmca", {"Hprime": 8, "gamma": 5, "rho": 21.0}),
    "gsc": ("gsc", {"Hprime": 8, "gamma": 4}),
    "noisyor": ("noisyor", {"Hprime": 8, "gamma": 5}),
}
ACTIVE = 2  # causes of a data point, as on image patches


def problem(model: Model, N: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parameters and data drawn from them: about two causes a data point, as on image patches."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in model.shapes.items():
        kind = model.parameters[name].domain
        if name == "pi":
            rate = ACTIVE / model.shapes["W"][1]
            zero = np.equal(model.settings().get("values", [1.0]), 0)
            params[name] = (
                np.where(zero, 1 - rate, rate / max(1, (~zero).sum())) if zero.any() else np.full(shape, rate)
            )
        elif kind == "probability":
            params[name] = rng.uniform(0.05, 0.95, shape) ** 3
        elif kind in ("positive", "deviation"):
            params[name] = np.ones(shape)
        else:
            value = rng.standard_normal(shape)
            params[name] = np.abs(value) if kind == "nonnegative" else value
    return params, model.generate_data(params, N, seed)[0]


def measure(model: Model, args: argparse.Namespace, dtype: str) -> str:
    """One line: the products, the step, their ratio."""
    params, Y = problem(model, args.N)
    y, W = Y.astype(dtype), params["W"].astype(dtype)
    b, ys = np.empty((args.N, args.H), dtype), np.empty((args.D, args.H), dtype)
    backend = gem.backends.select(args.backend, dtype)

    def products() -> None:
        np.matmul(y, W, out=b)
        np.matmul(y.T, b, out=ys)

    anneal = gem.Annealing(steps=10**6, T=args.T, Ncut=args.Ncut)
    steps = iter(gem.EM(model, y, anneal, params=params, backend=backend))
    times = interleaved({"products": products, "step": lambda: next(steps)}, args.repeats, runs=2)
    ms = {name: np.median(t) * 1e3 for name, t in times.items()}
    rate = 4 * args.N * args.D * args.H / ms["products"] / 1e6
    return (
        f"products {ms['products']:.1f} ms ({rate:.0f} GFLOP/s), step {ms['step']:.1f} ms, "
        f"{ms['step'] / args.N * 1e3:.2f} µs per data point, ratio {spread(times['step'] / times['products'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"rows: {', '.join(SETTINGS)} (default: all)")
    parser.add_argument("--backend", default="opencl")
    parser.add_argument("--dtype", choices=("float32", "float64"), action="append", help="default: float32")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--T", type=float, default=1.0)
    parser.add_argument("--Ncut", type=float, default=0.0)
    for name, value in {"N": 20_000, "D": 256, "H": 300}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name in ("Hprime", "gamma"):
        parser.add_argument(f"--{name}", type=int, help="instead of the row's own")
    args = parser.parse_args()
    unknown = sorted(set(args.models) - set(SETTINGS))
    if unknown:
        parser.error(f"there is no row {unknown[0]!r}: {', '.join(SETTINGS)}")
    other = {name: getattr(args, name) for name in ("Hprime", "gamma") if getattr(args, name)}
    about = gem.backends.select(args.backend, "float32").describe()
    device = ", ".join(str(about[name]) for name in ("backend", "device", "platform") if name in about)
    print(f"N = {args.N}, backend {device}, T = {args.T:g}, Ncut = {args.Ncut:g}", flush=True)
    for row in args.models or SETTINGS:
        name, settings = SETTINGS[row]
        model = make(name, {"D": args.D, "H": args.H, **settings, **other})
        for dtype in args.dtype or ["float32"]:
            print(f"{row:12s} {dtype}: {measure(model, args, dtype)}    {model!r}", flush=True)


if __name__ == "__main__":
    main()
