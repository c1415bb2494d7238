"""What is run on a borrowed GPU, as far as that shows without one; CI does its dry run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import large_mixture, profiled
from gem.kernels import counts

pytestmark = pytest.mark.serial
ROOT = Path(__file__).parent.parent
PARTS = ("machine", "mixture", "sweep", "tests", "profile", "sanitizer", "accuracy")

SAID = """\
==PROF== Connected to process 1
"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum",\
"l1tex__t_bytes_pipe_lsu_mem_global_op_ld.sum","l1tex__t_bytes_pipe_lsu_mem_global_op_st.sum",\
"smsp__thread_inst_executed.sum"
"","","","byte","byte","nsecond","byte","byte","inst"
"0","1","preselect(int, const float *)","64,000","3,200","500","128,000","3,200","1,000,000"
"1","1","preselect(int, const float *)","64,000","3,200","500","128,000","3,200","1,000,000"
"2","1","another(int)","0","0","10","0","0","100"
""".replace("\\\n", "")


def on_a_gpu(tmp_path, **settings):
    return subprocess.run(
        ["bash", "benchmarks/on_a_gpu.sh", tmp_path / "out"],
        env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_part_that_fails_costs_the_others_nothing(tmp_path):
    done = on_a_gpu(tmp_path, PYTHON="false")
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert done.returncode == 1
    assert [line.partition(":")[0] for line in lines] == [*PARTS, "all"]
    assert all(": failed with 1, " in line for line in lines[1:-1]), lines
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {*PARTS, "summary"}


def test_no_part_begins_when_the_time_is_over(tmp_path):
    on_a_gpu(tmp_path, PYTHON="false", ON_A_GPU_SECONDS="4")
    said = (tmp_path / "out" / "summary.txt").read_text()
    assert said.count("not begun, the time is over") == len(PARTS)


def test_without_a_folder_it_says_how_it_is_used():
    done = subprocess.run(["bash", "benchmarks/on_a_gpu.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("All that is to be known of a GPU")
    assert done.stdout.rstrip().endswith("(tests/cupy_on_cpu).")


def test_what_the_profiler_prints_is_summed_by_kernel_and_told_per_point():
    found = profiled.totals(SAID)
    pins = counts.pinned()["bsc-8-5"]["preselect"]
    (case, kernel, *cells), (_, another, *few) = profiled.lines("bsc-8-5", 100, found)
    assert (case, kernel, another) == ("bsc-8-5", "preselect", "another")
    assert cells[:4] == ["2,624", "1,344", "20,000", "10"]
    assert cells[4:] == [f"{pins['read'] + pins['written']:,.0f}", f"{pins['instructions']:,.0f}"]
    assert few == ["0.00", "0.00", "1.00", "0.10", "", ""]
    assert profiled.totals("==ERROR== ERR_NVGPUCTRPERM") == {}


def test_the_large_mixture_is_the_same_wherever_it_runs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--backend", "numpy", "--N", "400", "--D", "4", "--K", "3", "--repeats", "1"])
    large_mixture.main()
    said = capsys.readouterr().out
    assert "E-step: " in said
    assert "EM step: " in said
    monkeypatch.setattr(large_mixture, "DRAWN", 100)
    _, Y = large_mixture.data(250, 4, 3)
    assert (Y[:100] == Y[100:200]).all()
    assert Y.shape == (250, 4)
