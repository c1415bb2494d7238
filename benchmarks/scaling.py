"""Strong and weak scaling over MPI ranks, measured here from the runtime trace, and simulated past this machine.

    python -m benchmarks.scaling [--ranks 1 2 4] [--simulate 1 2 8 64 512 5000 6400] [--output FILE]

Each rank is bound to one core, as on a cluster; more ranks than cores share them (it says so). Strong: N data points
in all. Weak: N on each rank. The simulation (SimGrid's SMPI, benchmarks/simulation) takes the computation measured on
one rank (at N and N / 4: what does not shrink with the data is told apart), one Allreduce of the real size, and the
small collectives of the data selection.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.machine import machine
from benchmarks.simulation import smpi
from gem.errors import ConfigError, GemError
from gem.extras import install_hint
from gem.trace import read_spans

Record = dict[str, Any]
SMALL = 65  # reductions of a selection: the number of points, 64 halvings (gem.parallel.largest); then the ties
LIBRARIES = {"ompi": "Open MPI", "mpich": "MPICH", "mvapich2": "MVAPICH2", "impi": "Intel MPI"}
WARM_UP = 2  # steps that compile, and touch memory for the first time
TENTH = 0.1  # of a step: the share of the communication that is asked for
FOLDER = Path(__file__).parent.parent
AS_IS = "as it is"
VARIANTS = {  # what would move the tenth: name → bytes, small reductions, bytes gathered; from D, H
    AS_IS: lambda D, H: (statistics_bytes(D, H), SMALL, 0),
    "float32 on the wire": lambda D, H: (statistics_bytes(D, H) // 2, SMALL, 0),
    "Σ⟨ssᵀ⟩ by its upper half": lambda D, H: (statistics_bytes(D, H) - 4 * H * (H - 1), SMALL, 0),
    "reduce-scatter, then an allgather of W": lambda D, H: (statistics_bytes(D, H), SMALL, 8 * D * H),
    "selection by 16 counts at a time": lambda D, H: (statistics_bytes(D, H), 2 + 16, 0),
    "no data selection": lambda D, H: (statistics_bytes(D, H), 0, 0),
}
ASSUMPTIONS = (
    "only the network is simulated; all ranks compute equally long (no stragglers, no noise of a system)",
    "one rank a node while there are nodes enough, then as many more on each",
    "links at their nominal bandwidth and latency (SMPI's factors, made for TCP, are set to 1)",
    "adding up what arrives costs nothing",
    "an E-step takes the fixed part measured on one rank, and the rest in proportion to its data",
    "the ties' allgather by Bruck's algorithm, whatever the library would choose",
)


def statistics_bytes(D: int, H: int) -> int:
    """The buffer that BSC reduces in a step: Σyŝᵀ, Σssᵀ, Σs and five scalars in float64."""
    return 8 * (D * H + H * H + H + 5)


# -- measured -------------------------------------------------------------------------------------------------


def measured(args: argparse.Namespace) -> Iterator[Record]:
    """One rank on a quarter of the data; then a record for each mode and number of ranks, the first its reference."""
    from gem.models import BSC

    launcher = mpiexec()
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, args, max(args.ranks))
        few = max(1, args.N // 4)
        yield {"kind": "few", "N": few, "per_rank": split(read_spans(launch(launcher, folder, 1, few, args)))[1]}
        for mode in ("strong", "weak"):
            reference = None
            for ranks in args.ranks:
                N = args.N * (ranks if mode == "weak" else 1)
                step, per_rank = split(read_spans(launch(launcher, folder, ranks, N, args)))
                reference = reference or (ranks, step)
                speed = reference[1] / step
                yield {
                    "kind": "scaling",
                    "model": repr(BSC(args.D, args.H)),
                    "backend": args.backend,
                    "dtype": args.dtype,
                    "bytes": statistics_bytes(args.D, args.H),
                    "mode": mode,
                    "ranks": ranks,
                    "cores": len(os.sched_getaffinity(0)),
                    "N": N,
                    "step": step,
                    "per_rank": per_rank,
                    "efficiency": speed * (reference[0] / ranks if mode == "strong" else 1),
                }


def mpiexec() -> str:
    """The launcher beside this Python, or on the PATH."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise ConfigError(f"there is no mpiexec: {install_hint('mpi')}")
    return found


def unlaunched() -> dict[str, str]:
    """This process's environment without what a launcher set: a child does not take itself for a rank of its job."""
    private = ("PMI", "PMIX", "MPI", "OMPI", "HYDRA")
    return {name: value for name, value in os.environ.items() if not name.startswith(private)}


def make_data(folder: Path, args: argparse.Namespace, times: int) -> None:
    """Data for `times` ranks, and parameters, on disk: each rank reads its own slab."""
    from benchmarks.model_step import problem
    from gem.models import BSC

    params, Y = problem(BSC(args.D, args.H), args.N * times)
    np.save(folder / "Y.npy", Y.astype(args.dtype))
    named: dict[str, Any] = params
    np.savez(folder / "params.npz", **named)


def launch(launcher: str, folder: Path, ranks: int, N: int, args: argparse.Namespace) -> Path:
    """Run the worker on so many ranks; the path of its trace.

    Raises
    ------
    ConfigError
        If the run fails.
    """
    about = {name: getattr(args, name) for name in ("D", "H", "steps", "dtype", "backend")}
    command = [sys.executable, "-m", "benchmarks.scaling", "--worker", json.dumps({**about, "N": N})]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [launcher, "-n", str(ranks), *command], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"mpiexec -n {ranks} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return folder / "trace.json"


def work(about: dict[str, Any]) -> None:
    """What each rank does: bind itself to a core, and run the steps, traced."""
    from mpi4py import MPI

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[MPI.COMM_WORLD.Get_rank() % len(cores)]})
    import gem
    from gem.models import BSC

    with np.load("params.npz") as file:
        params = dict(file)
    Y = np.load("Y.npy", mmap_mode="r")[: about["N"]]
    anneal = gem.Annealing(steps=WARM_UP + about["steps"] + 1, Ncut=0.5)  # the last one ends with an E-step more
    options = {"backend": about["backend"], "dtype": about["dtype"], "comm": "world", "trace": "trace.json"}
    gem.EM(BSC(about["D"], about["H"]), Y, anneal, params=params, **options).run()


def split(spans: Sequence[Record]) -> tuple[float, list[dict[str, float]]]:
    """Median seconds of a step, and of its parts on each rank; not of the last step, which has its F to tell.

    A collective lasts, on every rank, from the moment the last rank has come to it; before that, ranks wait.
    """
    durations: dict[str, np.ndarray] = {}
    starts: dict[str, np.ndarray] = {}
    ranks = sorted({span["pid"] for span in spans})
    last = sum(span["name"] == "EM step" and span["pid"] == ranks[0] for span in spans) - 1
    for name in ("EM step", "E-step", "selection", "reduction", "M-step"):
        rows = [[(s["ts"], s["dur"]) for s in spans if s["name"] == name and s["pid"] == rank] for rank in ranks]
        table = np.array([row[WARM_UP:last] for row in rows]) / 1e6  # (ranks, steps, 2)
        starts[name], durations[name] = table[..., 0], table[..., 1]
    waits = {name: starts[name].max(axis=0) - starts[name] for name in ("selection", "reduction")}
    parts = {
        "E-step": durations["E-step"] - durations["selection"],
        "selection": np.maximum(durations["selection"] - waits["selection"], 0),
        "reduction": np.maximum(durations["reduction"] - waits["reduction"], 0),
        "waiting": waits["selection"] + waits["reduction"],
        "M-step": durations["M-step"],
    }
    medians = {name: np.median(values, axis=1) for name, values in parts.items()}
    per_rank = [{name: float(values[i]) for name, values in medians.items()} for i in range(len(ranks))]
    return float(np.median(durations["EM step"].max(axis=0))), per_rank


# -- simulated ------------------------------------------------------------------------------------------------


def pace(few: Record, one: Record) -> tuple[float, float]:
    """Data points per second of one rank's E-step, and the seconds that do not shrink with the data."""
    (n, a), (N, b) = ((r["N"], r["per_rank"][0]["E-step"]) for r in (few, one))
    if n >= N or b <= a:  # too few to tell: all of it in proportion
        return N / b, 0.0
    per_point = min((b - a) / (N - n), b / N)
    return 1 / per_point, b - N * per_point


def simulated(args: argparse.Namespace, few: Record, one: Record) -> Iterator[Record]:
    """Communication of a step on a cluster, from what one rank measured, on few data points and on all."""
    if reason := smpi.available():
        yield {"kind": "skip", "case": "simulation", "backend": "", "dtype": "", "reason": reason}
        return
    cluster = smpi.Cluster()
    parts = one["per_rank"][0]
    seconds = parts["E-step"] + parts["M-step"]
    rate, fixed = pace(few, one)
    common = {
        "kind": "simulated",
        "cluster": cluster.name,
        "library": LIBRARIES[args.library],
        "points_per_second": rate,
        "fixed": fixed,
        "M-step": parts["M-step"],
        "points": args.points,
        "weak_points": one["N"],
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        smpi.prepare(folder, cluster)
        smaller = [ranks for ranks in args.simulate if ranks <= args.variants_at]
        variants = {variant: (*sizes(args.D, args.H), args.library) for variant, sizes in VARIANTS.items()}
        for library in sorted(LIBRARIES.keys() - {args.library}):
            variants[f"as {LIBRARIES[library]} reduces"] = (*VARIANTS[AS_IS](args.D, args.H), library)
        for variant, (size, small, gathered, library) in variants.items():
            for ranks in args.simulate if variant == AS_IS else smaller[-1:]:
                found = smpi.simulate(folder, cluster, ranks, seconds, size, small, gathered, library)
                yield {
                    **common,
                    "variant": variant,
                    "ranks": ranks,
                    "bytes": size,
                    "small": small,
                    "communication": found.step - seconds,
                    "selection": found.selection,
                    "reduction": found.reduction,
                }


def step_time(record: Record, mode: str, points: int | None = None) -> float:
    """Seconds of a simulated step: the E-step on a rank's share of the data, the M-step, the communication.

    Strong scaling is that of `points` data points in all (default: the record's own).
    """
    share = (points or record["points"]) / record["ranks"] if mode == "strong" else record["weak_points"]
    return share / record["points_per_second"] + record["fixed"] + record["M-step"] + record["communication"]


def tenth(records: Sequence[Record], mode: str, part: str = "communication") -> float | None:
    """The number of ranks where a part of a step takes a tenth of it, between the simulated ones; None: never.

    Where it does so on the fewest ranks that were simulated, these.
    """
    found = sorted((r for r in records if r["variant"] == AS_IS), key=lambda r: r["ranks"])
    shares = [max(r[part] / step_time(r, mode), 1e-9) for r in found]
    if shares and shares[0] >= TENTH:
        return float(found[0]["ranks"])
    for low, high, a, b in zip(found, found[1:], shares, shares[1:], strict=False):
        if a < TENTH <= b:
            exponent = np.log(TENTH / a) / np.log(b / a)
            return float(low["ranks"] * (high["ranks"] / low["ranks"]) ** exponent)
    return None


# -- the command ----------------------------------------------------------------------------------------------

RANK_COLUMNS = ("mode", "ranks", "rank", "E-step", "selection", "reduction", "waiting", "M-step")
COLUMNS = ("mode", "ranks", "N", "step, ms", "E-step", "selection", "reduction", "waiting", "M-step", "efficiency")
SIMULATED_COLUMNS = ("variant", "ranks", "communication, ms", "of it the statistics", "share, strong", "share, weak")


def row(record: Record) -> list[str]:
    """A measurement as cells under COLUMNS: parts are means over the ranks, in ms."""
    parts = [f"{np.mean([rank[name] for rank in record['per_rank']]) * 1e3:.2f}" for name in COLUMNS[4:9]]
    ranks = f"{record['ranks']}" + (" (sharing cores)" if record["ranks"] > record["cores"] else "")
    times = [f"{record['step'] * 1e3:.2f}", *parts]
    return [record["mode"], ranks, f"{record['N']:,}", *times, f"{record['efficiency']:.0%}"]


def rank_rows(record: Record) -> list[list[str]]:
    """The ranks of a measurement, each with its own parts in ms, under RANK_COLUMNS."""
    return [
        [record["mode"], str(record["ranks"]), str(rank), *(f"{parts[name] * 1e3:.2f}" for name in RANK_COLUMNS[3:])]
        for rank, parts in enumerate(record["per_rank"])
    ]


def simulated_row(record: Record) -> list[str]:
    """A simulation as cells under SIMULATED_COLUMNS."""
    shares = [f"{record['communication'] / step_time(record, mode):.1%}" for mode in ("strong", "weak")]
    times = [f"{record[name] * 1e3:.3f}" for name in ("communication", "reduction")]
    return [record["variant"], f"{record['ranks']:,}", *times, *shares]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 0, or 1 where something was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--simulate", type=int, nargs="*", default=[1, 2, 8, 64, 512, 5000, 6400], metavar="RANKS")
    parser.add_argument("--library", choices=tuple(LIBRARIES), default="ompi")
    parser.add_argument("--variants-at", type=int, default=512, help="most ranks that the variants are simulated on")
    parser.add_argument("--points", type=int, default=10_000_000, help="data points of the simulated strong scaling")
    for name, value in {"N": 20_000, "D": 256, "H": 300, "steps": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--output", type=Path, default=Path("scaling.jsonl"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        work(json.loads(args.worker))
        return 0
    if min([*args.ranks, *args.simulate]) < 1 or args.ranks[0] != 1:
        parser.error("ranks are 1 or more, and --ranks begins with 1: the others are compared with it")
    try:
        records = _all(args, sys.argv[1:] if arguments is None else arguments)
    except GemError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    show(records)
    return 0


def _all(args: argparse.Namespace, command: Sequence[str]) -> list[Record]:
    records: list[Record] = []
    with results.create(args.output) as file:

        def keep(record: Record) -> None:
            results.write_line(file, record)
            records.append(record)

        keep({**machine("scaling"), "command": shlex.join(["python", "-m", "benchmarks.scaling", *command])})
        for record in measured(args):
            keep(record)
        if args.simulate:
            few, one = results.of_kind(records, "few")[0], results.of_kind(records, "scaling")[0]
            for record in simulated(args, few, one):
                keep(record)
                print(f"simulated: {record.get('variant', record.get('reason'))}, {record.get('ranks', '')} ranks")
    return records


def show(records: Sequence[Record]) -> None:
    """Print the tables, and where communication takes a tenth."""
    measurements = results.of_kind(records, "scaling")
    results.print_table("measured here", COLUMNS, [row(r) for r in measurements])
    results.print_table("each rank, ms", RANK_COLUMNS, [cells for r in measurements for cells in rank_rows(r)])
    found = results.of_kind(records, "simulated")
    if found:
        title = f"simulated: {found[0]['cluster']}, collectives as {found[0]['library']} chooses them"
        results.print_table(title, SIMULATED_COLUMNS, [simulated_row(r) for r in found])
        for mode in ("strong", "weak"):
            print(tenth_sentence(found, mode))
    for record in results.of_kind(records, "skip"):
        print(f"not simulated: {record['reason']}")


def tenth_sentence(found: Sequence[Record], mode: str) -> str:
    """At how many ranks the reduction takes a tenth of the step, and all communication."""
    one, as_is = found[0], [r["ranks"] for r in found if r["variant"] == AS_IS]

    def where(part: str) -> str:
        ranks = tenth(found, mode, part)
        if ranks is None:
            return f"never, up to {max(as_is):,} ranks"
        return f"from {'about ' if ranks > min(as_is) else 'at most '}{ranks:,.0f} ranks on"

    what = f"{one['points']:,} data points in all" if mode == "strong" else f"{one['weak_points']:,} on each rank"
    return (
        f"{mode} scaling ({what}), a tenth of the step goes: to the reduction by itself {where('reduction')}; to all "
        f"communication {where('communication')} (simulated)"
    )


if __name__ == "__main__":
    sys.exit(main())
