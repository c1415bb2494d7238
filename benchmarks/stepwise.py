"""Stepwise EM beside EM on all data: passes and time to the same free energy, and what peers take.

    python -m benchmarks.stepwise [mog] [bsc] [disk] [--backend numpy] [--passes 50] [--minibatch 4096]

mog   K = 50, D = 64: passes to within 0.1 % of the final free energy a point of EM on all data; scikit-learn's
      MiniBatchKMeans and one EM step from where it ends
bsc   whitened patches of scikit-learn's photographs, H = 100: the same; a pass of MiniBatchDictionaryLearning
disk  a mixture learned from 20 GB of HDF5 that do not exist in memory: one small file, seen many times by a virtual
      data set; time and peak memory
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

import gem
from benchmarks.memory import peak
from benchmarks.sparse_coding import patches
from gem.models import BSC, Model, MoG

NEAR = 1e-3  # of the free energy a point that EM on all data ends with
RATE = [(0, 1.0), (1.0, 0.05)]
SIDE, GIGABYTES = 256, 20


def mixture_data(N: int = 100_000, D: int = 64, K: int = 50) -> np.ndarray:
    """Points of clusters that overlap a little."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((K, D))
    return (centres[rng.integers(K, size=N)] + rng.standard_normal((N, D))).astype(np.float32)


def energy(model: Model, params: Any, Y: np.ndarray, backend: str) -> float:
    """Free energy a point, of these parameters."""
    return gem.em_step(model, params, Y, backend=backend)[1].free_energy / len(Y)


def race(name: str, model: Model, Y: np.ndarray, args: argparse.Namespace) -> None:
    """Print passes and seconds of both to within NEAR of where EM on all data ends."""
    start = model.init_params(Y, seed=0)
    common: dict[str, Any] = {"params": start, "backend": args.backend, "dtype": "float32"}
    whole, took = timed(lambda: gem.EM(model, Y, gem.Annealing(args.passes), **common).run())
    final = whole.history["free_energy"][-1] / len(Y)
    enough = final - NEAR * abs(final)
    curve = np.append(whole.history["free_energy"][1:], whole.history["free_energy"][-1]) / len(Y)
    reached = int(np.argmax(curve >= enough)) + 1
    print(f"{name}: EM on all data: {final:.4f} after {args.passes} passes; within 0.1 % after {reached}", flush=True)
    for passes in (2, 3, 4, 5, 7, 10):
        em, seconds = timed(
            lambda passes=passes: gem.EM(
                model, Y, gem.Annealing(passes), minibatch=args.minibatch, rate=RATE, **common
            ).run()
        )
        found = em.history["free_energy"][-1] / len(Y)
        print(
            f"{name}: stepwise, {passes} passes: {found:.4f} ({(found - final) / abs(final):+.3%}) in {seconds:.2f} s, "
            f"{seconds / took * args.passes / passes:.2f} of the time of a pass of EM on all data",
            flush=True,
        )
        if found >= enough:
            print(f"{name}: within 0.1 % in {passes} of {args.passes} passes", flush=True)
            return


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began


def mog(args: argparse.Namespace) -> None:
    Y, model = mixture_data(), MoG(D=64, K=50)
    race("mog", model, Y, args)

    def peer() -> Any:
        means = MiniBatchKMeans(50, batch_size=args.minibatch, n_init=1, random_state=0).fit(Y)
        counts = np.bincount(means.labels_, minlength=50) + 1.0
        params = {"pi": counts / counts.sum(), "mu": means.cluster_centers_, "var": np.full((50, 64), Y.var())}
        return gem.em_step(model, params, Y, backend=args.backend)[0]

    params, seconds = timed(peer)
    F = energy(model, params, Y, args.backend)
    print(f"mog: scikit-learn MiniBatchKMeans and one EM step: {F:.4f} in {seconds:.2f} s", flush=True)


def bsc(args: argparse.Namespace) -> None:
    Y = patches(8, 50_000).astype(np.float32)
    race("bsc", BSC(D=64, H=100, Hprime=8, gamma=4), Y, args)
    learner = MiniBatchDictionaryLearning(
        100, alpha=1.0, max_iter=1, batch_size=args.minibatch, fit_algorithm="cd", random_state=0
    )
    some = Y[: len(Y) // 10].astype(np.float64)
    _, seconds = timed(lambda: learner.fit(some))
    print(
        f"bsc: MiniBatchDictionaryLearning (another model): a pass over a tenth of them in {seconds:.2f} s", flush=True
    )


def disk(args: argparse.Namespace) -> None:
    """One pass over a virtual data set, of which the file holds a small part."""
    rows = 40_000
    repeats = GIGABYTES * 10**9 // (rows * SIDE * 4)
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.h5", Path(folder) / "large.h5"
        rng = np.random.default_rng(0)
        centres = 3 * rng.standard_normal((8, SIDE))
        with h5py.File(small, "w") as file:
            Y = centres[rng.integers(8, size=rows)] + rng.standard_normal((rows, SIDE))
            file["Y"] = Y.astype(np.float32)
        del Y
        layout = h5py.VirtualLayout((rows * repeats, SIDE), "float32")
        for number in range(repeats):
            layout[number * rows : (number + 1) * rows] = h5py.VirtualSource(small, "Y", (rows, SIDE))
        with h5py.File(large, "w") as file:
            file.create_virtual_dataset("Y", layout)
        before = peak()
        em, seconds = timed(
            lambda: gem.EM(
                MoG(D=SIDE, K=8), f"{large}:/Y", gem.Annealing(1), minibatch=args.minibatch * 8, rate="t^-0.7",
                backend=args.backend, dtype="float32",
            ).run(progress=True)
        )  # fmt: skip
        F, N = em.history["free_energy"][-1], em.history["N"][-1]
        print(
            f"disk: {N:,.0f} × {SIDE} float32 ({N * SIDE * 4 / 1e9:.0f} GB): start, a pass and its free energy, "
            f"F/N = {F / N:.3f}, in {seconds:.0f} s; peak {peak():.0f} MB, {peak() - before:.0f} of them beyond the "
            "interpreter, its imports and the making of the file"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"mog": mog, "bsc": bsc, "disk": disk}
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="mog|bsc|disk")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--passes", type=int, default=50, help="of EM on all data")
    parser.add_argument("--minibatch", type=int, default=4096)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name in args.parts or parts:
        parts[name](args)


if __name__ == "__main__":
    main()
