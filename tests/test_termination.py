"""SIGTERM: what is done is stored at once, whatever the main thread does; nothing stays behind."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scaling import unlaunched
from gem import EM, Annealing, termination
from gem.models import BSC
from gem.store import read_run
from gem.termination import Termination

pytestmark = pytest.mark.serial


def run(path: Path | None = None, steps: int = 50) -> EM:
    Y = np.random.default_rng(0).standard_normal((100, 6))
    return EM(BSC(D=6, H=3), Y, Annealing(steps=steps), backend="numpy", output=path, checkpoint=1000)


def current() -> tuple[object, int]:
    """The handler and the descriptor of signals."""
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    return signal.getsignal(signal.SIGTERM), descriptor


@pytest.fixture(autouse=True)
def _nothing_stays_behind():
    before = current()
    yield
    gc.collect()
    assert current() == before
    assert not [thread for thread in threading.enumerate() if thread.name == "gem-termination"]


def test_what_is_done_is_stored_while_the_main_thread_computes():
    order = []
    with Termination(lambda: order.append("stored")) as asked:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGTERM]).start()
        hashlib.pbkdf2_hmac("sha256", b"one call", b"of C", 400_000)  # no handler of Python's runs before it is over
        order.append("computed")
        assert asked.is_set()
    assert order == ["stored", "computed"]


def test_steps_done_are_in_the_file_while_a_step_goes_on(tmp_path, monkeypatch):
    stored = []
    step = BSC.maximize

    def slow(model, *arguments):
        if em.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            end = threading.Event()
            for _ in range(400):
                if read_run(tmp_path / "run.h5").step == 4:
                    break
                end.wait(0.01)
            stored.append(read_run(tmp_path / "run.h5").step)
        return step(model, *arguments)

    em = run(tmp_path / "run.h5")
    monkeypatch.setattr(BSC, "maximize", slow)
    em.run()
    assert stored == [4]
    assert (em.step, em.stopped, read_run(tmp_path / "run.h5").step) == (5, True, 5)


def test_a_loop_that_is_stepped_by_hand_leaves_signals_alone_in_between(tmp_path):
    before = current()
    em = run(tmp_path / "run.h5")
    loop = iter(em)
    next(loop)
    assert current() == before
    for _ in loop:
        assert current() != before
        if em.step == 3:
            break
    del loop
    assert current() == before
    assert read_run(tmp_path / "run.h5").step == 3


def test_loops_that_end_in_another_order_leave_nothing(tmp_path):
    before = current()
    first, second = run(tmp_path / "a.h5"), run(tmp_path / "b.h5")
    loops = []
    for em in (first, second):
        loops.append(iter(em))
        for _ in loops[-1]:
            break  # the iterator is kept: it does not know
    loops.pop(0).close()
    loops.pop().close()
    assert current() == before


def test_a_loop_dropped_in_another_thread(tmp_path):
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append("outer"))
    loop = iter(run(tmp_path / "run.h5"))
    for _ in loop:
        break
    dropper = threading.Thread(target=loop.close)
    dropper.start()
    dropper.join()
    os.kill(os.getpid(), signal.SIGTERM)
    assert caught == ["outer"]
    signal.signal(signal.SIGTERM, before)
    signal.set_wakeup_fd(-1)  # only the main thread may


def test_signals_are_passed_on_to_an_event_loop():
    read, write = os.pipe()
    os.set_blocking(write, False)
    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    with Termination(lambda: None):
        os.kill(os.getpid(), signal.SIGTERM)
    assert os.read(read, 1)[0] == signal.SIGTERM
    assert signal.set_wakeup_fd(former) == write
    os.close(read)
    os.close(write)


ABANDONED = """
import os, signal, sys, time
import numpy as np
from gem import EM, Annealing, termination
from gem.models import BSC
termination.PATIENCE = 0.2
Y = np.random.default_rng(0).standard_normal((100, 6))
em = EM(BSC(D=6, H=3), Y, Annealing(steps=50), backend="numpy", output=sys.argv[1], checkpoint=1000)
loop = iter(em)
for _ in loop:
    if em.step == 3:
        {left}
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGTERM  # a forked process has no part in the run
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
"""


@pytest.mark.parametrize("left", ["break", "loop.close(); break"])
def test_an_abandoned_loop_does_not_keep_a_process_alive(tmp_path, left):
    line = [sys.executable, "-W", "ignore", "-c", ABANDONED.format(left=left), str(tmp_path / "run.h5")]
    done = subprocess.run(line, env=unlaunched(), capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert read_run(tmp_path / "run.h5").step == 3


def test_the_body_of_a_loop_is_known_from_a_call_of_next():
    found = []

    def steps():
        for n in range(3):
            found.append(termination._loop_at(sys._getframe().f_back))
            yield n

    for _ in steps():
        assert found[-1].holds(sys._getframe())
    assert not found[-1].holds(sys._getframe())
    for _, _ in zip(range(3), steps(), strict=True):
        assert found[-1].holds(sys._getframe())
    next(steps())
    assert found[-1] is None
    list(steps())
    assert found[-1] is None
