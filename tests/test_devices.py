"""Backends with memory of their own: data that stay or stream, memory that runs out, devices that are not there."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
from conftest import missing

import gem
from gem.backends._device import schedule
from gem.errors import BackendError
from gem.models import BSC, MoG

pytestmark = pytest.mark.serial  # one device at a time: ranks change nothing here
KINDS = ["opencl", *(["cuda"] if "CUSHIM_ORDER" in os.environ else [])]
MODELS = {"bsc": BSC(D=8, H=6, Hprime=4, gamma=3), "mog": MoG(D=8, K=3)}


@pytest.fixture(params=KINDS)
def device(request):
    try:
        return gem.backends.select(request.param, "float64")
    except BackendError as error:
        missing(request.param, str(error))


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


@pytest.mark.parametrize("Ncut", [0.0, 0.8])
def test_data_that_stay_and_data_that_stream_give_the_same(device, problem, Ncut, monkeypatch, caplog):
    model, params, Y = problem
    wanted, _ = gem.em_step(model, params, Y, dtype="float64", Ncut=Ncut)
    monkeypatch.setattr(device, "_cpu", False, raising=False)  # a CPU device takes data where they lie
    monkeypatch.setattr(device, "matmul", products(device))
    with caplog.at_level(logging.INFO, "gem"):
        close(gem.em_step(model, params, Y, backend=device, Ncut=Ncut, batch=16)[0], wanted)
        assert "stay on" in caplog.text
        monkeypatch.setattr(device, "room", lambda: 0)
        close(gem.em_step(model, params, Y, backend=device, Ncut=Ncut, batch=16)[0], wanted)
        assert "streamed" in caplog.text


@pytest.mark.parametrize("Ncut", [0.0, 0.8])
def test_where_memory_runs_out_the_batch_is_halved_and_the_step_goes_on(device, problem, Ncut, monkeypatch, caplog):
    model, params, Y = problem
    wanted, _ = gem.em_step(model, params, Y, dtype="float64", Ncut=Ncut)
    infer, out_of_memory = model.infer, device.out_of_memory()[-1]

    def hungry(original):
        def wrapped(tables, Y, *rest):
            if Y.shape[0] > 30:
                raise out_of_memory(100, 0, 0) if "cuda" in device.name else out_of_memory("no room")
            return original(tables, Y, *rest)

        return wrapped

    monkeypatch.setattr(model, "infer", hungry(infer))
    monkeypatch.setattr(model, "e_step", hungry(model.e_step))
    new, info = gem.em_step(model, params, Y, backend=device, Ncut=Ncut, batch=100)
    close(new, wanted)
    assert info.N == 100
    assert "done in halves" in caplog.text


def test_memory_for_not_even_one_point_is_an_error(device, problem, monkeypatch):
    model, params, Y = problem
    error = device.out_of_memory()[-1]

    def fail(*_):
        raise error(1, 0, 0) if "cuda" in device.name else error("no room")

    monkeypatch.setattr(model, "e_step", fail)
    with pytest.raises(BackendError, match="single data point"):
        gem.em_step(model, params, Y, backend=device)


def test_an_attempt_that_failed_holds_no_memory(device, problem, monkeypatch):
    """What it allocated must be free before the halves begin: they need the room."""
    model, params, Y = problem
    error, alive = device.out_of_memory()[-1], []
    original = model.e_step

    def hungry(tables, Y):
        if Y.shape[0] > 60:
            temporary = device.empty((10, 10))
            alive.append(weakref.ref(temporary))
            raise error(100, 0, 0) if "cuda" in device.name else error("no room")
        assert all(ref() is None for ref in alive)
        return original(tables, Y)

    monkeypatch.setattr(model, "e_step", hungry)
    gem.em_step(model, params, Y, backend=device, batch=100)
    assert len(alive) == 1


def test_the_callers_arrays_are_copied_and_may_be_read_only(device, problem):
    model, params, Y = problem
    mine = np.ones((3, 4))
    device.kernel("scale_rows", H=4)(3, device.to_device(mine), device.to_device(np.full(3, 5.0)))
    np.testing.assert_array_equal(mine, 1)
    frozen = Y.copy()
    frozen.setflags(write=False)
    close(gem.em_step(model, params, frozen, backend=device)[0], gem.em_step(model, params, Y, dtype="float64")[0])


def test_an_array_dropped_after_a_call_was_still_there_during_it(device):
    kernel, X = device.kernel("scale_rows", H=64), device.to_device(np.ones((200_000, 64)))
    for _ in range(5):
        kernel(200_000, X, device.to_device(np.full(200_000, 2.0)))
        rubbish = [np.full(200_000, 9.0) for _ in range(3)]
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


def test_a_device_that_is_not_there(device):
    name = device.name.partition(":")[0]
    with pytest.raises(BackendError, match=r"there is no .* device 99"):
        gem.backends.select(f"{name}:99")
    assert gem.backends.select(f"{name}:0").name == f"{name}:0"


def test_reikna_multiplies_where_the_device_is_no_cpu(monkeypatch):
    """On a GPU products are reikna's: the same code, made to run on the CPU device."""
    pytest.importorskip("reikna")
    try:
        device = gem.backends.select("opencl", "float32")
    except BackendError as error:
        missing("opencl", str(error))
    monkeypatch.setattr(device, "_cpu", False)
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


def test_a_state_space_too_large_for_local_memory_is_refused():
    constants = {"H": 64, "HPRIME": 32, "GAMMA": 4, "ANNEAL": 0}
    with pytest.raises(BackendError, match="smaller model"):
        schedule("gram_posterior", constants, 8, False, 8, 48 << 10)
    assert schedule("gram_posterior", constants, 8, True, 8, 48 << 10).width == 8


SETTINGS = [
    ("FAKECUDA_NDEV=2", "b = select('cuda:1'); print(b.name, b.to_device(np.ones(3)).device.id)", "cuda:1 1"),
    ("FAKECUDA_NDEV=0", "select('cuda')", "choose another backend"),
    (
        "FAKECUDA_MEMORY=3000000",
        "Y = np.random.default_rng(0).standard_normal((20000, 8)); m = BSC(D=8, H=16, Hprime=4, gamma=2)\n"
        "print(gem.em_step(m, m.init_params(Y), Y, backend='cuda')[1].N)",
        "20000",
    ),
]


if "CUSHIM_ORDER" in os.environ:  # settings of the CPU-run CuPy, under which test_kernels.py runs this file

    @pytest.mark.serial
    @pytest.mark.parametrize(
        ("setting", "script", "expected"),
        SETTINGS,
        ids=lambda x: x.partition("=")[0] + "-cuda" if x.startswith("FAKECUDA") else "",
    )
    def test_cuda_settings(setting, script, expected):
        name, _, value = setting.partition("=")
        head = "import numpy as np, gem\nfrom gem.backends import select\nfrom gem.models import BSC\n"
        done = subprocess.run(
            [sys.executable, "-c", head + script],
            env={**os.environ, name: value}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert expected in done.stdout + done.stderr
