"""How a mixture of Gaussians starts: what is found, how good it becomes, and what that costs.

    python -m benchmarks.starts [found] [energy] [cost] [--seeds 10] [--backend numpy]

found   from how many seeds all of 25 blobs, 10 standard deviations apart, whatever the unit of a column
energy  log likelihood a point after as many EM steps from gem's start and scikit-learn's (k-means), mean over seeds
cost    a start in EM steps on the same data
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial

import numpy as np
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import gem
from benchmarks.timing import interleaved, spread
from gem.models import MoG

STEPS = 60
SIZES = ((2000, 2, 25), (20_000, 64, 50), (50_000, 16, 500), (20_000, 64, 1000))  # N, D, K


def grid() -> tuple[np.ndarray, np.ndarray]:
    """2,000 points of 25 round clusters, and the cluster of each."""
    truth = np.repeat(np.arange(25), 80)
    noise = np.random.default_rng(0).normal(0, 1, (2000, 2))
    return np.stack([truth // 5, truth % 5], axis=1) * 10.0 + noise, truth


def all_found(Y: np.ndarray, truth: np.ndarray, seed: int, backend: str = "numpy") -> bool:
    """Whether every cluster has a component of its own, of which most of its points are."""
    K = int(truth.max()) + 1
    model = MoG(Y.shape[1], K)
    em = gem.EM(model, Y, gem.Annealing(30), backend=backend, dtype="float64", seed=seed).run()
    member = gem.posterior(model, em.params, Y, backend=backend, dtype="float64").mean.argmax(axis=1)
    table = np.zeros((K, K))
    np.add.at(table, (truth, member), 1)
    right = table[np.arange(K), table.argmax(axis=1)].sum() > 0.97 * len(Y)
    return bool(right and len(set(table.argmax(axis=1))) == K)


def found(seeds: int, backend: str) -> None:
    Y, truth = grid()
    for name, unit in (("one unit", 1.0), ("a column in 1e9 of it", [1.0, 1e9]), ("all in 1e-9 of it", 1e-9)):
        hits = sum(all_found(Y * np.array(unit), truth, seed, backend) for seed in range(seeds))
        print(f"25 blobs, {name}: all found from {hits} of {seeds} seeds", flush=True)


def energy(seeds: int, backend: str) -> None:
    sets = {
        "blobs": (grid()[0], 25),
        "iris": (datasets.load_iris().data, 3),
        "wine": (datasets.load_wine().data, 3),
        "breast cancer": (datasets.load_breast_cancer().data, 2),
        "digits": (datasets.load_digits().data, 10),
    }
    for name, (Y, K) in sets.items():
        model, own, other = MoG(Y.shape[1], K, reg=1e-6), [], []  # scikit-learn's floor
        for seed in range(seeds):
            em = gem.EM(model, Y, gem.Annealing(STEPS), backend=backend, dtype="float64", seed=seed).run()
            own.append(em.history["free_energy"][-1] / len(Y))
            peer = GaussianMixture(K, covariance_type="diag", random_state=seed, max_iter=STEPS, tol=0).fit(Y)
            other.append(peer.score(Y))
        print(f"{name}, K = {K}: gem {np.mean(own):.4f}, scikit-learn {np.mean(other):.4f} nats a point", flush=True)


def cost(backend: str) -> None:
    for N, D, K in SIZES:
        rng = np.random.default_rng(0)
        Y = (3 * rng.standard_normal((K, D)))[rng.integers(K, size=N)] + rng.standard_normal((N, D))
        model, data, chosen = MoG(D, K), Y.astype(np.float32), gem.backends.select(backend, "float32")
        start = partial(model.init_params, data)
        step = partial(gem.em_step, model, start(), data, backend=chosen)
        times = interleaved({"start": start, "step": step}, repeats=5, warmup=1)
        ms = {name: np.median(t) * 1e3 for name, t in times.items()}
        print(
            f"N = {N:,}, D = {D}, K = {K}: a start takes {ms['start']:.0f} ms, an EM step {ms['step']:.0f} ms: "
            f"{spread(times['start'] / times['step'])} steps",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["found", "energy", "cost", []], metavar="found|energy|cost")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--backend", default="numpy")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    parts = args.parts or ["found", "energy", "cost"]
    if "found" in parts:
        found(args.seeds, args.backend)
    if "energy" in parts:
        energy(args.seeds, args.backend)
    if "cost" in parts:
        cost(args.backend)


if __name__ == "__main__":
    main()
