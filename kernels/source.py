"""From files to one program text: gem.h, a model's own lines, the kernel, joined so that errors name the real file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from gem.errors import BackendError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Every kernel: the .c files of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.c"))


def twin(name: str) -> ModuleType:
    """The module that holds the numpy twin, `kernels/NAME.py`.

    Raises
    ------
    BackendError
        If there is none: every kernel needs one.
    """
    try:
        return import_module(f"gem.kernels.{name}")
    except ModuleNotFoundError as error:
        raise BackendError(f"there is no kernel kernels/{name}.c with a twin kernels/{name}.py") from error


def fragment_twin(fragment: str) -> Any:
    """The words of a fragment as numpy functions and flags: of "NAME", or of "COMBINATION+NOISE" those of both, joined.

    Raises
    ------
    BackendError
        If one of them is none.
    """
    try:
        modules = (name if "." in name else f"gem.kernels.fragments.{name}" for name in fragment.split("+"))
        how, *noises = (import_module(module) for module in modules)
    except ModuleNotFoundError as error:
        raise BackendError(f"there is no fragment kernels/fragments/{fragment}.h with a twin {fragment}.py") from error
    return _joined_twins(how, *noises) if noises else how


def _joined_twins(how: ModuleType, noise: ModuleType) -> SimpleNamespace:
    """What both say; the noise is told what is seen of a combined value, as in their .h files."""

    def term(y: np.ndarray, c: np.ndarray, setting: np.ndarray) -> Any:
        return noise.term(y, how.seen(c, setting), setting)

    def value(c: np.ndarray, y: np.ndarray, setting: np.ndarray) -> Any:
        return noise.value(how.seen(c, setting), setting)

    return SimpleNamespace(**{**vars(how), "RELATIVE": noise.RELATIVE, "term": term, "value": value})


def program(name: str, fragment: str | None = None) -> str:
    """The text of a kernel for OpenCL C and CUDA C++ alike; its sizes are left to `defined`.

    Parameters
    ----------
    name : str
    fragment : str, optional
        A model's own lines, files of `kernels/fragments` joined by a "+", for kernels that ask for some; a name with a
        dot is a module of another package, with its .h beside it.
    """
    own = [_fragment_text(part) for part in fragment.split("+")] if fragment else []
    headers = [FOLDER / header for header in getattr(twin(name), "HEADERS", ())]
    files = [FOLDER / "gem.h", *headers, *own, FOLDER / f"{name}.c"]
    return "".join(_joined(_shown(file), file.read_text()) for file in files)


def defined(text: str, defines: Mapping[str, int]) -> str:
    """The text with its sizes and types in front, so that no cache of programs takes one for another.

    Caches go by the text, and not all of them by the options; what a compiler finds out about the device is in neither.
    """
    return "".join(f"#define {name} {value}\n" for name, value in defines.items()) + text


def _fragment_text(fragment: str) -> Path:
    if "." in fragment:
        return Path(str(fragment_twin(fragment).__file__)).with_suffix(".h")
    return FOLDER / "fragments" / f"{fragment}.h"


def _shown(file: Path) -> str:
    """What messages call a file."""
    return f"kernels/{file.relative_to(FOLDER)}" if file.is_relative_to(FOLDER) else str(file)


def _joined(file: str, text: str) -> str:
    return f'#line 1 "{file}"\n{text}\n'
