"""One whole BSC EM step as a multiple of its two matrix products, Y W and Yᵀ⟨s⟩, in the same process.

python -m benchmarks.bsc_step [--backend numpy] [--N 20000] [--D 256] [--H 300] [--Hprime 8] [--gamma 5]
"""

from __future__ import annotations

import argparse

import numpy as np

import gem
from benchmarks.timing import interleaved, spread
from gem.models import BSC


def problem(model: BSC, N: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parameters and data drawn from them: two fields a data point, as on image patches."""
    rng = np.random.default_rng(seed)
    params = {
        "W": rng.standard_normal((model.D, model.H)),
        "pi": np.array(2 / model.H),
        "sigma": np.array(1.0),
    }
    return params, model.generate_data(params, N, seed)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--T", type=float, default=1.0)
    parser.add_argument("--Ncut", type=float, default=0.0)
    for name, value in {"N": 20_000, "D": 256, "H": 300, "Hprime": 8, "gamma": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    model = BSC(args.D, args.H, args.Hprime, args.gamma)
    params, Y = problem(model, args.N)
    print(f"{model!r}, N = {args.N}, backend {args.backend}, T = {args.T:g}, Ncut = {args.Ncut:g}")
    for dtype in ("float64", "float32"):
        y, W = Y.astype(dtype), params["W"].astype(dtype)
        b, ys = np.empty((args.N, args.H), dtype), np.empty((args.D, args.H), dtype)
        backend = gem.backends.select(args.backend, dtype)

        def products(y=y, W=W, b=b, ys=ys):
            np.matmul(y, W, out=b)
            np.matmul(y.T, b, out=ys)

        anneal = gem.Annealing(steps=10**6, T=args.T, Ncut=args.Ncut)
        steps = iter(gem.EM(model, y, anneal, params=params, backend=backend))

        def step(steps=steps):
            next(steps)

        times = interleaved({"products": products, "step": step}, args.repeats)
        ms = {name: np.median(t) * 1e3 for name, t in times.items()}
        rate = 4 * args.N * args.D * args.H / ms["products"] / 1e6
        print(
            f"{dtype}: products {ms['products']:.1f} ms ({rate:.0f} GFLOP/s), step {ms['step']:.1f} ms, "
            f"{ms['step'] / args.N * 1e3:.2f} µs per data point, ratio {spread(times['step'] / times['products'])}"
        )


if __name__ == "__main__":
    main()
