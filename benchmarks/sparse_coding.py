"""Sparse coding of photographs beside scikit-learn's dictionary learning and SPAMS: objective, sparsity, time.

    python -m benchmarks.sparse_coding [--backend numpy] [--N 5000] [--patch 8] [--H 128] [--steps 10]
    python -m benchmarks.sparse_coding --backend opencl --seconds 20 [--minibatch 256] [--rate t^-0.6]

Data are whitened patches of scikit-learn's two photographs. All learn with the same penalty; the objective,
½‖y − Ws‖² + penalty ‖s‖₁ for a data point, is computed for all of them by one solver, on patches they have not seen.
Last, the time in which codes are found by given fields. SPAMS takes part where it is installed (pip install spams-bin).
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

import gem
from benchmarks.timing import interleaved
from gem.backends import blas
from gem.data import open_data
from gem.em import Work, expect, local_shard
from gem.models import SC, Step
from gem.models.parameters import Params
from gem.parallel import Serial

spams: Any = import_module("spams") if find_spec("spams") else None
threads = Serial().threads  # of peers


def patches(side: int, count: int) -> np.ndarray:
    """Whitened patches in random order, (count, side²): a source gives one photograph after the other."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    with open_data([str(folder / name) for name in ("china.jpg", "flower.jpg")], patch=side, count=count) as source:
        return np.random.default_rng(0).permutation(source.read(0, count).astype(np.float64))


def judge(W: np.ndarray, Y: np.ndarray, penalty: float) -> tuple[float, float]:
    """Mean objective over the data points, and the mean number of active latents."""
    model = SC(*W.shape, tol=1e-7, iterations=20_000)
    s = gem.posterior(model, {"W": W, "sigma": 1.0, "b": 1 / penalty}, Y, dtype="float64").mean
    lasso = ((Y - s @ W.T) ** 2).sum(axis=1) / 2 + penalty * np.abs(s).sum(axis=1)
    return float(lasso.mean()), float((np.abs(s) > 1e-6).sum(axis=1).mean())


def seconds_of_codes(params: Params, Y: np.ndarray, backend: str, repeats: int = 9) -> dict[str, float]:
    """The least seconds in which each finds the codes of all data points by these parameters; gem sums as well."""
    W, penalty = params["W"].astype(np.float32), float(params["sigma"] ** 2 / params["b"])
    model, y, step = SC(*W.shape), Y.astype(np.float32), Step(dtype="float32")
    finds: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys((backend, "numpy")):
        chosen = gem.backends.select(name, "float32")
        work = Work(model, chosen.load(local_shard(model, y, chosen, Serial(), None)), chosen, Serial())
        finds[f"gem SC, {name}"] = partial(expect, work, params, step)
    if spams is not None:
        columns, D = np.asfortranarray(y.T), np.asfortranarray(W)
        finds["SPAMS lasso (LARS)"] = lambda: spams.lasso(columns, D=D, lambda1=penalty, mode=2, numThreads=threads)
    with blas.limited(1):
        return {name: float(times.min()) for name, times in interleaved(finds, repeats).items()}


def learners(model: SC, start: Params, Y: np.ndarray, args: argparse.Namespace) -> dict[str, Callable[[], np.ndarray]]:
    """Ways to learn fields (D, H), each for args.steps, or for args.seconds where they are given."""
    backend = gem.backends.select(args.backend, "float32")
    settings = {"alpha": args.penalty, "fit_algorithm": "cd", "random_state": 0, "dict_init": start["W"].T}

    def counted() -> Iterator[int]:
        end = time.perf_counter() + (args.seconds or math.inf)
        yield from takewhile(lambda step: time.perf_counter() < end, count() if args.seconds else range(args.steps))

    def ours() -> np.ndarray:
        params = start
        for _ in counted():
            params, _ = gem.em_step(model, params, Y, backend=backend)
        return params["W"]

    def online() -> np.ndarray:
        em = gem.EM(
            model, Y, gem.Annealing(10**6), params=start, backend=backend, minibatch=args.minibatch, rate=args.rate
        )
        for _ in zip(counted(), em, strict=False):
            pass
        return em.params["W"]

    def whole() -> np.ndarray:
        code = np.zeros((len(Y), model.H))
        return DictionaryLearning(model.H, max_iter=args.steps, code_init=code, **settings).fit(Y).components_.T

    def parts() -> np.ndarray:
        peer = MiniBatchDictionaryLearning(model.H, batch_size=args.minibatch, **settings)
        rng = np.random.default_rng(0)
        for _ in counted():
            order = rng.permutation(len(Y))
            for first in range(0, len(Y), args.minibatch):
                peer.partial_fit(Y[order[first : first + args.minibatch]])
        return peer.components_.T

    def theirs() -> np.ndarray:
        iterations = -args.seconds if args.seconds else args.steps * -(-len(Y) // args.minibatch)
        X, D = (np.asfortranarray(a.astype(np.float32)) for a in (Y.T, start["W"]))
        return spams.trainDL(
            X, D=D, lambda1=args.penalty, mode=2, iter=iterations, batchsize=args.minibatch, numThreads=threads,
            verbose=False,
        )  # fmt: skip

    found = {f"gem SC, {args.backend}": ours, f"gem SC, {args.backend}, minibatches": online}
    found |= {} if args.seconds else {"scikit-learn DictionaryLearning": whole}
    found |= {"scikit-learn MiniBatchDictionaryLearning": parts}
    return found if spams is None else {**found, "SPAMS trainDL": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--penalty", type=float, default=1.0)
    parser.add_argument("--rate", default="t^-0.6", help="of stepwise EM")
    parser.add_argument("--seconds", type=int, default=0, help="for each learner, in place of --steps")
    for name, value in {"N": 5000, "patch": 8, "H": 128, "steps": 10, "minibatch": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    Y = patches(args.patch, 2 * args.N)
    seen, unseen = Y[: args.N], Y[args.N :]
    model = SC(args.patch**2, args.H, penalty=args.penalty)
    start = model.init_params(seen, seed=0)
    length = f"{args.seconds} seconds" if args.seconds else f"{args.steps} steps"
    print(f"{args.N} patches, D = {args.patch**2}, H = {args.H}, penalty {args.penalty:g}, {length}")
    print(f"{'':44} objective   active   seconds")
    print(f"{'at the start':44} {judge(start['W'], unseen, args.penalty)[0]:9.3f}")
    learned = start["W"]
    for name, learn in learners(model, start, seen, args).items():
        began = time.perf_counter()
        W = learn()
        seconds = time.perf_counter() - began
        objective, active = judge(W, unseen, args.penalty)
        learned = W if learned is start["W"] else learned
        print(f"{name:44} {objective:9.3f} {active:8.1f} {seconds:9.2f}", flush=True)
    print("codes by the fields that the first has learned, milliseconds:")
    for name, least in seconds_of_codes({**start, "W": learned}, seen, args.backend).items():
        print(f"{name:44} {least * 1e3:9.1f}")


if __name__ == "__main__":
    main()
