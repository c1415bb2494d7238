"""Half of a picture's pixels lost at random: models of its patches beside scikit-image's biharmonic inpainting.

    python -m benchmarks.inpaint [--models auto bsc mog] [--missing 0.5] [--side 256] [--backend auto]

The pictures of benchmarks.denoise, without noise; PSNR in dB over all pixels, known ones included, and seconds.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.denoise import SIDE, pictures
from gem.restore import psnr, restore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["auto", "bsc", "mog"])
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--missing", type=float, default=0.5)
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    from skimage.restoration import inpaint_biharmonic

    for name, clean in pictures(args.side):
        lost = np.random.default_rng(0).random(clean.shape) < args.missing
        began = time.perf_counter()
        reference = psnr(255 * inpaint_biharmonic(np.where(lost, 0, clean) / 255, lost), clean)
        print(f"{name}: biharmonic {reference:6.2f} dB {time.perf_counter() - began:7.1f} s", flush=True)
        for model in args.models:
            done = restore(np.where(lost, np.nan, clean), model, sigma=0.0, backend=args.backend, clean=clean)
            gain = (done.psnr_after or 0.0) - reference
            print(
                f"  {model:16}{done.psnr_after:6.2f} dB {done.seconds:7.1f} s  {gain:+.2f} dB, {done.model!r}",
                flush=True,
            )


if __name__ == "__main__":
    main()
