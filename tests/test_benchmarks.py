"""The benchmarks: nothing left out in silence, shares that can be, results that can be read and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import REQUIRED, missing

from benchmarks import growth, results, scaling
from benchmarks.__main__ import main
from benchmarks.cases import MEDIUM, PROFILES, ROWS, Case, cases, without_a_line
from benchmarks.floors import linear
from benchmarks.peers import PEERS, Peer, sklearn_mixture
from benchmarks.report import MARK, weakest
from benchmarks.simulation import smpi
from benchmarks.sweep import sweep
from gem.errors import DataError
from gem.models import BSC, DSC, MODELS, MoG

pytestmark = pytest.mark.serial


@pytest.fixture(scope="module")
def swept():
    """Every case on every device, at the smallest size."""
    return list(sweep("tiny"))


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
        assert sum(record["spent"].values()) > 0


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
        Peer("wrong", "sklearn", lambda *a: (lambda: None, -1.0)),
        Peer("absent", "no_such_package", sklearn_mixture),
        Peer("broken", "sklearn", lambda *a: 1 / 0),
        Peer("right", "sklearn", sklearn_mixture),
    )
    monkeypatch.setitem(PEERS, "mog-diag", peers)
    records = list(sweep("tiny", "mog-diag", "numpy"))
    told = {peer["name"]: peer for peer in of_kind(records, "case")[0]["peers"]}
    assert "other likelihood: -1 per data point" in told["wrong"]["skipped"]
    assert told["absent"]["skipped"] == "no_such_package is not installed"
    assert "ZeroDivisionError" in told["broken"]["skipped"]
    assert [name for name, peer in told.items() if "seconds" in peer] == ["right"]
    assert len(results.peer_skips(records)) == 3


def test_a_case_that_breaks_costs_no_other_its_result(monkeypatch):
    monkeypatch.setattr(MoG, "m_step", lambda *a: 1 / 0)
    records = list(sweep("tiny", "mo", "numpy"))
    assert {r["case"] for r in of_kind(records, "case")} == {"mop"} if "mop" in MODELS else set()
    assert all("ZeroDivisionError" in r["reason"] for r in records if r.get("failed"))
    assert sum(bool(r.get("failed")) for r in records) == 4


# -- on paper ------------------------------------------------------------------------------------------------


def test_flops_of_the_linear_models():
    bsc, dsc = BSC(256, 300, 8, 5), DSC(256, 300, 8, 5, values=(0, 1, 2))
    assert ROWS["bsc"].flops(bsc) == sum(flops for flops, _ in linear(256, 300, 8, 5).values())
    assert ROWS["dsc"].flops(dsc) > ROWS["bsc"].flops(bsc) > 4 * 256 * 300


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
    assert rows["medium/a"] == ["2.00", "1.83 to 2.19", "slower"]
    assert rows["medium/b"][::2] == ["0.50", "faster"]
    assert rows["medium/c"][2] == "no difference seen"
    assert rows["medium/gone"][2] == "only before"
    assert rows["medium/came"][2] == "only now"


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
    records = results.read(["new.jsonl"])
    assert [r["kind"] for r in records if r["kind"] != "skip"] == ["machine", "device", "case"]
    assert records[0]["processor"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--profile", "huge"], 2, "huge"),
        (["--profile", "tiny", "--backend", "abacus"], 1, "unknown backend 'abacus'"),
        (["--profile", "tiny", "--backend", "numpy", "-k", "nothing"], 1, "'nothing'"),
        (["--compare", "missing.jsonl"], 1, "cannot read the results missing.jsonl"),
        (["report"], 2, "results"),
        (["report", "missing.jsonl"], 1, "missing.jsonl"),
        (["report", "empty.jsonl"], 1, "no case"),
    ],
)
def test_the_command_refuses(tmp_path, monkeypatch, capsys, arguments, status, said):
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    if status == 2:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    else:
        assert main(arguments) == status
    assert said in capsys.readouterr().err


# -- the report ----------------------------------------------------------------------------------------------


def test_the_weakest_are_named_once_and_at_the_largest_size():
    records = [
        synthetic("a", [1.0], share=0.5),
        synthetic("a", [1.0], share=0.1, dtype="float64"),
        synthetic("b", [1.0], share=0.3),
        synthetic("c", [1.0], share=0.01, size="small"),
        synthetic("c", [1.0], share=0.2),
        synthetic("d", [1.0], share=0.9),
    ]
    assert [(r["case"], r["share"]) for r in weakest(records)] == [("a", 0.1), ("c", 0.2), ("b", 0.3)]


def test_the_report_has_all_parts_and_pictures(swept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("sweep.jsonl", *swept)
    write("scaling.jsonl", *made_up_scaling())
    write("growth.jsonl", made_up_growth())
    Path("README.md").write_text(f"before\n{MARK}\nold\n{MARK}\nafter\n")
    assert main(["report", "sweep.jsonl", "scaling.jsonl", "growth.jsonl", "--readme", "README.md"]) == 0
    page = Path("docs/benchmarks.md").read_text()
    sections = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert sections[:2] == ["Weak points first", "Summary"]
    assert {"Every case", "Scaling over MPI ranks", "How cost grows", "Not measured"} <= set(sections)
    assert "(simulated)" in page
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
    parts = {"E-step": 0.9, "selection": 0.01, "reduction": 0.02, "waiting": 0.05, "M-step": 0.02}
    measured = [
        {"kind": "scaling", "mode": mode, "ranks": n, "cores": 2, "N": 100, "step": 1.0, "per_rank": [parts] * n,
         "efficiency": 1 / n}
        for mode in ("strong", "weak") for n in (1, 2, 4)
    ]  # fmt: skip
    simulated = [
        {"kind": "simulated", "cluster": "a cluster", "library": "mpich", "points_per_second": 1e4, "M-step": 0.0,
         "points": 100_000, "weak_points": 10_000, "variant": variant, "ranks": n, "bytes": 8, "small": 66,
         "communication": 0.001 * n * scale, "selection": 0.0, "reduction": 0.0005 * n}
        for variant, scale, ranks in (("as it is", 1, (1, 10, 100)), ("float32 on the wire", 0.5, (10,))) for n in ranks
    ]  # fmt: skip
    return measured + simulated


def made_up_growth() -> dict:
    x = [1.0, 2.0, 4.0]
    told = {"time": 1.0, "flops": 1.0, "memory": 1.0, "batch": 1.0}
    return {"kind": "growth", "case": "bsc", "over": "N", "values": [1, 2, 4], "backend": "numpy", "dtype": "float32",
            "seconds": x, "flops": x, "memory": x, "batch": x, "exponents": told}  # fmt: skip


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
        missing("smpi", reason)
    cluster = smpi.Cluster(leaf=4, leaves=4, cores=2, links=2)
    smpi.prepare(tmp_path, cluster)
    one, many = (smpi.simulate(tmp_path, cluster, n, 0.01, 100_000, 4) for n in (1, 8))
    assert one.step == pytest.approx(0.01, rel=1e-3)
    assert many.step == pytest.approx(0.01 + many.selection + many.reduction, rel=1e-3)
    least = 2 * 7 / 8 * 100_000 / cluster.bandwidth  # what leaves and enters a node, at least
    assert least < many.reduction < 20 * least
    assert 4 * 3 * 2 * cluster.latency < many.selection
    crowded = smpi.simulate(tmp_path, cluster, 32, 0.01, 100_000, 4)  # two ranks on each of 16 nodes
    assert crowded.step > many.step


def test_no_simulation_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "apt-get install libsimgrid-dev" in smpi.available()
    args = type("Args", (), {})()
    record = next(scaling.simulated(args, {}))
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


def test_exponents_of_powers():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    assert growth.exponent(x, 3 * x**1.5) == pytest.approx(1.5)


@pytest.mark.parametrize("arguments", [["nothing"], ["--factor", "0"], ["--repeats", "0"], ["--dtype", "int8"]])
def test_growth_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        growth.main(arguments)
    assert end.value.code == 2
