"""Sparse coding of photographs beside scikit-learn's dictionary learning: objective, sparsity, time.

    python -m benchmarks.sparse_coding [--backend numpy] [--N 5000] [--patch 8] [--H 128] [--steps 10]

Data are whitened patches of scikit-learn's two photographs. All learn with the same penalty; the objective,
½‖y − Ws‖² + penalty ‖s‖₁ for a data point, is computed for all of them by one solver, on patches they have not seen.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn.datasets
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

import gem
from gem.data import open_data
from gem.models import SC


def patches(side: int, count: int) -> np.ndarray:
    """Whitened patches in random order, (count, side²): a source gives one photograph after the other."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    with open_data([str(folder / name) for name in ("china.jpg", "flower.jpg")], patch=side, count=count) as source:
        return np.random.default_rng(0).permutation(source.read(0, count).astype(np.float64))


def judge(W: np.ndarray, Y: np.ndarray, penalty: float) -> tuple[float, float]:
    """Mean objective over the data points, and the mean number of active latents."""
    model = SC(*W.shape, tol=1e-7, iterations=2000)
    s = gem.posterior(model, {"W": W, "sigma": 1.0, "b": 1 / penalty}, Y, dtype="float64").mean
    lasso = ((Y - s @ W.T) ** 2).sum(axis=1) / 2 + penalty * np.abs(s).sum(axis=1)
    return float(lasso.mean()), float((np.abs(s) > 1e-6).sum(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--penalty", type=float, default=1.0)
    for name, value in {"N": 5000, "patch": 8, "H": 128, "steps": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    Y = patches(args.patch, 2 * args.N)
    seen, unseen = Y[: args.N], Y[args.N :]
    model = SC(args.patch**2, args.H, penalty=args.penalty)
    start = model.init_params(seen, seed=0)
    settings = {"alpha": args.penalty, "fit_algorithm": "cd", "random_state": 0}

    def ours() -> np.ndarray:
        backend, params = gem.backends.select(args.backend, "float32"), start
        for _ in range(args.steps):
            params, _ = gem.em_step(model, params, seen, backend=backend)
        return params["W"]

    def whole() -> np.ndarray:
        code = np.zeros((args.N, args.H))
        peer = DictionaryLearning(args.H, max_iter=args.steps, dict_init=start["W"].T, code_init=code, **settings)
        return peer.fit(seen).components_.T

    def parts() -> np.ndarray:
        peer = MiniBatchDictionaryLearning(
            args.H, max_iter=args.steps, dict_init=start["W"].T, batch_size=256, **settings
        )
        return peer.fit(seen).components_.T

    print(f"{args.N} patches, D = {args.patch**2}, H = {args.H}, penalty {args.penalty:g}, {args.steps} steps")
    print(f"{'':40} objective   active   seconds")
    print(f"{'at the start':40} {judge(start['W'], unseen, args.penalty)[0]:9.3f}")
    for name, learn in {
        f"gem SC, {args.backend}": ours,
        "scikit-learn DictionaryLearning": whole,
        "scikit-learn MiniBatchDictionaryLearning": parts,
    }.items():
        began = time.perf_counter()
        W = learn()
        seconds = time.perf_counter() - began
        objective, active = judge(W, unseen, args.penalty)
        print(f"{name:40} {objective:9.3f} {active:8.1f} {seconds:9.2f}")


if __name__ == "__main__":
    main()
