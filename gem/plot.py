"""Pictures of a run: its fields (or means) and its free energy.

Every function draws into the matplotlib figure or axes it is given; pyplot and its global state are not used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import ceil, isqrt, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from gem.data import from_spec
from gem.em import posterior
from gem.errors import ConfigError, GemError
from gem.models import Model, make
from gem.store import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIELD_COLOURS = "gray"  # its lightness tells the sign: in two hues of one lightness, gratings blur
HEAT_COLOURS = "RdBu_r"
GAP = "#7aa0cc"  # between fields: black, grey and white all occur in them
BLANK = 2.0  # where there is no field
SMALL = 16  # fields of fewer pixels are drawn larger, so that the gaps stay thin
INK, FAINT, HELD_OUT = "#1d4f85", "0.55", "#c2452d"
DPI, WIDTH, HEIGHT, MARGIN = 150, 11.0, 5.6, 0.15  # inches
USAGE_POINTS = 20_000  # data points that tell how much each latent is used
PHASES = {  # of a trace, each drawn over those before it, which may hold it → colour
    "initialisation": "#c9c9c9",
    "E-step": "#9ec5e8",
    "M-step": "#1d4f85",
    "selection": "#e6b800",
    "reduction": "#c2452d",
    "load data": "#7a9a54",
    "read batch": "#7a9a54",
    "record": "#3f5a26",
    "copy to device": "#b07cc6",
    "copy to host": "#7b3f98",
}


def fields(where: Axes | Figure, W: np.ndarray, order: np.ndarray | None = None, columns: int | None = None) -> Axes:
    """Draw fields side by side, each on its own scale: black −, grey 0, white +.

    Parameters
    ----------
    where : matplotlib axes or figure
        In a figure, axes are added.
    W : (D, H) array
        A field per column. If D is not a square (2², 3², ...), W is shown as one image on a common scale.
    order : (H',) int array, optional
        Which fields, in which order, row by row (default: all, as they come).
    columns : int, optional
        Fields per row (default: about as many as rows).

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ConfigError
        If W is not (D, H) or columns < 1.
    """
    from matplotlib import colormaps
    from matplotlib.axes import Axes

    W = np.asarray(W, dtype=np.float64)
    if W.ndim != 2 or 0 in W.shape:
        raise ConfigError(f"fields of shape {W.shape}: give them as (D, H), a field per column")
    axes = where if isinstance(where, Axes) else where.add_subplot()
    shown = W if order is None else W[:, order]
    if isqrt(len(W)) ** 2 == len(W) > 1:
        colours = colormaps[FIELD_COLOURS].with_extremes(bad=GAP, over="white")
        axes.imshow(mosaic(shown, columns), cmap=colours, vmin=-1, vmax=1)
        axes.set_axis_off()
    else:
        _heat_map(axes, shown)
    return axes


def mosaic(W: np.ndarray, columns: int | None = None) -> np.ndarray:
    """The image that `fields` draws: square fields, each divided by its largest |value|, framed by NaN.

    Fields of fewer than 16 × 16 pixels are enlarged by a whole factor; where there is no field, it is 2.
    """
    D, H = W.shape
    columns = ceil(sqrt(H)) if columns is None else columns
    if columns < 1:
        raise ConfigError(f"columns = {columns} must be at least 1")
    P = isqrt(D)
    zoom = np.ones((ceil(SMALL / P),) * 2)
    side = P * len(zoom)
    image = np.full((ceil(H / columns) * (side + 1) + 1, columns * (side + 1) + 1), BLANK)
    for i, field in enumerate(W.T):
        top, left = (side + 1) * np.array(divmod(i, columns))
        image[top : top + side + 2, left : left + side + 2] = np.nan
        scaled = field.reshape(P, P) / (np.abs(field).max() or 1)
        image[top + 1 : top + side + 1, left + 1 : left + side + 1] = np.kron(scaled, zoom)
    return image


def _heat_map(axes: Axes, W: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    top = float(np.abs(W).max()) or 1.0
    image = axes.imshow(W, cmap=HEAT_COLOURS, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set(xlabel="field", ylabel="dimension")
    axes.figure.colorbar(image, ax=axes, pad=0.02).outline.set_visible(False)


def free_energy(axes: Axes, history: Mapping[str, np.ndarray]) -> None:
    """Draw the free energy per data point against the step.

    So is that of held-out data, where it is told. The temperature T, and the share N_use/N of the data in the M-step,
    are added faintly if they change.

    Parameters
    ----------
    axes : matplotlib axes
    history : dict of (steps,) arrays
        free_energy and N, and possibly held_out, T and N_use, as in `EM.history` and `gem.store.Run.history`.
    """
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set(xlabel="EM step", ylabel="free energy per data point, F/N (nats)")
    if not len(history.get("free_energy", ())):
        axes.text(0.5, 0.5, "no step yet", transform=axes.transAxes, ha="center", color=FAINT)
        axes.set(xticks=[], yticks=[])
        return
    step = np.arange(1, len(history["free_energy"]) + 1)
    marker = "o" if len(step) == 1 else ""  # one point makes no line
    axes.plot(step, history["free_energy"] / history["N"], color=INK, linewidth=1.8, marker=marker)
    if np.isfinite(held := history.get("held_out", np.zeros(0))).any():
        told = np.isfinite(held)
        axes.plot(step[told], held[told], color=HELD_OUT, linewidth=1.4, marker=".", label="held-out data")
        axes.lines[0].set_label("data")
        axes.legend(loc="lower right", frameon=False)
    beside = {"temperature T": history.get("T"), "share of the data used, N_use/N": _share(history)}
    changing = {name: values for name, values in beside.items() if values is not None and np.ptp(values) > 0}
    for i, (name, values) in enumerate(changing.items()):
        _faint(axes, step, values, name, offset=50 * i, dashes=("--", ":")[i])


def _share(history: Mapping[str, np.ndarray]) -> np.ndarray | None:
    return history["N_use"] / history["N"] if "N_use" in history else None


def _faint(axes: Axes, step: np.ndarray, values: np.ndarray, name: str, offset: float, dashes: str) -> None:
    """A second curve behind the first, on an axis of its own at the right."""
    from matplotlib.ticker import MaxNLocator

    twin = axes.twinx()
    twin.spines[["top", "left"]].set_visible(False)
    twin.spines["right"].set(position=("outward", offset), color=FAINT)
    twin.plot(step, values, color=FAINT, linewidth=1.2, linestyle=dashes)
    twin.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    twin.set_ylabel(name, color=FAINT)
    twin.tick_params(colors=FAINT)
    axes.set_zorder(twin.get_zorder() + 1)
    axes.patch.set_visible(False)


def picture(run: Run, path: str | os.PathLike[str], use: np.ndarray | None = None) -> None:
    """Write the picture of a run: its fields (means, for a mixture) beside its free energy.

    Parameters
    ----------
    run : Run
    path : path
        Its ending chooses the format: .png, .pdf, .svg, ...
    use : (H,) array, optional
        How much each latent is used, see `usage`: the most used field comes first. Without it fields are
        sorted by their norm, the components of a mixture by pi.

    Raises
    ------
    ConfigError
        If the picture cannot be written, or use is not (H,).
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    model = make(run.model, run.config["settings"])
    W, what = _fields(run, model)
    use = _proportions(run, model) if use is None else use
    by = "most used first" if use is not None else "largest norm first (use unknown)"
    use = np.linalg.norm(W, axis=0) if use is None else np.asarray(use)
    if use.shape != W.shape[1:]:
        raise ConfigError(f"use has shape {use.shape}: {run.model} has {W.shape[1]} {what}")
    figure = Figure(figsize=(WIDTH, HEIGHT), layout=ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN / 2))
    left, right = figure.subplots(1, 2)
    figure.suptitle(_title(run), x=MARGIN / WIDTH, ha="left")
    fields(left, W, order=np.argsort(-use, kind="stable"))
    left.set_anchor("NW")
    left.set_title(f"{what}, {by}", loc="left")
    free_energy(right, run.history)
    try:
        figure.savefig(path, dpi=DPI)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no format
        raise ConfigError(f"cannot write the picture {os.fspath(path)}: {error}") from error


def timeline(axes: Axes, spans: Sequence[Mapping[str, Any]]) -> None:
    """Draw what each rank's main thread did when: a row per rank, a colour per phase.

    Parameters
    ----------
    axes : matplotlib axes
    spans : as `gem.trace.read_spans` gives them
    """
    ranks = sorted({span["pid"] for span in spans})
    for name, colour in PHASES.items():
        for rank in ranks:
            bars = [
                (s["ts"] / 1e6, s["dur"] / 1e6)
                for s in spans
                if (s["name"], s["pid"], s["tid"]) == (name, rank, 0) and s["dur"] > 0
            ]
            if bars:
                axes.broken_barh(bars, (rank - 0.4, 0.8), color=colour, linewidth=0, label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="seconds", yticks=ranks, yticklabels=[f"rank {rank}" for rank in ranks])
    axes.invert_yaxis()


def trace_picture(spans: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write the picture of a trace: the whole time line, and its last EM step beneath.

    Raises
    ------
    ConfigError
        If the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    whole, last = figure.subplots(2, 1)
    timeline(whole, spans)
    timeline(last, spans)
    steps = [span["args"]["step"] for span in spans if span["name"] == "EM step"]
    if steps:
        shown = [s for s in spans if s["name"] == "EM step" and s["args"]["step"] == max(steps)]
        begin, end = min(s["ts"] for s in shown) / 1e6, max(s["ts"] + s["dur"] for s in shown) / 1e6
        last.set_xlim(begin, max(end, begin + 1e-6))
        last.set_title(f"EM step {max(steps)}", loc="left")
    whole.set_title("the whole run", loc="left")
    labels = {text: bar for bar, text in zip(*whole.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels, loc="outside right upper", frameon=False)
    try:
        figure.savefig(path, dpi=DPI)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no format
        raise ConfigError(f"cannot write the picture {os.fspath(path)}: {error}") from error


def usage(run: Run) -> np.ndarray | None:
    """How much each latent is used: the mean of |⟨s⟩| over the first 20,000 data points; pi, for a mixture.

    Returns
    -------
    (H,) array, or None if the data cannot be opened: they were an array in memory, or are gone.
    """
    model = make(run.model, run.config["settings"])
    if model.of_role("centres") is not None:
        return _proportions(run, model)
    try:
        with from_spec(run.config["data"]) as source:
            Y = source.read(0, min(source.shape[0], USAGE_POINTS))
    except GemError:
        return None
    if Y.shape[1] != run.config["shape"][1]:  # other data have taken their place
        return None
    found = posterior(model, run.params, Y, backend="auto")
    return np.abs(found.mean).mean(axis=0, dtype=np.float64)


def _fields(run: Run, model: Model) -> tuple[np.ndarray, str]:
    """The fields (D, H) of a run and what to call them; of on and off channels their difference."""
    fields, centres = model.of_role("fields"), model.of_role("centres")
    if fields is None:
        return (np.zeros((model.D, 0)) if centres is None else run.params[centres].T), "means"
    if (run.config["data"] or {}).get("onoff"):
        on, off = np.split(run.params[fields], 2)
        return on - off, "fields (on - off)"
    return run.params[fields], "fields"


def _proportions(run: Run, model: Model) -> np.ndarray | None:
    """How much each component of a mixture is used; None of other models, whose priors do not tell."""
    prior = model.of_role("prior")
    return None if prior is None or model.of_role("centres") is None else run.params[prior]


def _title(run: Run) -> str:
    settings = ", ".join(f"{name} = {value}" for name, value in run.config["settings"].items())
    N, planned = run.config["shape"][0], run.planned
    steps = f"{run.step} EM steps" if run.finished else f"{run.step} of {planned} EM steps"
    return f"{run.model}({settings}) on N = {N:,} data points, {steps}"
