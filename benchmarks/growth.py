"""How cost grows: time and memory of a step over each size, the fitted exponent beside that of the count on paper.

    python -m benchmarks.growth [MODEL ...] [--backend numpy] [--dtype float32] [--factor 1] [--output FILE]

One size varies, the others stay. The exponents are slopes of log against log over the same points: of the time, of the
flops in benchmarks/cases.py, of the peak memory beyond the data (only numpy: a device tells Python nothing),
and of what the model says it needs for a batch.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import results
from benchmarks.cases import MEDIUM, ROWS, Case, Size
from benchmarks.machine import machine
from benchmarks.timing import BREATH, interleaved
from gem.backends import select
from gem.em import Work, local_shard, run_step
from gem.errors import GemError
from gem.models import MODELS, Model, Step
from gem.parallel import Serial
from gem.statistics import Statistics

Record = dict[str, Any]
BASE = replace(MEDIUM, name="growth", N=32_000, D=128, H=128, Hprime=8, gamma=3, K=32)
VALUES = {  # a size → what it takes, the others at BASE
    "N": (16_000, 32_000, 64_000, 128_000),
    "D": (64, 128, 256, 512),
    "H": (64, 128, 256, 512),
    "Hprime": (6, 8, 11, 16),
    "gamma": (2, 3, 4, 5),
    "K": (16, 32, 64, 128),
}
COLUMNS = ("case", "backend", "size", "over", "time", "flops", "time − flops", "memory", "batch on paper")
WARM_UP = 1


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y against log x."""
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])


def sweeps(model: str) -> list[str]:
    """The sizes that a model knows."""
    settings = Case(model, BASE, ROWS[model]).model().settings()
    return [name for name in VALUES if name == "N" or name in settings]


class _Subject(NamedTuple):
    """A step to run, its data points, settings and flops, and the bytes that its batches and sums take on paper."""

    step: Callable[[], None]
    N: int
    settings: dict[str, Any]
    flops: float
    batch: int


def grow(name: str, over: str, backend_name: str, dtype: str, repeats: int, factor: float) -> Record:
    """One model over one size."""
    subjects = {value: _subject(name, over, value, backend_name, dtype, factor) for value in VALUES[over]}
    measurable = backend_name.partition(":")[0] == "numpy"
    memory = [_peak(subject.step) for subject in subjects.values()] if measurable else None
    steps = {str(value): subject.step for value, subject in subjects.items()}
    times = interleaved(steps, repeats, WARM_UP, dict.fromkeys(steps, BREATH))
    seconds = [float(np.median(t)) for t in times.values()]
    flops = [subject.flops for subject in subjects.values()]
    batch = [subject.batch for subject in subjects.values()]
    base = {"N": next(iter(subjects.values())).N, **next(iter(subjects.values())).settings}
    values = [subject.N if over == "N" else value for value, subject in subjects.items()]
    return {
        "kind": "growth",
        "case": name,
        "over": over,
        "values": values,
        "backend": backend_name,
        "dtype": dtype,
        "base": {size: value for size, value in base.items() if size != over},
        "seconds": seconds,
        "flops": flops,
        "memory": memory,
        "batch": batch,
        "exponents": {
            "time": exponent(values, seconds),
            "flops": exponent(values, flops),
            "memory": exponent(values, memory) if memory else None,
            "batch": exponent(values, batch),
        },
    }


def _subject(name: str, over: str, value: int, backend_name: str, dtype: str, factor: float) -> _Subject:
    """The model at one value of a size, ready to run."""
    sizes = {**asdict(BASE), over: value}
    size = Size(**{**sizes, "N": max(16, int(sizes["N"] * factor))})
    case = Case(name, size, replace(ROWS[name], settings=_without(ROWS[name].settings, over)))
    model = case.model()
    params, Y = case.problem(model)
    backend = select(backend_name, dtype)
    comm = Serial()
    shard = local_shard(model, Y, backend, comm, None)
    work, options, checked = Work(model, backend.load(shard), backend, comm), Step(dtype=dtype), model.check(params)

    def step() -> None:
        run_step(work, checked, options)
        backend.synchronize()

    settings = {size: setting for size, setting in model.settings().items() if size in asdict(BASE)}
    return _Subject(step, case.N, settings, case.N * case.row.flops(model), _on_paper(model, backend, shard.batch))


def _without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def _on_paper(model: Model, backend: Any, batch: int) -> int:
    """What the batches in flight take, and the sums."""
    per_point = model.bytes_per_point(backend.dtype.itemsize)[0]
    return getattr(backend, "threads", 1) * batch * per_point + Statistics(model.layout).buffer.nbytes


def _peak(step: Callable[[], None]) -> int:
    """Bytes that a step allocates at the most beyond what was there (numpy tells Python of its memory)."""
    step()
    tracemalloc.start()
    try:
        step()
        return max(1, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def growth(models: Sequence[str], backend: str, dtype: str, repeats: int, factor: float) -> Iterator[Record]:
    """A record for each model and size."""
    yield machine("growth")
    for name in models:
        for over in sweeps(name):
            try:
                yield grow(name, over, backend, dtype, repeats, factor)
            except Exception as error:  # one that does not fit costs no other its result
                reason = f"over {over}: {type(error).__name__}: {error}"
                yield {"kind": "skip", "case": name, "backend": backend, "dtype": dtype, "reason": reason}


def row(record: Record) -> list[str]:
    """A record as cells under COLUMNS."""
    values = ", ".join(f"{v:,}" for v in record["values"])
    told = record["exponents"]
    cells = [f"{told['time']:.2f}", f"{told['flops']:.2f}", f"{told['time'] - told['flops']:+.2f}"]
    memory = "not measured" if told["memory"] is None else f"{told['memory']:.2f}"
    where = f"{record['backend']}, {record['dtype']}"
    return [record["case"], where, record["over"], values, *cells, memory, f"{told['batch']:.2f}"]


def base(record: Record) -> str:
    """The sizes that stayed, of a record."""
    return ", ".join(f"{name} = {value:,}" for name, value in record["base"].items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 0, or 1 where something was refused."""
    known = [name for name, line in ROWS.items() if line.model in MODELS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)} (default: bsc, mog-diag, mca)"
    )
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--factor", type=float, default=1.0, help="of the numbers of data points")
    parser.add_argument("--output", type=Path, default=Path("growth.jsonl"))
    args = parser.parse_args(arguments)
    unknown = sorted(set(args.models) - set(known))
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}: {', '.join(known)}")
    if args.factor <= 0 or args.repeats < 1:
        parser.error("--factor and --repeats must be positive")
    models = args.models or [name for name in ("bsc", "mog-diag", "mca") if name in known]
    records = []
    try:
        with results.create(args.output) as file:
            for record in growth(models, args.backend, args.dtype, args.repeats, args.factor):
                if record["kind"] == "machine":
                    given = sys.argv[1:] if arguments is None else arguments
                    record["command"] = shlex.join(["python", "-m", "benchmarks.growth", *given])
                results.write_line(file, record)
                records.append(record)
    except GemError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    results.print_table("exponents", COLUMNS, [row(r) for r in results.of_kind(records, "growth")])
    skips = results.of_kind(records, "skip")
    if skips:
        results.print_table("skipped", results.SKIP_COLUMNS, [results.skip_row(r) for r in skips])
    return 0


if __name__ == "__main__":
    sys.exit(main())
