"""Ranks: the same numbers on any number of them, one reduction a step, no hang when one fails."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

import gem
from benchmarks import accuracy
from benchmarks.scaling import unlaunched
from gem import parallel
from gem.models import BSC
from gem.parallel import Serial, communicator, largest

FAIL = """
import numpy as np, gem
from gem.models import BSC
from gem.parallel import communicator
comm = communicator("world")
Y = np.random.default_rng(0).standard_normal((100, 6))
model = BSC(D=6, H=4)
params = model.init_params(Y)
Y[99, 4] = np.nan
gem.em_step(model, params, Y, comm=comm)
"""


def run(mpiexec, ranks, script):
    command = [mpiexec, "-n", str(ranks), sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=unlaunched(), check=False)


@pytest.mark.serial
@pytest.mark.usefixtures("mpiexec")
def test_any_number_of_ranks_gives_the_same_parameters():
    one, *others = (accuracy.on_ranks(ranks) for ranks in (1, 2, 3))
    for found in others:
        for model, deviation in accuracy.apart(found, one).items():
            assert deviation <= 1e-9, model


@pytest.mark.serial
def test_a_failing_rank_ends_the_job_with_its_message(mpiexec):
    began = time.monotonic()
    done = run(mpiexec, 3, FAIL)
    assert done.returncode != 0
    assert "rank 2" in done.stderr
    assert "row 99" in done.stderr
    assert "column 4" in done.stderr
    assert time.monotonic() - began < 30


def test_one_reduction_of_one_buffer_a_step():
    class Counting(Serial):
        sizes: list[int] = []  # noqa: RUF012  one test, one list

        def allreduce(self, buffer):
            self.sizes.append(buffer.size)

    Y = np.random.default_rng(0).standard_normal((200, 6))
    model = BSC(D=6, H=4)
    gem.em_step(model, model.init_params(Y), Y, comm=Counting(), batch=50)
    house, at_gamma, yy, rr = 4, 1, 1, 1
    assert Counting.sizes == [house + at_gamma + yy + rr + 6 * 4 + 4 + 4 * 4]


def test_global_order_statistic(world):
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.standard_normal(60) * 1e3, [0.0, -0.0, 5.0, 5.0, 5.0, 5.0, -1e300, 1e300]])
    rng.shuffle(values)
    start, stop = world.slab(len(values))
    mine = values[start:stop]
    for k in (0, 1, 3, 30, 50, 67, 68):
        mask = np.concatenate(world.allgather(largest(world, mine, k)))
        assert mask.sum() == k
        if 0 < k < len(values):
            assert values[mask].min() >= values[~mask].max()
            tied = np.flatnonzero(values == values[mask].min())
            assert np.all(np.diff(mask[tied].astype(int)) <= 0)  # of equals, the first


def test_long_reductions_are_cut(world, monkeypatch):
    monkeypatch.setattr(parallel, "MESSAGE_BYTES", 64)
    buffer = np.arange(100.0).reshape(4, 25) + world.rank
    expected = world.size * np.arange(100.0).reshape(4, 25) + sum(range(world.size))
    world.allreduce(buffer)
    np.testing.assert_array_equal(buffer, expected if world.size > 1 else np.arange(100.0).reshape(4, 25))


def test_slabs_cover_the_data_once():
    class Rank(Serial):
        def __init__(self, rank, size):
            self.rank, self.size = rank, size

    for N, size in ((10, 3), (3, 3), (7, 2), (1000, 7)):
        slabs = [Rank(r, size).slab(N) for r in range(size)]
        assert slabs[0][0] == 0
        assert slabs[-1][1] == N
        assert all(a[1] == b[0] for a, b in pairwise(slabs))
        sizes = [b - a for a, b in slabs]
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(gem.ConfigError, match="at most 2 ranks"):
        Rank(0, 3).slab(2)


def test_threads_are_shared_out_among_the_ranks_of_a_host(monkeypatch):
    monkeypatch.setattr(parallel, "_cores", lambda: 8)
    comm = Serial()
    assert comm.threads == 8
    comm.local_size = 3
    assert comm.threads == 2
    comm.local_size = 100
    assert comm.threads == 1


def test_what_is_no_communicator_is_refused():
    with pytest.raises(gem.ConfigError, match="mpi4py"):
        communicator("galaxy")
