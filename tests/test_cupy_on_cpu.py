"""The CPU build of CuPy catches what it is there to catch; each script runs in its interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cupy_on_cpu import build as harness

Run = Callable[..., subprocess.CompletedProcess[str]]

PREAMBLE = """
import json
import numpy as np
import cupy

def launch(source, name, block, *arguments, grid=1, options=(), shared=0):
    module = cupy.RawModule(code=source, options=options)
    module.get_function(name)((grid,), (block,), arguments, shared_mem=shared)
"""


@pytest.fixture(scope="module")
def run() -> Run:
    try:
        interpreter = harness.build()
    except harness.BuildError as error:
        if "cuda" in os.environ.get("GEM_REQUIRE", "").split(","):
            pytest.fail(f"GEM_REQUIRE asks for cuda: {error}")
        pytest.skip(f"no CuPy on the CPU: {error}")

    def run_script(script: str, check: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **harness.env(), **settings}
        command = [str(interpreter), "-c", PREAMBLE + script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run_script


SUM = r"""
extern "C" __global__ void block_sum(const float* x, float* y) {
    __shared__ float s[128];
    const int i = threadIdx.x;
    s[i] = x[i];
    __syncthreads();
    for (int half = 64; half > 0; half /= 2) {
        if (i < half) s[i] += s[i + half];
        BARRIER;
    }
    if (i == 0) y[0] = s[0];
}
"""


@pytest.mark.parametrize("order", ["fwd", "rand"])
def test_a_missing_barrier_changes_the_sum(run, order):
    done = run(
        f"""
x, sums = cupy.arange(128, dtype=np.float32), []
for barrier in ("__syncthreads()", "(void)0"):
    y = cupy.empty(1, np.float32)
    launch({SUM!r}, "block_sum", 128, x, y, options=(f"-DBARRIER={{barrier}}",))
    sums.append(float(y[0]))
print(json.dumps(sums))
""",
        CUSHIM_ORDER=order,
    )
    intact, broken = json.loads(done.stdout)
    assert intact == sum(range(128))
    assert broken != intact


DIVERGENT = r"""
extern "C" __global__ void divergent() {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
}
"""


def test_a_divergent_barrier_is_reported_and_aborts_when_strict(run):
    script = f'launch({DIVERGENT!r}, "divergent", 64)'
    lenient = run(script)
    strict = run(script, check=False, CUSHIM_STRICT="1")
    assert "barrier divergence" in lenient.stderr
    assert "barrier divergence (block 0: 64 waiting, 0 exited, at different barriers)" in strict.stderr
    assert strict.returncode == -signal.SIGABRT


OUT_OF_RANGE = r"""
#line 7 "kernels/shift.c"
extern "C" __global__ void shift(float* y) {
    __shared__ float s[32];
    s[threadIdx.x + OFFSET] = 1;
    y[threadIdx.x] = s[threadIdx.x + OFFSET];
}
"""


def test_a_shared_index_out_of_range_is_reported_with_its_line(run):
    script = """
for offset in {offsets}:
    launch({source!r}, "shift", 32, cupy.empty(32, np.float32), options=(f"-DOFFSET={{offset}}",))
"""
    sanitized = {"FAKECUDA_CXXFLAGS": "-O1 -fsanitize=undefined"}
    # Without the sanitizer first: CuPy's cache must not serve that build to the second run.
    plain = run(script.format(offsets=(0, 1), source=OUT_OF_RANGE))
    good = run(script.format(offsets=(0,), source=OUT_OF_RANGE), **sanitized)
    bad = run(script.format(offsets=(1,), source=OUT_OF_RANGE), **sanitized)
    assert "runtime error" not in plain.stderr + good.stderr
    assert "kernels/shift.c:9" in bad.stderr
    assert "index 32 out of bounds" in bad.stderr


FRESH = r"""
extern "C" __global__ void fresh(float* y) {
    __shared__ float fixed[1];
    extern __shared__ float asked_for[];
    y[2 * blockIdx.x] = fixed[0];
    y[2 * blockIdx.x + 1] = asked_for[0];
    fixed[0] = asked_for[0] = 1;
}
"""


def test_fresh_memory_is_nan(run):
    done = run(
        f"""
y = cupy.zeros(4, np.float32)
launch({FRESH!r}, "fresh", 1, y, grid=2, shared=4)
print(json.dumps([
    bool(np.isnan(cupy.empty(1000, np.float32).get()).all()),
    bool(np.isnan(cupy.empty(1000, np.float64).get()).all()),
    np.isnan(y.get()).tolist(),
]))
"""
    )
    assert json.loads(done.stdout) == [True, True, [True] * 4]


COUNT = r"""
extern "C" __global__ void count(unsigned long long* y) { atomicAdd(y, 1ull << 33); }
"""


def test_64_bit_atomics_count_every_thread(run):
    done = run(
        f"""
y = cupy.zeros(1, np.int64)
launch({COUNT!r}, "count", 96, y, grid=5)
print(int(y[0]))
"""
    )
    assert int(done.stdout) == 96 * 5 * 2**33


def test_two_devices_each_run_out_of_memory(run):
    done = run(
        """
free = []
for device in (0, 1):
    with cupy.cuda.Device(device):
        kept = cupy.full(1000, device, np.float32)
        try:
            two_thirds_twice = [cupy.empty(42 << 20, np.uint8) for _ in range(2)]
        except cupy.cuda.memory.OutOfMemoryError:
            free.append(cupy.cuda.runtime.memGetInfo()[1])
        assert kept.device.id == device and (kept.get() == device).all()
try:
    cupy.cuda.Device(2).use()
except cupy.cuda.runtime.CUDARuntimeError as error:
    free.append(str(error).split(":")[0])
print(json.dumps([cupy.cuda.runtime.getDeviceCount(), *free]))
""",
        FAKECUDA_NDEV="2",
        FAKECUDA_MEMORY=str(64 << 20),
    )
    assert json.loads(done.stdout) == [2, 64 << 20, 64 << 20, "cudaErrorInvalidDevice"]


LANES = r"""
extern "C" __global__ void lanes(double* y) {
    T sum = threadIdx.x;
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    y[threadIdx.x] = sum;
}
extern "C" __global__ void stuck() {
    if (threadIdx.x < 3) __shfl_sync(0xffffffffu, 1, 0);
}
extern "C" __global__ void deep(float* y) {
    volatile float a[40000];
    for (int i = 0; i < 40000; i++) a[i] = i;
    y[0] = a[1];
}
"""


def test_warps_exchange_values_and_the_names_of_macros_are_free(run):
    done = run(
        f"""
y = cupy.empty(32)
launch({LANES!r}, "lanes", 32, y, options=("-DT=double", "-DD=3", "-DI=4", "-DA=5"))
print(json.dumps(y.tolist()))
"""
    )
    assert json.loads(done.stdout) == [sum(range(32))] * 32


@pytest.mark.parametrize(("kernel", "message"), [("stuck", "deadlock"), ("deep", "stack overflowed")])
def test_what_cannot_go_on_aborts_with_its_reason(run, kernel, message):
    arguments = ", cupy.empty(1, np.float32)" if kernel == "deep" else ""
    done = run(f'launch({LANES!r}, "{kernel}", 32{arguments}, options=("-DT=float",))', check=False)
    assert done.returncode == -signal.SIGABRT
    assert message in done.stderr


def test_launches_and_sources_that_a_gpu_refuses_are_refused(run):
    done = run(
        f"""
errors = []
def refused(action):
    try:
        action()
    except Exception as error:
        errors.append(str(error))
    else:
        errors.append("accepted")

y = cupy.empty(4, np.float32)
refused(lambda: launch({FRESH!r}, "fresh", 2048, y))
refused(lambda: launch({FRESH!r}, "fresh", 1, y, shared=48 * 1024 + 4))
refused(lambda: launch('#line 42 "kernels/foo.c"\\nextern "C" __global__ void k() {{ nothing; }}', "k", 1))
refused(lambda: cupy.random.default_rng(0).random(3))
print(json.dumps(errors))
"""
    )
    block, shared, compiled, generator = json.loads(done.stdout)
    assert "CUDA_ERROR_INVALID_VALUE" in block
    assert "CUDA_ERROR_INVALID_VALUE" in shared
    assert "kernels/foo.c:42" in compiled
    assert "draw on the host" in generator


def test_products_and_reductions_of_the_library_are_right_and_gem_is_importable(run):
    done = run(
        """
import gem.errors, gem.kernels
rng = np.random.default_rng(0)
a, b = rng.normal(size=(20, 30)), rng.normal(size=(30, 5))
A, B = cupy.asarray(a), cupy.asarray(b)
for got, wanted in [
    (A @ B, a @ b), (A.T @ A, a.T @ a), (A[::2, 3:20] @ B[3:20], a[::2, 3:20] @ b[3:20]),
    (cupy.matmul(A, B, out=cupy.empty((20, 5))), a @ b), (A @ B[:, 0], a @ b[:, 0]),
    (A.sum(axis=0), a.sum(axis=0)), (cupy.exp(A), np.exp(a)),
]:
    np.testing.assert_allclose(got.get(), wanted, rtol=1e-12)
np.testing.assert_allclose((A.astype("f4") @ B.astype("f4")).get(), a @ b, rtol=1e-4, atol=1e-5)
"""
    )
    assert done.returncode == 0


def test_an_interrupted_build_is_begun_anew(monkeypatch, tmp_path):
    seen = []

    def build_in(prefix: Path) -> None:
        seen.append(prefix.exists())
        prefix.mkdir()
        if len(seen) == 1:
            raise harness.BuildError("interrupted")

    monkeypatch.setattr(harness, "_build_in", build_in)
    monkeypatch.setattr(harness, "_run", lambda *command, **options: "")
    with pytest.raises(harness.BuildError, match="interrupted"):
        harness.build(tmp_path)
    interpreter = harness.build(tmp_path)
    assert harness.build(tmp_path) == interpreter
    assert seen == [False, False]  # what the first left was removed; the third call built nothing


def test_a_missing_compiler_and_a_failed_step_are_named(monkeypatch, tmp_path):
    with pytest.raises(harness.BuildError, match=r"failed: ls /does/not/exist\n.*No such file"):
        harness._run("ls", "/does/not/exist")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(harness.BuildError, match=r"g\+\+ is not on the PATH: install it"):
        harness.build(tmp_path)
