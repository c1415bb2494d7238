"""Denoising by a model of the noisy picture's own patches, beside non-local means and wavelets of scikit-image.

    python -m benchmarks.denoise [--models auto gsc bsc sc] [--sigma 25] [--side 256] [--backend auto]

Grey crops, 256 × 256 unless said, from the middle
of scikit-learn's china.jpg and flower.jpg with Gaussian noise of σ = 25 grey
levels; PSNR in dB, and seconds. Non-local means is given σ, and the best of its settings for each picture by the
PSNR itself: fast mode or not, h from 0.6 σ to 1.15 σ, three pairs of patch size and distance. BayesShrink likewise:
four wavelets, soft thresholds. The models are given σ and run with their defaults.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from gem.restore import estimate_sigma, psnr, restore

SIDE = 256
H_FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.15)
WINDOWS = ((5, 6), (5, 11), (7, 11))  # patch size and distance
WAVELETS = ("db1", "db2", "db4", "sym4")


def pictures(side: int = SIDE) -> Iterator[tuple[str, np.ndarray]]:
    """The crops in grey levels of 0 to 255, by ITU-R 601 luma."""
    from sklearn.datasets import load_sample_images

    for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
        grey = np.rint(image @ [0.299, 0.587, 0.114])
        top, left = ((n - side) // 2 for n in grey.shape)
        yield name, grey[top : top + side, left : left + side]


def best(runs: dict[str, Callable[[], np.ndarray]], clean: np.ndarray) -> tuple[str, float, float]:
    """Settings, PSNR and seconds of the run that comes closest to the clean picture."""
    found = []
    for settings, function in runs.items():
        began = time.perf_counter()
        result = function()
        found.append((psnr(result, clean), time.perf_counter() - began, settings))
    ratio, seconds, settings = max(found)
    return settings, ratio, seconds


def peers(noisy: np.ndarray, sigma: float) -> dict[str, dict[str, Callable[[], np.ndarray]]]:
    """Method → settings → function."""
    from skimage.restoration import denoise_nl_means, denoise_wavelet

    def means(fast: bool, h: float, size: int, distance: int) -> np.ndarray:
        return denoise_nl_means(
            noisy, size, distance, h * sigma, fast_mode=fast, sigma=sigma, preserve_range=True
        )  # fmt: skip

    def shrink(wavelet: str) -> np.ndarray:
        return denoise_wavelet(noisy, sigma, wavelet, "soft", method="BayesShrink", rescale_sigma=False)

    return {
        "non-local means": {
            f"fast_mode={fast} h={h}σ patch {size} distance {distance}": lambda a=(fast, h, size, distance): means(*a)
            for fast, h, (size, distance) in product((False, True), H_FACTORS, WINDOWS)
        },
        "BayesShrink": {wavelet: lambda w=wavelet: shrink(w) for wavelet in WAVELETS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["auto", "gsc", "bsc", "sc"])
    parser.add_argument("--sigma", type=float, default=25.0)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    for name, clean in pictures(args.side):
        noisy = clean + args.sigma * np.random.default_rng(0).standard_normal(clean.shape)
        print(f"{name}: noisy {psnr(noisy, clean):.2f} dB, sigma looks like {estimate_sigma(noisy):.1f}", flush=True)
        reference = -np.inf
        for method, runs in peers(noisy, args.sigma).items():
            settings, ratio, seconds = best(runs, clean)
            reference = max(reference, ratio)
            print(f"  {method:16}{ratio:6.2f} dB {seconds:7.1f} s  {settings}", flush=True)
        for model in args.models:
            done = restore(noisy, model, sigma=args.sigma, backend=args.backend, clean=clean)
            gain = (done.psnr_after or 0.0) - reference
            print(
                f"  {model:16}{done.psnr_after:6.2f} dB {done.seconds:7.1f} s  {gain:+.2f} dB, {done.model!r}",
                flush=True,
            )


if __name__ == "__main__":
    main()
