"""For people who write kernels.

python -m gem.kernels                 list the kernels, with twin, tests and sizes
python -m gem.kernels --check         compile all for every CUDA architecture, print the resource table
python -m gem.kernels --show NAME     print the joined source with its defines
"""

from __future__ import annotations

import argparse
import sys

from gem.backends._cuda import SHARED_BYTES
from gem.backends._device import Schedule, schedule
from gem.errors import GemError
from gem.kernels import resources, source
from gem.states import state_table

FRAGMENTS = {"causes": "maximum"}  # where a kernel asks for a model's own lines
UNITS = 132  # multiprocessors of an H100: only the number of groups depends on it
EXAMPLES: dict[str, dict[str, int]] = {  # the sizes that --check and --show compile
    "cause_scores": {"D": 256, "H": 300, "MISSING": 0},
    "causes": {"D": 256, "H": 300, "HPRIME": 8, "GAMMA": 5, "MANY": 210}
    | {"ANNEAL": 1, "MISSING": 0, "STATS": 1, "RECONSTRUCT": 0},
    "gram_posterior": {"H": 300, "HPRIME": 8, "GAMMA": 5, "ANNEAL": 1, "VALUES": 1, "MASKED": 0},
    "linear_scores": {"H": 300, "VALUES": 2, "COSINE": 0},
    "masked_gram": {"D": 256, "HPRIME": 8},
    "mixture": {"D": 64, "K": 50, "COVARIANCE": 0, "MISSING": 0, "STORE": 0},
    "pair_sums": {"H": 300, "HPRIME": 8},
    "preselect": {"H": 300, "HPRIME": 8, "VALUES": 1},
    "scale_rows": {"H": 300},
    "spike_slab": {"H": 300, "HPRIME": 8, "GAMMA": 4, "ANNEAL": 1, "MASKED": 0},
    "spike_slab_scores": {"H": 300, "MASKED": 0},
    "split_missing": {"D": 256},
    "shrink": {"H": 300, "MOVE": 1},
    "squared_norms": {"D": 256},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compile for every architecture")
    parser.add_argument("--show", metavar="NAME", choices=source.names(), help="print a kernel's program")
    parser.add_argument("--real", type=int, choices=(32, 64), default=32, help="bits of a number (default: 32)")
    parser.add_argument("--define", action="append", default=[], metavar="NAME=VALUE", help="another size")
    parser.add_argument("names", nargs="*", help="kernels to list or check (default: all)")
    args = parser.parse_args()
    try:
        sizes = {name: int(value) for name, _, value in (d.partition("=") for d in args.define)}
    except ValueError:
        parser.error(f"--define takes NAME=VALUE with a whole VALUE, not {args.define}")
    unknown = sorted(set(args.names) - set(source.names()))
    if unknown:
        parser.error(f"there is no kernel {unknown[0]}: {', '.join(source.names())}")
    names = args.names or source.names()
    try:
        if args.show:
            _show(args.show, args.real, sizes)
        elif args.check:
            return _check(names, args.real, sizes)
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


def _program(name: str, real: int, sizes: dict[str, int]) -> tuple[str, dict[str, int], Schedule]:
    """The text, the defines and the schedule of a kernel's CUDA build."""
    constants = {**EXAMPLES[name], **{k: v for k, v in sizes.items() if k in EXAMPLES[name]}}
    states = state_table(constants["HPRIME"], constants["GAMMA"]) if "GAMMA" in constants else None
    plan = schedule(name, constants, real // 8, False, UNITS, SHARED_BYTES)
    return source.program(name, states, FRAGMENTS.get(name)), {**constants, **plan.defines, "GEM_REAL": real}, plan


def _show(name: str, real: int, sizes: dict[str, int]) -> None:
    text, defines, _ = _program(name, real, sizes)
    print("".join(f"#define {key} {value}\n" for key, value in defines.items()) + text)


def check(name: str, real: int, sizes: dict[str, int]) -> list[tuple[resources.Resources, int]]:
    """What a kernel's CUDA build takes on every architecture, and the size of its blocks."""
    text, defines, plan = _program(name, real, sizes)
    options = ["--std=c++17", *(f"-D{key}={value}" for key, value in defines.items())]
    found = [resources.resources(text, arch, options, f"{name}.cu") for arch in resources.ARCHITECTURES]
    return [(record, plan.group) for records in found for record in records]


def _check(names: list[str], real: int, sizes: dict[str, int]) -> int:
    """Print the table; 1 if a float32 kernel spills, or leaves less than half of a multiprocessor's threads."""
    poor = []
    for name in names:
        found = check(name, real, sizes)
        records, block = [record for record, _ in found], found[0][1]
        print(f"{name} {_program(name, real, sizes)[1]}\n{resources.table(records, block)}\n")
        poor += [r for r in records if r.spill_stores + r.spill_loads or resources.occupancy(r, r.arch, block) < 0.5]
    if poor and real == 32:
        print(f"a float32 kernel spills, or its occupancy is below 50 %: {poor[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
