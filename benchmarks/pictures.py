"""The report's pictures: rooflines, scaling, growth. Drawn into figures of their own, without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling import AS_IS, step_time, tenth

Record = dict[str, Any]
INK, FAINT, COLOURS = "#1d4f85", "0.55", ("#1d4f85", "#c2452d", "#7a9a54", "#7b3f98", "#e6b800", "#3f5a26")
DPI = 110


def _figure(rows: int, columns: int, height: float) -> tuple[Any, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(*axes: Any) -> None:
    """Numbers 1, 2, 5, 10, ... as they are along logarithmic axes; 1, 10, 100 where these would meet."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in axes:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2000 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_locator(NullLocator())


def roofline(devices: Sequence[Record], cases: Sequence[Record], path: Path) -> None:
    """A panel for each precision: what the device allows at each intensity, and where the cases stand."""
    figure, axes = _figure(1, len(devices), 4.8)
    for panel, device in zip(axes, devices, strict=True):
        here = [r for r in cases if r["dtype"] == device["dtype"]]
        peak, speed = max([device["product_rate"], *(r["rate"] for r in here)]), device["copy_rate"]
        x = np.array([r["flops"] / r["bytes"] for r in here])
        y = np.array([r["flops"] / np.median(r["seconds"]) for r in here])
        span = np.geomspace(min([1.0, *x]) / 2, max([100.0, *x]) * 2)
        panel.loglog(span, np.minimum(peak, span * speed) / 1e9, color=INK)
        panel.loglog(x, y / 1e9, "o", color=COLOURS[1])
        order = np.argsort(x)  # labels above and below in turn: neighbours do not meet
        for position, i in enumerate(order):
            offset = (4, -9 if position % 2 else 3)
            panel.annotate(here[i]["case"], (x[i], y[i] / 1e9), xytext=offset, textcoords="offset points", fontsize=8)
        lowest = min([peak / 1e9 / 10, *(y / 1e9)]) / 2
        panel.set(xlabel="flops per byte that must be read", ylabel="GFLOP/s", ylim=(lowest, peak / 1e9 * 2))
        _plain(panel.xaxis, panel.yaxis)
        roofs = f"{peak / 1e9:.0f} GFLOP/s, {speed / 1e9:.1f} GB/s"
        panel.set_title(f"{device['backend']}, {device['dtype']}: {roofs}", loc="left", fontsize=10)
    figure.savefig(path, dpi=DPI)


def scaling(measured: Sequence[Record], simulated: Sequence[Record], path: Path) -> None:
    """Efficiency, and the share of a step that communication takes: measured as dots, simulated as lines."""
    figure, (left, right) = _figure(1, 2, 4.5)
    as_is = sorted((r for r in simulated if r["variant"] == AS_IS), key=lambda r: r["ranks"])
    for mode, colour in (("strong", COLOURS[0]), ("weak", COLOURS[1])):
        here = [r for r in measured if r["mode"] == mode]
        ranks = [r["ranks"] for r in here]
        parts = [np.mean([p["selection"] + p["reduction"] for p in r["per_rank"]]) for r in here]
        shares = [part / r["step"] for part, r in zip(parts, here, strict=True)]
        for part, marker, filled in ((here, "o", True), ([r for r in here if r["ranks"] > r["cores"]], "o", False)):
            fill = colour if filled else "white"
            N = f"N = {here[0]['N']:,}" + (" a rank" if mode == "weak" else "") if here else ""
            label = f"{mode}, {N}: measured, {here[0]['cores']} cores (open: shared)" if filled and here else None
            x = [r["ranks"] for r in part]
            left.plot(x, [r["efficiency"] for r in part], marker, color=colour, mfc=fill, label=label, zorder=3)
            right.plot(x, [shares[ranks.index(n)] for n in x], marker, color=colour, mfc=fill, zorder=3)
        if not as_is:
            continue
        small = here[0]["N"] if here and mode == "strong" else None
        of_lines = {as_is[0]["points" if mode == "strong" else "weak_points"]: "-"} | ({small: "--"} if small else {})
        for points, dashes in of_lines.items():
            times = np.array([step_time(r, mode, points) for r in as_is])
            many = np.array([r["ranks"] for r in as_is])
            alone = step_time({**as_is[0], "ranks": 1, "communication": 0}, mode, points)
            ideal = alone / many if mode == "strong" else alone
            label = f"{mode}, N = {points:,}{' a rank' if mode == 'weak' else ''}: simulated"
            left.plot(many, ideal / times, dashes, color=colour, label=label)
            right.plot(many, [r["communication"] / t for r, t in zip(as_is, times, strict=True)], dashes, color=colour)
        at = tenth(as_is, mode)
        if at:
            right.axvline(at, color=colour, linestyle=":", linewidth=1)
            right.annotate(f"{at:,.0f} ranks", (at, 0.1), xytext=(4, 8), textcoords="offset points", color=colour)
    right.axhline(0.1, color=FAINT, linewidth=0.8)
    left.set(xscale="log", xlabel="ranks", ylabel="efficiency", ylim=(0, 1.1))
    right.set(xscale="log", yscale="log", xlabel="ranks", ylabel="share of communication in a step", ylim=(1e-4, 1))
    _plain(left.xaxis, right.xaxis, right.yaxis)
    labels = left.get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    if as_is:
        right.set_title(f"simulated: {as_is[0]['cluster']}", loc="left", fontsize=9)
    figure.savefig(path, dpi=DPI)


def growth(records: Sequence[Record], path: Path) -> None:
    """Time against each size, a panel for each, with the exponent on paper as a dashed line from the last point."""
    sizes = list(dict.fromkeys(r["over"] for r in records))
    columns = 3
    figure, axes = _figure(-(-len(sizes) // columns), columns, 3.2)
    for panel, over in zip(axes, sizes, strict=False):
        here = [r for r in records if r["over"] == over]
        for record, colour in zip(here, COLOURS * len(here), strict=False):
            x, seconds = np.array(record["values"], float), np.array(record["seconds"])
            on_paper = np.array(record["flops"]) / record["flops"][-1] * seconds[-1]
            told = record["exponents"]
            label = f"{record['case']} {told['time']:.2f} ({told['flops']:.2f})"
            panel.loglog(x, seconds * 1e3, "o-", color=colour, label=label)
            panel.loglog(x, on_paper * 1e3, "--", color=colour, linewidth=1)
        panel.set(xlabel=over, ylabel="step, ms")
        _plain(panel.xaxis, panel.yaxis)
        panel.set_xticks(here[0]["values"], [f"{value:,}" for value in here[0]["values"]])
        panel.legend(frameon=False, fontsize=8, title="exponent (on paper)", title_fontsize=8)
    for unused in axes[len(sizes) :]:
        unused.set_visible(False)
    figure.savefig(path, dpi=DPI)
