"""Backends with memory of their own: data that stay or stream, memory that runs out, devices that are not there."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import backends, missing

import gem
from gem.backends import _cuda, _opencl
from gem.backends._device import Resident, schedule
from gem.backends._traced import Traced
from gem.data import ArraySource, Shard
from gem.errors import BackendError
from gem.models import BSC, MoG
from gem.parallel import Serial
from gem.trace import Recording

pytestmark = pytest.mark.serial  # one device at a time: ranks change nothing here
MODELS = {"bsc": BSC(D=8, H=6, Hprime=4, gamma=3), "mog": MoG(D=8, K=3)}


@pytest.fixture(params=list(backends(numpy=())))
def device(request):
    try:
        return gem.backends.select(request.param, "float64")
    except BackendError as error:
        missing(request.param, str(error))


@pytest.fixture
def apart(device):
    """The device with memory of its own, as a GPU has: a CPU device takes data where they lie."""
    own = device.name.startswith("opencl")
    return _opencl.OpenCLBackend("float64", schedule="gpu") if own else device


@pytest.fixture(params=MODELS)
def problem(request):
    model = MODELS[request.param]
    Y = np.random.default_rng(0).standard_normal((100, 8))
    return model, model.init_params(Y, seed=1), Y


def products(device):
    """Matrix products on the host: which library makes them is not what is tested."""

    def matmul(a, b, *, transpose_a=False):
        x = device.to_host(a)
        return device.to_device((x.T if transpose_a else x) @ device.to_host(b))

    return matmul


def close(found, wanted):
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9 * np.abs(value).max())


@pytest.mark.parametrize("cut", [0.0, 0.8])
def test_data_that_stay_and_data_that_stream_give_the_same(apart, problem, cut, monkeypatch, caplog):
    model, params, Y = problem
    Ncut = cut if model is MODELS["bsc"] else 0.0  # mixtures have no truncation
    wanted, _ = gem.em_step(model, params, Y, dtype="float64", Ncut=Ncut)
    monkeypatch.setattr(apart, "matmul", products(apart))
    with caplog.at_level(logging.INFO, "gem"):
        close(gem.em_step(model, params, Y, backend=apart, Ncut=Ncut, batch=16)[0], wanted)
        assert "stay on" in caplog.text
        monkeypatch.setattr(apart, "room", lambda: 0)
        close(gem.em_step(model, params, Y, backend=apart, Ncut=Ncut, batch=16)[0], wanted)
        assert "streamed" in caplog.text


def test_norms_of_data_that_stay_are_computed_once(device, monkeypatch):
    model, runs, build = MODELS["bsc"], [], device.kernel
    Y = np.random.default_rng(0).standard_normal((100, 8))
    params = model.init_params(Y, seed=1)
    anneal = gem.Annealing(steps=4)
    wanted = gem.EM(model, Y, anneal, params=params, backend="numpy", dtype="float64").run().params

    def spy(name, **sizes):
        kernel = build(name, **sizes)

        def run(N, *arguments):
            runs.append((name, N))
            kernel(N, *arguments)

        run.name, run.groups = name, kernel.groups
        return run

    monkeypatch.setattr(device, "kernel", spy)
    for times in (1, 5):  # four steps, and the free energy of what the last one found
        runs.clear()
        close(gem.EM(model, Y, anneal, params=params, backend=device, batch=40).run().params, wanted)
        assert [N for name, N in runs if name == "squared_norms"] == [40, 40, 20] * times
        assert [N for name, N in runs if name == "preselect"] == [40, 40, 20] * 5
        monkeypatch.setattr(device, "_cpu", False, raising=False)  # from here on the data stream
        monkeypatch.setattr(device, "matmul", products(device))
        monkeypatch.setattr(device, "room", lambda: 0)


@pytest.mark.parametrize("cut", [0.0, 0.8])
def test_where_memory_runs_out_the_batch_is_halved_and_the_step_goes_on(device, problem, cut, monkeypatch, caplog):
    model, params, Y = problem
    Ncut = cut if model is MODELS["bsc"] else 0.0  # mixtures have no truncation
    wanted, _ = gem.em_step(model, params, Y, dtype="float64", Ncut=Ncut)

    def hungry(batch):
        if batch.n > 30:
            raise no_room(device)

    hinder(model, monkeypatch, hungry)
    new, info = gem.em_step(model, params, Y, backend=device, Ncut=Ncut, batch=100)
    close(new, wanted)
    assert info.N == 100
    assert caplog.text.count("out of memory") == 2
    assert "from here on 25 data points at a time, not 50; batch=25" in caplog.text


def hinder(model, monkeypatch, before):
    """Have every E-step of the model call `before` with its batch first."""
    original = model.on

    def on(backend, params, step):
        e_step = original(backend, params, step)
        for name in ("__call__", "infer"):
            method = getattr(type(e_step), name)

            def wrapped(self, batch, *, method=method):
                before(batch)
                return method(self, batch)

            monkeypatch.setattr(type(e_step), name, wrapped)
        monkeypatch.setattr(model, "on", original)  # its class is hindered now
        return e_step

    monkeypatch.setattr(model, "on", on)


def no_room(device):
    error = device.out_of_memory()[-1]
    return error(100, 0, 0) if "cuda" in device.name else error("no room")


@pytest.mark.parametrize("room", [0, 1 << 30])
@pytest.mark.parametrize("wide", [10, 100])
def test_the_size_that_works_is_kept_for_the_run(device, problem, room, wide, monkeypatch, caplog):
    """Of data that stream, and of those that stay; where the upload fails, and where the work does."""
    model, params, Y = problem
    anneal = gem.Annealing(steps=3)
    whole = gem.EM(model, Y, anneal, params=params, backend="numpy", dtype="float64").run()
    to_device, tried, gone = device.to_device, [], []

    def hungry(batch):
        assert room or all(ref() is None for ref in gone)  # a batch that was too large has left the device
        tried.append(batch.n)
        if batch.n > 15:
            gone.append(weakref.ref(batch.Y))
            raise no_room(device)

    def narrow(host, dtype=None):
        if np.shape(host)[1:] == (8,) and len(host) > wide:
            raise no_room(device)
        return to_device(host, dtype)

    def prefetch(host):
        if len(host) > wide:
            raise no_room(device)
        return partial(to_device, host)

    monkeypatch.setattr(device, "_cpu", False, raising=False)
    monkeypatch.setattr(device, "matmul", products(device))
    monkeypatch.setattr(device, "room", lambda: room)
    monkeypatch.setattr(device, "to_device", narrow)
    monkeypatch.setattr(device, "prefetch", prefetch)
    hinder(model, monkeypatch, hungry)
    em = gem.EM(model, Y, anneal, params=params, backend=device, batch=40).run()
    close(em.params, whole.params)
    assert sum(n > 15 for n in tried) == (2 if wide > 40 else 0)
    assert caplog.text.count("from here on 10 data points") == 1
    if isinstance(em._work.batches, Resident):
        assert {batch.n for batch in em._work.batches} == {10}  # not cut anew at every step


def test_memory_for_not_even_one_point_is_an_error(device, problem, monkeypatch):
    model, params, Y = problem

    def fail(_):
        raise no_room(device)

    hinder(model, monkeypatch, fail)
    with pytest.raises(BackendError, match=r"single data point.*float32.*more memory"):
        gem.em_step(model, params, Y, backend=device)


@pytest.mark.parametrize("ask", [gem.em_step, gem.posterior])
def test_no_memory_for_the_parameters_is_an_error_with_the_remedy(device, problem, ask, monkeypatch):
    model, params, Y = problem

    def fail(*_, **__):
        raise no_room(device)

    monkeypatch.setattr(model, "on", fail)
    with pytest.raises(BackendError, match=r"no memory left for the parameters of .*float32.*more memory"):
        ask(model, params, Y, backend=device)


def test_an_attempt_that_failed_holds_no_memory(device, problem, monkeypatch):
    """What it allocated must be free before the halves begin: they need the room."""
    model, params, Y = problem
    alive = []

    def hungry(batch):
        if batch.n > 60:
            temporary = device.empty((10, 10))
            alive.append(weakref.ref(temporary))
            raise no_room(device)
        assert all(ref() is None for ref in alive)

    hinder(model, monkeypatch, hungry)
    gem.em_step(model, params, Y, backend=device, batch=100)
    assert len(alive) == 1


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_products_with_what_is_mostly_zero(share, device, monkeypatch):
    rng, asked, kernel = np.random.default_rng(0), [], device.kernel
    A, B = rng.standard_normal((700, 70)), rng.standard_normal((700, 45)) * (rng.random((700, 45)) < share)
    monkeypatch.setattr(device, "kernel", lambda name, **sizes: asked.append(name) or kernel(name, **sizes))
    monkeypatch.setattr(_opencl, "SPARSE_WORK", 0)
    found = device.to_host(device.matmul(device.to_device(A), device.to_device(B), transpose_a=True))
    np.testing.assert_allclose(found, A.T @ B, rtol=0, atol=1e-10)
    if getattr(device, "_cpu", False):  # a GPU has better
        assert asked == (["sparse_product"] if share < _opencl.SPARSE_SHARE else [])


def test_the_callers_arrays_are_copied_and_may_be_read_only(device, problem):
    model, params, Y = problem
    mine = np.ones((3, 4))
    device.kernel("scale_rows", H=4)(3, device.to_device(mine), device.to_device(np.full(3, 5.0)))
    np.testing.assert_array_equal(mine, 1)
    frozen = Y.copy()
    frozen.setflags(write=False)
    close(gem.em_step(model, params, frozen, backend=device)[0], gem.em_step(model, params, Y, dtype="float64")[0])


def test_an_array_dropped_after_a_call_was_still_there_during_it(device):
    N = 4_000 if "CUSHIM_ORDER" in os.environ else 200_000  # enough to be still at work; CuPy on the CPU never is
    kernel, X = device.kernel("scale_rows", H=64), device.to_device(np.ones((N, 64)))
    for _ in range(5):
        kernel(N, X, device.to_device(np.full(N, 2.0)))
        rubbish = [np.full(N, 9.0) for _ in range(3)]
    assert np.all(device.to_host(X) == 32)
    assert rubbish


def test_round_trips(device):
    for array in (
        np.arange(6.0).reshape(2, 3),
        np.zeros((3, 0)),
        np.arange(4, dtype=np.int32),
        np.eye(3, dtype=np.int64),
    ):
        back = device.to_host(device.to_device(array))
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
    a, b = np.random.default_rng(0).standard_normal((2, 50, 7))
    found = device.matmul(device.to_device(a), device.to_device(b), transpose_a=True)
    np.testing.assert_allclose(device.to_host(found), a.T @ b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [True, False])
def test_host_and_device_take_turns(device, share, monkeypatch):
    """On a CPU device a product leaves its arrays mapped: a kernel that wrote to one then would be undefined.

    Not so where they may share memory, as far as the device has such.
    """
    share = share and getattr(device, "_shares", False)
    monkeypatch.setattr(device, "_shares", share, raising=False)
    a, half = device.to_device(np.eye(4) * 3), device.to_device(np.full(4, 0.5))
    kernel, launch, seen = device.kernel("scale_rows", H=4), device.launch, []

    def spy(built, plan, N, arguments):
        launch(built, plan, N, arguments)
        seen.extend(getattr(argument, "view", None) is None for argument in arguments)

    device.launch = spy
    b = device.matmul(a, a)
    for wanted in (4.5, 2.25):
        kernel(4, b, half)
        np.testing.assert_array_equal(device.to_host(b), np.eye(4) * wanted)
    kernel(4, a, half)
    np.testing.assert_array_equal(device.to_host(device.matmul(a, b)), np.eye(4) * 1.5 * 2.25)
    assert seen == [not share] * 6


def test_arrays_of_others_are_refused(device):
    mine, host = device.to_device(np.eye(3)), np.eye(3)
    for call in (
        lambda: device.matmul(mine, host),
        lambda: device.matmul(host, mine),
        lambda: device.to_host(host),
        lambda: device.kernel("scale_rows", H=3)(3, host, mine),
    ):
        with pytest.raises(BackendError, match=r"argument [01] of .* is a ndarray, not an array of .*to_device"):
            call()
    if device.name.startswith("opencl"):  # each backend has a context of its own
        with pytest.raises(BackendError, match="argument 0 of to_host is a DeviceArray, not an array of opencl:0"):
            gem.backends.select("opencl").to_host(mine)


ONLY_OPENCL = list(backends(numpy=(), cuda=()))  # CUDA gives all it has in one piece


@pytest.mark.parametrize("device", ONLY_OPENCL, indirect=True)
def test_a_batch_larger_than_one_buffer_may_be_is_halved(device, problem, monkeypatch):
    model, params, Y = problem
    Y = np.tile(Y, (8, 1))  # larger than the sums of a group
    wanted, _ = gem.em_step(model, params, Y, dtype="float64")
    monkeypatch.setattr(device, "_cpu", False)  # in the schedule of a CPU, whose sums are small
    monkeypatch.setattr(device, "matmul", products(device))
    for room in (0, 1 << 30):
        monkeypatch.setattr(device, "room", lambda room=room: room)
        monkeypatch.setattr(device, "_largest", Y.nbytes // 2)
        found, info = gem.em_step(model, params, Y, backend=device, batch=800)
        assert info.N == 800
        close(found, wanted)
        assert device.most <= 400


@pytest.mark.parametrize("traced", [False, True])
def test_no_batch_and_no_result_is_held_beside_the_next(apart, tmp_path, monkeypatch, traced):
    """Each may be as large as memory allows."""
    monkeypatch.setattr(apart, "room", lambda: 0)
    backend = Traced(apart, Recording(tmp_path / "trace.json", Serial())) if traced else apart
    seen = []

    prefetch = apart.prefetch

    class Sums:
        pass

    def all_are_gone():
        return not any(array() for array in seen)

    def uploaded(host):
        assert all_are_gone()  # a third batch, beside the one that waits
        return prefetch(host)

    monkeypatch.setattr(apart, "prefetch", uploaded)

    def sums(batch):
        assert all_are_gone()
        found = Sums()
        seen.extend([weakref.ref(batch.Y), weakref.ref(found)])
        return found

    batches = backend.load(Shard(ArraySource(np.zeros((50, 3))), 0, 50, dtype=apart.dtype, batch=10))
    for found in backend.map(sums, batches):
        del found
    assert len(seen) == 10


def test_a_device_that_is_not_there(device):
    name = device.name.partition(":")[0]
    with pytest.raises(BackendError, match=r"there is no .* device 99"):
        gem.backends.select(f"{name}:99")
    assert gem.backends.select(f"{name}:0").name == f"{name}:0"


@pytest.fixture
def as_gpu():
    """An OpenCL device that does what a GPU would."""
    try:
        return _opencl.OpenCLBackend("float32", schedule="gpu")
    except BackendError as error:
        missing("opencl", str(error))


def test_reikna_multiplies_where_the_device_is_no_cpu(as_gpu):
    """On a GPU products are reikna's: the same code, made to run on the CPU device."""
    pytest.importorskip("reikna")
    device = as_gpu
    a, b = np.random.default_rng(0).standard_normal((2, 33, 9)).astype(np.float32)
    for transpose in (True, False):
        left = a if transpose else a.T.copy()
        found = device.matmul(device.to_device(left), device.to_device(b), transpose_a=transpose)
        np.testing.assert_allclose(device.to_host(found), a.T @ b, rtol=1e-4, atol=1e-4)
    model = MODELS["bsc"]
    Y = np.random.default_rng(1).standard_normal((50, 8))
    params = model.init_params(Y)
    wanted, _ = gem.em_step(model, params, Y, dtype="float64")
    found, _ = gem.em_step(model, params, Y, backend=device)
    np.testing.assert_allclose(found["W"], wanted["W"], atol=1e-3)


def test_products_are_by_blocks_of_the_fastest_width_and_the_same_by_any(as_gpu, monkeypatch):
    pytest.importorskip("reikna")
    device = as_gpu
    a, b = (np.random.default_rng(k).standard_normal((70, k)).astype(np.float32) for k in (9, 33))
    wanted = device.to_host(device.matmul(device.to_device(a), device.to_device(b), transpose_a=True))
    compile_matmul, tried = _opencl._compile_matmul, []

    def compiled(queue, dtype, what, width=None):
        if width == 32:
            raise ValueError("Could not find suitable call parameters for the kernel")
        product = compile_matmul(queue, dtype, what, width)

        def timed(*buffers):
            tried.append(width)
            product(*buffers)
            clock[0] += {16: 2.0, 8: 1.0}[width]

        return timed

    clock = [0.0]
    monkeypatch.setattr(_opencl, "_compile_matmul", compiled)
    monkeypatch.setattr(_opencl, "TUNED_WORK", 70 * 9 * 33)
    monkeypatch.setattr(_opencl, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    device._products.clear()
    for _ in range(3):
        found = device.matmul(device.to_device(a), device.to_device(b), transpose_a=True)
        np.testing.assert_array_equal(device.to_host(found), wanted)
    assert tried == [16, 16, 8, 8, 8, 8, 8]


def test_opencl_without_reikna_says_so(as_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "reikna.cluda", None)
    a = as_gpu.to_device(np.eye(3))
    with pytest.raises(BackendError, match=r'reikna is not installed.*pip install "pyopencl\[pocl\].*" "reikna'):
        as_gpu.matmul(a, a)


@pytest.fixture
def forgetful():
    """What the backends found out about this machine is found out anew, in the test and after it."""
    found = (_opencl.survey, _opencl._import_pyopencl, _cuda._import_cupy)
    caches = [function for function in found if hasattr(function, "cache_clear")]
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("library", "name", "message"),
    [
        ("pyopencl", "opencl", r'PyOpenCL is not installed.*pip install "pyopencl\[pocl\]'),
        ("cupy", "cuda", r'CuPy is not installed.*pip install "cupy-cuda13x\[ctk\]'),
    ],
)
def test_a_library_that_is_missing(library, name, message, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendError, match=message):
        gem.backends.select(name)
    assert "is not installed" in gem.backends.available()[name]["unavailable"]
    with caplog.at_level(logging.INFO, "gem"):
        assert gem.backends.select("auto").name.partition(":")[0] != name
    assert f"not {name}: " in caplog.text


class FakeCL(SimpleNamespace):
    """As much of PyOpenCL as looking for devices takes; a platform is a list of devices, or its error."""

    class Error(Exception):
        pass

    device_type = SimpleNamespace(GPU=4, CPU=2)

    def __init__(self, *platforms):
        super().__init__(platforms=platforms)

    def get_platforms(self):
        if not self.platforms:
            raise self.Error("PLATFORM_NOT_FOUND_KHR")
        return [
            SimpleNamespace(name="Vendor ", version="3.0 ", get_devices=lambda p=p: self.answer(p))
            for p in self.platforms
        ]

    def answer(self, platform):
        if isinstance(platform, str):
            raise self.Error(platform)
        return platform

    def Context(self, devices):
        raise self.Error(f"options: -D\nerror: unknown target CPU of {devices[0].name}")


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("platforms", "message"),
    [
        ([], "OpenCL finds no device .PLATFORM_NOT_FOUND_KHR"),
        ([[]], "there is none"),
        ([[SimpleNamespace(name="Old")]], "Old on Vendor 3.0: error: unknown target CPU of Old"),
        (["OUT_OF_HOST_MEMORY", [SimpleNamespace(name="Old")]], "Vendor: OUT_OF_HOST_MEMORY; Old on Vendor 3.0: error"),
    ],
    ids=["no platform", "no device", "no compiler", "broken driver"],
)
def test_opencl_without_a_device_that_works(platforms, message, monkeypatch):
    monkeypatch.setattr(_opencl, "_import_pyopencl", lambda: FakeCL(*platforms))
    with pytest.raises(BackendError, match=rf"{message}.*pip install"):
        gem.backends.select("opencl")


@pytest.mark.usefixtures("forgetful")
def test_opencl_takes_gpus_first_and_shares_devices_of_one_kind(monkeypatch):
    vendor = SimpleNamespace(name="Vendor")
    cpu, first, second = (
        SimpleNamespace(name=n, type=t, platform=vendor) for n, t in (("cpu", 2), ("gpu 0", 4), ("gpu 1", 4))
    )
    monkeypatch.setattr(_opencl, "_import_pyopencl", lambda: FakeCL([cpu], "a broken driver", [first, second]))
    monkeypatch.setattr(_opencl, "_answer", lambda *_: "works")
    assert _opencl.devices() == [first, second, cpu]
    assert _opencl.device_count() == 2


def test_what_is_available_names_every_device_and_those_that_do_not_work(monkeypatch):
    try:
        found = _opencl.devices()[:1]
    except BackendError as error:
        missing("opencl", str(error))
    monkeypatch.setattr(_opencl, "survey", lambda: (found * 3, ["Old on Vendor: error", "Vendor: no driver"]))
    about = gem.backends.available()
    assert [name for name in about if name != "cuda"] == ["opencl", "opencl:1", "opencl:2", "numpy"]
    assert about["opencl:2"]["backend"] == "opencl:2"
    assert about["opencl"]["unusable"] == "Old on Vendor: error; Vendor: no driver"
    assert [b.name for b in gem.backends.every_device("opencl:1")] == ["opencl:1"]
    assert [b.name for b in gem.backends.every_device("numpy")] == ["numpy"]


def test_a_device_that_refuses_hides_no_other(monkeypatch):
    monkeypatch.setattr(_cuda, "_import_cupy", fake_cupy)
    use = FakeDevice.use

    def taken(device):
        if device.id == 1:
            raise NoDriverError("cudaErrorDevicesUnavailable")
        use(device)

    monkeypatch.setattr(FakeDevice, "use", taken)
    monkeypatch.setattr(_cuda.CudaBackend, "describe", lambda self: {"backend": self.name})
    assert [b.name for b in gem.backends.every_device("cuda")] == ["cuda:0", "cuda:2"]
    about = gem.backends.available()
    assert about["cuda:2"] == {"backend": "cuda:2"}
    assert "CUDA device 1 cannot be used (cudaErrorDevicesUnavailable)" in about["cuda:1"]["unavailable"]


@pytest.mark.serial
def test_opencl_device_without_64_bit_atomics():
    if "unavailable" in gem.backends.available()["opencl"]:
        missing("opencl", gem.backends.available()["opencl"]["unavailable"])
    backend = _opencl.OpenCLBackend("float32", schedule="gpu")
    backend._device = SimpleNamespace(name="Old GPU", extensions="cl_khr_fp64")
    text = "__kernel void pair_sums(__global long *x) { ATOMIC_ADD(x, 1); }"
    with pytest.raises(BackendError, match=r"Old GPU .*cl_khr_int64_base_atomics.*pair_sums.c.* another device"):
        backend.build("pair_sums", text, {})


@pytest.mark.serial
def test_opencl_device_with_small_groups():
    if "unavailable" in gem.backends.available()["opencl"]:
        missing("opencl", gem.backends.available()["opencl"]["unavailable"])
    backend = _opencl.OpenCLBackend("float32", schedule="gpu")
    sizes = {"local_mem_size": 1 << 15, "global_mem_size": 1 << 30, "max_work_group_size": 64}
    backend._device = SimpleNamespace(name="Small GPU ", **sizes)
    with pytest.raises(BackendError, match="scale_rows works in groups of 128 work-items, Small GPU takes 64 at the"):
        backend.kernel("scale_rows", H=4)


def test_opencl_float64_of_a_device_without_it(monkeypatch):
    monkeypatch.setattr(_opencl, "_import_pyopencl", SimpleNamespace)
    monkeypatch.setattr(_opencl, "devices", lambda: [SimpleNamespace(name="Small GPU", double_fp_config=0)])
    with pytest.raises(BackendError, match=r"Small GPU has no float64: use dtype='float32' or another device"):
        _opencl.OpenCLBackend("float64")


class Rank(Serial):
    """One of four ranks of a host."""

    local_size = 4

    def __init__(self, local_rank, node=0):
        self.local_rank, self.node = local_rank, node


def test_opencl_ranks_of_a_host_take_its_devices_in_turn(monkeypatch):
    try:
        found = _opencl.devices()[:1]
    except BackendError as error:
        missing("opencl", str(error))
    monkeypatch.setattr(_opencl, "devices", lambda: found * 3)
    names = [gem.backends.select("opencl", comm=Rank(r)).name for r in range(4)]
    assert names == ["opencl:0", "opencl:1", "opencl:2", "opencl:0"]
    assert gem.backends.select("opencl:2", comm=Rank(1)).name == "opencl:2"  # asked for: taken


class NoDriverError(RuntimeError):
    pass


class FakeDevice(nullcontext):
    def __init__(self, index):
        super().__init__()
        self.id, self.attributes, self.mem_info = index, {"MultiProcessorCount": 1}, (1 << 34, 1 << 34)

    def use(self):
        pass


class FakeRuntime(SimpleNamespace):
    CUDARuntimeError = NoDriverError

    @staticmethod
    def getDeviceProperties(index):
        return {"uuid": bytes([index])}


def fake_cupy(devices=3, driver=True, compiler=None):
    """As much of CuPy as choosing a device and building a kernel takes."""

    def count():
        if not driver:
            raise NoDriverError("cudaErrorInsufficientDriver")
        return devices

    def build(**_):
        raise compiler

    runtime = FakeRuntime(getDeviceCount=count)
    low = SimpleNamespace(CUDADriverError=NoDriverError, ctxGetCurrent=lambda: 0)
    errors = SimpleNamespace(CompileException=type("CompileException", (Exception,), {}))
    cuda = SimpleNamespace(runtime=runtime, driver=low, compiler=errors, Device=FakeDevice, Stream=lambda **_: None)
    return SimpleNamespace(cuda=cuda, RawModule=build)


def test_cuda_ranks_of_a_host_take_its_devices_in_turn(monkeypatch):
    monkeypatch.setattr(_cuda, "_import_cupy", fake_cupy)
    names = [gem.backends.select("cuda", comm=Rank(r)).name for r in range(4)]
    assert names == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert gem.backends.select("cuda:2", comm=Rank(1)).name == "cuda:2"


@pytest.mark.parametrize(
    ("places", "devices", "asked", "shared"),
    [
        ([(0, 0), (0, 1), (0, 2), (0, 3)], "0123", None, [2, 1, 1, 2]),  # three devices, by turns
        ([(0, 0), (0, 1), (4, 0), (4, 1)], "0101", None, [1, 1, 1, 1]),  # two hosts
        ([(0, 0), (0, 1), (0, 2), (0, 3)], "2222", "cuda:2", [4, 4, 4, 4]),  # all the one asked for
        ([(0, 0), (0, 1), (0, 2), (0, 3)], "0101", "own", [2, 2, 2, 2]),  # each another one, as a run is resumed
        ([(0, 0), (0, 1), (0, 2), (0, 3)], "0123", "hidden", [1, 1, 1, 1]),  # each sees only its own, as number 0
    ],
)
def test_ranks_that_share_a_device_share_its_memory(places, devices, asked, shared, monkeypatch):
    monkeypatch.setattr(_cuda, "_import_cupy", fake_cupy)
    rank = None
    uuid = lambda index: {"uuid": devices[rank] if asked == "hidden" else str(index)}  # noqa: E731
    monkeypatch.setattr(FakeRuntime, "getDeviceProperties", staticmethod(uuid))

    def select(comm):
        name = {"own": f"cuda:{devices[rank]}", "hidden": "cuda:0", None: "cuda"}.get(asked, asked)
        return gem.backends.select(name, comm=comm)

    told = []
    for rank, (node, local) in enumerate(places):  # noqa: B007  read by uuid
        comm = Rank(local, node)
        monkeypatch.setattr(comm, "allgather", lambda mine: told.append(mine) or [mine])
        select(comm)
    for rank, (node, local) in enumerate(places):
        comm = Rank(local, node)
        monkeypatch.setattr(comm, "allgather", lambda mine: told)
        assert select(comm)._ranks == shared[rank]
    rank = 0
    assert gem.backends.select("cuda")._ranks == 1


def test_a_rank_keeps_its_share_of_the_data_at_most(apart, problem, monkeypatch, caplog):
    model, params, Y = problem
    monkeypatch.setattr(apart, "matmul", products(apart))
    monkeypatch.setattr(apart, "room", lambda: 2 * Y.nbytes)
    for ranks, kept in ((2, "stay on"), (3, "streamed")):
        monkeypatch.setattr(apart, "_ranks", ranks)
        caplog.clear()
        with caplog.at_level(logging.INFO, "gem"):
            gem.em_step(model, params, Y, backend=apart, batch=16)
        assert kept in caplog.text


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        ({"driver": False}, "CUDA does not work here .*InsufficientDriver.*install NVIDIA's driver"),
        ({"devices": 0}, "there is no CUDA device: choose another backend"),
        ({"compiler": RuntimeError("failed to load libnvrtc")}, r"NVRTC does not work .failed to load.*pip install"),
        ({"compiler": ImportError("libnvrtc.so.13")}, r"NVRTC does not work .libnvrtc.*pip install"),
    ],
    ids=["no driver", "no device", "NVRTC not loaded", "NVRTC not installed"],
)
def test_cuda_that_does_not_work(cupy, message, monkeypatch):
    monkeypatch.setattr(_cuda, "_import_cupy", lambda: fake_cupy(**cupy))
    with pytest.raises(BackendError, match=message):
        gem.backends.select("cuda").kernel("scale_rows", H=4)


def test_opencl_programs_come_from_the_cache(monkeypatch, tmp_path):
    try:
        first, second = (gem.backends.select("opencl") for _ in range(2))
    except BackendError as error:
        missing("opencl", str(error))
    from pyopencl.characterize import has_src_build_cache

    if has_src_build_cache(first._device):
        pytest.skip("this runtime has a cache of its own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first.kernel("scale_rows", H=4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("binary")}
    second.kernel("scale_rows", H=4)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("binary")} == before
    assert len(before) == 1


def test_opencl_builds_without_a_cache_too(monkeypatch, tmp_path, caplog):
    try:
        gem.backends.select("opencl")
    except BackendError as error:
        missing("opencl", str(error))
    from pyopencl.characterize import has_src_build_cache

    from gem.backends._opencl import OpenCLBackend

    device = OpenCLBackend("float32")  # a new one: what others of this process have built is not there

    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made there
    X = device.to_device(np.ones((2, 4)))
    device.kernel("scale_rows", H=4)(2, X, device.to_device(np.full(2, 3.0)))
    assert np.all(device.to_host(X) == 3)
    assert has_src_build_cache(device._device) or "Not a directory" in caplog.text


def test_what_does_not_fit_local_memory_is_refused():
    def plan(name, cpu=False, **other):
        sizes = {"H": 64, "HPRIME": 32, "GAMMA": 4, "VALUES": 1, "D": 64, "K": 9, "STATS": 1, "STORE": 0} | other
        return schedule(name, {"ANNEAL": 0, "MASKED": 0, "MISSING": 0, **sizes}, 8, cpu, 8, 48 << 10)

    assert plan("gram_posterior", cpu=True).width == 8
    for name in ("gram_posterior", "spike_slab", "causes"):
        assert plan(name).width == 32  # they keep no states
    with pytest.raises(BackendError, match=r"mixture_full needs .* bytes of local memory .* smaller model"):
        plan("mixture_full", K=9000, TIED=1)


def test_large_sums_leave_no_multiprocessor_idle():
    """Each group has sums of its own, and they stay on the device: as many as its memory can spare."""
    sizes = {"D": 256, "H": 300, "HPRIME": 8, "GAMMA": 5, "MANY": 210, "STATS": 1}

    def warps(memory):
        return schedule("causes", sizes, 4, False, 132, 48 << 10, memory).rows(10**6)

    assert warps(80 << 30) == warps(16 << 30) > 3 * 132
    assert warps(4 << 30) == (4 << 30) // 32 // (16 * 256 * 300) // 4 * 4
    assert warps(1 << 20) == 4


SETTINGS = [
    ("FAKECUDA_NDEV=2", "b = select('cuda:1'); print(b.name, b.to_device(np.ones(3)).device.id)", "cuda:1 1"),
    ("FAKECUDA_NDEV=0", "select('cuda')", "choose another backend"),
    (
        "FAKECUDA_NDEV=2",
        "a = select('cuda:1').to_device(np.ones((2, 2))); select('cuda:0').to_host(a)",
        "argument 0 of to_host is a ndarray, not an array of cuda:0",
    ),
    (
        "FAKECUDA_MEMORY=300000",
        "Y = np.random.default_rng(0).standard_normal((2000, 8)); m = BSC(D=8, H=16, Hprime=4, gamma=2)\n"
        "print('N', gem.em_step(m, m.init_params(Y), Y, backend='cuda')[1].N)",
        "N 2000\nout of memory on cuda:0: from here on ",
    ),
    (  # CUDA opens a device that is made the current one: none but its own, whoever has the others
        "FAKECUDA_NDEV=2 FAKECUDA_TAKEN=0",
        "Y = np.random.default_rng(0).standard_normal((90, 8)); m = BSC(D=8, H=6, Hprime=4, gamma=2)\n"
        "print('N', gem.em_step(m, m.init_params(Y), Y, backend='cuda:1', batch=30)[1].N)",
        "N 90",
    ),
    (
        "FAKECUDA_NDEV=2",
        "import cupy; cupy.cuda.Device(0).use(); select('cuda:1'); print('still', cupy.cuda.Device().id)",
        "still 0",
    ),
    ("FAKECUDA_TAKEN=0", "select('cuda')", "CUDA device 0 cannot be used (cudaErrorDevicesUnavailable"),
    ("FAKECUDA_TAKEN=0", "print(select('auto').name.partition(':')[0] in ('opencl', 'numpy'))", "True"),
    (
        "FAKECUDA_NDEV=2",
        "print(len({select(f'cuda:{i}').place for i in (0, 1, 0)}), 'places')",
        "2 places",
    ),
    (  # uploads are as late as CUDA allows: all that must be waited for is
        "FAKECUDA_LAZY=1",
        """
from gem.backends._cuda import CudaBackend
Y = np.random.default_rng(0).standard_normal((256, 8)); m = BSC(D=8, H=6, Hprime=4, gamma=3); p = m.init_params(Y)
wanted, device = gem.em_step(m, p, Y, dtype='float64')[1].free_energy, CudaBackend('float64')
device.room = lambda: 0
for batch in (64, 10, 256):
    found = gem.em_step(m, p, Y, backend=device, batch=batch)[1].free_energy
    assert abs(found - wanted) < 1e-9 * abs(wanted), (batch, found, wanted)
bad = Y + np.where(np.arange(256) == 3, np.nan, 0)[:, None]
device = CudaBackend('float64')
device.room = lambda: 0
device.free_memory()
try:
    gem.posterior(m, p, bad, backend=device, batch=64)  # it leaves an upload behind that nobody waits for
except gem.DataError:
    device.room = lambda: 1 << 30
em = gem.EM(m, Y, gem.Annealing(steps=2), params=p, backend=device, batch=64).run()
kept = em._work.batches
assert all(np.array_equal(device.to_host(one.Y), Y[one.start : one.start + 64]) for one in kept)
print('in order', abs(em.history['free_energy'][0] - wanted) < 1e-9 * abs(wanted))
""",
        "in order True",
    ),
    (
        "FAKECUDA_NDEV=1",
        """
import cupy
def refused(size): raise cupy.cuda.runtime.CUDARuntimeError(2)
cupy.cuda.alloc_pinned_memory = refused
Y = np.random.default_rng(0).standard_normal((256, 8)); m = BSC(D=8, H=6, Hprime=4, gamma=3); p = m.init_params(Y)
for room in (0, 1 << 30):
    device = select('cuda', 'float64')
    device.room = lambda: room
    found = gem.em_step(m, p, Y, backend=device, batch=64)[1].free_energy
    assert abs(found - gem.em_step(m, p, Y, dtype='float64')[1].free_energy) < 1e-9 * abs(found)
print('not pinned')
""",
        "not pinned",
    ),
    (  # a launch, too, can find no room: for what its work-items keep
        "FAKECUDA_NDEV=1",
        """
import cupy
from gem.backends._cuda import CudaBackend
build = CudaBackend.build
def built(device, name, *what):
    kernel = build(device, name, *what)
    def launch(grid, block, values):
        if values[0] > 100 and name != 'accumulate': raise cupy.cuda.driver.CUDADriverError(2)
        kernel(grid, block, values)
    return launch
CudaBackend.build = built
Y = np.random.default_rng(0).standard_normal((256, 8)); m = BSC(D=8, H=16, Hprime=4, gamma=3)
device = select('cuda')
print(gem.em_step(m, m.init_params(Y), Y, backend=device)[1].N, device.most)
""",
        "256 64",
    ),
]


if "CUSHIM_ORDER" in os.environ:  # settings of the CPU-run CuPy, under which test_kernels.py runs this file

    @pytest.mark.serial
    @pytest.mark.parametrize(
        ("setting", "script", "expected"),
        SETTINGS,
        ids=lambda x: x + "-cuda" if x.startswith("FAKECUDA") else "",
    )
    def test_cuda_settings(setting, script, expected):
        head = "import numpy as np, gem\nfrom gem.backends import select\nfrom gem.models import BSC\n"
        done = subprocess.run(
            [sys.executable, "-c", head + script],
            env={**os.environ, **dict(one.split("=") for one in setting.split())},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert expected in done.stdout + done.stderr

    @pytest.mark.serial
    def test_cuda_programs_come_from_the_cache(tmp_path):
        """As ranks of a host, and the next run, find them: compiled once, read by the others."""
        script, made = "from gem.backends import select; select('cuda').kernel('scale_rows', H=4)", []
        for _ in range(2):
            subprocess.run(
                [sys.executable, "-c", script], env={**os.environ, "CUPY_CACHE_DIR": str(tmp_path)}, check=True
            )
            made.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")})
        assert made[0] == made[1]
        assert len(made[0]) == 1
