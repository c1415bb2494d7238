"""On paper: flops and bytes per data point of each kernel of a BSC and a MoG step, and the floor they give on a GPU.

    python -m benchmarks.floors [--bandwidth 3.0] [--tflops 60] [--pcie 25] [--D 256] [--H 300] [--Hprime 8] [--gamma 5]

Bytes are those that must cross device memory when each array is read or written once per kernel; an exponential counts
8 flops. The defaults are an H100: 3.0 TB/s, 60 TFLOP/s in float32. Then what the sums of a batch weigh, and what it
would cost to add them up on the host.
"""

from __future__ import annotations

import argparse
from math import ceil, comb

from rich.console import Console
from rich.table import Table

from gem.backends import _cuda
from gem.backends._device import PRODUCT_ROWS, schedule
from gem.models import BSC, MCA, Model, MoG

REAL, INDEX, EXP = 4, 4, 8
UNITS = 132  # multiprocessors of an H100


def linear(D: int, H: int, Hprime: int, gamma: int, values: int = 1) -> dict[str, tuple[float, float]]:
    """Kernel → (flops, bytes) per data point of BSC, or of a latent with so many `values` that are not 0."""
    pairs = Hprime * (Hprime - 1) // 2
    count = {g: comb(Hprime, g) * values**g for g in range(2, gamma + 1)}
    states = sum(count.values())
    couplings = sum((g - 1) * n for g, n in count.items())
    members = sum((g + comb(g, 2)) * n for g, n in count.items())
    return {
        "cuBLAS: Y W": (2 * D * H, REAL * (D + H)),
        "preselect": (2 * H + H * Hprime, REAL * H + INDEX * Hprime),
        "gram_posterior": (
            (4 + EXP) * H * values + (2 + EXP) * states + couplings + members,
            REAL * (2 * H + pairs + 2) + INDEX * Hprime,
        ),
        "squared_norms": (2 * D, REAL * (D + 1)),
        "column_sums": (2 * H, REAL * (H + 1)),
        "pair_sums": (2 * pairs, REAL * (pairs + 1) + INDEX * Hprime),
        "cuBLAS: Yᵀ⟨s⟩": (2 * D * H, REAL * (D + H)),
    }


def mog(D: int, K: int) -> dict[str, tuple[float, float]]:
    """The diagonal mixture kernel: differences, squares, softmax, and the sums."""
    return {"mixture (diag)": (4 * D * K + (3 + EXP) * K + 4 * D * K, REAL * (D + 2))}


def sums(model: Model) -> tuple[int, int, int]:
    """Data points in a batch, the most groups of a kernel that walk over it, and bytes of all their sums."""
    D, n = model.D, _cuda.BATCH_BYTES // model.bytes_per_point(REAL)[0]

    def groups(kernel: str, **sizes: int) -> int:
        return schedule(kernel, sizes, REAL, False, UNITS, _cuda.SHARED_BYTES).groups or 0

    if isinstance(model, MoG):
        sizes = {"D": D, "K": model.K, "COVARIANCE": 0, "MISSING": 0, "STORE": 0}
        most = groups("mixture", **sizes)
        return n, most, 8 * (most * model.K * (2 * D + 1) + groups("point_sums"))
    assert isinstance(model, BSC | MCA)
    H = model.H
    products = REAL * D * H * ceil(n / PRODUCT_ROWS)
    most = groups("column_sums", H=H)
    columns = 8 * H * most
    if isinstance(model, BSC):  # Yᵀ⟨s⟩, pairs, Σ⟨s⟩; log evidence, ‖y‖² and points at γ
        return n, most, products + 8 * H * H + columns + 3 * 8 * groups("point_sums")
    sizes = {"D": D, "H": H, "HPRIME": model.Hprime, "GAMMA": model.gamma, "MANY": model.states.S, "STATS": 1}
    most = groups("causes", **sizes)
    return n, most, products + 8 * 2 * D * H * most + 2 * columns + 4 * 8 * groups("point_sums")


def print_sums(console: Console, bandwidth: float, pcie: float) -> None:
    table = Table(title="sums of a batch", title_justify="left")
    for column in (
        "model",
        "points",
        "groups",
        "MB",
        "added on the device, µs",
        "by way of the host, µs",
        "the same per point, ns",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model in (BSC(256, 300), MoG(64, 50), MCA(256, 300)):
        n, groups, size = sums(model)
        host = size / pcie / 1e3
        row = (model.name, f"{n:,}", f"{groups}", f"{size / 1e6:.1f}", f"{size / bandwidth / 1e6:.1f}", f"{host:.0f}")
        table.add_row(*row, f"{1e3 * host / n:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s")
    parser.add_argument("--tflops", type=float, default=60.0)
    parser.add_argument("--pcie", type=float, default=25.0, help="GB/s between device and host")
    for name, value in {"D": 256, "H": 300, "Hprime": 8, "gamma": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    console = Console(width=100)
    parts = {
        f"BSC, D = {args.D}, H = {args.H}, H' = {args.Hprime}, γ = {args.gamma}": linear(
            args.D, args.H, args.Hprime, args.gamma
        ),
        "MoG diag, D = 64, K = 50": mog(64, 50),
    }
    for title, kernels in parts.items():
        floors = {n: max(f / args.tflops, b / args.bandwidth) / 1e3 for n, (f, b) in kernels.items()}
        total = sum(floors.values())
        table = Table(title=title, title_justify="left")
        for column in ("kernel", "flops", "bytes", "floor, ns", "bound by", "share"):
            table.add_column(column, justify="left" if column in ("kernel", "bound by") else "right")
        for name, (flops, size) in kernels.items():
            bound = "flops" if flops / args.tflops > size / args.bandwidth else "bytes"
            row = (name, f"{flops:,}", f"{size:,}", f"{floors[name]:.2f}", bound, f"{floors[name] / total:.0%}")
            table.add_row(*row)
        table.add_row("sum", "", "", f"{total:.2f}", "", "")
        console.print(table)
    print_sums(console, args.bandwidth, args.pcie)


if __name__ == "__main__":
    main()
