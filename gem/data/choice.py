"""Which array of a file is meant where none was named: the only table, or a message that lists what there is."""

from __future__ import annotations

from math import prod

from gem.data.named_columns import form_of
from gem.data.source import LISTED, NUMERIC, PATCHES, Form
from gem.errors import DataError


def only_table(path: str, asked: str | None, tables: dict[str, Form], dims: tuple[int, ...] = (2,)) -> str:
    """The name of the only numeric table in a file (or array of so many dimensions); else an error that lists some.

    Named columns are a table where there is no other: one whose columns are no numbers is refused when it is opened.

    Parameters
    ----------
    asked : the name that was asked for and is not there; None to choose.
    tables : shape and type of what is there, by name.
    dims : numbers of dimensions that will do.
    """
    usable = [name for name, (shape, dtype) in tables.items() if len(shape) in dims and dtype.kind in NUMERIC]
    if not usable and 2 in dims:
        named = [name for name, (_, dtype) in tables.items() if dtype.names]
        if asked is None and len(named) == 1:
            return named[0]
        tables = {**tables, **{name: form_of(tables[name]) for name in named}}
        usable = [name for name in named if not tables[name][1].names]
    if asked is None and len(usable) == 1:
        return usable[0]
    problem = f"has no dataset {asked}" if asked else f"has {len(usable)} datasets to choose from"
    kind = " or ".join(f"{n}-D" for n in dims)
    stacks = [name for name, (shape, dtype) in tables.items() if len(shape) > 2 and dtype.kind in NUMERIC]
    hint = f"; {listed(path, stacks, tables)} is no table{PATCHES}" if stacks and not usable else ""
    lines = [name for name, (shape, dtype) in tables.items() if len(shape) == 1 and dtype.kind in NUMERIC]
    if lines and not (usable or stacks):
        hint = f"; {listed(path, lines, tables)}: a single column has to be saved with two axes, Y[:, None]"
    raise DataError(
        f"{path} {problem}; name one of its {kind} numeric datasets: {listed(path, usable, tables) or 'none'}{hint}"
    )


def listed(path: str, names: list[str], forms: dict[str, Form]) -> str:
    """Arrays of a file with their shapes, the largest first, at most LISTED of them."""
    largest = sorted(names, key=lambda name: -prod(forms[name][0]))  # stable: equals as the file has them
    more = f" and {len(names) - LISTED} smaller ones" if len(names) > LISTED else ""
    return ", ".join(f"{path}:{name} {forms[name][0]}" for name in largest[:LISTED]) + more
