"""Recipes of `gem denoise` by the strength of the noise: the default beside others, and wavelets.

    python -m benchmarks.recipes [--sigma 10 25 50] [--pictures china flower card dark] [--only NAME ...] \
[--backend numpy] [--kept FILE.jsonl] [--write docs/pictures.md]

The pictures: crops of scikit-learn's china.jpg and flower.jpg as in benchmarks.denoise; a card of one grey; black with
three light discs. Gaussian noise of sigma grey levels of 255, not clipped. PSNR in dB, for wavelets (BayesShrink, soft
thresholds) that of the best of four, by the PSNR itself. Every recipe is given sigma. Seconds are of CPU time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import denoise
from benchmarks.results import put_between
from gem.restore import psnr, restore

MARK = "<!-- recipes -->"
Key = tuple[str, str, float]  # method, picture, sigma
SIDE = 128
WAVELETS = "wavelets"
RECIPES: dict[str, dict[str, Any]] = {
    "auto": {},
    "mog, patch 6": {"model": "mog", "patch": 6},
    "mog, patch 8, K = 20": {"model": "mog", "patch": 8, "K": 20},
    "mog, patch 8, K = 60": {"model": "mog", "patch": 8, "K": 60},
    "bsc, patch 8, H = 128": {"model": "bsc", "patch": 8, "H": 128},
    "bsc, patch 8, H = 256": {"model": "bsc", "patch": 8, "H": 256},
    "gsc, patch 8, H = 128": {"model": "gsc", "patch": 8, "H": 128},
    "gsc, patch 8, H = 256": {"model": "gsc", "patch": 8, "H": 256},
}


def pictures(side: int = SIDE) -> Iterator[tuple[str, np.ndarray]]:
    """Name and grey levels of 0 to 255."""
    yield from denoise.pictures(side)
    yield "card", np.full((side, side), 160.0)
    rows, columns = np.mgrid[:side, :side] / side
    dark = np.zeros((side, side))
    for row, column, radius, level in ((0.3, 0.3, 0.1, 200), (0.6, 0.7, 0.15, 120), (0.8, 0.2, 0.05, 255)):
        dark[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = level
    yield "dark", dark


def measure(name: str, clean: np.ndarray, sigma: float, backend: str) -> tuple[float, float]:
    """PSNR in dB, and seconds of CPU time."""
    noisy = clean + sigma * np.random.default_rng(0).standard_normal(clean.shape)
    began = time.process_time()
    if name == WAVELETS:
        runs: dict[str, Callable[[], np.ndarray]] = denoise.peers(noisy, sigma)["BayesShrink"]
        return denoise.best(runs, clean)[1], time.process_time() - began
    done = restore(noisy, sigma=sigma, backend=backend, **RECIPES[name])
    return psnr(done.picture, clean), time.process_time() - began


def table(found: dict[Key, tuple[float, float]]) -> list[str]:
    """Lines of Markdown: a row for each method, a column for each picture and sigma; and the median CPU time."""
    columns = list(dict.fromkeys((picture, sigma) for _, picture, sigma in found))
    lines = [
        f"PSNR in dB, {SIDE} x {SIDE} pixels (`python -m benchmarks.recipes`):",
        "",
        "| recipe | " + " | ".join(f"{picture}, σ = {sigma:g}" for picture, sigma in columns) + " | CPU seconds |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for name in dict.fromkeys(name for name, _, _ in found):
        here = [found.get((name, *column)) for column in columns]
        seconds = np.median([one[1] for one in here if one is not None])
        shown = " | ".join("" if one is None else f"{one[0]:.1f}" for one in here)
        lines.append(f"| {name} | {shown} | {seconds:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma", type=float, nargs="+", default=[10.0, 25.0, 50.0])
    parser.add_argument("--pictures", nargs="+", default=["china", "flower", "card", "dark"])
    parser.add_argument("--only", nargs="+", default=[WAVELETS, *RECIPES], choices=[WAVELETS, *RECIPES], metavar="NAME")
    parser.add_argument("--backend", default="numpy")
    parser.add_argument(
        "--kept", type=Path, metavar="FILE.jsonl", help="what is there is not measured again; the rest is added"
    )
    parser.add_argument("--write", type=Path, metavar="FILE.md", help=f"put the table between two {MARK} of it")
    args = parser.parse_args()
    kept = args.kept.read_text().splitlines() if args.kept and args.kept.exists() else []
    found: dict[Key, tuple[float, float]] = {(n, p, s): (ratio, cpu) for n, p, s, ratio, cpu in map(json.loads, kept)}
    for picture, clean in pictures():
        for sigma in args.sigma if picture in args.pictures else ():
            for name in args.only:
                if (name, picture, sigma) in found:
                    continue
                found[name, picture, sigma] = ratio, cpu = measure(name, clean, sigma, args.backend)
                print(f"{picture:8} sigma {sigma:3g} {name:24}{ratio:6.2f} dB {cpu:7.1f} s", flush=True)
                if args.kept:
                    with args.kept.open("a") as file:
                        print(json.dumps([name, picture, sigma, ratio, cpu]), file=file)
    lines = table(found)
    print("\n".join(lines))
    if args.write is not None:
        put_between(MARK, "\n".join(lines), args.write)


if __name__ == "__main__":
    main()
