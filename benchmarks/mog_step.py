"""One EM iteration of a mixture of Gaussians beside scikit-learn's GaussianMixture, from the same parameters.

    python -m benchmarks.mog_step [--backend numpy] [--N 20000] [--D 64] [--K 50]

Both do one iteration from the same start; their likelihoods are compared before their times are.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import gem
from benchmarks.peers import differs
from benchmarks.peers import estimator as estimator_of
from benchmarks.timing import interleaved, spread
from gem.models import MoG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--repeats", type=int, default=9)
    for name, value in {"N": 20_000, "D": 64, "K": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for covariance in ("diag", "full"):
        model = MoG(args.D, args.K, covariance)
        rng = np.random.default_rng(0)
        Y = (3 * rng.standard_normal((args.K, args.D)))[rng.integers(args.K, size=args.N)]
        Y = Y + rng.standard_normal(Y.shape)
        start = model.init_params(Y, seed=0)
        params, _ = gem.em_step(model, start, Y, dtype="float64")
        for dtype in ("float64", "float32"):
            y, backend = Y.astype(dtype), gem.backends.select(args.backend, dtype)
            estimator = estimator_of(params, covariance, dtype)

            def theirs(y=y, estimator=estimator, covariance=covariance):
                mean, log_resp = estimator._e_step(y)
                estimator_copy = GaussianMixture(args.K, covariance_type=covariance)
                estimator_copy._m_step(y, log_resp)
                return mean

            def ours(y=y, backend=backend, model=model, params=params):
                return gem.em_step(model, params, y, backend=backend)

            reference, found = float(theirs()), ours()[1].free_energy / args.N
            if reason := differs({"likelihood": found}, {"likelihood": reference}, dtype):
                raise SystemExit(f"scikit-learn: {reason}")
            times = interleaved({"sklearn": theirs, "gem": ours}, args.repeats)
            ms = {name: np.median(t) * 1e3 for name, t in times.items()}
            print(
                f"{covariance} {dtype}: log likelihood per point {found:.4f} (scikit-learn {reference:.4f}); "
                f"scikit-learn {ms['sklearn']:.1f} ms, gem {ms['gem']:.1f} ms, "
                f"{spread(times['sklearn'] / times['gem'])} × as fast"
            )


if __name__ == "__main__":
    main()
