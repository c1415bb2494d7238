"""What a GPU would do, counted by a simulator: reading it, pinning it, and one case of it."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import missing

from benchmarks import floors as paper
from gem.errors import BackendError
from gem.kernels import counts
from gem.kernels.__main__ import main

pytestmark = pytest.mark.serial

SAID = """\
-0.5
Instructions executed for kernel 'preselect':
             30 - br
              7 - load global (28 bytes)
              6 - call llvm.fmuladd.f32()
              5 - call _Z3expf()
              4 - fmul
              3 - store local (12 bytes)
              2 - store global (8 bytes)

Instructions executed for kernel 'point_sums':
              1 - fadd
"""


def test_what_the_simulator_prints_is_read_launch_by_launch():
    (first, preselect), (second, point_sums) = counts.read(SAID)
    assert (first, second) == ("preselect", "point_sums")
    assert preselect == {"read": 28, "written": 8, "flops": 2 * 6 + 8 * 5 + 4, "instructions": 57}
    assert point_sums == {"read": 0, "written": 0, "flops": 1, "instructions": 1}


def test_each_point_more_is_what_is_counted():
    few, many = ({"read": 10.0 * n + 7, "written": 0, "flops": n, "instructions": 100 * n + 5} for n in (32, 64))
    once = {"read": 9.0, "written": 9.0, "flops": 0, "instructions": 9.0}
    found = counts._per_point((32, {"k": few, "clear": once}), (64, {"k": many, "clear": once}))
    assert found == {"k": {"read": 10, "written": 0, "flops": 1, "instructions": 100}, "all": found["k"]}


def test_more_than_is_pinned_is_said_and_less_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "PINS", tmp_path / "counts.json")
    each = {"read": 1000.4, "written": 0, "flops": 3, "instructions": 5000}
    counts.pin({"gsc": {"spike_slab": each}})
    counts.pin({"mca": {"causes": each}})
    assert list(counts.pinned()) == ["gsc", "mca"]
    assert json.loads(counts.PINS.read_text())["mca"]["causes"]["read"] == 1000
    for what, factor, said in (
        ("read", 1.01, ""), ("read", 0.5, ""),
        ("read", 1.1, "gsc: spike_slab takes 1,100 bytes per data point, 1,000 are pinned"),
        ("instructions", 1.1, "gsc: spike_slab takes 5,500 instructions per data point, 5,000 are pinned"),
    ):  # fmt: skip
        more = {"gsc": {"spike_slab": {**each, what: factor * each[what]}}}
        assert counts.beyond(more, counts.pinned()) == ([said] if said else [])
    assert counts.beyond({"gsc": {"new": each}}, counts.pinned()) == ["gsc: new has no pinned counts"]


def tool(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["gem.kernels", "--count", *arguments])
    return main(), capsys.readouterr()


def test_the_tool_refuses_what_it_cannot_count(monkeypatch, capsys):
    status, said = tool(monkeypatch, capsys, "--only", "nothing")
    assert (status, "--only nothing: no case has that in its name; there are mog-" in said.err) == (1, True)
    monkeypatch.setenv("PATH", "")
    status, said = tool(monkeypatch, capsys, "--only", "bsc")
    assert (status, "oclgrind is not installed" in said.err) == (1, True)


@pytest.fixture
def simulator():
    if shutil.which("oclgrind") is None:
        missing("oclgrind", "it is not installed (a system package: apt-get install oclgrind)")


@pytest.mark.long
@pytest.mark.usefixtures("simulator")
def test_counts_are_the_pinned_ones(monkeypatch, capsys):
    """CI counts all cases."""
    status, said = tool(monkeypatch, capsys, "--only", "gsc")
    assert status == 0, said.err
    row = next(line.split() for line in said.out.splitlines() if " squared_norms " in line)
    assert row[2:4] == ["256", "4"]  # D = 64 numbers in, one out
    pins = counts.pinned()
    pins["gsc"]["squared_norms"]["instructions"] //= 2
    monkeypatch.setattr(counts, "pinned", lambda: pins)
    today = {"squared_norms": {"read": 256, "written": 4, "flops": 159, "instructions": 3421}}
    monkeypatch.setattr(counts, "count", lambda names: {"gsc": today})
    assert tool(monkeypatch, capsys, "--only", "gsc")[0] == 1


@pytest.mark.usefixtures("simulator")
def test_a_step_that_fails_is_told(monkeypatch):
    monkeypatch.setitem(counts.CASES, "unknown", counts.CASES["gsc"])  # the child does not know it
    with pytest.raises(BackendError, match=r"the steps under .*oclgrind failed(.|\n)*KeyError: 'unknown'"):
        counts.count(["unknown"])


def test_every_kernel_on_paper_is_counted_and_the_page_has_the_pinned_counts():
    pins = counts.pinned()
    assert list(pins) == list(counts.CASES)
    for name, case in counts.CASES.items():
        assert set(case.fewest) <= set(pins[name]), name
    page = (counts.PINS.parent.parent / "docs" / "kernels.md").read_text()
    assert page.split(paper.MARK)[1].strip() == paper.markdown(paper.COLUMNS, paper.counted())
