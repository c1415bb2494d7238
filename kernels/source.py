"""From files to one program text: gem.h, the state table, the kernel, joined so that errors name the real file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

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


def fragment_twin(fragment: str) -> ModuleType:
    """The module that holds a fragment's numpy twin, `kernels/fragments/FRAGMENT.py`.

    Raises
    ------
    BackendError
        If there is none.
    """
    try:
        return import_module(f"gem.kernels.fragments.{fragment}")
    except ModuleNotFoundError as error:
        raise BackendError(f"there is no fragment kernels/fragments/{fragment}.h with a twin {fragment}.py") from error


def program(name: str, states: Any = None, fragment: str | None = None) -> str:
    """The text of a kernel for OpenCL C and CUDA C++ alike; its sizes are left to -D options.

    Parameters
    ----------
    name : str
    states : gem.states.StateTable, optional
        Becomes constant tables, for kernels that enumerate K_n.
    fragment : str, optional
        A model's own lines, `kernels/fragments/FRAGMENT.h`, for kernels that ask for some.
    """
    files = ["gem.h", *([f"fragments/{fragment}.h"] if fragment else []), f"{name}.c"]
    parts = [_joined(f"kernels/{file}", (FOLDER / file).read_text()) for file in files]
    if states is not None:
        parts.insert(1, _joined("states", state_constants(states)))
    return "".join(parts)


def state_constants(states: Any) -> str:
    """STATES, STATE_MASK, STATE_PARENT and STATE_LEVEL, with the zero state and the singletons in front.

    STATES_OF(V) is the number of states if every active latent has one of V values.
    """
    Hprime = states.Hprime
    masks = [0, *(1 << i for i in range(Hprime)), *states.masks.tolist()]
    parents = [0] * (1 + Hprime) + [Hprime + 1 + p if p >= 0 else -p for p in states.parent.tolist()]
    sizes = [bin(mask).count("1") for mask in masks]
    levels = [sizes.index(g) for g in range(max(sizes) + 1)] + [len(masks)]
    polynomial = "0"
    for size in reversed(range(max(sizes) + 1)):
        polynomial = f"({sizes.count(size)} + (V) * {polynomial})"
    levels += [len(masks)] * (3 - len(levels))  # STATE_LEVEL[2] exists even where no state has two latents on
    index = "unsigned short" if len(masks) <= 1 << 16 else "unsigned int"
    return (
        f"#define STATES {len(masks)}\n"
        f"#define STATES_OF(V) {polynomial}\n"
        f"CONSTANT unsigned int STATE_MASK[] = {{{', '.join(hex(m) + 'u' for m in masks)}}};\n"
        f"CONSTANT {index} STATE_PARENT[] = {{{', '.join(map(str, parents))}}};\n"
        f"CONSTANT int STATE_LEVEL[] = {{{', '.join(map(str, levels))}}};\n"
    )


def _joined(file: str, text: str) -> str:
    return f'#line 1 "{file}"\n{text}\n'
