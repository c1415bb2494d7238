"""The runtime trace: spans, nested and per rank, in a file that trace viewers open; nothing recorded when off."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import gem
from benchmarks import trace_cost
from gem import trace as tracing
from gem.backends._traced import Traced
from gem.cli import main
from gem.errors import ConfigError, DataError
from gem.models import BSC
from gem.parallel import Serial
from gem.trace import OFF, Recording, account, read_notes, read_spans

MODEL = BSC(D=3, H=4, Hprime=3, gamma=2)
ANNEAL = gem.Annealing(steps=3, T=[(0, 2.0), (1.0, 1.0)], Ncut=0.5)
STEP = ("E-step", "reduction", "M-step")


def data(N: int = 200) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, 3)) + 4 * np.arange(N)[:, None] % 12


@pytest.fixture
def path(tmp_path, world):
    """The same file on every rank."""
    return Path(world.bcast(str(tmp_path / "trace.json")))


def run(path, world, backend: str = "numpy", **options):
    return gem.EM(MODEL, data(), ANNEAL, backend=backend, dtype="float64", comm=world, trace=path, **options).run()


def inside(inner, outer) -> bool:
    slack = 1e-3  # µs: durations and beginnings are rounded
    return outer["ts"] <= inner["ts"] + slack and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + slack


def test_every_step_of_every_rank_has_its_phases_in_order(path, world, backend):
    run(path, world, backend)
    world.allgather(None)  # rank 0 has written
    spans = read_spans(path)
    assert sorted({s["pid"] for s in spans}) == list(range(world.size))
    for rank in range(world.size):
        mine = [s for s in spans if s["pid"] == rank]
        steps = [s for s in mine if s["name"] == "EM step"]
        assert [s["args"]["step"] for s in steps] == [1, 2, 3]
        assert [s["args"]["T"] for s in steps] == [ANNEAL[t]["T"] for t in range(3)]
        for step in steps:
            phases = [s for s in mine if s["name"] in STEP and s["tid"] == 0 and inside(s, step)]
            closing = ["E-step", "reduction"] if step is steps[-1] else []
            assert [s["name"] for s in phases] == [*STEP, *closing]
            assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in pairwise(phases))
            selections = [s for s in mine if s["name"] == "selection" and inside(s, phases[0])]
            assert len(selections) == 1
        names = {s["name"] for s in mine}
        assert {
            "load data",
            "read batch",
            "copy to device",
            "copy to host",
            "initialisation",
            "gram_posterior",
        } <= names


def test_spans_of_a_thread_nest(path, world, backend):
    run(path, world, backend)
    world.allgather(None)
    rows: dict[tuple[int, int], list] = {}
    for span in read_spans(path):
        open_spans = rows.setdefault((span["pid"], span["tid"]), [])
        while open_spans and not inside(span, open_spans[-1]):
            gone = open_spans.pop()
            assert gone["ts"] + gone["dur"] <= span["ts"] + 1e-3, (gone, span)
        open_spans.append(span)


def test_the_file_is_in_the_trace_event_format(path, world):
    run(path, world)
    world.allgather(None)
    stored = json.loads(path.read_text())
    names = [e["args"]["name"] for e in stored["traceEvents"] if e["ph"] == "M"]
    assert names == [f"rank {rank}" for rank in range(world.size)]
    for event in stored["traceEvents"]:
        assert event["ph"] in "XM"
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0


def test_results_do_not_depend_on_the_trace(path, world, backend):
    traced = run(path, world, backend)
    plain = gem.EM(MODEL, data(), ANNEAL, backend=backend, dtype="float64", comm=world).run()
    for name, value in plain.params.items():
        np.testing.assert_array_equal(traced.params[name], value)
    assert isinstance(traced.backend, Traced)
    assert traced.backend.describe() == plain.backend.describe()


def test_nothing_is_recorded_where_no_trace_was_asked_for():
    em = gem.EM(MODEL, data(), ANNEAL, backend="numpy").run()
    assert not isinstance(em.backend, Traced)
    assert OFF.span("a", step=1) is OFF.span("b")  # one context for all: nothing is made
    OFF.write()


def test_an_error_within_a_span_passes_and_ends_the_span(tmp_path):
    trace = Recording(tmp_path / "trace.json", Serial())
    with pytest.raises(ValueError, match="inner"), trace.span("outer"), trace.span("inner"):
        raise ValueError("inner")
    trace.write()
    assert [s["name"] for s in read_spans(trace.path)] == ["outer", "inner"]


def test_a_traced_backend_can_wait_for_its_work(tmp_path):
    backend = gem.backends.select("numpy", "float64")
    waited = []
    backend.synchronize = lambda: waited.append(True)
    trace = Recording(tmp_path / "trace.json", Serial())
    for wait in (False, True):
        traced = Traced(backend, trace, wait=wait)
        assert traced.matmul(np.eye(2), np.eye(2)).tolist() == np.eye(2).tolist()
        assert bool(waited) == wait


class Ranks(Serial):
    """Two ranks of which this is the second; the other's answers are given."""

    rank, size = 1, 2

    def __init__(self, other):
        self.other = other

    def allgather(self, value):
        return [self.other(value), value]


def test_ranks_of_a_host_share_its_clock(tmp_path):
    """A rank that the system held back when clocks were read is no later than the others; another host is."""
    same = Recording(tmp_path / "t.json", Ranks(lambda told: told and (told[0], told[1] - 5.0)))
    other = Recording(tmp_path / "t.json", Ranks(lambda told: told and ("elsewhere", told[1] - 5.0)))
    for trace in (same, other):
        with trace.span("a"):
            pass
    assert same._spans[0]["ts"] > 5e6
    assert 0 <= other._spans[0]["ts"] < 5e6


def test_memory_is_bounded_and_the_file_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracing, "MAX_SPANS", 1000)
    trace = Recording(tmp_path / "trace.json", Serial())
    for i in range(1234):
        with trace.span("a", i=i):
            pass
    trace.write()
    assert [s["args"]["i"] for s in read_spans(trace.path)] == list(range(234, 1234))
    assert read_notes(trace.path) == ["rank 0: the first 234 spans were not kept"]
    assert main(["show", str(trace.path)]) == 0
    assert "the first 234 spans were not kept" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_its_trace(tmp_path, monkeypatch, error):
    def fails(self, moments, params, step):
        if len(steps) == 2:
            raise error("broken")
        steps.append(step)
        return maximize(self, moments, params, step)

    def kept(self):
        stored.append([s["name"] for s in self._spans])
        write_alone(self)

    steps, stored, maximize, write_alone = [], [], BSC.maximize, Recording.write_alone
    monkeypatch.setattr(Recording, "write_alone", kept)
    monkeypatch.setattr(BSC, "maximize", fails)
    with pytest.raises(error, match="broken"):
        run(tmp_path / "trace.json", None)
    names = [s["name"] for s in read_spans(tmp_path / "trace.json")]
    assert names.count("EM step") == names.count("M-step") == 3
    assert stored[0].count("EM step") == 3  # at once, before other ranks are told: they end this one


def test_a_rank_that_fails_asks_no_other(tmp_path):
    trace = Recording(tmp_path / "trace.json", Ranks(lambda told: told))
    with trace.span("a"):
        pass
    trace._comm.other = None  # it would not answer
    trace.write_alone()
    assert [s["name"] for s in read_spans(tmp_path / "trace.rank1.json")] == ["a"]


def made_up(*rows):
    """Spans from (thread, name, begin, end) in seconds, ordered as in a file."""
    spans = [
        {"pid": 0, "tid": thread, "name": name, "ts": 1e6 * begin, "dur": 1e6 * (end - begin), "args": {"step": 1}}
        for thread, name, begin, end in rows
    ]
    return sorted(spans, key=lambda e: (e["pid"], e["tid"], e["ts"], -e["dur"]))


def test_parts_of_steps_count_once():
    """Selection within the E-step, two pool threads beside it, work before the step."""
    found = account(
        made_up(
            (0, "load data", 0, 2),
            (0, "copy to device", 1, 2),
            (0, "EM step", 10, 20),
            (0, "E-step", 10, 18),
            (0, "selection", 12, 15),
            (0, "M-step", 18, 19),
            (1, "batch", 10, 14),
            (1, "matmul", 11, 14),
            (2, "batch", 10, 18),
        )
    )
    assert found.steps == 10
    assert found.within == {"E-step": 5, "selection": 3, "M-step": 1, "EM step": 1}
    assert found.outside == {"load data": 1, "copy to device": 1}
    assert found.pool == {"batch": 9, "matmul": 3}
    assert found.threads == 2


@pytest.mark.serial
def test_what_tracing_costs_is_printed(capfd):
    trace_cost.main(["--N", "50", "--D", "9", "--H", "8", "--repeats", "2"])
    out, err = capfd.readouterr()
    assert "a step takes" in out
    assert "trace on: " in out
    assert err == ""


# -- the command line, and what it refuses ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", data())
    return tmp_path


FIT = ["fit", "mog", "x.npy", "--K", "4", "--steps", "4", "--backend", "numpy", "--batch", "30", "-q"]


@pytest.mark.serial
def test_fit_resume_and_show(folder, capsys):
    assert main([*FIT, "--trace", "run.json", "--checkpoint", "2"]) == 0
    assert any(s["name"] == "record" for s in read_spans("run.json"))
    assert main(["resume", "run.h5", "--trace", "again.json", "-q"]) == 0
    assert not any(s["name"] == "EM step" for s in read_spans("again.json"))  # the run was finished
    assert main(["show", "run.json"]) == 0
    assert Path("run.json.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "1 rank(s)" in out
    assert "outside steps: " in out
    assert "in pool threads, within E-steps: " in out
    line = next(line for line in out.splitlines() if line.startswith("of the time in steps: "))
    assert sum(float(part.rpartition(" ")[2].rstrip("%")) for part in line.split(",")) == pytest.approx(100, abs=1)
    assert main(["show", "again.json", "-o", "other.png"]) == 0  # no step: a picture all the same
    assert Path("other.png").exists()


@pytest.mark.serial
def test_a_time_line_of_two_ranks(folder, mpiexec):
    command = [mpiexec, "-n", "2", sys.executable, "-m", "gem.cli", *FIT, "--trace", "run.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spans = read_spans("run.json")
    starts = {rank: [s["ts"] for s in spans if s["name"] == "reduction" and s["pid"] == rank] for rank in (0, 1)}
    ends = {
        rank: [s["ts"] + s["dur"] for s in spans if s["name"] == "reduction" and s["pid"] == rank] for rank in (0, 1)
    }
    assert len(starts[0]) == len(starts[1]) == 4 + 1  # the last step ends with one more E-step
    for a, b in zip(starts[0], ends[1], strict=True):  # clocks agree: nobody leaves before all have come
        assert a <= b + 1e3
    for a, b in zip(starts[1], ends[0], strict=True):
        assert a <= b + 1e3


@pytest.mark.serial
def test_traces_that_cannot_be_are_refused(folder, capsys):
    def refused(command: list[str], *words: str) -> None:
        assert main(command) == 1
        said = capsys.readouterr().err
        assert all(word in said for word in words), said

    refused([*FIT, "--trace", "nowhere/run.json"], "cannot write the trace", "nowhere")
    Path("letter.txt").write_text("Dear reader")
    refused([*FIT, "--trace", "letter.txt"], "letter.txt exists and is no trace")
    assert Path("letter.txt").read_text() == "Dear reader"
    refused([*FIT, "--trace", "x.npy"], "x.npy")
    assert np.load("x.npy").shape == (200, 3)
    refused(["show", "missing.json"], "cannot read the trace")
    Path("other.json").write_text("[1, 2]")
    refused(["show", "other.json"], "other.json is no trace")
    assert main([*FIT, "--trace", "run.json"]) == 0
    refused(["show", "run.json", "-o", "run.json"], "is the trace itself")
    refused(["show", "run.json", "-o", "run.docx"], "cannot write the picture")
    with pytest.raises(DataError, match="no trace"):
        read_spans("x.npy")
    with pytest.raises(ConfigError, match="no trace"):
        gem.EM(MODEL, data(), ANNEAL, backend="numpy", trace="other.json")
