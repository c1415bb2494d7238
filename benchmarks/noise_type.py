"""Which noise do data have? Maximal causes under each noise are fitted to data of each, and compared by held-out F.

    python -m benchmarks.noise_type [--only gamma ...] [--sets 10] [--first 0]

For each of the five noises, 10 data sets of 150 points: D = 25, H = 6 fields with entries from 1 to 8 at random, or
probabilities, π = 0.3, a background. MCA under each noise that the data allow begins at random and is annealed (T from
1.5 to 1). Printed: how often the right noise has the largest F of 5,000 further points, and by how many nats a point it
leads the next one, at least and in the median. So few points, because gamma noise has exponential noise as shape 1: of
many points the wrong one is hardly worse, of few its shape follows what W is off.

What is comparable: probabilities of whole numbers, or densities. Data that are whole numbers go to the models of
continuous noise as y + u, u uniform on [0, 1): F is then a lower bound of that of the discrete model which gives y the
probability ∫₀¹ p(y + u) du (docs/math.md). Data that are none go to these only. So that exponential and gamma noise are
candidates for data of Gaussian noise, points with a negative entry are left out there: one in a thousand.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

import gem
from gem.errors import DataError
from gem.models import MCA
from gem.models.noises import NOISES

D, H, N, HELD_OUT, STEPS = 25, 6, 150, 5000, 50
DISCRETE = ("bernoulli", "poisson")
BACKGROUND = {"bernoulli": 0.05, "poisson": 0.5, "exponential": 0.5, "gamma": 0.5}  # of both, data and models


def model(noise: str) -> MCA:
    """Exact EM: all states of six causes."""
    return MCA(D, H, Hprime=H, gamma=H, noise=noise, background=BACKGROUND.get(noise))


def drawn(noise: str, seed: int) -> np.ndarray:
    """N + HELD_OUT data points of this noise."""
    rng = np.random.default_rng(seed)
    W = 1 / (1 + np.exp(-rng.uniform(-3, 3, (D, H)))) if noise == "bernoulli" else rng.uniform(1, 8, (D, H))
    truth = {"W": W, "pi": 0.3, "shape": 3.0, "sigma": 1.0}
    if noise == "gaussian":  # as a rule far from 0
        truth |= {"W": W + 4, "pi": 0.7}
    of = model(noise)
    known = {name: truth[name] for name in of.parameters}
    Y, _ = of.generate_data(known, 3 * (N + HELD_OUT), seed=seed)
    if noise == "gaussian":
        Y = Y[(Y > 0).all(axis=1)]
    return Y[: N + HELD_OUT]


def held_out(noise: str, Y: np.ndarray) -> float | None:
    """F of the held-out points, in nats a point, of a model learned from the others; None: they are no such data."""
    of = model(noise)
    try:
        of.check_data(Y)
    except DataError:
        return None
    anneal = gem.Annealing(STEPS, T=[(0, 1.5), (0.5, 1.0)], W_noise=0.0)
    run = gem.EM(of, Y[:N], anneal, backend="numpy", dtype="float64", seed=0).run()
    return float(gem.posterior(of, run.params, Y[N:], backend="numpy", dtype="float64").log_evidence.mean())


def compared(noise: str, seed: int) -> dict[str, float]:
    """Held-out F by noise, of data of `noise`."""
    Y = drawn(noise, seed)
    whole = bool(np.all(np.floor(Y) == Y))
    smeared = Y + np.random.default_rng([seed, 1]).random(Y.shape) if whole else Y
    found = {name: held_out(name, Y if name in DISCRETE else smeared) for name in NOISES}
    return {name: F for name, F in found.items() if F is not None}


def leads(noise: str, seeds: range) -> Iterator[tuple[float, str]]:
    """By how much the right noise leads the best wrong one, which is named."""
    for seed in seeds:
        found = compared(noise, seed)
        right = found.pop(noise)
        rival = max(found, key=lambda name: found[name])
        yield right - found[rival], rival


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NOISES, default=list(NOISES), help="data of these noises")
    parser.add_argument("--sets", type=int, default=10, help="data sets of each")
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    args = parser.parse_args()
    print(
        "| data of noise | the right noise has the largest held-out F | lead, nats a point: least / median | rivals |"
    )
    print("|---|---|---|---|")
    for noise in args.only:
        found = list(leads(noise, range(args.first, args.first + args.sets)))
        ahead = [lead for lead, _ in found]
        rivals = ", ".join(sorted({rival for _, rival in found}))
        won = sum(lead > 0 for lead in ahead)
        print(f"| {noise} | {won} of {len(found)} | {min(ahead):.4f} / {np.median(ahead):.4f} | {rivals} |", flush=True)


if __name__ == "__main__":
    main()
