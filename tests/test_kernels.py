"""Every kernel against its numpy twin: both schedules, both precisions, odd sizes. CASES enrols a new one."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import missing

import gem
from gem.backends._numpy import NumpyBackend
from gem.errors import BackendError
from gem.kernels import source
from gem.states import state_table

pytestmark = pytest.mark.serial  # one device at a time: ranks change nothing here
TOLERANCE = {"float64": 1e-10, "float32": 2e-4}
SUMS = 9  # the argument of mixture with a row for each group


@dataclass
class Case:
    """A call of a kernel: `out` names the positions of the arguments it writes."""

    N: int
    arguments: list[Any]
    out: tuple[int, ...]
    constants: dict[str, int] = field(default_factory=dict)
    states: Any = None


def squared_norms(rng, N, D):
    return Case(N, [rng.standard_normal((N, D)), np.zeros(N)], (1,), {"D": D})


def preselect(rng, N, H, Hprime, V):
    b = np.round(rng.standard_normal((N, H)), 1)  # rounded: many scores are equal
    b[rng.random((N, H)) < 0.1] = -np.inf
    slope, offset = np.ones((V, H)), rng.integers(0, 2, (V, H)).astype(float)
    constants = {"H": H, "HPRIME": Hprime, "VALUES": V}
    return Case(N, [b, slope, offset, np.zeros((N, Hprime), np.int32)], (3,), constants)


def gram_posterior(rng, N, H, Hprime, gamma, T):
    W = rng.standard_normal((2 * H, H))
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    b = 3 * rng.standard_normal((N, H))
    pairs = np.zeros((N, Hprime * (Hprime - 1) // 2))
    shift = 0.0 if T == 1 else 0.3
    arguments = [b, W.T @ W / 4, rng.uniform(0.5, 1, H), rng.standard_normal(H) - 1, candidates, 1 / T, shift]
    constants = {"H": H, "HPRIME": Hprime, "GAMMA": gamma, "ANNEAL": int(T != 1)}
    return Case(N, [*arguments, np.zeros(N), pairs], (0, 7, 8), constants, state_table(Hprime, gamma))


def pair_sums(rng, N, H, Hprime):
    candidates = np.sort(np.argsort(rng.random((N, H)), axis=1)[:, :Hprime], axis=1).astype(np.int32)
    pairs = rng.random((N, Hprime * (Hprime - 1) // 2))
    weights = (rng.random(N) < 0.7).astype(float)
    return Case(N, [candidates, pairs, weights, np.zeros((H, H), np.int64)], (3,), {"H": H, "HPRIME": Hprime})


def scale_rows(rng, N, H):
    return Case(N, [rng.standard_normal((N, H)), (rng.random(N) < 0.5).astype(float)], (0,), {"H": H})


def mixture(rng, N, D, K, covariance, T, mean=0.0):
    mu = mean + 2 * rng.standard_normal((K, D))
    Y = mu[rng.integers(K, size=N)] + rng.standard_normal((N, D))
    root = rng.standard_normal((K, D, D)) / np.sqrt(D)
    full = root @ np.swapaxes(root, 1, 2) + 0.5 * np.eye(D)
    precision = [rng.uniform(0.5, 2, (K, D)), full, full[0]][covariance]
    shift = np.zeros(K) if T == 1 else rng.standard_normal(K) / 5
    weights = (rng.random(N) < 0.8).astype(float)
    sums = np.zeros((1, K + K * D + precision.size))
    arguments = [Y, mu, precision, rng.standard_normal(K), 1 / T, shift, weights, np.zeros(N), np.zeros((N, K)), sums]
    return Case(N, arguments, (7, 8, 9), {"D": D, "K": K, "COVARIANCE": covariance, "STORE": 1})


CASES = {
    "squared_norms": [(squared_norms, a) for a in ((1, 1), (37, 20), (130, 33))],
    "preselect": [
        (preselect, a) for a in ((1, 1, 1, 1), (37, 30, 8, 1), (50, 33, 5, 3), (9, 300, 12, 1), (5, 32, 32, 2))
    ],
    "gram_posterior": [
        (gram_posterior, (*a, T))
        for a in ((1, 1, 1, 1), (37, 30, 8, 5), (50, 33, 5, 4), (7, 8, 8, 1), (12, 40, 12, 3), (4, 40, 32, 2))
        for T in (1.0, 2.5)
    ],
    "pair_sums": [(pair_sums, a) for a in ((1, 2, 2), (37, 30, 8), (300, 10, 5))],
    "scale_rows": [(scale_rows, a) for a in ((1, 1), (37, 30))],
    "mixture": [
        (mixture, a)
        for a in ((1, 1, 1, 0, 1.0), (37, 20, 5, 0, 1.0), (100, 3, 50, 0, 2.0), (50, 7, 4, 1, 1.0), (60, 17, 3, 2, 2.0))
    ],
}


def test_every_kernel_has_a_twin_and_a_case():
    assert source.names() == sorted(CASES)
    for name in source.names():
        assert callable(getattr(source.twin(name), name))


def devices():
    """Backends whose kernels are compiled: OpenCL in both schedules; CUDA under CuPy on the CPU, or on a GPU."""
    yield "opencl-vectors"
    yield "opencl-items"
    if "CUSHIM_ORDER" in os.environ:
        yield "cuda"
    else:
        yield pytest.param("cuda", marks=pytest.mark.gpu)


def device(kind, dtype):
    try:
        if kind == "cuda":
            return gem.backends.select("cuda", dtype)
        from gem.backends._opencl import OpenCLBackend

        return OpenCLBackend(dtype, vectors=kind == "opencl-vectors")
    except BackendError as error:
        missing(kind.partition("-")[0], str(error))


def run(backend, name, case, dtype):
    """What the kernel leaves in its output arguments; group sums added up."""
    kernel = backend.kernel(name, states=case.states, **case.constants)
    arguments = []
    for position, argument in enumerate(case.arguments):
        if not isinstance(argument, np.ndarray):
            arguments.append(argument)
        elif name == "mixture" and position == SUMS:
            arguments.append(backend.empty((kernel.groups(case.N), argument.shape[1]), backend.acc))
        else:
            arguments.append(
                backend.to_device(argument.astype(dtype) if argument.dtype.kind == "f" else argument.copy())
            )
    with np.errstate(all="ignore"):
        kernel(case.N, *arguments)
    out = [backend.to_host(arguments[position]) for position in case.out]
    return [o.sum(axis=0) if name == "mixture" and p == SUMS else o for o, p in zip(out, case.out, strict=True)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", list(devices()))
@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, cases in CASES.items() for n in range(len(cases))], ids=str
)
def test_parity(name, number, kind, dtype):
    make, arguments = CASES[name][number]
    backend = device(kind, dtype)
    case = make(np.random.default_rng(number), *arguments)
    found, wanted = (run(b, name, case, dtype) for b in (backend, NumpyBackend(dtype)))
    for f, w in zip(found, wanted, strict=True):
        if w.dtype.kind == "i":
            np.testing.assert_allclose(f, w, rtol=0, atol=0 if name == "preselect" else 2**40 * TOLERANCE[dtype])
        else:
            scale = max(1.0, float(np.abs(w).max(initial=0)))
            np.testing.assert_allclose(f, w, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("kind", list(devices()))
def test_the_same_bits_on_every_run(kind):
    make, arguments = CASES["pair_sums"][2]
    backend = device(kind, "float32")
    case = make(np.random.default_rng(3), *arguments)
    first = run(backend, "pair_sums", case, "float32")[0]
    for _ in range(5):
        np.testing.assert_array_equal(run(backend, "pair_sums", case, "float32")[0], first)


@pytest.mark.parametrize("kind", list(devices()))
def test_a_kernel_that_does_not_build_names_file_and_line(kind, monkeypatch, tmp_path):
    backend = device(kind, "float32")
    for name in ("gem.h", "scale_rows.c"):
        (tmp_path / name).write_text((source.FOLDER / name).read_text())
    text = (
        (tmp_path / "scale_rows.c")
        .read_text()
        .replace("const real weight = weights[n];", "const real weight = nothing;")
    )
    (tmp_path / "scale_rows.c").write_text(text)
    line = next(n for n, t in enumerate(text.splitlines(), 1) if "nothing" in t)
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    with pytest.raises(BackendError, match=rf"scale_rows\.c[:(]{line}[:)]?(.|\n)*nothing"):
        backend.kernel("scale_rows", H=4)


@pytest.mark.parametrize("kind", list(devices()))
def test_an_array_of_another_backend_is_refused(kind):
    kernel = device(kind, "float32").kernel("scale_rows", H=4)
    with pytest.raises(BackendError, match="argument 0 of kernel scale_rows"):
        kernel(3, np.zeros((3, 4), np.float32), np.ones(3, np.float32))


def test_tables_of_states_in_c():
    text = source.state_constants(state_table(4, 3))
    values = {
        line.split("[]")[0].split()[-1]: [int(x.rstrip("u"), 0) for x in line.split("{")[1].split("}")[0].split(",")]
        for line in text.splitlines()[1:]
    }
    masks, parents, levels = values["STATE_MASK"], values["STATE_PARENT"], values["STATE_LEVEL"]
    assert text.startswith(f"#define STATES {len(masks)}\n")
    assert sorted(masks) == [m for m in range(16) if m != 15]
    assert levels == [0, 1, 5, 11, 15]
    for s in range(1, len(masks)):
        assert masks[parents[s]] == masks[s] & ~(1 << (masks[s].bit_length() - 1))


@pytest.mark.parametrize("how", ["fwd", "rand", "ubsan"])
def test_cuda_branch_runs_on_the_host(how):
    """Rungs 3 and 4: kernels, golden vectors and the backend's own tests under CuPy on the CPU."""
    from cupy_on_cpu import build as harness

    try:
        interpreter, environment = harness.build(), harness.env()
    except harness.BuildError as error:
        missing("cuda", str(error))
    chosen = ["tests/test_kernels.py"]
    wanted = "cuda and not host"
    if how == "fwd":
        chosen += ["tests/test_devices.py", "tests/test_golden.py"]
    if how == "ubsan":
        wanted += " and parity and float64"
        environment["FAKECUDA_CXXFLAGS"] = "-O1 -fsanitize=undefined"
    environment |= {"CUSHIM_ORDER": "rand" if how == "rand" else "fwd", "GEM_REQUIRE": "cuda"}
    done = subprocess.run(
        [interpreter, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-k", wanted, *chosen],
        env={**os.environ, **environment},
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-500:]
    assert "runtime error" not in done.stderr, done.stderr[-2000:]
