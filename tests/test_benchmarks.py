"""The benchmarks: nothing left out in silence, shares that can be, results that can be read and compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import REQUIRED, available, missing

from benchmarks import accuracy, check, growth, noise_type, pictures, results, scaling
from benchmarks.__main__ import main
from benchmarks.cases import MEDIUM, PROFILES, ROWS, Case, cases, without_a_line
from benchmarks.ceilings import scaling_of
from benchmarks.floors import linear, sums
from benchmarks.machine import machine
from benchmarks.peers import PEERS, Peer, differs, sklearn_mixture
from benchmarks.report import MARK, summary, weakest, why
from benchmarks.simulation import smpi
from benchmarks.sweep import REST, parts, sweep
from gem.backends import NumpyBackend
from gem.errors import DataError
from gem.kernels import scale_rows
from gem.models import BSC, DSC, MCA, MODELS, MoG, MoP

pytestmark = [pytest.mark.serial, pytest.mark.long]


@pytest.fixture(scope="module")
def swept():
    """Every case on every device, at the smallest size."""
    return results.settled(sweep("tiny"))


def of_kind(records, kind):
    return results.of_kind(records, kind)


# -- the sweep -----------------------------------------------------------------------------------------------


def test_every_model_has_a_line():
    assert without_a_line() == []
    assert {case.row.model for case in cases(PROFILES["quick"])} == set(MODELS)


def test_every_case_is_measured_on_every_device_or_says_why_not(swept):
    devices = {(r["backend"], r["dtype"]) for r in of_kind(swept, "device")}
    expected = {(case.name, *device) for case in cases(PROFILES["tiny"]) for device in devices}
    measured = {(r["case"], r["backend"], r["dtype"]) for r in of_kind(swept, "case")}
    skipped = {(r["case"].partition("/")[2], r["backend"], r["dtype"]) for r in of_kind(swept, "skip")}
    assert not [r["reason"] for r in swept if r.get("failed")]
    assert measured | (skipped & expected) == expected
    assert {name.partition(":")[0] for name, _ in devices} >= {"numpy"} | REQUIRED & {"opencl"}
    for record in of_kind(swept, "skip"):
        assert record["reason"]


def test_shares_and_times_can_be(swept):
    for record in of_kind(swept, "case"):
        assert 0 < record["share"] <= 1.05, record
        assert len(record["seconds"]) == len(record["products"]) == PROFILES["tiny"].repeats
        assert record["share"] == pytest.approx(record["floor"] / np.median(record["seconds"]))
        at_rates = {"flops": record["flops"] / record["rate"], "bytes": record["bytes"] / record["bandwidth"]}
        assert record["floor"] == max(at_rates.values()) == at_rates[record["bound"]]
        assert min(record["spent"].values()) >= 0
        assert "load data" not in record["spent"]


def test_parts_of_a_step_make_its_wall_time():
    """Two pool threads side by side, 3 s and 2 s of a step's 10 s; the main thread waits, then does the M-step."""

    def span(thread, name, begin, end):
        return {"pid": 0, "tid": thread, "name": name, "ts": 1e6 * begin, "dur": 1e6 * (end - begin)}

    spans = [
        span(0, "load data", 0, 5), span(0, "EM step", 10, 20), span(0, "E-step", 10, 18), span(0, "M-step", 18, 19),
        span(1, "batch", 10, 17), span(1, "matmul", 11, 14), span(2, "batch", 10, 17), span(2, "mixture", 11, 13),
    ]  # fmt: skip
    assert parts(spans) == {"M-step": 1, "matmul": 1.5, "mixture": 1, REST: 6.5}


def test_cases_stand_beside_the_best_that_a_device_showed():
    """A device that was slower before the cases than after them: no share above 1."""
    device = {"kind": "device", "backend": "numpy", "dtype": "float32", "product_rate": 1e9, "copy_rate": 2e9}
    case = synthetic("a", [1.0, 1.0], flops=2e9, own_rate=1.0)
    later = {**device, "product_rate": 4e9, "copy_rate": 1e9}
    first, told = results.settled([device, case, later])
    assert (first["product_rate"], first["copy_rate"]) == (4e9, 2e9)
    assert (told["share"], told["rate"], told["bandwidth"]) == (0.5, 4e9, 2e9)
    assert results.settled([device, case])[1]["share"] == 2
    assert results.share(results.settled([device, case])[1]) == "200.0% (!)"
    assert results.settled([first, told]) == [first, told]  # once more changes nothing


def test_peers_count_only_where_their_likelihood_is_ours(swept):
    for record in of_kind(swept, "case"):
        assert [peer["name"] for peer in record["peers"]] == [peer.name for peer in PEERS.get(record["case"], ())]
        for told in record["peers"]:
            if told["name"] == "scikit-learn":
                assert len(told["seconds"]) == PROFILES["tiny"].repeats, told
            else:
                assert ("seconds" in told) != ("skipped" in told)


def test_a_peer_of_another_likelihood_does_not_count(monkeypatch):
    peers = (
        Peer("wrong", "sklearn", lambda *a: lambda: {"likelihood": -1.0}),
        Peer("absent", "no_such_package", sklearn_mixture),
        Peer("broken", "sklearn", lambda *a: 1 / 0),
        Peer("right", "sklearn", sklearn_mixture),
    )
    monkeypatch.setitem(PEERS, "mog-diag", peers)
    records = list(sweep("tiny", "mog-diag", "numpy"))
    told = {peer["name"]: peer for peer in of_kind(records, "case")[0]["peers"]}
    assert "other likelihood: -1 per data point" in told["wrong"]["skipped"]
    assert any("other likelihood" in problem for problem in check.problems(results.settled(records)))
    assert told["absent"]["skipped"] == "no_such_package is not installed"
    assert "ZeroDivisionError" in told["broken"]["skipped"]
    assert [name for name, peer in told.items() if "seconds" in peer] == ["right"]
    assert len(results.peer_skips(records)) == 3


def test_what_a_peer_may_differ_by():
    ours = {"likelihood": -100.0, "mu": np.array([2.0, 1.0])}
    assert differs(ours, {"likelihood": -100.009}, "float64") is None
    assert "other likelihood" in differs(ours, {"likelihood": -100.02}, "float64")
    assert "other likelihood" in differs(ours, {"likelihood": np.nan}, "float64")
    assert differs(ours, {"likelihood": -100.0, "mu": np.array([2.0, 1.001])}, "float32") is None
    assert "other mu after the M-step" in differs(ours, {"likelihood": -100.0, "mu": np.array([2.0, 1.001])}, "float64")


@pytest.mark.parametrize("where", ["data", "timed", "peer"])
def test_an_error_anywhere_is_one_failed_record(monkeypatch, where):
    """MemoryError where data are made, in a timed run, and in a peer's: the other cases are measured."""
    calls, maximize = [], MoP.maximize

    def fails(*arguments, **options):
        calls.append(arguments)
        if where == "data" or len(calls) > 3:  # a timed run: after the first step, and the traced one
            raise MemoryError("none left")
        return {"likelihood": -1.0} if where == "peer" else maximize(*arguments)

    monkeypatch.setitem(PEERS, "mop", (Peer("p", "sklearn", lambda *a: fails),) if where == "peer" else ())
    if where != "peer":
        monkeypatch.setattr(MoP, "generate_data" if where == "data" else "maximize", fails)
    records = results.settled(sweep("tiny", "mo", "numpy"))
    failed = [r for r in records if r.get("failed")]
    cases = {r["case"]: r for r in of_kind(records, "case")}
    assert len(cases) == (5 if where == "peer" else 4)
    assert records[-1]["kind"] == "end"
    if where == "peer":
        assert not failed
        assert "MemoryError: none left" in cases["mop"]["peers"][0]["skipped"]
    else:
        assert [r["case"] for r in failed] == ["tiny/mop"]
        assert "MemoryError: none left" in failed[0]["reason"]
        assert any("failed: MemoryError" in problem for problem in check.problems(records))


def test_the_check_finds_what_is_wrong(swept):
    """A whole sweep passes; one that lacks a case, its end, or has a share that cannot be does not."""
    assert check.problems(swept) == []
    last = max(i for i, r in enumerate(swept) if r["kind"] == "case")
    assert any("missing, without a reason" in p for p in check.problems(swept[:last] + swept[last + 1 :]))
    assert check.problems(swept[:-1]) == ["the sweep did not come to its end"]
    for share in (0.0, 1.06, np.nan):
        spoilt = [*swept[:last], {**swept[last], "share": share}, *swept[last + 1 :]]
        assert any("of its ceiling is no share" in p for p in check.problems(spoilt))
    assert check.problems(made_up_scaling()) == ["these are not the results of one sweep"]


def test_the_machine_is_described():
    about = machine("quick")
    assert about["caches"]
    assert about["commit"]
    assert about["memory"].endswith(" GB")
    assert about["scikit-learn"]
    assert "host" not in about


def test_a_case_that_breaks_costs_no_other_its_result(monkeypatch):
    monkeypatch.setattr(MoG, "maximize", lambda *a: 1 / 0)
    records = list(sweep("tiny", "mo", "numpy"))
    assert {r["case"] for r in of_kind(records, "case")} == {"mop"} if "mop" in MODELS else set()
    assert all("ZeroDivisionError" in r["reason"] for r in records if r.get("failed"))
    assert sum(bool(r.get("failed")) for r in records) == 4


@pytest.mark.parametrize("threads", [1, 3])
def test_streaming_takes_one_long_array_for_each_thread(monkeypatch, threads):
    """All bytes that are counted are touched, by as many threads as the backend has."""
    touched = []
    monkeypatch.setattr(scale_rows, "scale_rows", lambda N, X, weights: touched.append((X.shape, X.nbytes)))
    backend = NumpyBackend("float32", threads)
    run, size = scaling_of(backend, 3 << 20, 1 << 12)
    run()
    assert sum(each for _, each in touched) == size == 3 << 20
    assert [shape for shape, _ in touched] == [(3 * 64 // threads, 1 << 12)] * threads


# -- on paper ------------------------------------------------------------------------------------------------


def test_flops_of_the_linear_models():
    bsc, dsc = BSC(256, 300, 8, 5), DSC(256, 300, 8, 5, values=(0, 1, 2))
    assert ROWS["bsc"].flops(bsc) == sum(flops for flops, _ in linear(256, 300, 8, 5).values())
    assert ROWS["dsc"].flops(dsc) > ROWS["bsc"].flops(bsc) > 4 * 256 * 300


def test_what_docs_say_of_the_sums_of_a_batch():
    text = (Path(__file__).parent.parent / "docs" / "kernels.md").read_text()
    for model in (BSC(256, 300), MoG(64, 50), MCA(256, 300)):
        n, groups, size = sums(model)
        assert re.search(rf"\| {model.name}[^|]* \| {n:,} \| {groups} \| {size / 1e6:.1f} \|", text), model


@pytest.mark.parametrize("covariance", ["diag", "spherical", "tied", "full"])
def test_flops_of_a_mixture_grow_as_they_should(covariance):
    D = np.array([512, 1024, 2048])
    flops = [ROWS["mog-diag"].flops(MoG(int(d), 4, covariance=covariance)) for d in D]
    assert growth.exponent(D, flops) == pytest.approx(1 if covariance in ("diag", "spherical") else 2, abs=0.05)


def test_problems_are_the_same_each_time():
    case = Case("bsc", PROFILES["tiny"].sizes[0], ROWS["bsc"])
    (params, Y), (again, Z) = case.problem(case.model()), case.problem(case.model())
    np.testing.assert_array_equal(Y, Z)
    np.testing.assert_array_equal(params["W"], again["W"])
    assert case.model().settings() == {"D": 16, "H": 12, "Hprime": 5, "gamma": 3}
    assert Case("bsc", MEDIUM, ROWS["bsc"]).N == 20_000


# -- results -------------------------------------------------------------------------------------------------


def synthetic(case: str, seconds: list[float], **other) -> dict:
    """A case's record, made up."""
    record = {
        "kind": "case", "size": "medium", "case": case, "backend": "numpy", "dtype": "float32", "N": 10,
        "model": f"{case.upper()}(D=2, H=3)", "seconds": seconds, "products": [0.5] * len(seconds), "flops": 1e6,
        "bytes": 1e3, "rate": 1e9, "bandwidth": 1e9, "floor": 1e-3, "bound": "flops", "share": 1e-3 / seconds[0],
        "spent": {"matmul": 3.0, "mixture": 1.0}, "first": 1.0,
    }  # fmt: skip
    return {**record, **other}


def write(path, *records) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            results.write_line(file, record)
    return Path(path)


def test_comparing_two_files(tmp_path):
    old = write(
        tmp_path / "old.jsonl",
        synthetic("a", [1.0, 1.1, 1.2]),
        synthetic("b", [1.0, 1.1, 1.2]),
        synthetic("c", [1.0, 1.1, 1.2]),
        synthetic("gone", [1.0]),
    )
    new = write(
        tmp_path / "new.jsonl",
        synthetic("a", [2.0, 2.2, 2.4]),
        synthetic("b", [0.5, 0.55, 0.6]),
        synthetic("c", [1.0, 1.15, 1.3]),
        synthetic("came", [1.0]),
    )
    rows = {row[0]: row[3:] for row in results.compared(results.read([old]), results.read([new]))}
    assert rows["medium/a"] == ["2.00", "1.83 to 2.19", "2.00", "1.83 to 2.19", "slower"]
    assert rows["medium/b"][::2] == ["0.50", "0.50", "faster"]
    assert rows["medium/c"][4] == "no difference seen"
    assert rows["medium/gone"][4] == "only before"
    assert rows["medium/came"][4] == "only now"


def test_comparing_tells_a_slower_machine_from_a_slower_step():
    old = [synthetic("a", [1.0, 1.1, 1.2])]
    new = [synthetic("a", [2.0, 2.2, 2.4], products=[1.0, 1.0, 1.0])]
    (row,) = results.compared(old, new)
    assert row[3::2] == ["2.00", "1.00", "slower in seconds, no difference seen in products"]


@pytest.mark.parametrize("changed", [{"N": 11}, {"model": "A(D=3)"}, {"device": "another"}, {"machine": "another"}])
def test_only_the_same_work_on_the_same_machine_is_compared(changed):
    rows = results.compared([synthetic("a", [1.0])], [synthetic("a", [1.0], **changed)])
    assert sorted(row[-1] for row in rows) == ["only before", "only now"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", "3"])
def test_what_is_no_result_is_refused(tmp_path, line):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"kind": "case"}) + "\n" + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        results.read([path])


def test_the_command_writes_prints_and_compares(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--profile", "tiny", "-k", "mog-diag", "--backend", "numpy", "--output", "new.jsonl"]
    assert main(command) == 0
    Path("new.jsonl").rename("old.jsonl")
    assert main([*command, "--compare", "old.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "tiny/mog-diag" in out
    assert "against old.jsonl" in out
    assert main(["check", "new.jsonl"]) == 0
    records = results.read(["new.jsonl"])
    assert [r["kind"] for r in records if r["kind"] != "skip"] == ["machine", "device", "case", "end"]
    assert records[0]["command"].startswith("python -m benchmarks --profile tiny -k mog-diag")
    assert records[0]["processor"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--profile", "huge"], 2, "huge"),
        (["--profile", "tiny", "--backend", "abacus"], 1, "unknown backend 'abacus'"),
        (["--profile", "tiny", "--backend", "numpy", "-k", "nothing"], 1, "'nothing'"),
        (["--compare", "missing.jsonl"], 1, "cannot read the results missing.jsonl"),
        (["--compare", "same.jsonl", "--output", "./same.jsonl"], 1, "name another file"),
        (["--output", "nowhere/new.jsonl"], 1, "cannot write the results nowhere/new.jsonl"),
        (["check", "missing.jsonl"], 1, "missing.jsonl"),
        (["check", "empty.jsonl"], 1, "not the results of one sweep"),
        (["report"], 2, "results"),
        (["report", "missing.jsonl"], 1, "missing.jsonl"),
        (["report", "empty.jsonl"], 1, "no case"),
    ],
)
def test_the_command_refuses(tmp_path, monkeypatch, capsys, arguments, status, said):
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    write("same.jsonl", synthetic("a", [1.0]))
    if status == 2:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    else:
        assert main(arguments) == status
    assert said in capsys.readouterr().err
    assert results.read(["same.jsonl"]) == [synthetic("a", [1.0])]


# -- the report ----------------------------------------------------------------------------------------------


def test_the_weakest_are_named_once_and_at_the_largest_size():
    records = [
        synthetic("a", [1.0], share=0.5),
        synthetic("a", [1.0], share=0.1, dtype="float64"),
        synthetic("b", [1.0], share=0.3),
        synthetic("c", [1.0], share=0.01, size="small"),
        synthetic("c", [1.0], share=0.2),
        synthetic("d", [1.0], share=0.9),
        synthetic("e", [1.0], share=0.15, size="small"),  # it was skipped at the larger size
    ]
    assert [(r["case"], r["share"]) for r in weakest(records)] == [("a", 0.1), ("e", 0.15), ("c", 0.2)]
    skip = {"kind": "skip", "case": "medium/f", "backend": "numpy", "dtype": "float32", "reason": "too large"}
    rows = {row[0]: row for row in summary([*records, skip])}
    assert list(rows) == ["a", "b", "c", "d", "e", "f"]
    assert rows["f"][3::3] == ["not measured", "too large"]


def test_every_case_says_what_its_floor_leaves_out():
    assert all(row.beyond for row in ROWS.values())
    assert ROWS["sc"].beyond in why(synthetic("sc", [1.0]))


def test_the_report_has_all_parts_and_pictures(swept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("sweep.jsonl", *swept)
    write("scaling.jsonl", *made_up_scaling())
    write("growth.jsonl", made_up_growth())
    Path("README.md").write_text(f"before\n{MARK}\nold\n{MARK}\nafter\n")
    assert main(["report", "sweep.jsonl", "scaling.jsonl", "growth.jsonl", "--readme", "README.md"]) == 0
    page = Path("docs/benchmarks.md").read_text()
    sections = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert sections[:3] == ["Machine", "Weak points first", "Summary"]
    assert {"Every case", "Scaling over MPI ranks", "How cost grows", "Not measured"} <= set(sections)
    assert ("On a GPU" in sections) == all(r["backend"] != "cuda:0" for r in of_kind(swept, "case"))
    assert "(simulated)" in page
    assert all(assumption in page for assumption in scaling.ASSUMPTIONS)
    pictures = {line.rpartition("(")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    devices = {r["backend"].replace(":", "-") for r in of_kind(swept, "device")}
    expected = {f"benchmarks-roofline-{d}.png" for d in devices} | {"benchmarks-scaling.png", "benchmarks-growth.png"}
    assert pictures == expected
    for name in pictures:
        assert Path("docs", name).stat().st_size > 5000
    readme = Path("README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "| bsc |" in readme
    assert "old" not in readme
    Path("README.md").write_text("no marks")
    assert main(["report", "sweep.jsonl", "--readme", "README.md"]) == 1


# -- scaling -------------------------------------------------------------------------------------------------


def made_up_scaling() -> list[dict]:
    about = {"kind": "scaling", "model": "BSC(D=2, H=3)", "backend": "numpy", "dtype": "float32", "bytes": 8}
    parts = {"E-step": 0.9, "selection": 0.01, "reduction": 0.02, "waiting": 0.05, "M-step": 0.02}
    measured = [
        {**about, "mode": mode, "ranks": n, "cores": 2, "N": 100, "step": 1.0, "per_rank": [parts] * n,
         "efficiency": 1 / n}
        for mode in ("strong", "weak") for n in (1, 2, 4)
    ]  # fmt: skip
    simulated = [
        {"kind": "simulated", "cluster": "a cluster", "library": "mpich", "points_per_second": 1e4,
         "fixed": 0.0, "M-step": 0.0,
         "points": 100_000, "weak_points": 10_000, "variant": variant, "ranks": n, "bytes": 8, "small": 66,
         "communication": 0.001 * n * scale, "selection": 0.0, "reduction": 0.0005 * n}
        for variant, scale, ranks in (("as it is", 1, (1, 10, 100)), ("float32 on the wire", 0.5, (10,))) for n in ranks
    ]  # fmt: skip
    return measured + simulated


def made_up_growth() -> dict:
    x = [1.0, 2.0, 4.0]
    told = {"time": 1.0, "flops": 1.0, "memory": 1.0, "batch": 1.0}
    return {"kind": "growth", "case": "bsc", "over": "N", "values": [1, 2, 4], "backend": "numpy", "dtype": "float32",
            "base": {"D": 4}, "seconds": x, "flops": x, "memory": x, "batch": x, "exponents": told}  # fmt: skip


def test_waiting_is_told_from_reducing():
    """Rank 1 comes 30 µs late to the reduction, which then lasts 10 µs."""
    spans = []
    for step in range(scaling.WARM_UP + 3):
        t = 1000.0 * step
        for rank, late in ((0, 0.0), (1, 30.0)):
            rows = {
                "EM step": (t, 200),
                "E-step": (t, 100 + late),
                "selection": (t + 50, 20),
                "reduction": (t + 100 + late, 40 - late),
                "M-step": (t + 140, 5),
            }
            spans += [{"name": k, "pid": rank, "tid": 0, "ts": a, "dur": b} for k, (a, b) in rows.items()]
    step, per_rank = scaling.split(spans)
    assert step == pytest.approx(200e-6)
    assert [rank["waiting"] for rank in per_rank] == pytest.approx([30e-6, 0])
    assert [rank["reduction"] for rank in per_rank] == pytest.approx([10e-6, 10e-6])
    assert [rank["selection"] for rank in per_rank] == pytest.approx([20e-6, 20e-6])
    assert [rank["E-step"] for rank in per_rank] == pytest.approx([80e-6, 110e-6])


def test_where_communication_takes_a_tenth():
    simulated = of_kind(made_up_scaling(), "simulated")
    # weak: 0.001 n of 1 s + 0.001 n: a tenth at n = 111, beyond; strong: 0.001 n of 10/n: at n = 33.3
    assert scaling.tenth(simulated, "weak") is None
    assert 25 < scaling.tenth(simulated, "strong") < 40
    assert "never, up to 100 ranks" in scaling.tenth_sentence(simulated, "weak")
    # the reduction alone: 0.0005 n of 10 / n + 0.001 n: a tenth at n = 50
    assert 40 < scaling.tenth(simulated, "strong", "reduction") < 60
    many = [r for r in simulated if r["ranks"] == 100]  # at the first number of ranks it takes more already
    assert scaling.tenth(many, "strong") == 100
    assert "to all communication from at most 100 ranks on" in scaling.tenth_sentence(many, "strong")


def test_the_picture_says_of_how_many_data_points_each_line_is(tmp_path, monkeypatch):
    """What is measured has a line of its own N beside that of the simulated one."""
    made, figure = [], pictures._figure
    monkeypatch.setattr(pictures, "_figure", lambda *a: made.append(figure(*a)) or made[-1])
    records = made_up_scaling()
    pictures.scaling(of_kind(records, "scaling"), of_kind(records, "simulated"), tmp_path / "x.png")
    labels = made[0][1][0].get_legend_handles_labels()[1]
    assert {label.rpartition(": simulated")[0] for label in labels if "simulated" in label} == {
        "strong, N = 100,000", "strong, N = 100", "weak, N = 10,000 a rank",
    }  # fmt: skip
    assert "strong, N = 100: measured, 2 cores (open: shared)" in labels


def test_each_rank_has_its_own_parts():
    last = of_kind(made_up_scaling(), "scaling")[2]
    assert [row[2] for row in scaling.rank_rows(last)] == ["0", "1", "2", "3"]
    assert scaling.rank_rows(last)[0] == ["strong", "4", "0", "900.00", "10.00", "20.00", "50.00", "20.00"]


def test_what_does_not_shrink_with_the_data_is_told_apart():
    """An E-step of 1 s and 1 ms a data point."""
    few, one = ({"N": N, "per_rank": [{"E-step": 1 + 0.001 * N}]} for N in (1000, 4000))
    rate, fixed = scaling.pace(few, one)
    assert (rate, fixed) == pytest.approx((1000, 1))
    assert scaling.pace(one, one) == (4000 / 5, 0)
    record = {
        "points": 8000,
        "ranks": 4,
        "points_per_second": rate,
        "fixed": fixed,
        "M-step": 0.5,
        "communication": 0.1,
    }
    assert scaling.step_time(record, "strong") == pytest.approx(2 + 1 + 0.5 + 0.1)
    assert scaling.step_time(record, "strong", 4000) == pytest.approx(1 + 1 + 0.5 + 0.1)


def test_scaling_on_this_machine(tmp_path, mpiexec, capsys):
    output = tmp_path / "scaling.jsonl"
    sizes = ["--N", "200", "--D", "9", "--H", "6", "--steps", "2"]
    assert scaling.main(["--ranks", "1", "2", *sizes, "--simulate", "--output", str(output)]) == 0
    found = of_kind(results.read([output]), "scaling")
    assert [(r["mode"], r["ranks"], r["N"]) for r in found] == [
        ("strong", 1, 200), ("strong", 2, 200), ("weak", 1, 200), ("weak", 2, 400),
    ]  # fmt: skip
    for record in found:
        assert len(record["per_rank"]) == record["ranks"]
        assert all(value >= 0 for rank in record["per_rank"] for value in rank.values())
        assert record["efficiency"] > 0
    assert "measured here" in capsys.readouterr().out


def test_statistics_have_the_size_that_is_simulated():
    from gem.statistics import Statistics

    model = BSC(9, 6)
    head = {"free_energy": (), "N": (), "N_use": (), "stop": ()}
    assert scaling.statistics_bytes(9, 6) == pytest.approx(Statistics({**head, **model.layout}).buffer.nbytes, rel=0.05)


def test_simulating_a_cluster(tmp_path):
    if reason := smpi.available():
        missing("simgrid", reason)
    cluster = smpi.Cluster(leaf=4, leaves=4, cores=2, links=2)
    smpi.prepare(tmp_path, cluster)
    one, many = (smpi.simulate(tmp_path, cluster, n, 0.01, 100_000, 4) for n in (1, 8))
    assert one.step == pytest.approx(0.01, rel=1e-3)
    assert many.step == pytest.approx(0.01 + many.selection + many.reduction, rel=1e-3)
    least = 2 * 7 / 8 * 100_000 / cluster.bandwidth  # what leaves and enters a node, at least
    assert least < many.reduction < 20 * least
    assert 4 * 3 * 2 * cluster.latency < many.selection
    assert smpi.simulate(tmp_path, cluster, 8, 0.01, 100_000, 0).selection < 1e-6
    scattered = smpi.simulate(tmp_path, cluster, 8, 0.01, 100_000, 0, gathered=50_000)
    assert 7 / 8 * 150_000 / cluster.bandwidth < scattered.reduction < many.reduction * 2
    ties = [smpi.simulate(tmp_path, cluster, n, 0.01, 100_000, 1).selection for n in (8, 16)]
    assert ties[1] > ties[0] > 3 * 3 * 2 * cluster.latency  # one reduction, two allgathers: three rounds of two links
    crowded = smpi.simulate(tmp_path, cluster, 32, 0.01, 100_000, 4)  # two ranks on each of 16 nodes
    assert crowded.step > many.step


def test_no_simulation_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "apt-get install libsimgrid-dev" in smpi.available()
    args = type("Args", (), {})()
    record = next(scaling.simulated(args, {}, {}))
    assert (record["kind"], record["case"]) == ("skip", "simulation")


@pytest.mark.parametrize(
    "arguments", [["--ranks", "2"], ["--ranks", "1", "0"], ["--simulate", "-1"], ["--library", "x"]]
)
def test_scaling_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        scaling.main(arguments)
    assert end.value.code == 2


# -- growth --------------------------------------------------------------------------------------------------


def test_growth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "VALUES", {"N": (16_000, 64_000), "H": (16, 32), "K": (4, 8)})
    output = tmp_path / "growth.jsonl"
    arguments = ["bsc", "mog-diag", "--factor", "0.002", "--repeats", "1", "--output", str(output)]
    assert growth.main(arguments) == 0
    found = of_kind(results.read([output]), "growth")
    assert [(r["case"], r["over"]) for r in found] == [("bsc", "N"), ("bsc", "H"), ("mog-diag", "N"), ("mog-diag", "K")]
    for record in found:
        assert record["exponents"]["flops"] == pytest.approx(1, abs=0.3)
        assert len(record["seconds"]) == len(record["memory"]) == 2
    assert found[0]["values"] == [32, 128]


def test_memory_of_a_device_is_not_measured(monkeypatch):
    """Python's own count sees nothing of it; an exponent would be one of the host's bookkeeping."""
    if "unavailable" in available()["opencl"]:
        missing("opencl", available()["opencl"]["unavailable"])
    monkeypatch.setattr(growth, "VALUES", {"K": (4, 8)})
    record = growth.grow("mop", "K", "opencl", "float32", 1, 0.002)
    assert record["memory"] is None
    assert growth.row(record)[-2] == "not measured"
    assert record["base"] == {"N": 64, "D": 128}


def test_a_model_that_does_not_fit_costs_no_other_its_growth(monkeypatch):
    monkeypatch.setattr(growth, "VALUES", {"N": (16_000, 32_000), "K": (4, 8)})
    monkeypatch.setattr(growth, "grow", lambda name, over, *rest: 1 / 0 if over == "N" else made_up_growth())
    records = list(growth.growth(["mop"], "numpy", "float32", 1, 0.002))
    assert [r["kind"] for r in records] == ["machine", "skip", "growth"]
    assert "ZeroDivisionError" in records[1]["reason"]


def test_exponents_of_powers():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    assert growth.exponent(x, 3 * x**1.5) == pytest.approx(1.5)


@pytest.mark.parametrize("arguments", [["nothing"], ["--factor", "0"], ["--repeats", "0"], ["--dtype", "int8"]])
def test_growth_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        growth.main(arguments)
    assert end.value.code == 2


# -- accuracy ------------------------------------------------------------------------------------------------


def test_accuracy_is_printed_beside_what_is_asked(monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "on_ranks", lambda ranks, backend: accuracy.learned(backend=backend))
    monkeypatch.setattr(accuracy, "BATCHES", (100,))
    assert accuracy.main(["--backend", "numpy"]) == 0
    printed = capsys.readouterr().out
    for cells in (["bsc", "numpy", "float32", "6"], ["full", "scikit-learn", "30"], ["numpy", "3 ranks"]):
        assert " │ ".join(cells) in " ".join(printed.split())
    assert "MORE" not in printed


@pytest.mark.parametrize("only", ["golden", "float32", "ranks"])
def test_what_deviates_by_more_than_is_asked_is_told(monkeypatch, capsys, only):
    for name in ("VARIANCE_ASKED", "SAME_ASKED"):
        monkeypatch.setattr(accuracy, name, 1e-18)
    monkeypatch.setattr(accuracy.golden, "asked", lambda kind, dtype: 1e-18)
    monkeypatch.setattr(accuracy, "RANKS", ())
    monkeypatch.setattr(accuracy, "BATCHES", (100,))
    assert accuracy.main(["--only", only, "--backend", "numpy"]) == 1
    assert "MORE THAN ASKED" in capsys.readouterr().out


def test_what_accuracy_cannot_be_told_of_says_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GEM_CUPY_CACHE", str(tmp_path))
    monkeypatch.setattr(accuracy, "devices", lambda wanted: (["numpy"], {"opencl": "no such thing"}))
    monkeypatch.setattr(accuracy.golden, "NAMES", ["mop_T1"])
    assert accuracy.main(["--only", "golden"]) == 0
    printed = capsys.readouterr().out
    assert "opencl is not here: no such thing" in printed
    assert "cuda is left out: no CuPy" in printed
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "complete").touch()
    monkeypatch.setattr(accuracy, "HARNESS", "nowhere.py")  # what was built, and does not run
    assert accuracy.main(["--only", "golden"]) == 1
    assert "cuda is left out: `python nowhere.py -m benchmarks.accuracy" in capsys.readouterr().out


def test_candidates_and_nan_are_deviations():
    record = {"evidence": 0.0, "mean": 0.0, "parameters": 0.0, "candidates": 0.0, "asked": 1e-8}
    assert accuracy.golden_good(record)
    assert not accuracy.golden_good({**record, "candidates": 0.01})
    assert not accuracy.golden_good({**record, "mean": np.nan})
    assert not accuracy.golden_good({**record, "parameters": np.inf})


def test_the_right_noise_has_the_largest_held_out_free_energy(monkeypatch):
    """Two data sets, smaller and shorter runs; whole numbers are given to the models of all noise but Bernoulli."""
    monkeypatch.setattr(noise_type, "HELD_OUT", 300)
    monkeypatch.setattr(noise_type, "STEPS", 10)
    for noise, rivals in (("poisson", {"gaussian", "exponential", "gamma"}), ("gamma", {"gaussian", "exponential"})):
        found = noise_type.compared(noise, 0)
        assert set(found) == {noise, *rivals}
        assert max(found, key=found.get) == noise
