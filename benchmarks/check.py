"""Whether results are whole and can be: for a machine that looks after changes. It judges no time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import results
from benchmarks.cases import PROFILES, Case, chosen_cases, without_a_line

Record = dict[str, Any]


def problems(records: Sequence[Record]) -> list[str]:
    """What is wrong with the records of a sweep, a line each; none if it is whole."""
    machines, devices = results.of_kind(records, "machine"), results.of_kind(records, "device")
    if len(machines) != 1 or machines[0]["profile"] not in PROFILES:
        return ["these are not the results of one sweep"]
    found = [f"{name}: benchmarks/cases.py has no line for this model" for name in without_a_line()]
    if not results.of_kind(records, "end"):
        found.append("the sweep did not come to its end")
    if not devices:
        found.append("no device was measured")
    plan = PROFILES[machines[0]["profile"]]
    found += _missing(records, chosen_cases(plan, machines[0]["pattern"]), devices)
    for record in results.of_kind(records, "skip"):
        if record.get("failed"):
            found.append(f"{_words((record['case'], record['backend'], record['dtype']))}: failed: {_last(record)}")
    for record in results.of_kind(records, "case"):
        if not 0 < record["share"] <= results.MOST:
            found.append(f"{_words(_name(record))}: {record['share']:.3g} of its ceiling is no share")
        if not all(seconds > 0 for seconds in record["seconds"]) or not record["seconds"]:
            found.append(f"{_words(_name(record))}: without times")
    for record in results.peer_skips(records):
        if record["reason"].startswith("other "):  # it ran, and found something else
            found.append(f"{_words((record['case'], record['backend'], record['dtype']))}: {_last(record)}")
    return found


def _missing(records: Sequence[Record], expected: Sequence[Case], devices: Sequence[Record]) -> list[str]:
    """Cases that a device has neither measured nor skipped with a reason."""
    told = {_name(r) for r in results.of_kind(records, "case")}
    told |= {(r["case"], r["backend"], r["dtype"]) for r in results.of_kind(records, "skip")}
    names = [
        (f"{case.size.name}/{case.name}", device["backend"], device["dtype"]) for case in expected for device in devices
    ]
    return [f"{_words(name)}: missing, without a reason" for name in names if name not in told]


def _name(record: Record) -> tuple[str, str, str]:
    return f"{record['size']}/{record['case']}", record["backend"], record["dtype"]


def _words(name: tuple[str, str, str]) -> str:
    return " ".join(part for part in name if part)


def _last(record: Record) -> str:
    return str(record["reason"].strip().splitlines()[-1])
