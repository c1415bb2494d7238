"""Standard errors by the bootstrap, where weights stand for the copies of the data: each resample is a (N,) array.

    python -m examples.bootstrap [--N 400] [--draws 400]

Shown against a known case: the mean of N draws from one Gaussian has the standard error σ/√N.
"""

from __future__ import annotations

import argparse

import numpy as np

import gem
from gem.models import Model, MoG

SIGMA = np.array([0.5, 2.0])


def standard_errors(
    model: Model, params: dict[str, np.ndarray], Y: np.ndarray, draws: int, steps: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """The standard deviation of each parameter over resamples of the data, each learned from `params` on."""
    rng, N, found = np.random.default_rng(seed), len(Y), []
    for _ in range(draws):
        weights = rng.multinomial(N, np.full(N, 1 / N))  # how often each row was drawn, with replacement
        em = gem.EM(model, Y, gem.Annealing(steps=steps), params=params, weights=weights, dtype="float64")
        found.append(em.run().params)
    return {name: np.std([each[name] for each in found], axis=0, ddof=1) for name in params}


def known_case(N: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The standard errors of the mean of one Gaussian, by the bootstrap and by σ/√N, (2,) each."""
    model, Y = MoG(D=2, K=1), 3 + SIGMA * np.random.default_rng(1).standard_normal((N, 2))
    params, _ = gem.em_step(model, model.init_params(Y), Y, dtype="float64")  # of one Gaussian a step is all
    return standard_errors(model, params, Y, draws, steps=1)["mu"][0], SIGMA / np.sqrt(N)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--N", type=int, default=400, help="data points (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=400, help="resamples (default: %(default)s)")
    args = parser.parse_args()
    measured, known = known_case(args.N, args.draws)
    for d, (one, other) in enumerate(zip(measured, known, strict=True)):
        print(f"mean of column {d}: standard error {one:.4f}, sigma/sqrt(N) = {other:.4f}")


if __name__ == "__main__":
    main()
