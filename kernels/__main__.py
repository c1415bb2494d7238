"""For people who write kernels.

python -m gem.kernels                 list the kernels, with twin, tests and sizes
python -m gem.kernels --check         compile all for every CUDA architecture, variants for two of them
python -m gem.kernels --show NAME     print the joined source with its defines
python -m gem.kernels --count         count what a GPU would do for a data point; 1 beyond what is pinned
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

from gem.backends._cuda import SHARED_BYTES
from gem.backends._device import Schedule, schedule
from gem.errors import BackendError, ConfigError, GemError
from gem.kernels import resources, source
from gem.states import state_table

FRAGMENTS = {  # where a kernel asks for a model's own lines: all that are joined, the example's first
    "causes": (
        *(f"maximum+{noise}" for noise in ("gaussian", "bernoulli", "poisson", "gamma")),
        *("smooth_maximum+gaussian", "magnitude+gaussian", "noisyor+bernoulli"),
    ),
    "mixture": ("mixture_gaussian", "mixture_spherical", "mixture_poisson"),
}
UNITS = 132  # multiprocessors of an H100: only the number of groups depends on it
KEPT = {"H": 300, "WORDS": 10, "COUNT": 64}  # explicit states
EXAMPLES: dict[str, dict[str, int]] = {  # the sizes of a large model
    "accumulate": {"COLUMNS": 8, "KIND": 1},
    "cause_scores": {"D": 256, "H": 300, "MISSING": 0},
    "causes": {"D": 256, "H": 300, "HPRIME": 8, "GAMMA": 5, "MANY": 210}
    | {"ANNEAL": 1, "MISSING": 0, "STATS": 1, "RECONSTRUCT": 0},
    "check_rows": {"D": 256},
    "column_sums": {"H": 300},
    "evolve": {**KEPT, "PARENTS": 10, "CHILDREN": 9, "MUTATION": 0, "FIT": 1},
    "gram_posterior": {"H": 300, "HPRIME": 8, "GAMMA": 5, "ANNEAL": 1, "VALUES": 1, "MASKED": 0},
    "keep_best": {"WORDS": 10, "COUNT": 64, "NEW": 90},
    "lasso": {"H": 300, "PITCH": 320},
    "impute": {"D": 256, "H": 300, "HPRIME": 8},
    "linear_energies": KEPT,
    "linear_scores": {"H": 300, "VALUES": 2, "COSINE": 0},
    "masked_gram": {"D": 256, "HPRIME": 8},
    "mixture": {"D": 64, "K": 50, "MISSING": 0, "STAGES": 1, "ANNEAL": 0, "LARGE": 0},
    "mixture_full": {"D": 64, "K": 50, "TIED": 0, "STAGES": 4, "ANNEAL": 0},
    "pair_sums": {"H": 300, "HPRIME": 8},
    "point_sums": {"PARTS": 2, "WEIGHTED": 0},
    "preselect": {"H": 300, "HPRIME": 8, "VALUES": 1},
    "preselected_states": {**KEPT, "HPRIME": 8},
    "sample_states": {**KEPT, "PRIOR": 32},
    "scale_rows": {"H": 300},
    "state_pairs": KEPT,
    "weigh_states": KEPT,
    "spike_slab": {"H": 300, "HPRIME": 8, "GAMMA": 4, "ANNEAL": 1, "MASKED": 0},
    "spike_slab_scores": {"H": 300, "MASKED": 0},
    "split_missing": {"D": 256},
    "sparse_product": {"D": 256, "H": 300},
    "squared_norms": {"D": 256},
    "strength_squares": {"H": 300},
}


Sizes = dict[str, Any]  # "fragment" among them names one


def _each(**values: tuple[Any, ...]) -> list[Sizes]:
    """Every choice of these values."""
    return [dict(zip(values, choice, strict=True)) for choice in product(*values.values())]


PAIR = ("sm_75", "sm_90")  # what variants are compiled for: the oldest, and one with the most threads to keep busy
WANTED = ({"STATS": 0, "RECONSTRUCT": 0}, {"STATS": 1, "RECONSTRUCT": 0}, {"STATS": 0, "RECONSTRUCT": 1})
VARIANTS: dict[str, list[Sizes]] = {  # what models build besides the example: how it differs from that
    "accumulate": _each(COLUMNS=(128,), KIND=(0, 1, 2)) + _each(COLUMNS=(1,), KIND=(0, 1)),
    "cause_scores": _each(MISSING=(1,)),
    "column_sums": _each(H=(1, 3, 30)),
    "causes": [
        {"fragment": fragment, "ANNEAL": anneal, "MISSING": anneal ^ flip, **wanted}  # every pair of values is there
        for fragment in FRAGMENTS["causes"]
        for anneal in (0, 1)
        for flip, wanted in zip((0, 0, 1), WANTED, strict=True)
    ]
    + _each(HPRIME=(32,), GAMMA=(3,), MISSING=(1,)),
    "evolve": _each(MUTATION=(0, 1, 2), FIT=(0, 1)),
    "gram_posterior": [
        *_each(HPRIME=(12,), GAMMA=(4, 10), ANNEAL=(0, 1)),
        *_each(HPRIME=(32,), GAMMA=(4,), ANNEAL=(0, 1)),
        *_each(ANNEAL=(0, 1), MASKED=(0, 1)),
        *_each(GAMMA=(3,), VALUES=(2, 4), ANNEAL=(0, 1), MASKED=(0, 1)),
    ],
    "linear_scores": _each(VALUES=(1, 2, 3), COSINE=(0, 1)),
    "masked_gram": _each(HPRIME=(12, 32)),
    "mixture": [
        {"fragment": fragment, "MISSING": missing, "STAGES": stage, "ANNEAL": int(missing or stage == 2)}
        for fragment, missing in (
            *(("mixture_gaussian", 0), ("mixture_gaussian", 1), ("mixture_spherical", 0)),
            *(("mixture_poisson", 0), ("mixture_poisson", 1)),
        )
        for stage in (1, 2, 4, 8)
    ]
    + _each(fragment=("mixture_poisson",), MISSING=(0, 1), LARGE=(1,)),
    "mixture_full": _each(TIED=(0, 1), STAGES=(4, 8), ANNEAL=(0, 1)),
    "pair_sums": _each(HPRIME=(12,)),
    "point_sums": _each(PARTS=(1, 2, 3), WEIGHTED=(0, 1)),
    "preselect": _each(HPRIME=(8, 12), VALUES=(1, 2, 3)),
    "spike_slab": _each(ANNEAL=(0, 1), MASKED=(0, 1)) + _each(HPRIME=(12,), GAMMA=(2, 5)),
    "spike_slab_scores": _each(MASKED=(1,)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compile for every architecture")
    parser.add_argument("--show", metavar="NAME", choices=source.names(), help="print a kernel's program")
    parser.add_argument("--count", action="store_true", help="count bytes, flops and instructions (needs oclgrind)")
    parser.add_argument(
        "--only",
        metavar="TEXT",
        default="",
        help="--count: only cases with this in their name (default: all but slow ones)",
    )
    parser.add_argument("--pin", action="store_true", help="--count: pin these counts")
    parser.add_argument("--real", type=int, choices=(32, 64), help="bits of a number (--check: both, --show: 32)")
    parser.add_argument("--define", action="append", default=[], metavar="NAME=VALUE", help="another size")
    parser.add_argument("names", nargs="*", help="kernels to list or check (default: all)")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(source.names()))
    if unknown:
        parser.error(f"there is no kernel {unknown[0]}: {', '.join(source.names())}")
    names = args.names or source.names()
    try:
        sizes = {name: int(value) for name, _, value in (d.partition("=") for d in args.define)}
    except ValueError:
        parser.error(f"--define takes NAME=VALUE with a whole VALUE, not {args.define}")
    known = dict.fromkeys(size for name in ([args.show] if args.show else names) for size in EXAMPLES[name])
    strange = sorted(set(sizes) - set(known))
    if strange:
        parser.error(f"--define {strange[0]}: no kernel here has this size; there are {', '.join(known)}")
    try:
        if args.show:
            _show(args.show, args.real or 32, sizes)
        elif args.count or args.pin:
            return _count(args.only, args.pin)
        elif args.check:
            return _check(names, (args.real,) if args.real else (32, 64), sizes)
        else:
            _list(names)
    except GemError as error:
        print(f"gem.kernels: {error}", file=sys.stderr)
        return 1
    return 0


def _list(names: list[str]) -> None:
    for name in names:
        first = (source.FOLDER / f"{name}.c").read_text().splitlines()[0].removeprefix("/*").strip()
        sizes = ", ".join(f"{k} = {v}" for k, v in EXAMPLES[name].items())
        print(first.removesuffix("*/").strip())
        print(f"    twin   kernels/{name}.py\n    tests  python -m pytest tests/test_kernels.py -k {name}")
        print(f"    sizes  {sizes} (an example)")


def variants(name: str) -> list[Sizes]:
    """The example, and what models build besides it; none twice."""
    example: Sizes = {**EXAMPLES[name], **({"fragment": FRAGMENTS[name][0]} if name in FRAGMENTS else {})}
    return [{}, *(v for v in VARIANTS.get(name, []) if {**example, **v} != example)]


def _program(name: str, real: int, sizes: Sizes) -> tuple[str, dict[str, int], Schedule]:
    """The text, the defines and the schedule of a kernel's CUDA build."""
    constants = {**EXAMPLES[name], **{k: v for k, v in sizes.items() if k in EXAMPLES[name]}}
    states = state_table(constants["HPRIME"], constants["GAMMA"]) if "GAMMA" in constants else None
    if states is not None and "MANY" in constants:
        constants["MANY"] = states.S
    plan = schedule(name, constants, real // 8, False, UNITS, SHARED_BYTES)
    text = source.program(name, sizes.get("fragment", FRAGMENTS.get(name, (None,))[0]))
    return text, {**constants, **plan.defines, "GEM_REAL": real}, plan


def _show(name: str, real: int, sizes: Sizes) -> None:
    text, defines, _ = _program(name, real, sizes)
    print("".join(f"#define {key} {value}\n" for key, value in defines.items()) + text)


def check(
    name: str, real: int, sizes: Sizes, architectures: tuple[str, ...] = resources.ARCHITECTURES
) -> list[tuple[resources.Resources, int]]:
    """What a kernel's CUDA build takes on every architecture, and the size of its blocks."""
    text, defines, plan = _program(name, real, sizes)
    options = ["--std=c++17", *(f"-D{key}={value}" for key, value in defines.items())]
    found = [resources.resources(text, arch, options, f"{name}.cu") for arch in architectures]
    return [(record, plan.group) for records in found for record in records]


def poor(record: resources.Resources, block: int) -> bool:
    """Whether a kernel spills registers, or leaves less than half of a multiprocessor's threads."""
    return bool(record.spill_stores + record.spill_loads) or resources.occupancy(record, record.arch, block) < 0.5


def _check(names: list[str], reals: tuple[int, ...], sizes: Sizes) -> int:
    """Print the example in full, and of every variant the worse of two architectures; 1 if one in float32 is poor."""
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name in names:
            builds = [(real, {**variant, **sizes}) for real in reals for variant in variants(name)]
            found = list(pool.map(partial(_refused_or, name, sizes), builds))
            for (real, build), records in zip(builds, found, strict=True):
                said = " ".join(f"{k}={v}" for k, v in build.items() if k not in sizes)
                if isinstance(records, str):
                    print(f"float{real} {said}: {records}")
                elif said:
                    print(f"float{real} {said}: {_worst(records)}")
                else:
                    print(f"{name} {_program(name, real, build)[1]}")
                    print(resources.table([record for record, _ in records], records[0][1]))
                    print(f"variants on {' and '.join(PAIR)}:" if len(builds) > len(reals) else "")
                if real == 32 and not isinstance(records, str):
                    failed += [record for record, block in records if poor(record, block)]
            print(flush=True)
    if failed:
        print(f"a float32 kernel spills, or its occupancy is below 50 %: {failed[0]}", file=sys.stderr)
    return int(bool(failed))


def _refused_or(name: str, sizes: Sizes, what: tuple[int, Sizes]) -> Any:
    """What `check` gives of (bits of a number, build), or why no device could run a kernel of this size."""
    real, build = what
    try:
        return check(name, real, build, resources.ARCHITECTURES if build == sizes else PAIR)
    except BackendError as error:
        if "local memory" not in str(error):
            raise
        return f"refused: {error}"


def _count(only: str, pin: bool) -> int:
    """Print the counts of cases; 1 if some are beyond the pinned ones, which `pin` replaces."""
    from gem.kernels import counts  # it opens what models and backends need, which no other tool here does

    names = [name for name, case in counts.CASES.items() if (only in name if only else not case.slow)]
    if not names:
        raise ConfigError(f"--only {only}: no case has that in its name; there are {', '.join(counts.CASES)}")
    counted = counts.count(names)
    lines = [list(counts.COLUMNS), *(row for name in names for row in counts.rows(name, counted[name]))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if pin:
        counts.pin(counted)
    more = counts.beyond(counted, counts.pinned())
    for line in more:
        print(f"beyond the pinned counts: {line}", file=sys.stderr)
    return int(bool(more))


def _worst(found: list[tuple[resources.Resources, int]]) -> str:
    records = [record for record, _ in found]
    spilled = max(r.spill_stores + r.spill_loads for r in records)
    least = min(resources.occupancy(record, record.arch, block) for record, block in found)
    return (
        f"{max(r.registers for r in records)} registers, {spilled} bytes spilled, "
        f"{max(r.shared for r in records)} shared, occupancy({found[0][1]}) {least:.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
