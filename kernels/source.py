"""From files to one program text: gem.h, the state table, the kernel, joined so that errors name the real file."""

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


def program(name: str, states: Any = None, fragment: str | None = None, spilled: bool = False) -> str:
    """The text of a kernel for OpenCL C and CUDA C++ alike; its sizes are left to `defined`.

    Parameters
    ----------
    name : str
    states : gem.states.StateTable, optional
        Becomes constant tables, for kernels that enumerate K_n.
    fragment : str, optional
        A model's own lines, files of `kernels/fragments` joined by a "+", for kernels that ask for some; a name with a
        dot is a module of another package, with its .h beside it.
    spilled : bool
        The large tables are arguments, which `state_tables` gives: constant memory may be too small.
    """
    own = [_fragment_text(part) for part in fragment.split("+")] if fragment else []
    headers = [FOLDER / header for header in getattr(twin(name), "HEADERS", ())]
    files = [FOLDER / "gem.h", *headers, *own, FOLDER / f"{name}.c"]
    parts = [_joined(_shown(file), file.read_text()) for file in files]
    if states is not None:
        parts.insert(1, _joined("states", state_constants(states, spilled)))
    return "".join(parts)


def defined(text: str, defines: Mapping[str, int]) -> str:
    """The text with its sizes and types in front, so that no cache of programs takes one for another.

    Caches go by the text, and not all of them by the options; what a compiler finds out about the device is in neither.
    """
    return "".join(f"#define {name} {value}\n" for name, value in defines.items()) + text


def state_tables(states: Any) -> tuple[np.ndarray, np.ndarray]:
    """STATE_MASK and STATE_PARENT: `states`, with the zero state and the singletons in front."""
    Hprime = states.Hprime
    masks = np.concatenate([[0], 1 << np.arange(Hprime), states.masks])
    grown = np.where(states.parent >= 0, Hprime + 1 + states.parent, -states.parent)
    parents = np.concatenate([np.zeros(1 + Hprime, int), grown])
    return masks.astype(np.uint32), parents.astype(np.uint32)


def state_constants(states: Any, spilled: bool = False) -> str:
    """STATES, STATE_LEVEL and, if they are not `spilled`, the tables STATE_MASK and STATE_PARENT.

    STATES_OF(V) is the number of states if every active latent has one of V values.
    """
    masks, parents = (table.tolist() for table in state_tables(states))
    sizes = [bin(mask).count("1") for mask in masks]
    levels = [sizes.index(g) for g in range(max(sizes) + 1)] + [len(masks)]
    polynomial = "0"
    for size in reversed(range(max(sizes) + 1)):
        polynomial = f"({sizes.count(size)} + (V) * {polynomial})"
    levels += [len(masks)] * (3 - len(levels))  # STATE_LEVEL[2] exists even where no state has two latents on
    index = "unsigned short" if len(masks) <= 1 << 16 else "unsigned int"
    tables = (
        f"CONSTANT unsigned int STATE_MASK[] = {{{', '.join(hex(m) + 'u' for m in masks)}}};\n"
        f"CONSTANT {index} STATE_PARENT[] = {{{', '.join(map(str, parents))}}};\n"
    )
    return (
        f"#define STATES {len(masks)}\n"
        f"#define STATES_OF(V) {polynomial}\n"
        f"{'' if spilled else tables}"
        f"CONSTANT int STATE_LEVEL[] = {{{', '.join(map(str, levels))}}};\n"
    )


def _fragment_text(fragment: str) -> Path:
    if "." in fragment:
        return Path(str(fragment_twin(fragment).__file__)).with_suffix(".h")
    return FOLDER / "fragments" / f"{fragment}.h"


def _shown(file: Path) -> str:
    """What messages call a file."""
    return f"kernels/{file.relative_to(FOLDER)}" if file.is_relative_to(FOLDER) else str(file)


def _joined(file: str, text: str) -> str:
    return f'#line 1 "{file}"\n{text}\n'
