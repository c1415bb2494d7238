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
from test_kernels import PLAIN, UBSAN, device

from gem.kernels import source

ROOT = Path(__file__).parent.parent
PARITY = ROOT / "tests" / "parity.py"
pytestmark = pytest.mark.serial

SLOW = ("causes", "gram_posterior", "spike_slab")  # under Oclgrind: seconds each, about as long as all others together
RUNS = {**{name: [name] for name in SLOW}, "others": [name for name in source.names() if name not in SLOW]}

BROKEN = {  # a kernel, one of its cases, and what is done to which file
    "nothing": ("gram_posterior", 2, "gem.h", "", ""),
    "barrier": ("gram_posterior", 2, "gram_posterior.c", "MEET();\n\n    /* What", "/* What"),
    "index": ("gram_posterior", 2, "gram_posterior.c", "slope[h] * b[n * H + h]", "slope[h] * b[n * H + i]"),
    "overrun": ("preselect", 1, "preselect.c", "+ place] = latent[i];", "+ place] = latent[i + 1];"),
    "formula": ("pair_sums", 1, "gem.h", "(unsigned long long)(value))", "(unsigned long long)(value) * 2)"),
}  # fmt: skip


def copied(what, tmp_path):
    """The kernels' folder with something broken."""
    _, _, file, text, instead = BROKEN[what]
    folder = tmp_path / "kernels"
    shutil.copytree(ROOT / "kernels", folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = (folder / file).read_text()
    assert text in before
    if text:
        (folder / file).write_text(before.replace(text, instead, 1))
    return folder


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path):
    return request.param, copied(request.param, tmp_path)


def parity(interpreter, environment, kind, what, folder):
    """Whether the kernel still does what its twin does, and what was said if not."""
    kernel, number = BROKEN[what][:2]
    done = subprocess.run(
        [interpreter, PARITY, f"--case={number}", folder, kind, kernel],
        env={**os.environ, **environment}, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    return done.returncode == 0 and "runtime error" not in done.stderr, done.stderr


def test_rung_1_opencl(broken):
    what, folder = broken
    device("opencl-items", "float64")  # it is required
    same, said = parity(sys.executable, {}, "opencl-items", what, folder)
    if what in ("nothing", "formula"):  # OpenCL does not see the CUDA branch of gem.h
        assert same, said
    if what == "index":
        assert not same


@pytest.mark.long
@pytest.mark.parametrize("run", RUNS)
def test_rung_1_oclgrind_finds_no_race_and_no_overrun(run):
    assert oclgrind(ROOT / "kernels", *RUNS[run]) == ""


def test_rung_1_oclgrind_finds_a_missing_barrier(tmp_path):
    assert "race" in oclgrind(copied("barrier", tmp_path), BROKEN["barrier"][0])


def oclgrind(folder, *kernels):
    """What Oclgrind says of kernels' cases: it exits 0 whatever it found."""
    program = shutil.which("oclgrind")
    if program is None:
        missing("oclgrind", "it is not installed (a system package: apt-get install oclgrind)")
    done = subprocess.run(
        [program, "--data-races", sys.executable, PARITY, "--few", folder, "opencl-items", *kernels],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    found = re.search("race|Invalid (read|write)|DIFFERS|Error", done.stderr) or "the same" not in done.stdout
    return f"{done.stderr[-3000:]}, status {done.returncode}" if found else ""


def test_rung_3_cuda_on_the_host(broken):
    from cupy_on_cpu import build as harness

    what, folder = broken
    try:
        interpreter, environment = harness.build(), harness.env()
    except harness.BuildError as error:
        missing("cuda", str(error))
    environment |= {"FAKECUDA_CXXFLAGS": UBSAN if what == "overrun" else PLAIN}
    for order in ("fwd", "rand"):
        same, said = parity(interpreter, {**environment, "CUSHIM_ORDER": order}, "cuda", what, folder)
        if not same:
            break
    assert same == (what == "nothing"), said[-500:]
    if what == "overrun":
        assert "preselect.c" in said
        assert "out of bounds" in said
