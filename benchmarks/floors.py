"""On paper: flops and bytes per data point of each kernel of a BSC and a MoG step, and the floor they give on a GPU.

    python -m benchmarks.floors [--bandwidth 3.0] [--tflops 60] [--pcie 25] [--D 256] [--H 300] [--Hprime 8] [--gamma 5]

Bytes are those that must cross device memory when each array is read or written once per kernel; an exponential counts
8 flops. The defaults are an H100: 3.0 TB/s, 60 TFLOP/s in float32. Then what the sums of a batch weigh, and what it
would cost to add them up on the host.

    python -m benchmarks.floors --write docs/kernels.md

writes the table of the time that the pinned counts (`python -m gem.kernels --count`) allow, beside the floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import ceil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.results import markdown, put_between
from gem.backends import _cuda
from gem.backends._device import PRODUCT_ROWS, schedule
from gem.kernels import counts
from gem.kernels.floors import REAL, linear, mixture
from gem.models import BSC, MCA, Model, MoG

UNITS = 132  # multiprocessors of an H100
GPUS = {"H100": (3.35, 67.0), "H200": (4.8, 67.0)}  # TB/s, and TFLOP/s in float32 outside tensor cores
INSTRUCTIONS = 30.0  # 10¹² of a work-item a second: 132 multiprocessors with 128 lanes at 1.8 GHz
MARK = "<!-- benchmarks.floors: what the counts allow -->"
COLUMNS = ("case", "kernel", *(f"{gpu}, {what}" for gpu in GPUS for what in ("ns", "bound by", "floor, ns")))


def sums(model: Model) -> tuple[int, int, int]:
    """Data points in a batch, the most groups of a kernel that walk over it, and bytes of all their sums."""
    D, n = model.D, _cuda.BATCH_BYTES // model.bytes_per_point(REAL)[0]

    def groups(kernel: str, **sizes: int) -> int:
        plan = schedule(kernel, sizes, REAL, False, UNITS, _cuda.SHARED_BYTES)
        return plan.rows(n) if plan.groups else 0

    if isinstance(model, MoG):
        most = groups("mixture", D=D, K=model.K, MISSING=0, STAGES=4)
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


def allowed(bandwidth: float, tflops: float, size: float, flops: float, instructions: float = 0) -> tuple[float, str]:
    """The least time of a data point in ns, and what takes it."""
    return max(
        (size / bandwidth / 1e3, "bytes"),
        (flops / tflops / 1e3, "flops"),
        (instructions / INSTRUCTIONS / 1e3, "instructions"),
    )


def counted() -> Iterator[list[str]]:
    """For each case and kernel, and each GPU: the time that the pinned counts allow, what takes it, and the floor."""
    for name, kernels in counts.pinned().items():
        fewest = counts.CASES[name].fewest
        for kernel in kernels:
            some = [each for each in kernels if each != counts.WHOLE] if kernel == counts.WHOLE else [kernel]
            row = [name, kernel]
            for gpu in GPUS.values():
                times = [
                    allowed(*gpu, each["read"] + each["written"], each["flops"], each["instructions"])
                    for each in map(kernels.__getitem__, some)
                ]
                least = fewest.values() if kernel == counts.WHOLE else [fewest[kernel]] if kernel in fewest else []
                floor = sum(allowed(*gpu, size, flops)[0] for flops, size in least)
                bound = times[0][1] if len(times) == 1 else ""
                row += [f"{sum(time for time, _ in times):.2f}", bound, f"{floor:.2f}" if floor else ""]
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s")
    parser.add_argument("--tflops", type=float, default=60.0)
    parser.add_argument("--pcie", type=float, default=25.0, help="GB/s between device and host")
    for name, value in {"D": 256, "H": 300, "Hprime": 8, "gamma": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write what the pinned counts allow into this page")
    args = parser.parse_args()
    if args.write:
        put_between(MARK, markdown(COLUMNS, counted()), args.write)
        return
    console = Console(width=100)
    parts = {
        f"BSC, D = {args.D}, H = {args.H}, H' = {args.Hprime}, γ = {args.gamma}": linear(
            args.D, args.H, args.Hprime, args.gamma
        ),
        "MoG diag, D = 64, K = 50": mixture(64, 50),
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
