"""How a backend is chosen: made once, opened when it is used, trusted when it computes right, and not after a fork."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import backends, missing

import gem
from gem.backends import _check, _cuda, _opencl, select
from gem.backends._numpy import NumpyBackend
from gem.errors import BackendError
from gem.kernels import source
from gem.models import BSC
from gem.parallel import Serial

pytestmark = pytest.mark.serial


@pytest.fixture
def opencl():
    try:
        return select("opencl")
    except BackendError as error:
        missing("opencl", str(error))


@pytest.fixture
def problem():
    model = BSC(D=8, H=6, Hprime=4, gamma=2)
    Y = np.random.default_rng(0).standard_normal((60, 8))
    return model, model.init_params(Y, seed=1), Y


# ------------------------------------------------------------------------------------------------ chosen once


@pytest.mark.parametrize("name", list(backends()))
def test_a_backend_is_made_once_for_each_type_and_share(name):
    try:
        first = select(name)
    except BackendError as error:
        missing(name, str(error))
    assert select(name) is first
    other = select(name, "float64")
    assert other is not first
    assert (other.dtype, first.dtype) == (np.float64, np.float32)

    class Pair(Serial):
        def allgather(self, value):
            return [value, value]

    shared = select(name, comm=Pair())
    assert select(name, comm=Pair()) is shared
    assert getattr(shared, "_ranks", 2) == 2
    assert getattr(first, "_ranks", 1) == 1
    assert select(name) is first


def test_threads_share_one_backend_and_get_the_right_numbers(opencl, problem):
    """A kernel keeps its arguments from when they are set to when it starts: two threads must not mix theirs."""
    model, params, Y = problem
    wanted = [gem.em_step(model, params, Y * (k + 1), backend="numpy")[1].free_energy for k in range(4)]
    found, used = [[] for _ in wanted], set()

    def work(k):
        for _ in range(10):
            used.add(id(select("opencl")))
            found[k].append(gem.em_step(model, params, Y * (k + 1), backend="opencl")[1].free_energy)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used == {id(opencl)}
    for k, value in enumerate(wanted):
        np.testing.assert_allclose(found[k], value, rtol=1e-4)


def test_nothing_is_kept_of_a_call(opencl, problem):
    model, params, Y = problem
    em = gem.EM(model, Y, gem.Annealing(steps=2), params=params, backend="opencl").run()
    gem.posterior(model, params, Y, backend="opencl")
    assert opencl._loads == [1]  # the run has its data still
    del em
    gc.collect()
    assert opencl._loads == [0]
    assert not opencl._spare
    assert not opencl._ones


def test_numpy_keeps_its_threads_and_needs_none_for_a_single_batch():
    backend, who = NumpyBackend("float32", 2), threading.get_ident
    others = {t for _ in range(3) for t in backend.map(lambda _: who(), range(1))}
    assert others == {who()}
    for _ in range(3):
        results = list(backend.map(lambda batch: (batch, who()), range(7)))
        assert [batch for batch, _ in results] == list(range(7))
        others |= {t for _, t in results}
    assert len(others) <= 3
    copied = pickle.loads(pickle.dumps(backend))
    assert (copied.dtype, copied.threads) == (backend.dtype, 2)
    assert list(copied.map(str, range(3))) == ["0", "1", "2"]


def test_numpy_is_at_work_on_no_batch_whose_result_nobody_takes():
    """Else its thread would be in the way of what comes next, or use data that are gone."""
    backend, begun, ended = NumpyBackend("float32", 2), [], []

    def work(batch):
        begun.append(batch)
        time.sleep(0.02)
        ended.append(batch)
        if batch == 1:
            raise ValueError(f"batch {batch}")

    with pytest.raises(ValueError, match="batch 1"):
        list(backend.map(work, range(20)))
    assert sorted(ended) == sorted(begun)
    assert len(begun) < 20
    left = backend.map(work, range(2, 22))
    next(left)
    left.close()
    assert sorted(ended) == sorted(begun)
    assert len(begun) < 30


@pytest.mark.parametrize("ask", ["EM", "em_step", "posterior"])
def test_the_default_is_the_environments_or_auto_everywhere(ask, problem, monkeypatch):
    model, params, Y = problem
    asked = []
    monkeypatch.setattr(gem.backends, "_named", lambda name, *_: asked.append(name) or NumpyBackend("float32"))

    def call():
        if ask == "EM":
            gem.EM(model, Y, gem.Annealing(steps=1), params=params)
        else:
            getattr(gem, ask)(model, params, Y)

    monkeypatch.setenv("GEM_BACKEND", "opencl:7")
    call()
    assert set(asked) == {"opencl:7"}
    asked.clear()
    monkeypatch.delenv("GEM_BACKEND")
    call()
    assert set(asked) == {"auto"}


# ------------------------------------------------------------------------------------------------ when it is opened


def test_devices_are_not_opened_to_be_listed(monkeypatch):
    monkeypatch.setattr(_opencl, "_answer", lambda *_: pytest.fail("a device was opened"))
    try:
        assert _opencl.survey()[0] == _opencl.devices()
    except BackendError as error:
        missing("opencl", str(error))


def test_a_device_that_is_not_used_is_not_opened(monkeypatch):
    vendor, asked = SimpleNamespace(name="Vendor"), []
    bad, good, spare, slow = (
        SimpleNamespace(name=name, type=kind, platform=vendor)
        for name, kind in (("bad", 4), ("good", 4), ("spare", 4), ("Oclgrind Simulator", 6))
    )
    monkeypatch.setattr(_opencl, "survey", lambda: ([bad, good, spare, slow], []))
    monkeypatch.setattr(_opencl, "_import_pyopencl", lambda: None)
    monkeypatch.setattr(_opencl, "_answer", lambda _, one: asked.append(one.name) or ("no" if one is bad else "works"))
    assert _opencl.shared() == [1, 2]
    assert asked == ["bad", "good"]
    assert [_opencl.turn(rank) for rank in range(3)] == [1, 2, 1]
    assert asked == ["bad", "good", "spare"]


def test_what_emulates_a_device_is_taken_where_there_is_no_other(monkeypatch):
    monkeypatch.setattr(
        _opencl, "survey", lambda: ([SimpleNamespace(name="Oclgrind Simulator", type=6, platform=1)], [])
    )
    monkeypatch.setattr(_opencl, "_answer", lambda _, one: "works")
    monkeypatch.setattr(_opencl, "_import_pyopencl", lambda: None)
    assert [_opencl.turn(rank) for rank in range(2)] == [0, 0]


def test_what_emulates_a_device_comes_last_and_never_by_auto(monkeypatch):
    names = ["llvmpipe (LLVM 15.0.6, 256 bits)", "pthread-cpu", "Oclgrind Simulator", "Radeon", "Intel(R) CPU"]
    platforms = ["rusticl", "Portable Computing Language", "Oclgrind", "rusticl", "Intel(R) OpenCL"]
    kinds = [2, 2, 6, 4, 2]
    some = [
        SimpleNamespace(name=n, type=k, platform=SimpleNamespace(name=p, version="3.0"))
        for n, p, k in zip(names, platforms, kinds, strict=True)
    ]
    for one in some:
        one.platform.get_devices = lambda one=one: [one]
    cl = SimpleNamespace(
        Error=OSError, device_type=SimpleNamespace(GPU=4), get_platforms=lambda: [one.platform for one in some]
    )
    monkeypatch.setattr(_opencl, "_import_pyopencl", lambda: cl)
    order = [device.name for device in _opencl.survey.__wrapped__()[0]]
    assert order == ["Radeon", "Intel(R) CPU", "pthread-cpu", "Oclgrind Simulator", "llvmpipe (LLVM 15.0.6, 256 bits)"]
    monkeypatch.setattr(_opencl, "survey", lambda: (some[:1], []))
    monkeypatch.setattr(_cuda, "_import_cupy", lambda: (_ for _ in ()).throw(BackendError("no CuPy")))
    assert select("auto").name == "numpy"
    monkeypatch.setattr(_opencl, "survey", lambda: ([some[0], some[2]], []))
    with pytest.raises(BackendError, match=r"Oclgrind Simulator.*only emulates a device: ask for opencl:1"):
        select("opencl")


# ------------------------------------------------------------------------------------------------ trusted


def test_a_device_that_computes_wrongly_is_refused_by_name_and_by_auto(opencl, monkeypatch):
    real = _opencl.OpenCLBackend.kernel

    def wrong(self, name, **sizes):
        kernel = real(self, name, **sizes)

        def run(N, *arguments):
            kernel(N, *arguments)
            if name == "gram_posterior":
                self.mapped(arguments[9])[0][1] *= 1e30

        return run

    assert _check.differs(opencl) == ""
    monkeypatch.setattr(_opencl.OpenCLBackend, "kernel", wrong)
    monkeypatch.setattr(_opencl, "_answers", {})
    some = _opencl.devices()[:1]
    monkeypatch.setattr(_opencl, "survey", lambda: (some, []))
    monkeypatch.setattr(gem.backends, "_made", {})
    with pytest.raises(BackendError, match=r"it computes wrongly: the log evidence of a small example is .*e\+30 off"):
        select("opencl:0", "float64")
    with pytest.raises(BackendError, match=r"no OpenCL device works .*computes wrongly"):
        select("opencl")
    assert select("auto").name.partition(":")[0] != "opencl"
    assert "computes wrongly" in gem.backends.available()["opencl"]["unavailable"]


# ------------------------------------------------------------------------------------------------ its programs


def test_what_a_program_is_compiled_for_is_in_its_text(opencl, monkeypatch):
    """PyOpenCL's cache, and those of drivers, must not take a program for another: they go by the text."""
    texts = []
    monkeypatch.setattr(_opencl.OpenCLBackend, "_compiled", lambda self, text: texts.append(text) or 1 / 0)

    def text(H=8, dtype="float32", acc=np.float64, schedule=None, features="cl_khr_int64_base_atomics"):
        backend = _opencl.OpenCLBackend(dtype, schedule=schedule)
        backend.acc = np.dtype(acc)
        backend._device = SimpleNamespace(
            extensions=features, local_mem_size=1 << 15, global_mem_size=1 << 30, max_work_group_size=256
        )
        with pytest.raises(ZeroDivisionError):
            backend.kernel("column_sums", H=H)
        return texts[-1]

    variants = [
        text(), text(H=9), text(dtype="float64"), text(acc=np.float32), text(schedule="gpu"), text(features=""),
    ]  # fmt: skip
    assert len(set(variants)) == len(variants)
    assert text() == variants[0]


def test_no_kernel_asks_the_compiler_what_the_device_can_do():
    for name in [*(f"{kernel}.c" for kernel in source.names()), "gem.h"]:
        lines = (source.FOLDER / name).read_text().splitlines()
        assert not [line for line in lines if line.startswith("#if") and "cl_khr" in line], name


# ------------------------------------------------------------------------------------------------ after a fork

FORK = """
import gc, multiprocessing, numpy as np, gem
from gem.models import BSC
m = BSC(D=8, H=6, Hprime=4, gamma=2); Y = np.random.default_rng(0).standard_normal((50, 8)); p = m.init_params(Y)
ours = gem.backends._numpy.NumpyBackend("float32", 2); list(ours.map(str, range(3)))
mine = gem.backends.select("opencl"); em = gem.EM(m, Y, gem.Annealing(steps=3), params=p, backend=mine)
next(iter(em)); mapped = mine.empty((4, 4)); mine.mapped(mapped); wrapped = mine.to_device(Y)
def work(what):
    global mine, em, mapped, wrapped
    try:
        if what == "run":
            em.run()
        elif what == "drop":
            mine = em = mapped = wrapped = None
            gc.collect()
        elif what == "threads":
            return " ".join(ours.map(str, range(3)))
        else:
            gem.em_step(m, p, Y, backend=mine if what == "object" else what)
        return "done"
    except gem.BackendError as error:
        return str(error)
def ask(kind, *whats):
    with multiprocessing.get_context(kind).Pool(1) as pool:
        for what in whats:
            said = pool.apply_async(work, (what,)).get(60)
            print(kind, what, "refused" if "get_context('spawn')" in said and "loky" in said else said)
if __name__ == "__main__":
    ask("fork", "opencl", "opencl:0", "auto", None, "object", "run", "numpy", "threads", "drop")
    ask("spawn", "opencl")
    em.run()
    print("parent", em.step)
"""


@pytest.mark.usefixtures("opencl")
def test_a_worker_that_was_forked_after_opencl_was_used_is_refused(tmp_path):
    """It would wait for ever for threads that are the parent's; what it inherited it may drop, and it may end."""
    script = tmp_path / "fork.py"
    script.write_text(FORK)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines() == [
        *(f"fork {what} refused" for what in ("opencl", "opencl:0", "auto", "None", "object", "run")),
        "fork numpy done",
        "fork threads 0 1 2",
        "fork drop done",
        "spawn opencl done",
        "parent 3",
    ], done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.usefixtures("opencl")
def test_a_worker_that_was_forked_before_may_use_a_device():
    script = """
import os, sys, gem
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.exit(5 if gem.backends.select("opencl").name.startswith("opencl") else 6)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=200, check=False).returncode == 5


def test_import_opens_nothing():
    script = "import sys, gem, gem.backends; print([m for m in ('pyopencl', 'cupy', 'mpi4py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
