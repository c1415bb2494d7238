"""Builds a CuPy that runs on the CPU, for tests; README.md says what that proves.

    python tests/cupy_on_cpu/build.py                               build (once), print the interpreter
    python tests/cupy_on_cpu/build.py -m pytest tests/test_kernels.py  build (once), run that interpreter on the rest

The build lies in ``GEM_CUPY_CACHE``, or ``.cache/cupy-on-cpu`` in the repository, in a folder named by a hash of all
it depends on. Virtual environments cannot be moved, so it is made in its final place; the file ``complete``, written
last, tells a finished build from an interrupted one, which is thrown away and begun anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = (
    "build.py", "absent_generator.py", "cushim.h", "files.h",
    "fake_cublas.cpp", "fake_cudart.cpp", "fake_driver.cpp", "fake_nvrtc.cpp",
)  # fmt: skip

# Versions that belong together: CuPy's wheel, the Cython it was made with, the headers of its CUDA.
CUPY, CYTHON, CUDA = "14.2.0", "3.2.4", "13.2"
PACKAGES = (
    f"cupy-cuda13x=={CUPY}", f"cython=={CYTHON}", f"nvidia-cuda-runtime=={CUDA}.*", f"nvidia-cuda-crt=={CUDA}.*",
    "pytest>=8", "setuptools>=77",
)  # fmt: skip

NOT_SUPPORTED = {"cuda": 801, "cublas": 15}  # cudaErrorNotSupported, CUBLAS_STATUS_NOT_SUPPORTED
CXX = ("g++", "-w", "-fPIC", "-std=c++17")


class BuildError(RuntimeError):
    """The CPU build of CuPy cannot be made; the message says what is missing."""


def build(cache: Path | None = None) -> Path:
    """Build what is not yet built, and return the interpreter in which CuPy runs on the CPU.

    Run it with the variables of `env` added to the environment.

    Parameters
    ----------
    cache : Path, optional
        Folder that keeps the builds; default ``GEM_CUPY_CACHE``, else ``.cache/cupy-on-cpu`` in the repository.

    Raises
    ------
    BuildError
        If a tool, a header or a package is missing, or a step fails.
    """
    _check_host()
    prefix = _prefix(cache)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with _locked(prefix.parent / f"{prefix.name}.lock"):
        if not (prefix / "complete").exists():
            shutil.rmtree(prefix, ignore_errors=True)
            _build_in(prefix)
            _run(_python(prefix), "-c", "import cupy", extra=env(cache))
            (prefix / "complete").touch()
        _install_gem(prefix)
    return _python(prefix)


def env(cache: Path | None = None) -> dict[str, str]:
    """Return the variables the interpreter of `build` needs, to be laid over ``os.environ``."""
    prefix = _prefix(cache)
    libraries = [str(prefix / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "CUDA_PATH": str(prefix / "cuda_home"),
        "CUPY_CACHE_DIR": str(prefix / "kernel_cache"),
        "CUPY_ACCELERATORS": "",
        "FAKECUDA_INC": f"{prefix / 'include'}:{_cuda_headers(prefix)}",
        "FAKECUDA_PCH": str(prefix / "precompiled"),
    }


def _prefix(cache: Path | None) -> Path:
    cache = Path(cache or os.environ.get("GEM_CUPY_CACHE") or ROOT / ".cache" / "cupy-on-cpu").resolve()
    facts = [PACKAGES, sys.version, sys.base_prefix, platform.machine(), str(ROOT)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name in SOURCES:
        digest.update((HERE / name).read_bytes())
    return cache / f"py{sys.version_info.major}.{sys.version_info.minor}-{digest.hexdigest()[:12]}"


def _python(prefix: Path) -> Path:
    return prefix / "venv" / "bin" / "python"


def _site_packages(prefix: Path) -> Path:
    return prefix / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _cuda_headers(prefix: Path) -> Path:
    return _site_packages(prefix) / "nvidia" / "cu13" / "include"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build; the lock falls with its holder."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_host() -> None:
    if sys.platform != "linux":
        raise BuildError(f"CuPy on the CPU is built on Linux only, not on {sys.platform}")
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        raise BuildError(f"CuPy {CUPY} needs Python 3.10 to 3.14; this is {platform.python_version()}")
    for tool in ("g++", "nm"):
        if not shutil.which(tool):
            raise BuildError(f"{tool} is not on the PATH: install it (Debian, Ubuntu: apt install g++)")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise BuildError(f"{header} is missing: install Python's headers (Debian, Ubuntu: apt install python3-dev)")


def _run(*command: str | Path, extra: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a step and return what it printed; a failure carries the end of its output."""
    words = [str(word) for word in command]
    environment = {**os.environ, **(extra or {})}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise BuildError("\n".join([f"failed: {' '.join(words)}", *lines]))
    return done.stdout


def _build_in(prefix: Path) -> None:
    for folder in ("lib", "include", "cuda_home/include", "work"):
        (prefix / folder).mkdir(parents=True)
    print(f"building CuPy {CUPY} for the CPU in {prefix} (about a minute)", file=sys.stderr)
    _run(sys.executable, "-m", "venv", prefix / "venv")
    _run(_python(prefix), "-m", "pip", "install", *PACKAGES)
    for header in ("cushim.h", "files.h"):
        shutil.copy(HERE / header, prefix / "include")
    _build_runtime(prefix)
    _build_driver(prefix)
    _build_cublas(prefix)
    _disable_generators(prefix)
    shutil.rmtree(prefix / "work")


def _build_runtime(prefix: Path) -> None:
    """Rebuild CuPy's one module that holds the CUDA runtime, from CuPy's own source, over fake_cudart.cpp."""
    work, source = prefix / "work", _cupy_source(prefix)
    backends, headers = source / "cupy_backends", _cuda_headers(prefix)
    constants = {
        "CUPY_CUDA_VERSION": f"{CUDA.replace('.', '0')}0", "CUPY_HIP_VERSION": "0",
        "CUPY_USE_CUDA_PYTHON": "False", "CUPY_CYTHON_VERSION": CYTHON,
    }  # fmt: skip
    defines = [word for name, value in constants.items() for word in ("-E", f"{name}={value}")]
    pyx, cpp, obj = "cupy_backends/cuda/api/runtime.pyx", work / "runtime.cpp", work / "runtime.o"
    _run(_python(prefix), "-m", "cython", "--cplus", "-3", *defines, "-I", ".", pyx, "-o", cpp, cwd=source)

    # The runtime's wheel lacks this header; CuPy calls these two functions of it.
    profiler = 'extern "C" cudaError_t cudaProfilerStart();\nextern "C" cudaError_t cudaProfilerStop();\n'
    (work / "cuda_profiler_api.h").write_text(profiler)
    folders = [work, backends / "cuda/api", backends, source, headers, sysconfig.get_path("include")]
    _run(*CXX, "-O0", "-c", cpp, "-o", obj, *(f"-I{folder}" for folder in folders))

    fake = work / "fake_cudart.o"
    _run(*CXX, "-O1", f"-I{headers}", "-c", HERE / "fake_cudart.cpp", "-o", fake)
    stubs = _stubs(work / "cudart_stubs.cpp", "cuda", _symbols(obj, "--undefined-only") - _symbols(fake))
    module = _module(prefix, "cupy_backends/cuda/api/runtime")
    _run(*CXX, "-shared", obj, fake, stubs, "-o", module)


def _cupy_source(prefix: Path) -> Path:
    # The stub flag spares CuPy's build script the search for CUDA.
    _run(_python(prefix), "-m", "pip", "download", "--no-deps", "--no-binary", "cupy", f"cupy=={CUPY}",
         "-d", prefix / "work", extra={"CUPY_INSTALL_USE_STUB": "1"})  # fmt: skip
    with tarfile.open(prefix / "work" / f"cupy-{CUPY}.tar.gz") as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in Python 3.11.3 and before
        archive.extractall(prefix / "work", **safe)
    return prefix / "work" / f"cupy-{CUPY}"


def _module(prefix: Path, name: str) -> Path:
    """The file of one of CuPy's compiled modules, which must be where this Python looks for it."""
    path = _site_packages(prefix) / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        raise BuildError(f"CuPy {CUPY} has no {path}: its layout changed")
    return path


def _symbols(file: Path, which: str = "--defined-only", dynamic: bool = False) -> set[str]:
    lines = _run("nm", *(["-D"] if dynamic else []), which, file).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.strip()}


def _stubs(path: Path, library: str, symbols: set[str]) -> Path:
    """Write a C++ file in which every named function of the library answers `not supported`."""
    names = sorted(name for name in symbols if re.match(rf"{library}[A-Z]\w*$", name))
    path.write_text("".join(f'extern "C" int {name}() {{ return {NOT_SUPPORTED[library]}; }}\n' for name in names))
    return path


def _build_driver(prefix: Path) -> None:
    for source, library in (("fake_driver.cpp", "libcuda.so.1"), ("fake_nvrtc.cpp", "libnvrtc.so.13")):
        _run(*CXX, "-O1", "-shared", HERE / source, "-o", prefix / "lib" / library, "-ldl")


def _build_cublas(prefix: Path) -> None:
    fake, library = prefix / "work" / "fake_cublas.o", prefix / "lib" / "libcublas.so.13"
    _run(*CXX, "-O3", "-c", HERE / "fake_cublas.cpp", "-o", fake)
    wanted = _symbols(_module(prefix, "cupy_backends/cuda/libs/cublas"), "--undefined-only", dynamic=True)
    stubs = _stubs(prefix / "work" / "cublas_stubs.cpp", "cublas", wanted - _symbols(fake))
    _run(*CXX, "-shared", fake, stubs, "-o", library)
    (prefix / "lib" / "libcublasLt.so.13").symlink_to(library.name)


def _disable_generators(prefix: Path) -> None:
    compiled = _module(prefix, "cupy/random/_generator_api")
    shutil.copy(HERE / "absent_generator.py", compiled.with_name("_generator_api.py"))
    compiled.unlink()


def _install_gem(prefix: Path) -> None:
    """Install this checkout, editable, with what it and MPI require; again when its set-up changes."""
    setup = b"".join((ROOT / name).read_bytes() for name in ("setup.cfg", "pyproject.toml"))
    digest, marker = hashlib.sha256(setup).hexdigest(), prefix / "gem_installed"
    if not marker.exists() or marker.read_text() != digest:
        _run(_python(prefix), "-m", "pip", "install", "--no-build-isolation", "-e", f"{ROOT}[mpi]")
        marker.write_text(digest)


def main(arguments: list[str]) -> None:
    """Build, then print the interpreter, or become it if there are arguments for it."""
    try:
        interpreter = build()
    except BuildError as error:
        raise SystemExit(f"cupy_on_cpu: {error}") from None
    if not arguments:
        print(interpreter)
        return
    os.execve(interpreter, [str(interpreter), *arguments], {**os.environ, **env()})


if __name__ == "__main__":
    main(sys.argv[1:])
