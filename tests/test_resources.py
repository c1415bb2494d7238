"""The table of registers, spills and occupancy: read from NVRTC for architectures that are not here."""

from __future__ import annotations

import os
from itertools import product

import pytest

from gem.errors import BackendError, ConfigError
from gem.kernels import resources as module
from gem.kernels import source
from gem.kernels.__main__ import EXAMPLES, FRAGMENTS, PAIR, check, main, poor, variants
from gem.kernels.resources import Resources, compile_cubin, occupancy, resources, table

REVERSE = r"""
extern "C" __global__ void reverse(float* x) {
    __shared__ float s[128];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = s[127 - threadIdx.x];
}
"""

# 64 values per thread live through the loop; 1024 threads share 65536 registers, so 64 remain for all there is.
CROWDED = r"""
extern "C" __global__ void __launch_bounds__(1024) crowded(float* x, int n) {
    float a[64];
    for (int i = 0; i < 64; i++) a[i] = x[i * n];
    for (int j = 0; j < n; j++)
        for (int i = 0; i < 64; i++) a[i] = a[i] * a[(i + 17) % 64] + x[j];
    for (int i = 0; i < 64; i++) x[i] = a[i];
}
"""


@pytest.fixture
def nvrtc():
    try:
        module._nvrtc()
    except BackendError as error:
        if "cuda" in os.environ.get("GEM_REQUIRE", "").split(","):
            pytest.fail(f"GEM_REQUIRE asks for cuda: {error}")
        pytest.skip(str(error))


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_a_small_kernel_is_counted(arch):
    (record,) = resources(REVERSE, arch)
    assert (record.kernel, record.arch, record.shared, record.barriers) == ("reverse", arch, 512, 1)
    assert 0 < record.registers <= 32
    assert record.spill_stores == record.spill_loads == record.stack == 0
    assert occupancy(record, arch, block=128) == 1.0


@pytest.mark.usefixtures("nvrtc")
def test_a_spilling_kernel_is_seen():
    reverse, crowded = reversed(resources(CROWDED + REVERSE, "sm_86"))
    assert crowded.kernel == "crowded"
    assert crowded.registers <= 64
    assert crowded.spill_stores > 0
    assert crowded.spill_loads > 0
    assert crowded.stack > 0
    assert reverse.spill_stores == 0


@pytest.mark.usefixtures("nvrtc")
def test_options_reach_the_compiler_and_the_result_is_machine_code():
    cubin = compile_cubin("#if H != 8\n#error H\n#endif\n" + REVERSE, "reverse.c", "sm_90", ["-DH=8"])
    assert cubin.startswith(b"\x7fELF")
    assert b"reverse" in cubin


@pytest.mark.usefixtures("nvrtc")
def test_a_compile_error_keeps_the_file_and_line_of_the_source():
    source = '#line 7 "kernels/foo.c"\nextern "C" __global__ void k(float* x) { x[0] = nothing; }\n'
    with pytest.raises(BackendError, match=r'kernels/foo\.c\(7\): error: identifier "nothing"'):
        compile_cubin(source, "joined.cu", "sm_90")
    with pytest.raises(BackendError, match=r"bare\.cu\(1\): error"):
        compile_cubin(source.splitlines()[1], "bare.cu", "sm_90")


@pytest.mark.usefixtures("nvrtc")
def test_an_unknown_architecture_and_a_source_without_kernels_are_refused():
    with pytest.raises(BackendError, match=r"sm_10[\s\S]*gpu-architecture"):
        resources(REVERSE, "sm_10")
    with pytest.raises(BackendError, match="no kernel"):
        resources("__device__ int f() { return 1; }", "sm_90")


def test_without_the_wheel_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    module._nvrtc.cache_clear()
    with pytest.raises(BackendError, match="pip install nvidia-cuda-nvrtc"):
        resources(REVERSE, "sm_90")


def test_the_assemblers_report_is_read_number_by_number():
    log = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_75'
ptxas info    : Function properties for b
ptxas         .     24 bytes stack frame, 32 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 64 registers, used 2 barriers, 512 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 15.694 ms
ptxas info    : Compiling entry function 'a' for 'sm_75'
ptxas info    : Function properties for a
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, 360 bytes cmem[0]
"""
    assert module._parse(log, "sm_75") == [
        Resources("a", "sm_75", 10, 0, 0, 0, 0, 0),
        Resources("b", "sm_75", 64, 24, 32, 36, 512, 2),
    ]


# Resident blocks from NVIDIA's own calculator, cuda_occupancy.h of CUDA 13.
@pytest.mark.parametrize(
    ("arch", "registers", "block", "shared", "blocks", "warps"),
    [
        ("sm_75", 64, 128, 16384, 4, 32),  # shared memory
        ("sm_80", 255, 384, 0, 0, 64),  # 12 warps cannot have 255 registers
        ("sm_86", 96, 160, 100, 4, 48),  # registers
        ("sm_89", 24, 32, 100, 24, 48),  # the number of blocks
        ("sm_89", 24, 64, 10000, 9, 48),
        ("sm_90", 40, 96, 10000, 16, 64),
        ("sm_90", 129, 256, 10000, 1, 64),  # registers, in quarters of the multiprocessor
        ("sm_120", 33, 1000, 1024, 1, 48),  # a partial warp counts as one
    ],
)
def test_occupancy_is_that_of_the_calculator(arch, registers, block, shared, blocks, warps):
    record = Resources("k", arch, registers, 0, 0, 0, shared, 0)
    assert occupancy(record, arch, block) == blocks * -(-block // 32) / warps


def test_dynamic_shared_memory_counts_and_has_a_limit():
    record = Resources("k", "sm_90", 32, 0, 0, 0, 0, 0)
    assert occupancy(record, "sm_90", 128, dynamic_shared=227 * 1024) == 4 / 64
    assert occupancy(record, "sm_90", 128, dynamic_shared=227 * 1024 + 1) == 0


def test_occupancy_refuses_what_it_cannot_know():
    record = Resources("k", "sm_90", 32, 0, 0, 0, 0, 0)
    with pytest.raises(ConfigError, match="sm_33"):
        occupancy(record, "sm_33", 128)
    with pytest.raises(ConfigError, match="2048"):
        occupancy(record, "sm_90", 2048)


def test_the_table_has_a_row_per_record():
    lines = table([Resources("k", "sm_90", 64, 8, 4, 4, 512, 1)], block=256).splitlines()
    assert lines[0].split()[:3] == ["kernel", "arch", "registers"]
    assert lines[1].split() == ["k", "sm_90", "64", "8", "4", "4", "512", "1", "50%"]


def architectures(name):
    """What each variant of a kernel is compiled for: the example for all, others for two; where there are many, for one
    of these in turn once each of its values has met both (`python -m gem.kernels --check` compiles all for both)."""
    met, many = set(), len(variants(name)) > 6
    for number, sizes in enumerate(variants(name)):
        values = {**EXAMPLES[name], **sizes}.items()
        new = [arch for arch in PAIR if any((value, arch) not in met for value in values)]
        wanted = module.ARCHITECTURES if not sizes else PAIR if not many else new or [PAIR[number % 2]]
        met.update(product(values, wanted))
        yield sizes, wanted


@pytest.mark.long
@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("name", source.names())
def test_our_kernels_spill_nothing_and_leave_half_the_threads(name):
    """Rung 2, in float32."""
    for sizes, wanted in architectures(name):
        for record, block in check(name, 32, sizes, wanted):
            assert not poor(record, block), (record, sizes)


@pytest.mark.parametrize("name", source.names())
def test_every_value_of_a_size_meets_two_architectures(name):
    met = {}
    for sizes, wanted in architectures(name):
        for value in {**EXAMPLES[name], **sizes}.items():
            met.setdefault(value, set()).update(wanted)
    assert all(met[value] >= set(PAIR) for value in met), met


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("name", source.names())
def test_our_kernels_compile_in_float64(name):
    assert check(name, 64, variants(name)[-1] if name == "causes" else {}, ("sm_90",))


def test_what_a_kernel_has_variants_of():
    there = {path.stem for path in (source.FOLDER / "fragments").glob("*.h")}
    assert {name for some in FRAGMENTS.values() for both in some for name in both.split("+")} == there
    for name, some in FRAGMENTS.items():
        assert {v.get("fragment", some[0]) for v in variants(name)} == set(some)
    for name, sizes in EXAMPLES.items():
        assert all(set(v) <= {*sizes, "fragment"} for v in variants(name)), name
    flags = {"ANNEAL", "MISSING", "MASKED", "STORE", "STATS", "RECONSTRUCT", "MOVE", "COSINE", "LARGE"}
    for name, sizes in EXAMPLES.items():  # every flag is compiled on and off
        for flag in flags & set(sizes):
            assert {v.get(flag, sizes[flag]) for v in variants(name)} == {0, 1}, (name, flag)
    assert {v.get("STAGES", EXAMPLES["mixture"]["STAGES"]) for v in variants("mixture")} == {1, 2, 4, 8}


def run_tool(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["gem.kernels", *arguments])
    status = main()
    return status, capsys.readouterr().out


def test_the_tool_lists_and_shows(monkeypatch, capsys):
    status, out = run_tool(monkeypatch, capsys)
    assert status == 0
    assert all(f"kernels/{name}.py" in out and f"-k {name}" in out for name in source.names())
    status, out = run_tool(monkeypatch, capsys, "--show", "gram_posterior", "--define", "HPRIME=12", "--real", "64")
    assert status == 0
    assert "#define HPRIME 12\n" in out
    assert "#define GEM_REAL 64\n" in out
    assert '#line 1 "kernels/gram_posterior.c"' in out


@pytest.mark.usefixtures("nvrtc")
def test_the_tool_compiles_variants_and_both_types(monkeypatch, capsys):
    status, out = run_tool(monkeypatch, capsys, "--check", "spike_slab_scores")
    assert status == 0
    assert all(arch in out for arch in module.ARCHITECTURES)
    assert "float32 MASKED=1: " in out
    assert "float64 MASKED=1: " in out
    monkeypatch.setattr(module, "ARCHITECTURES", ("sm_90",))
    _, out = run_tool(monkeypatch, capsys, "--check", "squared_norms", "--real", "32", "--define", "D=64")
    assert "'D': 64" in out
    assert "float64" not in out


@pytest.mark.parametrize("arguments", [("--define", "HPRIM=12"), ("--show", "lasso", "--define", "HPRIME=12")])
def test_a_size_that_no_kernel_has_is_refused(monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, capsys, *arguments)
    assert f"--define {arguments[-1][:-3]}: no kernel here has this size; there are " in capsys.readouterr().err
