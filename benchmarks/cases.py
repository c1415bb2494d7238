"""What is measured: a line for each model, sizes for each profile, and on paper the flops and bytes of a data point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from inspect import signature
from math import comb
from typing import Any

import numpy as np

from benchmarks import model_step
from benchmarks.timing import PAUSE
from gem.kernels.floors import EXP, linear
from gem.models import MODELS, Model, make


@dataclass(frozen=True)
class Size:
    """Sizes of a problem; a model takes those that it knows."""

    name: str
    N: int
    D: int
    H: int
    Hprime: int
    gamma: int
    K: int


@dataclass(frozen=True)
class Profile:
    """What a sweep covers, and how often it repeats each measurement."""

    sizes: tuple[Size, ...]
    repeats: int
    copy_bytes: int  # larger than the last-level cache, or of the size of what it holds
    pause: float = PAUSE
    dtypes: tuple[str, ...] = ("float32", "float64")


TINY = Size("tiny", N=300, D=16, H=12, Hprime=5, gamma=3, K=4)
SMALL = Size("small", N=4_000, D=64, H=64, Hprime=8, gamma=4, K=16)
MEDIUM = Size("medium", N=20_000, D=256, H=300, Hprime=8, gamma=5, K=50)
LARGE = Size("large", N=200_000, D=256, H=300, Hprime=10, gamma=5, K=100)
PROFILES = {
    "tiny": Profile((TINY,), repeats=3, copy_bytes=4 << 20, pause=0, dtypes=("float32",)),  # only for tests
    "quick": Profile((SMALL,), repeats=3, copy_bytes=64 << 20),
    "regular": Profile((SMALL, MEDIUM), repeats=9, copy_bytes=512 << 20),
    "large": Profile((MEDIUM, LARGE), repeats=5, copy_bytes=1 << 30),
}


# -- flops per data point: products 2 D H each, every state once, an exponential EXP --------------------------


def _sum_over_states(model: Any, flops: Callable[[int], float]) -> float:
    """Σ over the states of several causes of flops(number of causes)."""
    V = len(model.values)
    return sum(comb(model.Hprime, g) * V**g * flops(g) for g in range(2, model.gamma + 1))


def of_linear(model: Any) -> float:
    """BSC, TSC, DSC: two products and the states of the Gram matrix (`gem.kernels.floors`)."""
    kernels = linear(model.D, model.H, model.Hprime, model.gamma, len(model.values))
    return sum(flops for flops, _ in kernels.values())


def of_causes(model: Any) -> float:
    """MCA, MMCA, PMCA: three products; for each state and dimension a maximum, an error and the winner's weight."""
    D, H = model.D, model.H
    return 6 * D * H + EXP * H + _sum_over_states(model, lambda g: 6 * D + EXP)


def of_noisy_or(model: Any) -> float:
    """Three products; for each state and dimension a product, the probability of y_d, two sums of the M-step."""
    D, H = model.D, model.H
    return 6 * D * H + EXP * H + _sum_over_states(model, lambda g: 3 * D + 5 * D + EXP)


def of_spike_and_slab(model: Any) -> float:
    """Two products; for each state a Cholesky factor, two solves and its moments."""
    D, H = model.D, model.H
    return 4 * D * H + (12 + EXP) * H + _sum_over_states(model, lambda g: g**3 / 3 + 5 * g**2 + EXP)


def of_sparse_coding(model: Any) -> float:
    """Wᵀy, y ŝᵀ, ŝŝᵀ, and one pass of the code's search over the Gram matrix."""
    D, H = model.D, model.H
    return 4 * D * H + H * H + 2 * H * H


def of_mixture(model: Any) -> float:
    """Distances, softmax and sums; a full covariance is triangular in the one and symmetric in the other."""
    D, K = model.D, model.K
    distance, sums = {
        "diag": (4 * D * K, 4 * D * K),
        "spherical": (2 * D * K, 2 * D * K),
        "tied": (D * D + 2 * D * K, D * D + 2 * D * K),
        "full": (D * D * K, D * D * K),
    }[getattr(model, "covariance", "spherical")]
    return distance + sums + (3 + EXP) * K


def fewest_bytes(model: Any, itemsize: int) -> float:
    """Of any model: a data point is read once; all else can stay close to the core that makes it."""
    return itemsize * model.D


# -- the table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table: a model, its flops, settings besides the sizes, and data points relative to others.

    `beyond` says what keeps it from its floor, whatever the machine.
    """

    model: str
    flops: Callable[[Any], float]
    beyond: str
    settings: dict[str, Any] = field(default_factory=dict)
    points: float = 1.0


STATES = (
    "the states of a data point are looked up, weighed and summed one after another, and candidates are chosen by "
    "comparisons, which the floor does not count: it takes every flop at the rate of large matrix products"
)
MAXIMA = (
    "for each state and dimension there is a maximum and a comparison, which are no multiply-adds: the floor takes "
    "them at the rate of large matrix products"
)
LOGARITHMS = "for each state and dimension there is a logarithm and a division that the floor does not count"
FACTORS = "each state has a small Cholesky factor: divisions, square roots and solves that wait for one another"
SEARCH = "the floor counts H² multiplications for the search of a code, which moves latent after latent, many times"
FEW = "few flops for each byte and an exponential for each component, all at the rate of large matrix products"
DENSE = (
    "(y − μ)ᵀ Σ⁻¹ (y − μ) and the second moments are summed by vectors, at less than the rate of large matrix products "
    "that the floor takes; the factors of the covariances, on the host, are not counted"
)
TIED = (
    "the kernel squares the differences for each component, D² flops, which is safe in float32: the floor counts them "
    "once for all components"
)

ROWS = {
    "bsc": Row("bsc", of_linear, STATES),
    "tsc": Row("tsc", of_linear, STATES, {"gamma": 3}),
    "dsc": Row("dsc", of_linear, STATES, {"gamma": 3, "values": (0, 1, 2)}),
    "mca": Row("mca", of_causes, MAXIMA, {"gamma": 3}, points=0.25),
    "mmca": Row("mmca", of_causes, MAXIMA, {"gamma": 3}, points=0.25),
    "pmca": Row("pmca", of_causes, LOGARITHMS, {"gamma": 3}, points=0.25),
    "noisyor": Row("noisyor", of_noisy_or, LOGARITHMS, {"gamma": 3}, points=0.25),
    "gsc": Row("gsc", of_spike_and_slab, FACTORS, {"gamma": 3}),
    "sc": Row("sc", of_sparse_coding, SEARCH, points=0.25),
    "mog-diag": Row("mog", of_mixture, FEW, {"covariance": "diag"}),
    "mog-spherical": Row("mog", of_mixture, FEW, {"covariance": "spherical"}),
    "mog-tied": Row("mog", of_mixture, TIED, {"covariance": "tied"}),
    "mog-full": Row("mog", of_mixture, DENSE, {"covariance": "full"}, points=0.25),
    "mop": Row("mop", of_mixture, FEW),
}


@dataclass(frozen=True)
class Case:
    """A model at a size: what is run on every backend."""

    name: str
    size: Size
    row: Row

    @property
    def N(self) -> int:
        return max(1, int(self.size.N * self.row.points))

    def model(self, **changes: Any) -> Model:
        """The model, its sizes as in `size` (or `changes`) where it has them."""
        known = signature(MODELS[self.row.model]).parameters
        sizes = {name: value for name, value in asdict(self.size).items() if name in known}
        return make(self.row.model, {**sizes, **self.row.settings, **changes})

    def problem(self, model: Model, N: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Parameters from a seed, and data drawn from the model with them."""
        N = N or self.N
        if model.of_role("centres") is None and model.of_role("scale") is None:
            return model_step.problem(model, N)
        params = mixture_params(model) if model.of_role("scale") is None else code_params(model)
        return params, model.generate_data(params, N, seed=0)[0]


def mixture_params(model: Any) -> dict[str, np.ndarray]:
    """Components that overlap a little, all of one weight."""
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in model.shapes.items():
        if name == "pi":
            made[name] = np.full(shape, 1 / shape[0])
        elif name == "cov":
            made[name] = np.broadcast_to(np.eye(shape[-1]), shape).copy()
        elif name == "mu":
            made[name] = 3 * rng.standard_normal(shape) / np.sqrt(model.D / 16)
        else:
            made[name] = rng.uniform(0.5, 1.5, shape) * (5 if name == "lam" else 1)
    return made


def code_params(model: Any) -> dict[str, np.ndarray]:
    """Fields of unit length, and a penalty as large as the noise."""
    W = np.random.default_rng(0).standard_normal((model.D, model.H))
    return {"W": W / np.linalg.norm(W, axis=0), "sigma": np.array(1.0), "b": np.array(1.0)}


def cases(profile: Profile) -> list[Case]:
    """Every line of the table whose model exists, at every size of the profile."""
    return [Case(name, size, row) for size in profile.sizes for name, row in ROWS.items() if row.model in MODELS]


def chosen_cases(profile: Profile, pattern: str) -> list[Case]:
    """Those whose SIZE/CASE has the pattern in it."""
    return [case for case in cases(profile) if pattern in f"{case.size.name}/{case.name}"]


def without_a_line() -> list[str]:
    """Models that exist, but are on no line of the table."""
    return sorted(set(MODELS) - {row.model for row in ROWS.values()})
