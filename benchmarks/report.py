"""The report page: what results say, weak points first, with pictures. It reads records and measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import growth, pictures, results, scaling
from benchmarks.cases import LARGE, MEDIUM, PROFILES, ROWS, SMALL, TINY
from benchmarks.simulation import smpi
from gem.errors import DataError

Record = dict[str, Any]
MARK = "<!-- benchmarks -->"
BY_SIZE = [size.name for size in (TINY, SMALL, MEDIUM, LARGE)]
SUMMARY_COLUMNS = ("case", "settings", "N", "fastest here", "µs a point", "of ceiling", "as fast as")
WEAK = 3  # cases of a device that are named first
NAMED = 3  # parts of a step that are named
KEY = """How to read it:

- Times are medians of steps taken in turn within one process. A *step* is a whole EM step: E-step, sums, M-step.
- The *floor* is the time that the flops and the fewest bytes of a step (GFLOP, MB; on paper, in `benchmarks/cases.py`)
  would take at the best rates that the same run measured on the same device, before the cases and after them: large
  matrix products, and scaling long arrays in place. *Bound by* says which of the two is longer.
- *Of ceiling* is the floor over the step's time: 100 % would be a step at the speed of matrix products and streaming.
  What is above 105 % is marked (!): its floor was not measured well.
- *× products* is the step over the two matrix products of its own shapes, Y W and Yᵀ (Y W), taken in turn with it.
- *As fast as* counts only peers that found the same likelihood (and weights and means, where they tell them).
- A streaming rate of arrays that fit in the last-level cache (sizes under Machine) is the cache's, not the memory's."""
GPU = """## On a GPU

No GPU was at hand when this page was made: nothing here was measured on one. `bash benchmarks/on_a_gpu.sh OUT` is for a
machine that has one for ten minutes and no network: within six it runs the tests of cuda, `benchmarks.accuracy`, this
sweep beside cuBLAS's products, a mixture of N = 10⁶, D = 128, K = 1024 beside PyTorch's two products
(`benchmarks.large_mixture`), compute-sanitizer, and ncu beside the counts of `python -m gem.kernels --count`
(`benchmarks.profiled`), each with a limit of its own, and leaves a file of some kB for each in OUT. `--small` is its
dry run, on the CPU-run CuPy of tests/cupy_on_cpu. What ncu and compute-sanitizer say there was not seen yet."""


def write_report(records: Sequence[Record], path: Path, sources: Sequence[str]) -> list[Path]:
    """Write the page and its pictures beside it; the paths of all.

    Raises
    ------
    DataError
        If there is no measurement in the records.
    """
    cases = results.of_kind(records, "case")
    if not cases:
        raise DataError(f"{', '.join(sources)}: there is no case in these results to report")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path]

    def picture(name: str, draw: Callable[[Path], None]) -> str:
        file = path.with_name(f"{path.stem}-{name}.png")
        draw(file)
        written.append(file)
        return f"![{name}]({file.name})"

    parts = [_head(records, sources), _weak(cases), _summary_section(records)]
    parts.append(_devices(records, cases, picture))
    parts.append(
        "## Every case\n\n"
        + _command(records, *PROFILES)
        + results.markdown(results.CASE_COLUMNS, [results.case_row(r) for r in cases])
    )
    parts += [_scaling(records, picture), _growth(records, picture)]
    if not any(record["backend"].startswith("cuda") for record in cases):
        parts.append(GPU)
    parts.append(_skipped(records))
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return written


def put_summary(records: Sequence[Record], readme: Path) -> None:
    """Replace what stands between the two marks of a README by the summary table.

    Raises
    ------
    DataError
        If the marks are not there, twice.
    """
    results.put_between(MARK, results.markdown(SUMMARY_COLUMNS, summary(records)), readme)


def largest(cases: Sequence[Record]) -> list[Record]:
    """Each case at the largest size it was measured at: at small ones a step is mostly what it takes to begin."""
    size: dict[str, int] = {}
    for record in cases:
        size[record["case"]] = max(size.get(record["case"], 0), BY_SIZE.index(record["size"]))
    return [r for r in cases if BY_SIZE.index(r["size"]) == size[r["case"]]]


def weakest(cases: Sequence[Record], count: int = WEAK) -> list[Record]:
    """The cases furthest from their ceilings, each once, at its largest size."""
    found: dict[str, Record] = {}
    for record in sorted(largest(cases), key=lambda r: r["share"]):
        found.setdefault(record["case"], record)
    return list(found.values())[:count]


def why(record: Record) -> str:
    """What a step of a case is made of, the largest parts first, and what its floor leaves out."""
    spent = record["spent"]
    total = sum(spent.values())
    first = [name for name in sorted(spent, key=lambda name: -spent[name])[:NAMED] if spent[name] > total / 200]
    parts = ", ".join(f"{name} {spent[name] / total:.0%}" for name in first)
    floor = f"{record['floor'] * 1e3:.3g} ms by {record['bound']}"
    median = float(np.median(record["seconds"])) * 1e3
    beyond = f" Why: {ROWS[record['case']].beyond}." if record["case"] in ROWS else ""
    return (
        f"{record['size']}/{record['case']}, {record['dtype']}: **{results.share(record)}** of its ceiling (a step "
        f"takes {median:.2f} ms, its floor is {floor}). Where its time goes: {parts}.{beyond}"
    )


def summary(records: Sequence[Record]) -> list[list[str]]:
    """Rows under SUMMARY_COLUMNS: for each case at its largest size its fastest device, in float32 where there is.

    A case that was skipped or failed everywhere has a row that says so.
    """
    rows = []
    chosen = largest(results.of_kind(records, "case"))
    for name in dict.fromkeys(r["case"] for r in chosen):
        of_name = [r for r in chosen if r["case"] == name]
        of_name = [r for r in of_name if r["dtype"] == "float32"] or of_name
        best = min(of_name, key=lambda r: np.median(r["seconds"]))
        median = float(np.median(best["seconds"]))
        sizes = best["model"].partition("(")[2].rstrip(")")
        row = [name, sizes, f"{best['N']:,}", f"{best['backend']}, {best['dtype']}", f"{median / best['N'] * 1e6:.2f}"]
        rows.append([*row, results.share(best), results.beside(best, digits=1)])
    skipped = {r["case"].partition("/")[2]: r for r in results.of_kind(records, "skip") if "/" in r["case"]}
    for name in skipped.keys() - {row[0] for row in rows}:
        rows.append([name, "", "", "not measured", "", "", results.skip_row(skipped[name])[-1]])
    return rows


def _command(records: Sequence[Record], *profiles: str) -> str:
    """The commands that measured, of the machine records with one of these profiles."""
    machines = [r for r in results.of_kind(records, "machine") if r["profile"] in profiles and "command" in r]
    return "".join(f"Measured by `{command}`.\n\n" for command in dict.fromkeys(r["command"] for r in machines))


def _head(records: Sequence[Record], sources: Sequence[str]) -> str:
    names = " ".join(sources)
    ends = results.of_kind(records, "end")
    took = "".join(f"\n- The sweep took {end['seconds'] / 60:.0f} minutes." for end in ends)
    machines = ["- " + ", ".join(f"{k} {v}" for k, v in _about(m)) for m in results.of_kind(records, "machine")]
    return (
        f"# Benchmarks\n\nMade by `python -m benchmarks report {names}`.\n\n{KEY}\n\n## Machine\n\n"
        + "\n".join(machines)
        + took
    )


def _about(machine: Record) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in machine.items() if v and k not in ("kind", "host", "command", "pattern", "only")]


def _weak(cases: Sequence[Record]) -> str:
    parts = [
        "## Weak points first",
        f"The {WEAK} cases of each device that are furthest from their ceilings, each once.",
    ]
    for name in dict.fromkeys(r["backend"] for r in cases):
        here = [r for r in cases if r["backend"] == name]
        lines = [f"{i}. {why(record)}" for i, record in enumerate(weakest(here), 1)]
        parts += [f"**{name}** ({here[0].get('device', '')})", "\n".join(lines)]
    return "\n\n".join(parts)


def _summary_section(records: Sequence[Record]) -> str:
    return "## Summary\n\n" + results.markdown(SUMMARY_COLUMNS, summary(records))


def _devices(records: Sequence[Record], cases: Sequence[Record], picture: Callable[..., str]) -> str:
    devices = results.of_kind(records, "device")
    parts = [
        "## Devices and their ceilings",
        _command(records, *PROFILES) + results.markdown(results.DEVICE_COLUMNS, map(results.device_row, devices)),
    ]
    for name in dict.fromkeys(r["backend"] for r in devices):
        of_device = [r for r in devices if r["backend"] == name]
        of_cases = [r for r in largest(cases) if r["backend"] == name]
        safe = name.replace(":", "-")
        parts.append(picture(f"roofline-{safe}", lambda file, d=of_device, c=of_cases: pictures.roofline(d, c, file)))
    return "\n\n".join(parts)


def _scaling(records: Sequence[Record], picture: Callable[..., str]) -> str:
    measured, simulated = results.of_kind(records, "scaling"), results.of_kind(records, "simulated")
    if not measured:
        return ""
    one = measured[0]
    parts = [
        "## Scaling over MPI ranks",
        _command(records, "scaling") + f"{one['model']}, {one['backend']}, {one['dtype']}; a step reduces "
        f"{one['bytes'] / 1e6:.2f} MB. Measured on this machine, one core a rank; parts of a step in ms, means over "
        "the ranks, by the runtime trace.",
        results.markdown(scaling.COLUMNS, [scaling.row(r) for r in measured]),
        "Each rank's own parts, in ms:",
        results.markdown(scaling.RANK_COLUMNS, [cells for r in measured for cells in scaling.rank_rows(r)]),
    ]
    if simulated:
        first = simulated[0]
        parts += [
            f"Past this machine: **simulated** with SimGrid's SMPI on {first['cluster']}, collectives as "
            f"{first['library']} chooses them; the computation is the one measured above, the messages have the real "
            f"sizes. Strong: {first['points']:,} data points in all; weak: {first['weak_points']:,} on each rank. It "
            "assumes: " + "; ".join(scaling.ASSUMPTIONS) + ". The cluster: " + smpi.ABOUT,
            results.markdown(scaling.SIMULATED_COLUMNS, [scaling.simulated_row(r) for r in simulated]),
            "\n".join(f"- {scaling.tenth_sentence(simulated, mode)}." for mode in ("strong", "weak")),
            _movers(simulated),
        ]
    parts.append(picture("scaling", lambda file: pictures.scaling(measured, simulated, file)))
    return "\n\n".join(parts)


def _movers(simulated: Sequence[Record]) -> str:
    """What each variant saves at the number of ranks where all were simulated."""
    others = [r for r in simulated if r["variant"] != scaling.AS_IS]
    if not others:
        return ""
    ranks = others[0]["ranks"]
    base = next(r for r in simulated if r["variant"] == scaling.AS_IS and r["ranks"] == ranks)
    ratios = ", ".join(f"{r['variant']}: {r['communication'] / base['communication']:.2f}" for r in others)
    hidden = base["reduction"] / base["communication"]
    return (
        f"What would move it, as multiples of the communication at {ranks:,} ranks: {ratios}. The statistics' "
        f"reduction is {hidden:.0%} of it: the most that overlapping it with computation could hide (a bound, not "
        f"simulated). A reduce-scatter would besides share out the M-step, {base['M-step'] * 1e3:.1f} ms on every rank "
        "as it is (not counted)."
    )


def _growth(records: Sequence[Record], picture: Callable[..., str]) -> str:
    found = results.of_kind(records, "growth")
    if not found:
        return ""
    return "\n\n".join(
        [
            "## How cost grows",
            _command(records, "growth")
            + "Slopes of log against log: of the time, of the flops on paper (H' and γ make "
            "the states grow combinatorially: the flops' slope, not a power of theirs, is what to expect), of the peak "
            "memory beyond the data, of the memory that batches and sums take on paper. What stays: "
            + "; ".join(f"{r['case']} over {r['over']}: {growth.base(r)}" for r in found)
            + ".",
            results.markdown(growth.COLUMNS, [growth.row(r) for r in found]),
            picture("growth", lambda file: pictures.growth(found, file)),
        ]
    )


def _skipped(records: Sequence[Record]) -> str:
    skips = results.of_kind(records, "skip") + results.peer_skips(records)
    if not skips:
        return ""
    return "## Not measured\n\n" + results.markdown(results.SKIP_COLUMNS, [results.skip_row(r) for r in skips])
