"""What `gem info` and `gem show` print and draw."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from gem import backends
from gem._version import __version__
from gem.errors import ConfigError, GemError
from gem.extras import install_hint
from gem.models import make
from gem.notes import Told, counted, ending
from gem.parallel import mpi_library
from gem.store import Run, read_run


def describe_machine() -> None:
    """Versions, the backends that are here, and why others are not."""
    rows = {"gem": __version__, "python": platform.python_version()}
    for name, about in backends.available().items():
        rows[f"backend {name}"] = ", ".join(f"{k} {v}" for k, v in about.items() if k != "backend")
    rows["MPI"] = _mpi_library()
    _table("this machine", rows)


def describe_run(path: str) -> None:
    """Model, settings, progress and last diagnostics of a run file."""
    run = read_run(path)
    state = "finished" if run.finished else f"not finished: gem resume {path}"
    rows: dict[str, Any] = {
        "model": f"{run.model}({', '.join(f'{k}={v!r}' for k, v in run.config['settings'].items())})",
        "data": f"{run.config['data'] or 'an array in memory'}, shape {tuple(run.config['shape'])}",
        "annealing": ", ".join(f"{k} {v}" for k, v in run.config["annealing"].items()),
        "steps": f"{run.step} of {run.planned}, {state}",
        **({} if run.reason is None else {"ended": ending(run.reason, run.step, run.planned)}),
        "seed": run.seed,
        **_restarts(run),
        **_kept(run),
        "ran on": ", ".join(f"{k} {v}" for k, v in run.machine.items()),
    }
    for name, value in run.params.items():
        rows[f"parameter {name}"] = f"{float(value):.6g}" if value.shape == () else f"shape {value.shape}"
    if run.step:
        before = "" if run.finished else f" (of the parameters before step {run.step})"
        rows |= {f"last {name}": f"{_last(values):.6g}" for name, values in run.history.items()}
        rows["last free_energy"] = rows["last free_energy"] + before
        F = run.history["free_energy"]
        if np.nanmax(F) > F[-1]:
            rows["best free_energy"] = f"{np.nanmax(F):.6g} (of the parameters before step {np.nanargmax(F) + 1})"
        for told in _notes(run):
            name = f"note of {told.when}"
            rows[name] = f"{rows[name]}\n{told.what}" if name in rows else told.what
    _table(path, rows)


def _kept(run: Run) -> dict[str, str]:
    """How much a run that keeps states has of them, beside its file."""
    try:
        model, N = make(run.model, run.config["settings"]), int(run.config["shape"][0])
    except ConfigError:  # of a model that is not here, or an older one's settings: all else can be told
        return {}
    if not model.bytes_kept:
        return {}
    return {"kept states": f"{model.bytes_kept * N / 1e6:,.1f} MB, {model.bytes_kept} bytes for each data point"}


def _restarts(run: Run) -> dict[str, str]:
    """F per point of each of several runs, of which this one was the best."""
    found = run.config.get("restarts", {})
    if not found.get("decided"):
        return {"restarts": f"{found['n']} seeds, none is left yet"} if found else {}
    N = run.history["N"][-1] if run.step else nan
    runs = zip(found["seeds"], found["free_energy"], found["steps"], strict=True)
    return {"restarts": "; ".join(f"seed {seed}: F/N = {F / N:.6g} after {steps} steps" for seed, F, steps in runs)}


def _last(values: np.ndarray) -> float:
    """The last number that was told, as not every step tells each."""
    told = values[np.isfinite(values)]
    return float(told[-1]) if len(told) else nan


def show_run(path: str, picture_path: Path | None, gabor: bool) -> None:
    """Draw a run (by default beside its file, as .png); print what the fields look like if asked.

    Raises
    ------
    GemError
        If matplotlib (or, for the fits, scipy) is not installed, the picture would replace the run, or the model
        has no square fields to fit.
    """
    run = read_run(path)
    picture_path = picture_path or Path(path).with_suffix(".png")
    if picture_path.resolve() == Path(path).resolve():
        raise GemError(f"{picture_path} is the run file itself: name another file for the picture with --output")
    try:
        from gem import plot
        from gem.gabor import fit_all, summary

        plot.picture(run, picture_path, plot.usage(run))
        print(f"{picture_path}: the fields by use, and the free energy of {run.step} steps")
        for told in _notes(run):
            print(f"note of {told.when}: {told.what}")
        if gabor:
            fields = make(run.model, run.config["settings"]).of_role("fields")
            if fields is None:
                raise GemError(f"{path}: {run.model} has no fields to fit Gabor functions to")
            found = summary(fit_all(run.params[fields]))
            print(
                f"a Gabor function fits {found['r2_above_half']} of {found['fields']} fields (R² > 0.5), "
                f"{found['localised']} of them localised (both widths below a third of the patch)"
            )
    except ImportError as error:
        raise GemError(f"{error.name} is missing: {install_hint('plot')}") from error


def _notes(run: Run) -> list[Told]:
    """What happened in the run, once for each kind of event."""
    return counted((t + 1, note) for t, notes in enumerate(run.notes) for note in notes)


def show_trace(path: str, picture_path: Path | None) -> None:
    """Draw the time line of a trace (by default beside its file), and print where the steps' time went.

    A part of a step counts without the spans within it, which count by their own names: the parts make 100 %.

    Raises
    ------
    GemError
        If matplotlib is not installed, the file is no trace, or the picture would replace it.
    """
    from gem.trace import account, read_notes, read_spans

    spans = read_spans(path)
    picture_path = picture_path or Path(f"{path}.png")
    if picture_path.resolve() == Path(path).resolve():
        raise GemError(f"{picture_path} is the trace itself: name another file for the picture with --output")
    try:
        from gem import plot

        plot.trace_picture(spans, picture_path)
    except ImportError as error:
        raise GemError(f"{error.name} is missing: {install_hint('plot')}") from error
    spent = account(spans)
    parts = {"else" if name == "EM step" else name: t for name, t in spent.within.items()}
    shares = [f"{name} {t / spent.steps:.1%}" for name, t in _descending(parts) if spent.steps]
    print(f"{picture_path}: the time line of {len({s['pid'] for s in spans})} rank(s)")
    print(f"of the time in steps: {', '.join(shares) or 'there is no step'}")
    for what, others in {"outside steps": spent.outside, "in pool threads, within E-steps": spent.pool}.items():
        if others:
            print(f"{what}: " + ", ".join(f"{name} {t:.3g} s" for name, t in _descending(others)))
    for note in read_notes(path):
        print(note)


def _descending(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(parts.items(), key=lambda part: -part[1])


def _mpi_library() -> str:
    try:
        return mpi_library()
    except (ImportError, RuntimeError) as error:
        return f"not available ({str(error).splitlines()[0]}): {install_hint('mpi')}"


def _table(title: str, rows: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))  # as it is: a [ in a path is no markup
    Console().print(table)
