"""Learn the features of real photographs: binary sparse coding on 150,000 whitened 16 × 16 patches.

    python -m examples.photographs [--output run.h5] [--steps 200] [--count 150000] [--H 200]

The photographs come with scikit-learn (china.jpg, flower.jpg). What it does is what these two commands do:

    gem fit bsc china.jpg flower.jpg --H 200 --Hprime 8 --gamma 4 --count 150000 --steps 200
    gem show run.h5 --gabor
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import sklearn.datasets

from gem import cli


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="run.h5")
    parser.add_argument("--steps", default="200")
    parser.add_argument("--count", default="150000", help="of patches")
    parser.add_argument("--H", default="200", help="number of fields")
    args = parser.parse_args(arguments)
    folder = Path(sklearn.datasets.__file__).parent / "images"
    photographs = [str(folder / name) for name in ("china.jpg", "flower.jpg")]
    settings = ["--H", args.H, "--Hprime", "8", "--gamma", "4"]
    run = ["--steps", args.steps, "--count", args.count, "--output", args.output, "--overwrite"]
    status = cli.main(["fit", "bsc", *photographs, *settings, *run])
    return status or cli.main(["show", args.output, "--gabor"])


if __name__ == "__main__":
    sys.exit(main())
