"""What a GPU would do, counted where none is: bytes, flops and instructions of each kernel for a data point.

One EM step in the schedule of a GPU runs under Oclgrind, a simulator, with few data points and with more: the
difference is what each point more costs; what a group does once cancels out. Counts do not depend on the machine or
its load. Bytes are those that kernels ask of global memory, without caches and without atomic operations; an
exponential counts as on paper (`gem.kernels.floors`); instructions are of the LLVM IR before a GPU's compiler has seen
it, so read them as a ratio to the flops, and to the counts that are pinned in `counts.json`. Products are made on the
host: on a GPU they are cuBLAS's.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gem
from gem.backends._opencl import OpenCLBackend
from gem.errors import BackendError
from gem.kernels import floors
from gem.models import MODELS, Model

PINS = Path(__file__).with_name("counts.json")
SLACK = 0.02  # of a pinned count: versions of the simulator's compiler differ by that
WHOLE = "all"  # the row of a case's kernels together

Counts = dict[str, float]  # what is counted → how often, for a data point
ARITHMETIC = {"fmul": 1, "fadd": 1, "fsub": 1, "fdiv": 1}
FUNCTION = re.compile(r"call _Z\d+(?:native_|half_)?(?:exp|log|pow|sqrt|rsqrt)")


@dataclass(frozen=True)
class Case:
    """A model at a reference size, and two numbers of data points that fill the tiles of its kernels.

    One that takes minutes is counted only where it is asked for.
    """

    model: str
    sizes: dict[str, int]
    points: tuple[int, int]
    floor: Callable[..., dict[str, floors.Floor]]
    slow: bool = False

    @property
    def fewest(self) -> dict[str, floors.Floor]:
        """Kernel → (flops, bytes) on paper, without what cuBLAS does."""
        found = self.floor(**self.sizes)
        return {kernel: floor for kernel, floor in found.items() if not kernel.startswith(floors.PRODUCT)}


def _causes(D: int, H: int, Hprime: int, gamma: int) -> dict[str, int]:
    return {"D": D, "H": H, "Hprime": Hprime, "gamma": gamma}


CASES = {
    "mog-64-50": Case("mog", {"D": 64, "K": 50}, (64, 128), floors.mixture),
    "mog-128-256": Case("mog", {"D": 128, "K": 256}, (64, 128), floors.mixture),
    "mog-128-1024": Case("mog", {"D": 128, "K": 1024}, (64, 128), floors.mixture, slow=True),
    "bsc-8-5": Case("bsc", _causes(256, 300, 8, 5), (32, 64), floors.linear),
    "bsc-12-4": Case("bsc", _causes(256, 300, 12, 4), (32, 64), floors.linear),
    "gsc": Case("gsc", _causes(64, 100, 8, 3), (32, 64), floors.spike_slab),
    "mca": Case("mca", _causes(32, 60, 8, 3), (32, 64), floors.causes),
    "noisyor": Case("noisyor", _causes(32, 60, 8, 3), (32, 64), floors.noisy_or),
}


# -- in the simulator -----------------------------------------------------------------------------------------


class Simulated(OpenCLBackend):
    """The only device in the simulator, used as a GPU is; it notes what it launches, and the host makes products."""

    def __init__(self) -> None:
        super().__init__("float32", schedule="gpu", trust=True)
        self.launched: list[str] = []

    def launch(self, built: Any, *arguments: Any) -> None:
        super().launch(built, *arguments)
        self.launched.append(built.function_name)

    def matmul(self, a: Any, b: Any, *, transpose_a: bool = False) -> Any:
        x = self.to_host(a)
        return self.to_device((x.T if transpose_a else x) @ self.to_host(b))


def problem(case: Case, N: int) -> tuple[Model, dict[str, Any], np.ndarray]:
    """The model, parameters from a seed, and data drawn with them; the first of N do not depend on N."""
    rng, sizes = np.random.default_rng(0), case.sizes
    model, params = MODELS[case.model](**sizes), dict[str, Any]()
    if "K" in sizes:
        D, K = sizes["D"], sizes["K"]
        params = {"pi": np.full(K, 1 / K), "mu": rng.normal(0, 0.3, (K, D)), "var": np.ones((K, D))}
    else:
        H, shape = sizes["H"], (sizes["D"], sizes["H"])
        each = np.full(H, 2.0 / H)
        params = {"W": np.abs(rng.normal(size=shape)), "pi": 2.0 / H, "sigma": 1.0}
        if case.model == "gsc":
            params |= {"pi": each, "mu": np.ones(H), "psi": np.ones(H)}
        elif case.model == "noisyor":
            params = {"W": rng.uniform(0.01, 0.9, shape), "pi": each}
    return model, params, model.generate_data(params, N=N, seed=1)[0]


def simulate(names: Iterable[str], path: str) -> None:
    """Do the steps of cases, and write to a file which kernels each of them launched, in their order."""
    backend, said = Simulated(), []
    for name in names:
        for N in CASES[name].points:
            model, params, Y = problem(CASES[name], N)
            backend.launched = []
            gem.em_step(model, params, Y, backend=backend, dtype="float32")
            said.append((name, N, backend.launched))
    Path(path).write_text(json.dumps(said))


# -- reading what it counted ----------------------------------------------------------------------------------


def count(names: Iterable[str]) -> dict[str, dict[str, Counts]]:
    """Case → kernel → bytes `read` and `written`, `flops` and `instructions` per data point.

    Raises
    ------
    BackendError
        If Oclgrind is not installed, or fails.
    """
    program = shutil.which("oclgrind")
    if program is None:
        raise BackendError("oclgrind is not installed: it is a system package (Debian, Ubuntu: apt install oclgrind)")
    with tempfile.TemporaryDirectory() as folder:
        launched = Path(folder) / "launched.json"
        command = [program, "--inst-counts", "--compute-units", "1", sys.executable, "-m", "gem.kernels.counts"]
        done = subprocess.run([*command, str(launched), *names], capture_output=True, text=True, check=False)
        if done.returncode or not launched.exists():
            raise BackendError(f"the steps under {program} failed: {done.stderr.strip()[-2000:] or done.stdout[-500:]}")
        steps = json.loads(launched.read_text())
    counted = read(done.stdout)
    totals: dict[str, list[tuple[int, dict[str, Counts]]]] = {}
    for name, N, kernels in steps:
        each: dict[str, Counts] = {}
        for kernel in kernels:
            found, counts = next(counted, ("nothing", {}))
            if found != kernel:
                raise BackendError(f"oclgrind counted kernel {found} where {kernel} was launched")
            each[kernel] = _added(each.get(kernel, {}), counts)
        totals.setdefault(name, []).append((N, each))
    return {name: _per_point(*pair) for name, pair in totals.items()}


def read(text: str) -> Iterator[tuple[str, Counts]]:
    """Kernel and counts of every launch, as `oclgrind --inst-counts` prints them."""
    for part in re.split(r"^Instructions executed for kernel ", text, flags=re.MULTILINE)[1:]:
        kernel, *lines = part.splitlines()
        counts = {"read": 0.0, "written": 0.0, "flops": 0.0, "instructions": 0.0}
        for row in filter(None, (re.match(r"\s+(\d+) - (\S.*?)(?: \((\d+) bytes\))?$", line) for line in lines)):
            times, what = int(row[1]), row[2]
            counts["instructions"] += times
            counts["read"] += int(row[3]) if what == "load global" else 0
            counts["written"] += int(row[3]) if what == "store global" else 0
            flops = 2 if "fmuladd" in what else floors.EXP if FUNCTION.match(what) else ARITHMETIC.get(what, 0)
            counts["flops"] += flops * times
        yield kernel.strip("':"), counts


def _added(one: Counts, other: Counts, factor: float = 1) -> Counts:
    return {what: one.get(what, 0) + factor * value for what, value in other.items()}


def _per_point(few: tuple[int, dict[str, Counts]], many: tuple[int, dict[str, Counts]]) -> dict[str, Counts]:
    """What each data point more costs, of the kernels that it costs anything."""
    more, found = many[0] - few[0], {}
    for kernel, counts in many[1].items():
        each = {what: value / more for what, value in _added(counts, few[1].get(kernel, {}), -1).items()}
        if each["instructions"] >= 1:
            found[kernel] = each
    whole: Counts = {}
    for each in found.values():
        whole = _added(whole, each)
    return {**found, WHOLE: whole}


# -- beside the fewest, and beside what is pinned -------------------------------------------------------------


def rows(name: str, counted: Mapping[str, Counts]) -> Iterator[list[str]]:
    """Lines of the table: counts, the fewest on paper, bytes beside these, instructions beside the fewest flops."""
    fewest = CASES[name].fewest
    flops, sizes = zip(*fewest.values(), strict=True)
    fewest[WHOLE] = sum(flops), sum(sizes)
    for kernel, each in counted.items():
        row = [name, kernel, *(f"{each[what]:,.0f}" for what in ("read", "written", "flops", "instructions"))]
        if kernel in fewest:
            least, size = fewest[kernel]
            ratios = (each["read"] + each["written"]) / size, each["instructions"] / least
            row += [f"{size:,.0f}", f"{least:,.0f}", *(f"{ratio:.1f}" for ratio in ratios)]
        yield row + [""] * (len(COLUMNS) - len(row))


COLUMNS = (
    *("case", "kernel", "read, B", "written, B", "flops", "instructions"),
    *("fewest B", "fewest flops", "B / fewest", "instructions / fewest flops"),
)


def pinned() -> dict[str, dict[str, Counts]]:
    """The counts of `counts.json`."""
    found: dict[str, dict[str, Counts]] = json.loads(PINS.read_text())
    return found


def pin(counted: Mapping[str, Mapping[str, Counts]]) -> None:
    """Write these counts to `counts.json`, beside those of other cases."""
    kept = {name: each for name, each in (pinned() if PINS.exists() else {}).items() if name in CASES}
    kept |= {
        name: {kernel: {what: round(value) for what, value in each.items()} for kernel, each in kernels.items()}
        for name, kernels in counted.items()
    }
    lines = [
        f'  "{name}": {{\n' + ",\n".join(f'    "{k}": {json.dumps(each)}' for k, each in kept[name].items()) + "\n  }"
        for name in CASES
        if name in kept
    ]
    PINS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def beyond(counted: Mapping[str, Mapping[str, Counts]], pins: Mapping[str, Mapping[str, Counts]]) -> list[str]:
    """What is more than is pinned, or not pinned at all, said kernel by kernel."""
    said = []
    for name, kernels in counted.items():
        for kernel, each in kernels.items():
            pin = pins.get(name, {}).get(kernel)
            if pin is None:
                said.append(f"{name}: {kernel} has no pinned counts")
                continue
            for what, value in (("bytes", each["read"] + each["written"]), ("instructions", each["instructions"])):
                most = pin["read"] + pin["written"] if what == "bytes" else pin[what]
                if value > most * (1 + SLACK) + 1:
                    said.append(f"{name}: {kernel} takes {value:,.0f} {what} per data point, {most:,.0f} are pinned")
    return said


if __name__ == "__main__":
    simulate(sys.argv[2:], sys.argv[1])
