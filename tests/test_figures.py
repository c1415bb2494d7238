"""What the README shows, in small: bars are found, memory is bounded, photographs become fields."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import bars
from examples import photographs

pytestmark = [pytest.mark.serial, pytest.mark.long]  # whole runs: ranks are tested elsewhere
ROOT = Path(__file__).parent.parent
GROWN = """
import sys
import gem
from benchmarks.memory import peak
from gem.models import BSC
anneal = gem.Annealing(steps=2, Ncut=[(0, 0.0), (1.0, 1.0)])
model = BSC(D=64, H=20, Hprime=4, gamma=3)
gem.EM(model, sys.argv[1] + ":/small", anneal, backend="numpy").run()
before = peak()
gem.EM(model, sys.argv[1] + ":/large", anneal, backend="numpy").run()
print(peak() - before)
"""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_bars_are_found(seed):
    assert bars.run("bsc", seed) == bars.H


def test_memory_does_not_grow_with_the_data(tmp_path):
    rng, N = np.random.default_rng(0), 1_400_000
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["small"] = rng.standard_normal((20_000, 64), dtype=np.float32)
        large = file.create_dataset("large", (N, 64), "float32")  # 358 MB, more than a shard keeps
        for start in range(0, N, 100_000):
            large[start : start + 100_000] = rng.standard_normal((100_000, 64), dtype=np.float32)
    command = [sys.executable, "-c", GROWN, str(tmp_path / "data.h5")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200


def test_the_memory_of_a_process_is_its_own():
    """What a large process starts does not begin at that one's peak: it would hide all growth below."""
    large = np.ones(2**26)  # 512 MB
    command = [sys.executable, "-c", "from benchmarks.memory import peak; print(peak())"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < large.nbytes / 2**20


def test_photographs_become_fields(tmp_path, capsys):
    output = tmp_path / "run.h5"
    assert photographs.main(["--steps", "2", "--count", "2000", "--H", "40", "--output", str(output)]) == 0
    assert "of 40 fields" in capsys.readouterr().out
    with h5py.File(output) as file:
        assert file["params/W"].shape == (3, 256, 40)
    assert output.with_suffix(".png").stat().st_size > 10_000
