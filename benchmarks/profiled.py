"""What a GPU moves and does for a data point, by NVIDIA's profiler, beside what was counted without one.

    python -m benchmarks.profiled [--N 32768] CASE ...     cases of `python -m gem.kernels --count`

Runs a step of each case on cuda under ncu and prints for each kernel and data point: bytes that its loads and stores
ask for and those that cross device memory, instructions of threads and nanoseconds, beside the pinned counts. What a
group does once is part of it: N should be large. Where ncu is not there, or may not read the GPU's counters, that is
said, and the steps run without it.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

import gem
from benchmarks.results import print_table
from gem.kernels import counts, source

METRICS = {  # as they are printed → of ncu
    "asked, B": (
        "l1tex__t_bytes_pipe_lsu_mem_global_op_ld.sum",
        "l1tex__t_bytes_pipe_lsu_mem_global_op_st.sum",
    ),
    "device memory, B": ("dram__bytes_read.sum", "dram__bytes_write.sum"),
    "instructions": ("smsp__thread_inst_executed.sum",),
    "ns": ("gpu__time_duration.sum",),
}
COLUMNS = ("case", "kernel", *METRICS, "counted, B", "counted instructions")


def command(program: str, case: str, N: int) -> list[str]:
    """ncu on one step of a case; only gem's own kernels are profiled."""
    names = "|".join(source.names())
    metrics = ",".join(name for some in METRICS.values() for name in some)
    options = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--metrics", metrics]
    options += ["--kernel-name", f"regex:^({names})$", "--target-processes", "all"]
    return [program, *options, sys.executable, "-m", "benchmarks.profiled", "--step", "--N", str(N), case]


def totals(text: str) -> dict[str, dict[str, float]]:
    """Kernel → metric → its sum over launches, from what ncu prints: a line of names, one of units, one per launch."""
    lines = text.splitlines()
    head = next((n for n, line in enumerate(lines) if line.startswith('"ID"')), None)
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    if head is None:
        return found
    for row in csv.DictReader(io.StringIO("\n".join(lines[head:]))):
        if (row.get("ID") or "").isdigit():  # not the units
            for metric in (name for some in METRICS.values() for name in some):
                found[row["Kernel Name"].partition("(")[0]][metric] += float(
                    (row.get(metric) or "nan").replace(",", "")
                )
    return found


def lines(case: str, N: int, found: dict[str, dict[str, float]]) -> Iterator[list[str]]:
    """Rows of the table, per data point."""
    pins = counts.pinned().get(case, {})
    for kernel, sums in found.items():
        pin = pins.get(kernel)
        counted = [pin["read"] + pin["written"], pin["instructions"]] if pin else []
        each = [sum(sums[name] for name in some) / N for some in METRICS.values()]
        cells = [f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in [*each, *counted]]
        yield [case, kernel, *cells] + [""] * (len(COLUMNS) - 2 - len(cells))


def step(case: str, N: int) -> None:
    """One EM step on cuda."""
    model, params, Y = counts.problem(counts.CASES[case], N)
    info = gem.em_step(model, params, Y, backend="cuda", dtype="float32")[1]
    print(f"{case}: F = {info.free_energy / N:.4f} nats per data point")


def show(cases: Iterable[str], N: int) -> None:
    """Run each case under ncu, and print the table."""
    program, rows = shutil.which("ncu"), []
    for case in cases:
        if program is None:
            print("ncu is not here: a step without it")
            step(case, N)
            continue
        done = subprocess.run(command(program, case, N), capture_output=True, text=True, check=False)
        some = list(lines(case, N, totals(done.stdout)))
        if not some:
            print(f"{case}: ncu told nothing: {(done.stderr or done.stdout).strip()[-500:]}")
        rows += some
    print_table("per data point", COLUMNS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--N", type=int, default=32_768)
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="+", choices=counts.CASES, metavar="CASE")
    args = parser.parse_args()
    for case in args.cases if args.step else ():
        step(case, args.N)
    if not args.step:
        show(args.cases, args.N)


if __name__ == "__main__":
    main()
