"""Records on disk (a JSON object a line), as tables, and against earlier ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gem.errors import DataError

Record = dict[str, Any]
FIRST_WORDS = 110  # characters of a reason that a table shows


def write_line(file: Any, record: Record) -> None:
    """Append a record, at once: an interrupted sweep keeps what it measured."""
    file.write(json.dumps(record) + "\n")
    file.flush()


def read(paths: Iterable[str | Path]) -> list[Record]:
    """The records of files, in order.

    Raises
    ------
    DataError
        If a file cannot be read, or a line is no record.
    """
    records: list[Record] = []
    for path in paths:
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
            records.append(record)
    return records


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def key(record: Record) -> tuple[str, str, str, str]:
    """What makes two measurements comparable."""
    return record["size"], record["case"], record["backend"], record["dtype"]


def case_row(record: Record) -> list[str]:
    """A case as cells under CASE_COLUMNS."""
    seconds = np.array(record["seconds"])
    middle = float(np.median(seconds))
    beside = ", ".join(f"{ratio:.2f} × {name}" for name, ratio in against_peers(record).items())
    return [
        f"{record['size']}/{record['case']}",
        record["backend"],
        record["dtype"],
        f"{record['N']:,}",
        f"{middle * 1e3:.2f}",
        f"{seconds.min() * 1e3:.2f} to {seconds.max() * 1e3:.2f}",
        f"{middle / record['N'] * 1e6:.3f}",
        f"{record['flops'] / middle / 1e9:.1f}",
        f"{record['share']:.1%}",
        record["bound"],
        f"{np.median(seconds / np.array(record['products'])):.2f}",
        beside,
    ]


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
    "case", "backend", "dtype", "N", "step, ms", "range", "µs a point", "GFLOP/s", "of ceiling", "bound by",
    "× products", "as fast as",
)  # fmt: skip
SKIP_COLUMNS = ("not measured", "backend", "dtype", "reason")
DEVICE_COLUMNS = ("device", "dtype", "what it is", "products, GFLOP/s", "copies, GB/s")


def device_row(record: Record) -> list[str]:
    """A device as cells under DEVICE_COLUMNS."""
    known = {k: v for k, v in record["about"].items() if k not in ("backend", "dtype", "memory")}
    about = ", ".join(f"{k} {v}" for k, v in known.items())
    rates = [f"{record['product_rate'] / 1e9:.1f}", f"{record['copy_rate'] / 1e9:.1f}"]
    return [record["backend"], record["dtype"], about, *rates]


def skip_row(record: Record) -> list[str]:
    """A skip as cells under SKIP_COLUMNS."""
    last = record["reason"].strip().splitlines()[-1]
    return [record["case"], record["backend"] or "all", record["dtype"] or "all", last[:FIRST_WORDS]]


def compared(old: Sequence[Record], new: Sequence[Record]) -> list[list[str]]:
    """Per case the ratio of its time to the old one, rows under COMPARE_COLUMNS.

    The spread is that of the middle halves: from the new first quartile over the old third one, to the reverse.
    """
    before = {key(record): record for record in of_kind(old, "case")}
    after = {key(record): record for record in of_kind(new, "case")}
    rows = []
    for case in sorted(before.keys() | after.keys()):
        name = [f"{case[0]}/{case[1]}", *case[2:]]
        if case not in before or case not in after:
            rows.append([*name, "", "", "only before" if case in before else "only now"])
            continue
        low_old, middle_old, high_old = np.percentile(before[case]["seconds"], [25, 50, 75])
        low, middle, high = np.percentile(after[case]["seconds"], [25, 50, 75])
        ratio, lowest, highest = middle / middle_old, low / high_old, high / low_old
        verdict = "slower" if lowest > 1 else "faster" if highest < 1 else "no difference seen"
        rows.append([*name, f"{ratio:.2f}", f"{lowest:.2f} to {highest:.2f}", verdict])
    return rows


COMPARE_COLUMNS = ("case", "backend", "dtype", "new / old", "middle halves", "")


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
