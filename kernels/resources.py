"""What a CUDA kernel takes of a multiprocessor: registers, spills, shared memory, and the occupancy they allow.

NVRTC compiles for any architecture on a machine without a GPU or a driver, and its assembler reports the resources:

    python -m gem.kernels.resources kernel.cu sm_75 sm_90
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gem.errors import BackendError, ConfigError
from gem.extras import install_hint

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class Resources:
    """What one kernel needs on one architecture; memory in bytes.

    `registers`, `stack` and the spills are per thread, `shared` (static) and `barriers` per block.
    """

    kernel: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    barriers: int


class _Multiprocessor(NamedTuple):
    warps: int
    blocks: int
    shared: int
    shared_reserved: int  # taken by the system from every block
    shared_unit: int


# "Technical Specifications per Compute Capability", CUDA C++ Programming Guide 13; the units of allocation are
# those of NVIDIA's occupancy calculator (cuda_occupancy.h).
_KIB = 1024
_LIMITS = {
    "75": _Multiprocessor(32, 16, 64 * _KIB, 0, 256),
    "80": _Multiprocessor(64, 32, 164 * _KIB, _KIB, 128),
    "86": _Multiprocessor(48, 16, 100 * _KIB, _KIB, 128),
    "87": _Multiprocessor(48, 16, 164 * _KIB, _KIB, 128),
    "89": _Multiprocessor(48, 24, 100 * _KIB, _KIB, 128),
    "90": _Multiprocessor(64, 32, 228 * _KIB, _KIB, 128),
    "100": _Multiprocessor(64, 32, 228 * _KIB, _KIB, 128),
    "103": _Multiprocessor(64, 32, 228 * _KIB, _KIB, 128),
    "120": _Multiprocessor(48, 24, 100 * _KIB, _KIB, 128),
    "121": _Multiprocessor(48, 24, 100 * _KIB, _KIB, 128),
}
_WARP = 32
_MAX_BLOCK = 1024
_REGISTERS = 65536  # of a multiprocessor, and of a block at most
_REGISTER_UNIT = 256  # a warp's registers are given out in multiples of this
_SUB_PARTITIONS = 4  # each with a quarter of the registers, for its own warps

# As the assembler writes them, one block of lines per kernel.
_KERNEL = re.compile(r"Compiling entry function '(\w+)' for '\w+'\n(.*?)(?=ptxas info\s*: Compiling|\Z)", re.DOTALL)
_AMOUNTS = {
    "registers": re.compile(r"Used (\d+) registers"),
    "stack": re.compile(r"(\d+) bytes stack frame"),
    "spill_stores": re.compile(r"(\d+) bytes spill stores"),
    "spill_loads": re.compile(r"(\d+) bytes spill loads"),
    "shared": re.compile(r"(\d+) bytes smem"),
    "barriers": re.compile(r"used (\d+) barriers"),
}


def compile_cubin(source: str, name: str, arch: str, options: Sequence[str] = ()) -> bytes:
    """Compile CUDA C++ to the machine code of one architecture.

    Parameters
    ----------
    source : str
        The source text; ``#line`` in it is honoured by messages.
    name : str
        What messages call the source where no ``#line`` says otherwise.
    arch : str
        For example ``"sm_90"``.
    options : sequence of str
        Further options of NVRTC, such as ``"-DH=8"``.

    Raises
    ------
    BackendError
        If NVRTC is not installed, does not know the architecture, or refuses the source: its log, with the file and
        line of every error, is the message.
    """
    return _compile(source, name, arch, options)[0]


def resources(source: str, arch: str, options: Sequence[str] = (), name: str = "kernel.cu") -> list[Resources]:
    """Return the resources of every kernel of a source, by name; parameters and errors as in `compile_cubin`."""
    log = _compile(source, name, arch, [*options, "--ptxas-options=-v"])[1]
    records = _parse(log, arch)
    if not records:
        raise BackendError(f"{name}: NVRTC reports no kernel for {arch}; is there a __global__ function?\n{log}")
    return records


def occupancy(record: Resources, arch: str, block: int, dynamic_shared: int = 0) -> float:
    """Return the fraction of a multiprocessor's warps that a kernel keeps resident.

    Parameters
    ----------
    record : Resources
        From `resources`, for the same architecture.
    arch : str
        One of the architectures with known limits, such as ``"sm_90"``.
    block : int
        Threads per block.
    dynamic_shared : int
        Bytes of shared memory per block asked for at the launch.

    Returns
    -------
    float
        In [0, 1]; 0 where a block does not fit at all.

    Raises
    ------
    ConfigError
        If the architecture has no known limits or a block cannot have that many threads.
    """
    limits = _LIMITS.get(arch.removeprefix("sm_").rstrip("af"))
    if limits is None:
        known = ", ".join(f"sm_{key}" for key in _LIMITS)
        raise ConfigError(f"occupancy: no limits are known for {arch!r}; known are {known}")
    if not 1 <= block <= _MAX_BLOCK:
        raise ConfigError(f"occupancy: a block has 1 to {_MAX_BLOCK} threads, not {block}")
    warps = -(-block // _WARP)
    blocks = min(
        limits.blocks,
        limits.warps // warps,
        _blocks_by_registers(record.registers, warps),
        _blocks_by_shared(record.shared + dynamic_shared, limits),
    )
    return blocks * warps / limits.warps


def table(records: Sequence[Resources], block: int) -> str:
    """Return the records as an aligned text table, with the occupancy of blocks of `block` threads."""
    head = [*(field.name for field in fields(Resources)), f"occupancy({block})"]
    rows = [[*map(str, astuple(r)), f"{occupancy(r, r.arch, block):.0%}"] for r in records]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows])
    return "\n".join(line.rstrip() for line in lines)


def _blocks_by_registers(registers: int, warps: int) -> int:
    per_warp = _round_up(registers * _WARP, _REGISTER_UNIT)
    if not per_warp:
        return sys.maxsize
    # The warps of a block are dealt out to the sub-partitions, so a block needs room for a multiple of four.
    if per_warp * _round_up(warps, _SUB_PARTITIONS) > _REGISTERS:
        return 0
    resident = _REGISTERS // _SUB_PARTITIONS // per_warp * _SUB_PARTITIONS
    return resident // warps


def _blocks_by_shared(shared: int, limits: _Multiprocessor) -> int:
    per_block = _round_up(shared + limits.shared_reserved, limits.shared_unit)
    return limits.shared // per_block if per_block else sys.maxsize


def _round_up(amount: int, unit: int) -> int:
    return -(-amount // unit) * unit


def _parse(log: str, arch: str) -> list[Resources]:
    """Read the assembler's report, sorted by kernel."""
    return [
        Resources(kernel, arch, **{key: _amount(pattern, report) for key, pattern in _AMOUNTS.items()})
        for kernel, report in sorted(_KERNEL.findall(log))
    ]


def _amount(pattern: re.Pattern[str], report: str) -> int:
    found = pattern.search(report)
    return int(found[1]) if found else 0


def _compile(source: str, name: str, arch: str, options: Sequence[str]) -> tuple[bytes, str]:
    """Compile, and return the machine code and the log."""
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
    try:
        words = [f"--gpu-architecture={arch}", "--std=c++17", *options]
        failed = nvrtc.nvrtcCompileProgram(
            program, len(words), (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
        )
        log = _fetch(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if failed:
            reason = nvrtc.nvrtcGetErrorString(failed).decode()
            raise BackendError(f"{name}: NVRTC cannot compile for {arch} ({reason}); options {words[1:]}\n{log}")
        return _fetch(program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(program: ctypes.c_void_p, what: str) -> bytes:
    nvrtc, size = _nvrtc(), ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{what}")(program, content))
    return content.raw


def _check(code: int) -> None:
    if code:
        raise BackendError(f"NVRTC failed: {_nvrtc().nvrtcGetErrorString(code).decode()}")


@lru_cache(maxsize=1)
def _nvrtc() -> ctypes.CDLL:
    """Load NVRTC from its wheel: one of the system may be of any age, or the test suite's stand-in."""
    spec = find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    # CUDA 13 wheels share one folder, those of CUDA 12 have one each.
    patterns = ("cu13/lib/libnvrtc.so.*", "cuda_nvrtc/lib/libnvrtc.so.*")
    found = [file for pattern in patterns for folder in folders for file in sorted(folder.glob(pattern))]
    libraries = [file for file in found if "alt" not in file.name]
    if not libraries:
        raise BackendError(
            "the CUDA compiler NVRTC is not installed; it needs no GPU: "
            f"{install_hint('cuda-check')} (where ptxas is missing too, nvidia-cuda-nvcc)"
        )
    nvrtc = ctypes.CDLL(str(libraries[0]))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc


def main(arguments: Sequence[str]) -> None:
    """Print the table of a file for the named architectures, or all."""
    if not arguments:
        raise SystemExit("usage: python -m gem.kernels.resources FILE.cu [sm_75 sm_90 ...]")
    path = Path(arguments[0])
    archs = arguments[1:] or ARCHITECTURES
    records = [record for arch in archs for record in resources(path.read_text(), arch, name=path.name)]
    print(table(records, block=128))


if __name__ == "__main__":
    main(sys.argv[1:])
