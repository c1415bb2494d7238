"""Kernels broken on purpose: which rung of verification says so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import missing
from test_kernels import device

from gem.kernels import source

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.serial

PARITY = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, "tests")
import test_kernels as t
from gem.kernels import source
from gem.backends._numpy import NumpyBackend
source.FOLDER = Path(sys.argv[1])
for make, arguments in t.CASES[sys.argv[3]]:
    case = make(np.random.default_rng(0), *arguments)
    backends = t.device(sys.argv[2], "float64"), NumpyBackend("float64")
    found, wanted = (t.run(b, sys.argv[3], case, "float64") for b in backends)
    for f, w in zip(found, wanted):
        if not np.allclose(f, w, rtol=1e-9, atol=1e-9 * max(1, np.abs(w).max(initial=0, where=np.isfinite(w)))):
            sys.exit("DIFFERS")
"""

BROKEN = {
    "nothing": ("gram_posterior", "gem.h", "", ""),
    "barrier": ("gram_posterior", "gram_posterior.c", "BARRIER();\n        }\n", "}\n"),
    "index": ("gram_posterior", "gram_posterior.c", "state[parent]", "state[parent + 1]"),
    "overrun": ("preselect", "preselect.c", "winners[ROW][round] = last_h;", "winners[ROW][round + 1] = last_h;"),
    "formula": ("pair_sums", "gem.h", "(unsigned long long)(value))", "(unsigned long long)(value) * 2)"),
}  # fmt: skip


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path):
    kernel, file, text, instead = BROKEN[request.param]
    folder = tmp_path / "kernels"
    shutil.copytree(ROOT / "kernels", folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = (folder / file).read_text()
    assert text in before
    if text:
        (folder / file).write_text(before.replace(text, instead, 1))
    return request.param, kernel, folder


def parity(interpreter, environment, folder, kind, kernel):
    """Whether the kernel still does what its twin does, and what was said if not."""
    done = subprocess.run(
        [interpreter, "-c", PARITY, folder, kind, kernel],
        env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    return done.returncode == 0 and "runtime error" not in done.stderr, done.stderr


def test_rung_1_opencl(broken):
    what, kernel, folder = broken
    device("opencl-items", "float64")  # it is required
    same, said = parity(sys.executable, {}, folder, "opencl-items", kernel)
    if what in ("nothing", "formula"):  # OpenCL does not see the CUDA branch of gem.h
        assert same, said
    if what == "index":
        assert not same


@pytest.mark.parametrize("kernel", source.names())
def test_rung_1_oclgrind_finds_no_race_and_no_overrun(kernel):
    assert oclgrind(ROOT / "kernels", kernel) == ""


def test_rung_1_oclgrind_finds_a_missing_barrier(tmp_path):
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    kernel, file, text, instead = BROKEN["barrier"]
    path = tmp_path / "kernels" / file
    path.write_text(path.read_text().replace(text, instead, 1))
    assert "race" in oclgrind(tmp_path / "kernels", kernel)


def oclgrind(folder, kernel):
    """What Oclgrind says of a kernel's cases: it exits 0 whatever it found."""
    program = shutil.which("oclgrind")
    if program is None:
        missing("oclgrind", "it is not installed (a system package: apt-get install oclgrind)")
    done = subprocess.run(
        [program, "--data-races", sys.executable, "-c", PARITY, folder, "opencl-items", kernel],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    return done.stderr if re.search("race|Invalid (read|write)|DIFFERS|Error", done.stderr) else ""


def test_rung_3_cuda_on_the_host(broken):
    from cupy_on_cpu import build as harness

    what, kernel, folder = broken
    try:
        interpreter, environment = harness.build(), harness.env()
    except harness.BuildError as error:
        missing("cuda", str(error))
    if what == "overrun":
        environment = {**environment, "FAKECUDA_CXXFLAGS": "-O1 -fsanitize=undefined"}
    orders = [parity(interpreter, {**environment, "CUSHIM_ORDER": o}, folder, "cuda", kernel) for o in ("fwd", "rand")]
    assert all(same for same, _ in orders) == (what == "nothing"), [said[-500:] for _, said in orders]
    if what == "overrun":
        assert any("preselect.c" in said and "out of bounds" in said for _, said in orders)
