"""Learn the features of real photographs: binary sparse coding on 60,000 whitened 16 × 16 patches.

    python -m examples.photographs [--output run.h5] [--steps 100]

The photographs come with scikit-learn (china.jpg, flower.jpg). What it does is what these two commands do:

    gem fit bsc china.jpg flower.jpg --H 200 --Hprime 8 --gamma 4 --count 60000 --T 0=4,0.6=1 --Ncut 0=0,0.66=1
    gem show run.h5 --gabor
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import sklearn.datasets

from gem import cli


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="run.h5")
    parser.add_argument("--steps", default="100")
    args = parser.parse_args()
    folder = Path(sklearn.datasets.__file__).parent / "images"
    photographs = [str(folder / name) for name in ("china.jpg", "flower.jpg")]
    command = f"--H 200 --Hprime 8 --gamma 4 --count 60000 --T 0=4,0.6=1 --Ncut 0=0,0.66=1 --steps {args.steps}"
    status = cli.main(["fit", "bsc", *photographs, *command.split(), "--output", args.output, "--overwrite"])
    return status or cli.main(["show", args.output, "--gabor"])


if __name__ == "__main__":
    sys.exit(main())
