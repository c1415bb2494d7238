"""Every model on every device, beside what the device can do at most and what others take for the same work.

    python -m benchmarks [--profile quick] [-k PATTERN] [--backend NAME] [--output FILE] [--compare OLD.jsonl]
    python -m benchmarks report RESULTS.jsonl ... [--output docs/benchmarks.md] [--readme README.md]
    python -m benchmarks check RESULTS.jsonl    # whole, and shares that can be? Exit status 1 with the reasons if not

A sweep prints a table and writes a JSON object a line: the machine, each device with its ceilings, each case with all
its times, each case that could not be measured with the reason. Results of benchmarks.scaling and benchmarks.growth
can be reported beside it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import check, results
from benchmarks.cases import PROFILES
from benchmarks.sweep import sweep
from gem.errors import ConfigError, GemError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 0, 1 where a case failed or something was refused, 2 (usage)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["report"]:
            return _report(given[1:])
        if given[:1] == ["check"]:
            return _check(given[1:])
        return _sweep(given)
    except GemError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1


def _sweep(given: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-k", dest="pattern", default="", help='part of SIZE/CASE: "bsc", "medium/mog-"')
    parser.add_argument("--backend", help='only one: "numpy", "opencl", "cuda:1" (default: all that are here)')
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument("--output", type=Path, default=Path("benchmarks.jsonl"), help="default: %(default)s")
    parser.add_argument("--compare", type=Path, metavar="OLD.jsonl", help="print each case's ratio to an earlier run")
    args = parser.parse_args(given)
    old = results.read([args.compare]) if args.compare else []
    if args.compare and args.compare.resolve() == args.output.resolve():
        raise ConfigError(f"{args.output} is what is compared with: name another file with --output")
    records = []
    with results.create(args.output) as file:
        for record in sweep(args.profile, args.pattern, args.backend):
            if record["kind"] == "machine":
                record["command"] = shlex.join(["python", "-m", "benchmarks", *given])
            results.write_line(file, record)
            records.append(record)
            name = f"{record.get('size', '')} {record.get('case', '')} {record.get('backend', '')}"
            print(f"{record['kind']}: {name} {record.get('dtype', '')}", file=sys.stderr, flush=True)
    records = results.settled(records)
    _print(records)
    if args.compare:
        rows = results.compared(old, records)
        results.print_table(f"against {args.compare}", results.COMPARE_COLUMNS, rows)
        if not any(row[3] for row in rows):
            print(f"nothing to compare: {args.compare} is of another machine, device, size, or of other settings")
    measured, failed = results.of_kind(records, "case"), [r for r in records if r.get("failed")]
    took = records[-1]["seconds"]
    print(f"{args.output}: {len(measured)} measurements, {len(failed)} failed, {took:.0f} s in all")
    if not measured:
        print(f"benchmarks: no case has {args.pattern!r} in its name, or none could run", file=sys.stderr)
    return 1 if failed or not measured else 0


def _print(records: list[results.Record]) -> None:
    devices, cases, skips = (results.of_kind(records, kind) for kind in ("device", "case", "skip"))
    results.print_table("devices", results.DEVICE_COLUMNS, [results.device_row(r) for r in devices])
    results.print_table("cases", results.CASE_COLUMNS, [results.case_row(r) for r in cases])
    skips += results.peer_skips(records)
    results.print_table("skipped", results.SKIP_COLUMNS, [results.skip_row(r) for r in skips])


def _check(given: list[str]) -> int:
    parser = argparse.ArgumentParser("benchmarks check", description=check.__doc__)
    parser.add_argument("results", type=Path)
    args = parser.parse_args(given)
    found = check.problems(results.read([args.results]))
    for problem in found:
        print(f"{args.results}: {problem}", file=sys.stderr)
    if not found:
        print(f"{args.results}: whole")
    return 1 if found else 0


def _report(given: list[str]) -> int:
    parser = argparse.ArgumentParser("benchmarks report", description="Write the report page, with its pictures.")
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"), help="default: %(default)s")
    parser.add_argument("--readme", type=Path, help="put the summary between its two <!-- benchmarks --> lines")
    args = parser.parse_args(given)
    from benchmarks.report import put_summary, write_report

    records = results.read(args.results)
    for path in write_report(records, args.output, [str(path) for path in args.results]):
        print(path)
    if args.readme:
        put_summary(records, args.readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
