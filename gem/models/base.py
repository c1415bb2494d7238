"""What a model is: equations without parameters. Parameters, tables and statistics are passed through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend
from gem.data import Shard, open_data
from gem.errors import ConfigError
from gem.parallel import Communicator, communicator
from gem.philox import per_point
from gem.statistics import Layout, Statistics

Params = dict[str, np.ndarray]
MIN_PROBABILITY = 1e-10  # a prior of 0 or 1 could never change again


@dataclass(frozen=True)
class Step:
    """The settings of one EM step.

    Attributes
    ----------
    T : float
        Temperature, ≥ 1.
    Ncut : float
        Data selection, 0 (all points) to 1.
    anneal_prior : bool
        Whether the prior is raised to 1/T as well.
    dtype : str
        Of the E-step: what it saw of the parameters was rounded to it.
    """

    T: float = 1.0
    Ncut: float = 0.0
    anneal_prior: bool = True
    dtype: str = "float64"

    @property
    def resolution(self) -> float:
        """Machine epsilon of the E-step: what is smaller, relative to the data, cannot be told from rounding."""
        return float(np.finfo(self.dtype).eps)

    def __post_init__(self) -> None:
        if not self.T >= 1 or np.inf == self.T:
            raise ConfigError(f"T = {self.T} must be finite and at least 1")
        if not 0 <= self.Ncut <= 1:
            raise ConfigError(f"Ncut = {self.Ncut} must lie between 0 and 1")


@dataclass
class Posterior:
    """What the E-step finds out about a batch: arrays on the device, the log evidence on the host.

    Attributes
    ----------
    log_evidence : (n,) float64 array
        log Σ_{s ∈ K_n} p(s, y_n | Θ), at T = 1 with every constant.
    candidates : (n, H') int32 device array, or None
    mean : (n, H) device array, or None
        ⟨s⟩ under the annealed posterior; responsibilities of a mixture.
    pairs : (n, H'(H'−1)/2) device array, or None
        ⟨s_i s_j⟩ for pairs of candidates.
    squares : (n,) float64 array, or None
        ‖y_n‖².
    """

    log_evidence: np.ndarray
    candidates: Array = None
    mean: Array = None
    pairs: Array = None
    squares: np.ndarray | None = None


class Model(ABC):
    """A generative model and its EM equations; it never holds parameters and never names a backend.

    A subclass gives `shapes` and `domains` of its parameters, `init_params`, `generate`, `log_joint`, and the
    EM step in four parts: `tables` (what the kernels need of the parameters), `infer` (posterior of a batch),
    `sums` (its sufficient statistics) and `m_step`.
    """

    domains: ClassVar[Mapping[str, str]] = {}  # parameter → "real", "positive" or "probability"
    D: int

    # -- description ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter → shape."""

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"

    # -- parameters ----------------------------------------------------------------------------------------

    def check(self, params: Mapping[str, Any]) -> Params:
        """A float64 copy of the parameters.

        Raises
        ------
        ConfigError
            If one is missing, unknown, of a wrong shape, not finite, or outside its domain.
        """
        unknown, missing = sorted(set(params) - set(self.shapes)), sorted(set(self.shapes) - set(params))
        if unknown or missing:
            raise ConfigError(
                f"{self.name} has the parameters {', '.join(self.shapes)}: "
                + "; ".join([f"{n} is missing" for n in missing] + [f"{n} is not one of them" for n in unknown])
            )
        copies = {}
        for name, shape in self.shapes.items():
            value = np.array(params[name], dtype=np.float64)
            if value.shape != shape:
                raise ConfigError(f"parameter {name} of {self!r} must have shape {shape}, not {value.shape}")
            if not np.all(np.isfinite(value)):
                where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
                raise ConfigError(f"parameter {name} is {value[where]} at {where}: every entry must be finite")
            low, high = {"positive": (0, np.inf), "probability": (0, 1)}.get(self.domains[name], (-np.inf, np.inf))
            if not np.all((value > low) & (value <= high)):
                raise ConfigError(
                    f"parameter {name} must lie in ({low:g}, {high:g}]: it spans {value.min()} to {value.max()}"
                )
            copies[name] = value
        return copies

    def perturb(self, params: Params, noise: Mapping[str, float], rng: np.random.Generator) -> Params:
        """Parameters with annealing noise (`W_noise`, `pi_noise`, `sigma_noise`): each stays in its domain.

        A real parameter gets noise of that standard deviation added; a positive one is multiplied by its
        exponential, and a probability moved on the logit scale.
        """
        out = dict(params)
        for name in self.shapes:
            scale = noise.get(f"{name}_noise", 0.0)
            if scale == 0:
                continue
            e = scale * rng.standard_normal(params[name].shape)
            if self.domains[name] == "positive":
                out[name] = params[name] * np.exp(e)
            elif self.domains[name] == "probability":
                p = np.clip(params[name], MIN_PROBABILITY, 1 - MIN_PROBABILITY)
                out[name] = 1 / (1 + np.exp(-(np.log(p) - np.log1p(-p) + e)))
            else:
                out[name] = params[name] + e
        return out

    @abstractmethod
    def init_params(self, Y: Any, seed: int = 0, comm: Any = None) -> Params:
        """Starting parameters from the data and a seed; the same on every rank."""

    # -- generation ----------------------------------------------------------------------------------------

    def generate_data(
        self, params: Mapping[str, Any], N: int, seed: int = 0, start: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw data points start … start + N of the endless sequence that (params, seed) define.

        Returns
        -------
        Y : (N, D) float64 array
        s : (N, H) array of latents, or (N,) of component indices for a mixture
        """
        checked = self.check(params)
        drawn = per_point(seed, "data", start, start + N, lambda rng, n: self.generate(checked, n, rng))
        return drawn["Y"].copy(), drawn["s"].copy()

    @abstractmethod
    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        """n draws as a structured array with the fields "Y" (D,) and "s"."""

    # -- equations -----------------------------------------------------------------------------------------

    @abstractmethod
    def log_joint(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """log p(s, y | Θ) of every data point and state, (N, S): the definition, in plain float64 numpy."""

    @abstractmethod
    def tables(self, params: Params, backend: Backend, step: Step) -> Any:
        """What the kernels need of the parameters, on the device; made once a step."""

    @abstractmethod
    def infer(self, tables: Any, Y: Array) -> Posterior:
        """The posterior of a batch."""

    @abstractmethod
    def sums(self, tables: Any, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> Mapping[str, Any]:
        """The batch's part of the sufficient statistics; `weights` (n,) drops points; `posterior` is used up."""

    def e_step(self, tables: Any, Y: Array) -> tuple[np.ndarray, Mapping[str, Any]]:
        """Log evidence and statistics of a batch whose points all count."""
        posterior = self.infer(tables, Y)
        return posterior.log_evidence, self.sums(tables, Y, posterior, None)

    def infer_full(self, tables: Any, Y: Array) -> Posterior:
        """The posterior with `mean` in any case, for a user who asks for it."""
        return self.infer(tables, Y)

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Names and shapes of the sufficient statistics."""

    @abstractmethod
    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """New parameters from the statistics of all ranks, and notes on constraints that were active."""

    def truncation(self, params: Params) -> tuple[float, float]:
        """(A, B): prior mass of the states with at most γ causes, and their mean number of causes."""
        return 1.0, 1.0

    @abstractmethod
    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        """Device memory a data point takes during the E-step, and what its Posterior keeps of it."""


@dataclass(frozen=True)
class Moments:
    """Number, mean (D,) and variance (D,) of all data points, over all ranks."""

    N: int
    mean: np.ndarray
    var: np.ndarray


def whole_shard(
    data: Any, D: int, comm: Communicator, dtype: Any = np.float64, batch: int = 4096, **options: Any
) -> Shard:
    """This rank's slab of `data` (an array, a path, a Source, or a Shard already), checked against D."""
    if isinstance(data, Shard):
        shard = data
    else:
        source = open_data(data, **options)
        shard = Shard(source, *comm.slab(source.shape[0]), dtype=dtype, batch=batch)
    if shard.D != D:
        raise ConfigError(f"the data have {shard.D} dimensions, the model D = {D}: they must agree")
    return shard


def moments(shard: Shard, comm: Communicator) -> Moments:
    """Mean and variance in one pass, about the first row so that a large mean costs no digits.

    Raises
    ------
    DataError
        If the data hold NaN or Inf.
    """
    from gem.data import check_finite

    reference = np.asarray(comm.bcast(next(iter(shard.batches()))[1][0]), dtype=np.float64)
    check_finite(reference[None])
    buffer = np.zeros(1 + 2 * shard.D)
    for start, Y in shard.batches():
        y = Y - reference
        sums = np.concatenate([[len(y)], y.sum(axis=0), np.einsum("nd,nd->d", y, y)])
        if not np.all(np.isfinite(sums)):
            check_finite(Y, start)
        buffer += sums
    comm.allreduce(buffer)
    N, delta = int(buffer[0]), buffer[1 : shard.D + 1] / buffer[0]
    var = np.maximum(buffer[shard.D + 1 :] / N - delta**2, 0)
    return Moments(N, reference + delta, var)


def subsample(shard: Shard, total: int, count: int, comm: Communicator, rng: np.random.Generator) -> np.ndarray:
    """`count` rows drawn without replacement from all ranks' data, (count, D): the same on every rank."""
    count = min(count, total)
    chosen = np.sort(rng.choice(total, size=count, replace=False))
    mine = (chosen >= shard.start) & (chosen < shard.stop)
    rows = np.zeros((count, shard.D))
    rows[mine] = shard.rows(chosen[mine])
    comm.allreduce(rows)
    return rows


def shard_and_moments(data: Any, D: int, comm: Any) -> tuple[Shard, Communicator, Moments]:
    """What every initialisation begins with."""
    group = communicator(comm)
    shard = whole_shard(data, D, group)
    return shard, group, moments(shard, group)
