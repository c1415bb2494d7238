"""The report page: what results say, weak points first, with pictures. It reads records and measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import growth, pictures, results, scaling
from benchmarks.cases import LARGE, MEDIUM, SMALL, TINY
from gem.errors import DataError

Record = dict[str, Any]
MARK = "<!-- benchmarks -->"
BY_SIZE = [size.name for size in (TINY, SMALL, MEDIUM, LARGE)]
SUMMARY_COLUMNS = ("case", "settings", "fastest here", "µs a point", "of ceiling", "as fast as")
WEAK = 3  # cases that are named first
NAMED = 3  # parts of a step that are named


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

    parts = [_head(records, sources), _weak(cases), _summary_section(cases)]
    parts.append(_devices(records, cases, picture))
    parts.append("## Every case\n\n" + results.markdown(results.CASE_COLUMNS, [results.case_row(r) for r in cases]))
    parts += [_scaling(records, picture), _growth(records, picture), _skipped(records)]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return written


def put_summary(records: Sequence[Record], readme: Path) -> None:
    """Replace what stands between the two marks of a README by the summary table.

    Raises
    ------
    DataError
        If the marks are not there, twice.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(MARK) != 2:
        raise DataError(f"{readme} has {text.count(MARK)} lines {MARK}: the summary goes between two of them")
    before, _, after = text.split(MARK)
    table = results.markdown(SUMMARY_COLUMNS, summary(results.of_kind(records, "case")))
    readme.write_text(f"{before}{MARK}\n{table}\n{MARK}{after}", encoding="utf-8")


def largest(cases: Sequence[Record]) -> list[Record]:
    """The measurements at the largest size there is: at small ones a step is mostly what it takes to begin."""
    size = max((r["size"] for r in cases), key=BY_SIZE.index)
    return [r for r in cases if r["size"] == size]


def weakest(cases: Sequence[Record], count: int = WEAK) -> list[Record]:
    """The cases furthest from their ceilings, each once, at the largest size."""
    found: dict[str, Record] = {}
    for record in sorted(largest(cases), key=lambda r: r["share"]):
        found.setdefault(record["case"], record)
    return list(found.values())[:count]


def why(record: Record) -> str:
    """What a step of a case is made of, the largest parts first."""
    spent = record["spent"]
    total = sum(spent.values())
    first = sorted(spent, key=lambda name: -spent[name])[:NAMED]
    parts = ", ".join(f"{name} {spent[name] / total:.0%}" for name in first)
    floor = f"{record['floor'] * 1e3:.2f} ms by {record['bound']}"
    median = float(np.median(record["seconds"])) * 1e3
    return (
        f"{record['size']}/{record['case']} on {record['backend']}, {record['dtype']}: **{record['share']:.1%}** of "
        f"its ceiling (a step takes {median:.2f} ms, its floor is {floor}). Where it works: {parts}."
    )


def summary(cases: Sequence[Record]) -> list[list[str]]:
    """Rows under SUMMARY_COLUMNS: for each case at the largest size its fastest device, in float32 where there is."""
    rows = []
    chosen = largest(cases)
    for name in dict.fromkeys(r["case"] for r in chosen):
        of_name = [r for r in chosen if r["case"] == name]
        of_name = [r for r in of_name if r["dtype"] == "float32"] or of_name
        best = min(of_name, key=lambda r: np.median(r["seconds"]))
        median = float(np.median(best["seconds"]))
        sizes = best["model"].partition("(")[2].rstrip(")")
        beside = ", ".join(f"{ratio:.1f} × {peer}" for peer, ratio in results.against_peers(best).items())
        row = [name, sizes, f"{best['backend']}, {best['dtype']}", f"{median / best['N'] * 1e6:.2f}"]
        rows.append([*row, f"{best['share']:.0%}", beside])
    return rows


def _head(records: Sequence[Record], sources: Sequence[str]) -> str:
    machines = results.of_kind(records, "machine")
    lines = [
        "- " + ", ".join(f"{k} {v}" for k, v in machine.items() if k not in ("kind", "host")) for machine in machines
    ]
    names = " ".join(sources)
    return (
        "# Benchmarks\n\n"
        f"Made by `python -m benchmarks report {names}`; times are medians, taken in turn within one "
        "process. A *floor* is the time that the flops and the fewest bytes of a step would take at the rates that the "
        "same run measured on the same device (large matrix products; copies); *of ceiling* is the floor over the "
        "step's time. *× products* is the step over the two matrix products of its own shapes.\n\n" + "\n".join(lines)
    )


def _weak(cases: Sequence[Record]) -> str:
    lines = [f"{i}. {why(record)}" for i, record in enumerate(weakest(cases), 1)]
    return "## Weak points first\n\nThe three cases furthest from their ceilings, each once:\n\n" + "\n".join(lines)


def _summary_section(cases: Sequence[Record]) -> str:
    return "## Summary\n\n" + results.markdown(SUMMARY_COLUMNS, summary(cases))


def _devices(records: Sequence[Record], cases: Sequence[Record], picture: Callable[..., str]) -> str:
    devices = results.of_kind(records, "device")
    parts = [
        "## Devices and their ceilings",
        results.markdown(results.DEVICE_COLUMNS, map(results.device_row, devices)),
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
    parts = [
        "## Scaling over MPI ranks",
        "Measured on this machine, one core a rank; parts of a step in ms, means over the ranks, by the runtime trace.",
        results.markdown(scaling.COLUMNS, [scaling.row(r) for r in measured]),
    ]
    if simulated:
        first = simulated[0]
        parts += [
            f"Past this machine: **simulated** with SimGrid's SMPI on {first['cluster']}, collectives as "
            f"{first['library']} chooses them; the computation is the one measured above, the messages have the real "
            "sizes. Strong: " + f"{first['points']:,} data points in all; weak: {first['weak_points']:,} on each rank.",
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
        f"reduction is {hidden:.0%} of it: the most that overlapping it with computation, or a reduce-scatter with "
        "each rank doing its part of the M-step, could take away (not simulated)."
    )


def _growth(records: Sequence[Record], picture: Callable[..., str]) -> str:
    found = results.of_kind(records, "growth")
    if not found:
        return ""
    return "\n\n".join(
        [
            "## How cost grows",
            "Slopes of log against log: of the time, of the flops on paper, of the peak memory beyond the data, of the "
            "memory that batches and sums take on paper.",
            results.markdown(growth.COLUMNS, [growth.row(r) for r in found]),
            picture("growth", lambda file: pictures.growth(found, file)),
        ]
    )


def _skipped(records: Sequence[Record]) -> str:
    skips = results.of_kind(records, "skip") + results.peer_skips(records)
    if not skips:
        return ""
    return "## Not measured\n\n" + results.markdown(results.SKIP_COLUMNS, [results.skip_row(r) for r in skips])
