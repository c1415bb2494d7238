"""Records on disk (a JSON object a line), as tables, and against earlier ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gem.errors import ConfigError, DataError

Record = dict[str, Any]
MOST = 1.05  # of a ceiling: what is above it was not measured well
FIRST_WORDS = 110  # characters of a reason that a table shows


def create(path: Path) -> Any:
    """A file for results, open.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the results {path} ({error.strerror}): check the path") from error


def write_line(file: Any, record: Record) -> None:
    """Append a record, at once: an interrupted sweep keeps what it measured."""
    file.write(json.dumps(record) + "\n")
    file.flush()


def read(paths: Iterable[str | Path]) -> list[Record]:
    """The records of files, in order, each file's cases beside its devices' best rates (`settled`).

    Raises
    ------
    DataError
        If a file cannot be read, or a line is no record.
    """
    records: list[Record] = []
    for path in paths:
        of_file: list[Record] = []
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"cannot read the results {path} ({error.strerror}): check the path") from error
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                record["kind"]
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{path}, line {number}: not a record of `python -m benchmarks`") from error
            of_file.append(record)
        records += settled(of_file)
    return records


def settled(records: Iterable[Record]) -> list[Record]:
    """Devices that were measured more than once as one with its best rates, and each case's floor at these.

    The rate of products is the best that the device showed, on large matrices or on the case's own.
    """
    records = list(records)
    best: dict[tuple[str, str], Record] = {}
    for device in of_kind(records, "device"):
        name = device["backend"], device["dtype"]
        rates = {rate: max(device[rate], best.get(name, device)[rate]) for rate in ("product_rate", "copy_rate")}
        best[name] = {**device, **rates}
    told, waiting = [], dict(best)
    for record in records:
        if record["kind"] == "device":
            first = waiting.pop((record["backend"], record["dtype"]), None)
            told += [first] if first else []
        elif record["kind"] == "case" and (record["backend"], record["dtype"]) in best:
            told.append(_beside(record, best[record["backend"], record["dtype"]]))
        else:
            told.append(record)
    return told


def _beside(case: Record, device: Record) -> Record:
    """A case with its floor on a device, and its share of it."""
    rate, bandwidth = max(case["own_rate"], device["product_rate"]), device["copy_rate"]
    floors = {"flops": case["flops"] / rate, "bytes": case["bytes"] / bandwidth}
    bound = max(floors, key=lambda kind: floors[kind])
    share = floors[bound] / float(np.median(case["seconds"]))
    return {**case, "rate": rate, "bandwidth": bandwidth, "floor": floors[bound], "bound": bound, "share": share}


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def key(record: Record) -> tuple[Any, ...]:
    """What makes two measurements comparable; the first four name the case in tables."""
    names = ("size", "case", "backend", "dtype", "N", "model", "device", "machine")
    return tuple(record.get(name) for name in names)


def case_row(record: Record) -> list[str]:
    """A case as cells under CASE_COLUMNS."""
    seconds = np.array(record["seconds"])
    middle = float(np.median(seconds))
    return [
        f"{record['size']}/{record['case']}",
        record["backend"],
        record["dtype"],
        f"{record['N']:,}",
        f"{middle * 1e3:.2f}",
        f"{seconds.min() * 1e3:.2f} to {seconds.max() * 1e3:.2f}",
        f"{middle / record['N'] * 1e6:.3f}",
        f"{record['flops'] / 1e9:.3g}",
        f"{record['bytes'] / 1e6:.3g}",
        f"{record['floor'] * 1e3:.3g}",
        record["bound"],
        share(record),
        f"{record['flops'] / middle / 1e9:.1f}",
        f"{np.median(seconds / np.array(record['products'])):.2f}",
        beside(record),
    ]


def share(record: Record) -> str:
    """The share of its ceiling that a case reaches; one that cannot be is marked."""
    return f"{record['share']:.1%}" + (" (!)" if record["share"] > MOST else "")


def beside(record: Record, digits: int = 2) -> str:
    """The peers of a case: how many times as fast it is, and their own times."""
    took = {peer["name"]: float(np.median(peer["seconds"])) for peer in record.get("peers", []) if "seconds" in peer}
    ratios = against_peers(record)
    return ", ".join(f"{ratios[name]:.{digits}f} × {name} ({took[name] * 1e3:.4g} ms)" for name in took)


def against_peers(record: Record) -> dict[str, float]:
    """How many times as fast the case is as each peer that found the same likelihood."""
    return {
        peer["name"]: float(np.median(np.array(peer["seconds"]) / np.array(record["seconds"])))
        for peer in record.get("peers", [])
        if "seconds" in peer
    }


def peer_skips(records: Iterable[Record]) -> list[Record]:
    """Peers that did not count, as skips."""
    return [
        {**record, "case": f"{record['size']}/{record['case']}: {peer['name']}", "reason": peer["skipped"]}
        for record in of_kind(records, "case")
        for peer in record.get("peers", [])
        if "skipped" in peer
    ]


CASE_COLUMNS = (
    "case", "backend", "dtype", "N", "step, ms", "range", "µs a point", "GFLOP", "MB", "floor, ms", "bound by",
    "of ceiling", "GFLOP/s", "× products", "as fast as",
)  # fmt: skip
SKIP_COLUMNS = ("not measured", "backend", "dtype", "reason")
DEVICE_COLUMNS = ("device", "dtype", "what it is", "products, GFLOP/s", "streaming, GB/s", "of MB")


def device_row(record: Record) -> list[str]:
    """A device as cells under DEVICE_COLUMNS."""
    known = {k: v for k, v in record["about"].items() if k not in ("backend", "dtype", "memory")}
    about = ", ".join(f"{k} {v}" for k, v in known.items())
    rates = [f"{record['product_rate'] / 1e9:.1f}", f"{record['copy_rate'] / 1e9:.1f}"]
    rates.append(f"{record['copy_bytes'] / 1e6:.0f}")
    return [record["backend"], record["dtype"], about, *rates]


def skip_row(record: Record) -> list[str]:
    """A skip as cells under SKIP_COLUMNS."""
    last = record["reason"].strip().splitlines()[-1]
    return [record["case"], record["backend"] or "all", record["dtype"] or "all", last[:FIRST_WORDS]]


def compared(old: Sequence[Record], new: Sequence[Record]) -> list[list[str]]:
    """Per case its time over the old one, in seconds and in units of its own matrix products: under COMPARE_COLUMNS.

    The products were measured in turn with the steps: a machine that is slower as a whole makes both slower. Spreads
    are those of the middle halves: from the new first quartile over the old third one, to the reverse.
    """
    before = {key(record): record for record in of_kind(old, "case")}
    after = {key(record): record for record in of_kind(new, "case")}
    rows = []
    for case in sorted(before.keys() | after.keys(), key=str):
        name = [f"{case[0]}/{case[1]}", *case[2:4]]
        if case not in before or case not in after:
            rows.append([*name, "", "", "", "", "only before" if case in before else "only now"])
            continue
        times = [np.array(record["seconds"]) for record in (after[case], before[case])]
        units = [np.array(record["seconds"]) / record["products"] for record in (after[case], before[case])]
        (plain, first), (relative, second) = _ratio(*times), _ratio(*units)
        verdict = first if first == second else f"{first} in seconds, {second} in products"
        rows.append([*name, *plain, *relative, verdict])
    return rows


def _ratio(new: np.ndarray, old: np.ndarray) -> tuple[list[str], str]:
    """The ratio of two medians, its spread, and what that says."""
    low_old, middle_old, high_old = np.percentile(old, [25, 50, 75])
    low, middle, high = np.percentile(new, [25, 50, 75])
    lowest, highest = low / high_old, high / low_old
    verdict = "slower" if lowest > 1 else "faster" if highest < 1 else "no difference seen"
    return [f"{middle / middle_old:.2f}", f"{lowest:.2f} to {highest:.2f}"], verdict


COMPARE_COLUMNS = ("case", "backend", "dtype", "new / old", "middle halves", "in products", "middle halves", "")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """On the terminal, by rich."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, no_wrap=console.is_terminal and name != "reason")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def put_between(mark: str, text: str, page: Path) -> None:
    """Replace what stands between the two lines `mark` of a page.

    Raises
    ------
    DataError
        If they are not there, twice.
    """
    old = page.read_text(encoding="utf-8")
    if old.count(mark) != 2:
        raise DataError(f"{page} has {old.count(mark)} lines {mark}: the summary goes between two of them")
    before, _, after = old.split(mark)
    page.write_text(f"{before}{mark}\n{text}\n{mark}{after}", encoding="utf-8")
