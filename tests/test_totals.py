"""The sums of a step: kept on the device until the last batch is done, reduced there or through a pinned buffer."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import backends, missing

import gem
from benchmarks.scaling import unlaunched
from gem import parallel
from gem.backends import Backend
from gem.backends._device import DeviceTotals
from gem.errors import BackendError
from gem.models import BSC, DSC, GSC, MCA, MMCA, SC, TSC, MoG, MoP, NoisyOR
from gem.parallel import Serial, communicator
from gem.statistics import Statistics, Sum

pytestmark = pytest.mark.serial  # one device at a time: ranks change nothing here, but in what starts its own
SIZES = {"D": 8, "H": 6, "Hprime": 4, "gamma": 3}
LAYOUT = {"a": (), "b": (3, 4), "c": (200,), "d": (5,)}
MODELS = {  # and for how many arrays a batch of it waits
    "bsc": (BSC(**SIZES), 0),
    "dsc": (DSC(**SIZES, values=(0, -1, 2)), 0),
    "mca": (MCA(**SIZES), 0),
    "mmca": (MMCA(**SIZES), 0),
    "gsc": (GSC(**SIZES), 3),
    "bsc with gaps": (BSC(**SIZES, missing=True), 0),
    "tsc with gaps": (TSC(**SIZES, missing=True), 0),
    "dsc with gaps": (DSC(**SIZES, values=(0, -1, 2), missing=True), 0),
    "gsc with gaps": (GSC(**SIZES, missing=True), 3),
    "sc": (SC(SIZES["D"], SIZES["H"]), 0),
    "diag": (MoG(D=8, K=3), 0),
    "full": (MoG(D=8, K=3, covariance="full"), 0),
    "noisyor": (NoisyOR(**SIZES), 0),
    "mop": (MoP(D=8, K=3), 0),
}


@pytest.fixture(params=list(backends(numpy=())))
def device(request, monkeypatch):
    try:
        chosen = gem.backends.select(request.param, "float32")
    except BackendError as error:
        missing(request.param, str(error))
    monkeypatch.setattr(chosen, "_cpu", False, raising=False)  # a CPU device's sums are added on the host
    if "opencl" in chosen.name:
        monkeypatch.setattr(chosen, "matmul", products(chosen, chosen.to_host))
    return chosen


def products(device, to_host):
    """Matrix products on the host: which library makes them is not what is tested."""

    def matmul(a, b, *, transpose_a=False):
        x = to_host(a)
        with np.errstate(invalid="ignore"):
            return device.to_device((x.T if transpose_a else x) @ to_host(b))

    return matmul


class Pair(Serial):
    """Two ranks that have the same."""

    size = 2

    def __init__(self, device_aware):
        self.device_aware, self.reduced = device_aware, []

    def allreduce(self, buffer):
        self.reduced.append(type(buffer).__module__)
        buffer += buffer


def batch(rng, put):
    """What a batch may add, as `put` has it on a device."""
    fixed = rng.integers(-(2**50), 2**50, (3, 4))
    return {
        "a": [2.5, Sum(put(rng.random(64), np.float64), -1 / 3), Sum(put(rng.random(1), np.float32), 1e-9)],
        "b": [put(rng.random((3, 4)), np.float32), Sum(put(fixed, np.int64), 2.0**-60), rng.random((3, 4))],
        ("c", "d"): Sum(put(rng.random((7, 205)), np.float64), 1e6 + 1e-3),
        "d": put(rng.random((2, 5)), np.float32),
    }


def test_sums_on_the_device_are_those_of_numpy(device):
    for aware in (False, True) if "cuda" in device.name else (False,):  # MPI knows of no other devices
        check_sums(device, aware)


def check_sums(device, aware):
    totals, host = device.totals(LAYOUT), Statistics(LAYOUT)
    assert isinstance(totals, DeviceTotals)
    for seed in range(3):
        totals.add(batch(np.random.default_rng(seed), device.to_device))
        for names, values in batch(np.random.default_rng(seed), lambda a, dtype: a.astype(dtype)).items():
            for value in values if isinstance(values, list) else [values]:
                host.add(names, *((value.rows, value.scale) if isinstance(value, Sum) else (value,)))
    comm = Pair(aware)
    found = totals.reduce(comm)
    assert list(found.layout) == list(LAYOUT)
    np.testing.assert_allclose(found.buffer, 2 * host.buffer, rtol=1e-13)
    assert totals.nbytes == host.buffer.nbytes
    assert [kind.partition(".")[0] for kind in comm.reduced] == ["cupy" if aware else "numpy"]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_not_waited_for(device, name, monkeypatch):
    """The host asks for the next batch while the device works; it takes no array with a row for each data point."""
    model, waits = MODELS[name]
    Y = np.random.default_rng(0).poisson(3, (90, 8)).astype(float)
    if name == "noisyor":
        Y = (Y > 3).astype(float)
    if model.missing:
        Y[np.random.default_rng(1).random(Y.shape) < 0.2] = np.nan
    params = model.init_params(Y, seed=1)
    wanted, _ = gem.em_step(model, params, Y, dtype="float64")
    seen, to_host = [], type(device).to_host

    def counted(array):
        seen.append(array.shape)
        return to_host(device, array)

    monkeypatch.setattr(device, "to_host", counted)
    found, info = gem.em_step(model, params, Y, backend=device, batch=30)
    of_totals = 0 if "cuda" in device.name else 1  # that backend has a pinned buffer for it
    assert len(seen) == 3 * waits + of_totals, seen
    assert not any(30 in shape for shape in seen), seen  # the points of a batch
    assert info.N_use == 90
    for parameter, value in wanted.items():
        np.testing.assert_allclose(found[parameter], value, rtol=2e-3, atol=2e-3 * np.abs(value).max())


@pytest.mark.parametrize("n", [1, 100, 4096, 4097, 3 * 4096, 200_000])
def test_products_that_are_summed_over_the_data_keep_their_digits(device, n):
    rng = np.random.default_rng(n)
    a, b = (rng.random((n, k)).astype(np.float32) for k in (5, 7))
    totals = device.totals({"ab": (5, 7)})
    totals.add({"ab": device.sum_products(device.to_device(a), device.to_device(b))})
    found = totals.reduce(Serial())["ab"]
    np.testing.assert_allclose(found, a.astype(float).T @ b.astype(float), rtol=1e-5)


def test_what_is_not_finite_is_found_after_the_step(device):
    model, _ = MODELS["bsc"]
    Y = np.random.default_rng(0).standard_normal((90, 8))
    params = model.init_params(Y)
    Y[70, 2] = np.inf
    with pytest.raises(gem.DataError, match="inf at row 70, column 2"):
        gem.em_step(model, params, Y, backend=device, batch=30)
    Y[70, 2] = 1e30
    with pytest.raises(gem.DataError, match=r"evidence of data point 70 is not finite: use dtype='float64'"):
        gem.em_step(model, params, Y, backend=device, batch=30)


RANKS = """
import sys
import numpy as np, gem
from gem.models import BSC, MoG
from gem.parallel import communicator

comm = communicator("world")
assert comm.device_aware is (sys.argv[1] == "1")
kinds, reduce = [], comm.allreduce
comm.allreduce = lambda buffer: (kinds.append(type(buffer).__module__.partition(".")[0]), reduce(buffer))
Y = np.random.default_rng(0).standard_normal((101, 8))
for model in (BSC(D=8, H=6, Hprime=4, gamma=3), MoG(D=8, K=3)):
    params = model.init_params(Y, seed=1)
    wanted, told = gem.em_step(model, params, Y, dtype="float64")
    kinds.clear()
    found, info = gem.em_step(model, params, Y, backend="cuda", dtype="float64", comm=comm, batch=20)
    assert kinds == ["cupy" if comm.device_aware else "numpy"], kinds
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9 * np.abs(value).max())
    np.testing.assert_allclose(info.free_energy, told.free_energy, rtol=1e-12)
print("the same", flush=True)
"""


if "CUSHIM_ORDER" in os.environ:  # the CPU-run CuPy, under which test_kernels.py runs this file

    @pytest.mark.parametrize("aware", ["0", "1"])
    def test_ranks_of_cuda_reduce_on_the_device_or_by_way_of_a_pinned_buffer(mpiexec, aware):
        """Here a device's memory is the host's, which any MPI takes."""
        command = [mpiexec, "-n", "2", sys.executable, "-c", RANKS, aware]
        environment = {**unlaunched(), "GEM_CUDA_AWARE_MPI": aware}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("the same") == 2


def test_mpi_says_whether_it_takes_device_memory(monkeypatch, mpiexec):
    from mpi4py import MPI

    class Two:
        """As if there were another rank."""

        def __getattr__(self, name):
            return getattr(MPI.COMM_SELF, name)

        def Get_size(self):
            return 2

    monkeypatch.delenv("GEM_CUDA_AWARE_MPI", raising=False)
    libraries = {1: True, 0: False, None: False}  # what one answers that is asked, None: it does not know the question
    for answer, aware in libraries.items():
        library = SimpleNamespace(**({} if answer is None else {"MPIX_Query_cuda_support": lambda a=answer: a}))
        monkeypatch.setattr(parallel.ctypes, "CDLL", lambda _, found=library: found)
        assert communicator(Two()).device_aware is aware
    for said in (True, False):
        monkeypatch.setenv("GEM_CUDA_AWARE_MPI", str(int(said)))
        assert communicator(Two()).device_aware is said
    assert not communicator(MPI.COMM_SELF).device_aware  # one rank has nothing to reduce
    monkeypatch.setenv("GEM_CUDA_AWARE_MPI", "yes")
    with pytest.raises(gem.ConfigError, match=r"GEM_CUDA_AWARE_MPI = 'yes' must be 1 .* or 0"):
        communicator(Two())


def test_a_backend_needs_no_totals_of_its_own():
    """What the contract gives: the host's, whatever arrays the backend has."""
    numpy = gem.backends.select("numpy", "float32")
    totals = Backend.totals(numpy, LAYOUT)
    totals.add(batch(np.random.default_rng(0), numpy.to_device))
    assert np.all(totals.reduce(Serial())["c"] > 0)
