"""A diagonal mixture as large as GPU people use: a step of EM beside PyTorch's two products of the same shapes.

    python -m benchmarks.large_mixture [--backend cuda] [--N 1000000] [--D 128] [--K 1024]

In float32, the data on the device. The E-step's two products on paper are (N, 2 D) (2 D, K), the log joint from y and
y², and its transpose, the sums; PyTorch does them in full float32 (no TF32) on the first GPU, in pieces as large as the
backend's batches, where both are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

import gem
from benchmarks.timing import interleaved
from gem.em import Work, local_shard, run_step
from gem.models import MoG, Step
from gem.parallel import Serial

DRAWN = 100_000  # data points from the generator; more are these again


def data(N: int, D: int, K: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parameters whose components overlap a little, and data drawn from them."""
    rng = np.random.default_rng(0)
    mu = 3 * rng.standard_normal((K, D)) / np.sqrt(D / 16)
    few = mu[rng.integers(K, size=min(N, DRAWN))] + rng.standard_normal((min(N, DRAWN), D))
    Y = np.resize(few.astype(np.float32), (N, D))
    return {"pi": np.full(K, 1 / K), "mu": mu, "var": np.ones((K, D))}, Y


def torch_products(N: int, D: int, K: int, batch: int) -> Callable[[], None] | str:
    """PyTorch's two products of an E-step, or why it does none."""
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    torch.backends.cuda.matmul.allow_tf32 = False
    Y, W = torch.randn(batch, 2 * D, device="cuda"), torch.randn(2 * D, K, device="cuda")
    R, S = torch.empty(batch, K, device="cuda"), torch.empty(2 * D, K, device="cuda")

    def run() -> None:
        for start in range(0, N, batch):
            n = min(batch, N - start)
            torch.mm(Y[:n], W, out=R[:n])
            torch.mm(Y[:n].T, R[:n], out=S)
        torch.cuda.synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--repeats", type=int, default=7)
    for name, value in {"N": 1_000_000, "D": 128, "K": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    N, D, K = args.N, args.D, args.K
    model, backend, comm = MoG(D=D, K=K), gem.backends.select(args.backend, "float32"), Serial()
    params, Y = data(N, D, K)
    checked, step = model.check(params), Step(dtype="float32")
    shard = local_shard(model, Y, backend, comm, None)
    work = Work(model, backend.load(shard), backend, comm)
    expectation = model.on(backend, checked, step)

    def whole() -> Any:
        done = run_step(work, checked, step)
        backend.synchronize()
        return done

    def e_step() -> None:
        for _ in backend.map(expectation, work.batches):
            pass
        backend.synchronize()

    theirs = torch_products(N, D, K, shard.batch)
    competing: dict[str, Callable[[], object]] = {"E-step": e_step, "EM step": whole}
    if isinstance(theirs, str):
        print(f"products by PyTorch: left out: {theirs}")
    else:
        competing["products by PyTorch"] = theirs
    free_energy = whole()[1].free_energy / N
    print(f"{backend.describe().get('device', backend.name)}: N = {N:,}, D = {D}, K = {K}, batches of {shard.batch:,}")
    print(f"F = {free_energy:.4f} nats per data point")
    flops = {"E-step": 8 * N * D * K, "EM step": 8 * N * D * K, "products by PyTorch": 8 * N * D * K}
    for name, times in interleaved(competing, args.repeats).items():
        ms = 1e3 * np.median(times)
        rate = flops[name] / np.median(times) / 1e12
        print(f"{name}: {ms:.2f} ms ({1e3 * times.min():.2f} to {1e3 * times.max():.2f}), {rate:.2f} TFLOP/s")


if __name__ == "__main__":
    main()
