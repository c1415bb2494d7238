"""What a model is: equations without parameters. Parameters, tables and statistics are passed through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel, Parts
from gem.checks import number, whole_number
from gem.data import SampleWeights, Shard, check_finite, load_weights, open_data
from gem.data.shard import telling_gaps
from gem.errors import ConfigError, DataError
from gem.models.held import Masks, put_back
from gem.parallel import Communicator, communicator
from gem.philox import per_point
from gem.statistics import Layout, Statistics, Sums

Params = dict[str, np.ndarray]
MIN_PROBABILITY = 1e-10  # a prior of 0 or 1 could never change again
MOST_NOISE = 300.0  # on a logarithmic scale: no factor leaves the range of a float
TINY = float(np.finfo(np.float64).tiny)
SMALL = 1e-150  # its square is a number still
DOMAINS = {  # lowest and highest value
    "real": (-np.inf, np.inf),
    "nonnegative": (0.0, np.inf),
    "positive": (TINY, np.inf),
    "deviation": (SMALL, np.inf),  # a standard deviation
    "probability": (TINY, 1.0),
    "distribution": (TINY, 1.0),  # and the entries add up to 1
}


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
        Whether the prior is raised to 1/T as well (math.md says why not, by default).
    dtype : str
        Of the E-step: what it saw of the parameters was rounded to it.
    reseed : bool
        Whether dead latents begin anew.
    residuals : bool
        Whether the sums are taken about the old fields (`Model.needs_residuals`).
    """

    T: float = 1.0
    Ncut: float = 0.0
    anneal_prior: bool = False
    dtype: str = "float64"
    reseed: bool = False
    residuals: bool = False

    @property
    def resolution(self) -> float:
        """Machine epsilon of the E-step: what is smaller, relative to the data, cannot be told from rounding."""
        return float(np.finfo(self.dtype).eps)

    def __post_init__(self) -> None:
        number("T", self.T, "a number, finite and at least 1", 1)
        number("Ncut", self.Ncut, "a number between 0 and 1", 0, 1)


class Weights:
    """Weights of data points on the device: 1 for all, made once for each size of a batch, or those given."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._ones: dict[int, Array] = {}

    def __call__(self, n: int, weights: np.ndarray | None = None) -> Array:
        if weights is not None:
            return self._backend.to_device(weights)
        if n not in self._ones:
            self._ones[n] = self._backend.to_device(np.ones(n))
        return self._ones[n]


@dataclass(frozen=True)
class Evidence:
    """log p(y_n | Θ) of the n points of a batch, in the parts it is computed in: they can stay on the device.

    Attributes
    ----------
    n : int
    parts : sequence of (device array (n,), factor)
    constant : float, or (n,) host array
        What is added to all points, or to each.
    """

    n: int
    parts: Parts = ()
    constant: Any = 0.0

    def values(self, backend: Backend) -> np.ndarray:
        """(n,) float64, on the host."""
        total = np.full(self.n, self.constant, dtype=np.float64)
        for array, factor in self.parts:
            total += factor * backend.to_host(array).astype(np.float64)
        return total

    def sums(self, backend: Backend, weights: np.ndarray | None = None) -> list[Any]:
        """What the batch adds to the free energy, each point as often as its weight (n,) says."""
        each = np.broadcast_to(self.constant, self.n)
        constant = float(each.sum() if weights is None else each @ weights)
        if not self.parts:
            return [constant]
        return [constant, backend.point_sums(self.parts, None if weights is None else backend.to_device(weights))]


@dataclass
class Posterior:
    """What the E-step finds out about a batch: arrays on the device, or, as `gem.posterior` gives them, on the host.

    Attributes
    ----------
    log_evidence : Evidence, or (n,) float64 host array
        log Σ_{s ∈ K_n} p(s, y_n | Θ), at T = 1 with every constant.
    candidates : (n, H') int32 device array, or None
    mean : (n, H) device array, or None
        ⟨s⟩ under the annealed posterior; responsibilities of a mixture.
    product : (n, H) device array, or None
        ⟨s∘z⟩ where a latent is a switch s and a strength z (spike-and-slab).
    rest : dict
        What else the model's sums are made of.
    states, probabilities : (n, k, H) and (n, k) host arrays, or None
        The k most probable states, the best first, and p(s | y_n) on K_n at T = 1: what `gem.posterior` adds.
    reconstruction : (n, D) host array, or None
        E[y] under the posterior, likewise.
    """

    log_evidence: Any
    candidates: Array = None
    mean: Array = None
    product: Array = None
    rest: dict[str, Any] = field(default_factory=dict)
    states: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    reconstruction: np.ndarray | None = None

    @property
    def map_state(self) -> np.ndarray | None:
        """The most probable state of every data point, (n, H)."""
        return None if self.states is None else self.states[:, 0]


class Model(ABC):
    """A generative model and its EM equations; it never holds parameters and never names a backend.

    A subclass gives `shapes` and `domains` of its parameters, `init_params`, `generate`, its definition
    (`log_prior`, `log_likelihood`), and the EM step in four parts: `tables` (what the kernels need of the
    parameters), `infer` (posterior of a batch), `sums` (its sufficient statistics) and `m_step`.
    """

    domains: ClassVar[Mapping[str, str]] = {}  # parameter → a key of DOMAINS
    location: ClassVar[str | None] = None  # the parameter (..., D) that moves with the data while nothing else changes
    missing: bool = False  # whether NaN in the data marks missing entries; else it is refused
    tallies: ClassVar[Layout] = {}  # numbers of data points that `tally` counts
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
            try:
                value = np.asarray(params[name])
                if value.dtype.kind not in "buifO":
                    raise TypeError(f"they are {value.dtype}")
                value = np.array(value, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"parameter {name} must be an array of real numbers: {error}") from error
            if value.shape != shape:
                raise ConfigError(f"parameter {name} of {self!r} must have shape {shape}, not {value.shape}")
            if not np.all(np.isfinite(value)):
                where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
                raise ConfigError(f"parameter {name} is {value[where]} at {where}: every entry must be finite")
            low, high = DOMAINS[self.domains[name]]
            if not np.all((value >= low) & (value <= high)):
                raise ConfigError(
                    f"parameter {name} must lie in [{low:g}, {high:g}]: it spans {value.min()} to {value.max()}"
                )
            if self.domains[name] == "distribution" and abs(value.sum() - 1) > 1e-6:
                raise ConfigError(f"the probabilities {name} must add up to 1, not {value.sum()}")
            copies[name] = value
        return copies

    def moved(self, params: Params, by: np.ndarray | None) -> Params:
        """The parameters of data to which `by` (D,) was added; None: nothing was."""
        if by is None or self.location is None:
            return params
        return {**params, self.location: params[self.location] + by}

    def perturb(self, params: Params, noise: Mapping[str, float], rng: np.random.Generator) -> Params:
        """Parameters with annealing noise, `<name>_noise` of each that `noise` names: each stays in its domain.

        A real parameter gets noise of that standard deviation added, and so does a non-negative one, reflected
        at 0; a positive one is multiplied by its exponential, and a probability moved on the logit scale; those of
        a distribution are then brought to the sum 1.

        Raises
        ------
        ConfigError
            If there is to be noise on covariances.
        """
        out = dict(params)
        for name in self.shapes:
            scale = noise.get(f"{name}_noise", 0.0)
            if scale == 0:
                continue
            if name == "cov":
                raise ConfigError("cov_noise must be 0: a covariance with noise on it may be none")
            e = scale * rng.standard_normal(params[name].shape)
            if self.domains[name] in ("positive", "deviation"):
                low = DOMAINS[self.domains[name]][0]
                out[name] = np.clip(params[name] * np.exp(np.clip(e, -MOST_NOISE, MOST_NOISE)), low, 1 / TINY)
            elif self.domains[name] in ("probability", "distribution"):
                p = np.clip(params[name], MIN_PROBABILITY, 1 - MIN_PROBABILITY)
                moved = 1 / (1 + np.exp(-np.clip(np.log(p) - np.log1p(-p) + e, -MOST_NOISE, MOST_NOISE)))
                out[name] = np.clip(moved, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
            else:
                out[name] = params[name] + e
            if self.domains[name] == "nonnegative":
                out[name] = np.abs(out[name])
            if self.domains[name] == "distribution":
                out[name] = out[name] / out[name].sum()
        return out

    def schedules(self, params: Params) -> dict[str, Any]:
        """What `Annealing.auto` anneals, from the parameters that a run begins with; by default nothing.

        Returns
        -------
        dict of name to breakpoints
            As `Annealing` takes them: fractions of the run, noise in the units of these parameters. T ends at 1 and
            noise at 0, before the run does.
        """
        return {}

    @abstractmethod
    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """Starting parameters from the data, the `weights` of its points, and a seed; the same on every rank."""

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        """Refuse data that the model cannot explain; `start` is the global index of the first row of Y (n, D).

        Raises
        ------
        DataError
            With row and column of the first such value.
        """
        check_finite(Y, start, missing=self.missing)

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
        start, N = whole_number("start", start, 0), whole_number("N", N, 0)
        seed = whole_number("seed", seed, 0)
        drawn = per_point(seed, "data", start, start + N, lambda rng, n: self.generate(checked, n, rng))
        return drawn["Y"].copy(), drawn["s"].copy()

    @abstractmethod
    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        """n draws as a structured array with the fields "Y" (D,) and "s"."""

    # -- equations -----------------------------------------------------------------------------------------

    @abstractmethod
    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        """log p(s | Θ), (S,): the definition, in plain float64 numpy."""

    @abstractmethod
    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """log p(y_n | s, Θ) of every data point and state, (N, S), in plain float64 numpy; NaN is no observation."""

    def log_joint(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """log p(s, y_n | Θ), (N, S), of states (S, H), or of the components listed in (S,)."""
        return self.log_prior(params, states) + self.log_likelihood(params, Y, states)

    @abstractmethod
    def tables(self, params: Params, backend: Backend, step: Step) -> Any:
        """What the kernels need of the parameters, on the device; made once a step."""

    @abstractmethod
    def infer(self, tables: Any, Y: Array) -> Posterior:
        """The posterior of a batch."""

    @abstractmethod
    def sums(self, tables: Any, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> Sums:
        """The batch's part of the sufficient statistics, each point as often as `weights` (n,) says; `posterior` is
        used up.

        What is on the device stays there: a copy to the host would make it wait.
        """

    def e_step(self, tables: Any, Y: Array, weights: np.ndarray | None = None) -> tuple[Evidence, Sums]:
        """Log evidence of each point of a batch, and statistics and tallies, in which it counts as its weight says."""
        posterior = self.infer(tables, Y)
        counts = self.tally(tables, posterior, weights)
        return posterior.log_evidence, {**self.sums(tables, Y, posterior, weights), **counts}

    def tally(self, tables: Any, posterior: Posterior, weights: np.ndarray | None = None) -> Sums:
        """The batch's part of `tallies`: of how many data points inference has something to tell, selected or not."""
        return {}

    def advice(self, share_at_gamma: float) -> list[str]:
        """A note on what settings to change, where γ is short: of models that have one."""
        return []

    def shortfalls(self, stats: Statistics) -> list[str]:
        """Notes on where inference fell short of what was asked for, from the tallies of all ranks."""
        return []

    def infer_full(self, tables: Any, Y: Array) -> Posterior:
        """The posterior with `mean` in any case, for a user who asks for it."""
        return self.infer(tables, Y)

    @abstractmethod
    def reconstruct(self, tables: Any, Y: Array, posterior: Posterior) -> Array:
        """E[y_n] under the posterior that `infer_full` gave, (n, D) on the device."""

    @abstractmethod
    def top_states(self, params: Params, Y: np.ndarray, posterior: Posterior, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most probable states, (n, k, H), and their probabilities at T = 1, (n, k); all on the host."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Names and shapes of the sufficient statistics."""

    @abstractmethod
    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """New parameters from the statistics of all ranks, and notes on constraints that were active."""

    def needs_residuals(self, params: Params, step: Step, stats: Statistics | None = None) -> bool:
        """Whether σ² would be lost in the rounding of the data's squares, so that the sums must be of residuals.

        Asked about the old parameters before an E-step, and about the new ones with its `stats`, the same on all ranks.
        """
        return False

    def refuses_to_hold(self, name: str, mask: np.ndarray) -> str | None:
        """Why the entries of a parameter that `mask`, of its shape, marks cannot be held; None: they can."""
        return None

    def hold(self, new: Params, old: Params, masks: Masks, stats: Statistics, step: Step) -> Params:
        """What `m_step`, which gave `new`, would have given if the entries of `masks` kept the values of `old`.

        Held entries are those of `old`, and what depends on them is as good as it can be then; by default nothing does.
        """
        return put_back(new, old, masks, self.domains)

    @property
    def monotone(self) -> bool:
        """Whether no EM step at T = 1 on all data can lower F, but by rounding: E-step and M-step are exact."""
        return False

    def settle(self, new: Params, old: Params) -> Params:
        """Parameters of the same likelihood as `new`, in which what it leaves open is as in `old`; `EM` keeps to it."""
        return new

    def reseed(self, new: Params, stats: Statistics) -> tuple[Params, list[str]]:
        """New parameters in which dead latents begin anew, and notes on them; by default there are none."""
        return new, []

    def truncation(self, params: Params) -> tuple[float, float]:
        """(A, B): prior mass of the states with at most γ causes, and their mean number of causes."""
        return 1.0, 1.0

    @abstractmethod
    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        """Device memory a data point takes during the E-step, and what its Posterior keeps of it."""


@dataclass(frozen=True)
class Moments:
    """Number of data points, mean (D,) and variance (D,) of what was observed, over all ranks.

    Of weighted points `N` is the sum of the weights as a whole number, or how many count at all if these are more.
    """

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


def _first_row(shard: Shard, comm: Communicator) -> np.ndarray:
    """The first number of each column that is there, over all ranks, (D,); NaN if none is."""
    found = np.full(shard.D, np.nan)
    for _, Y in shard.batches():
        first = Y[np.argmax(np.isfinite(Y), axis=0), np.arange(shard.D)]
        found = np.where(np.isnan(found), first, found)
        if not np.isnan(found).any():
            break
    ranks = np.array(comm.allgather(found))
    return np.asarray(ranks[np.argmin(np.isnan(ranks), axis=0), np.arange(shard.D)])


def moments(shard: Shard, comm: Communicator, missing: bool = False, weights: SampleWeights | None = None) -> Moments:
    """Mean and variance in one pass, about the first numbers so that a large mean costs no digits.

    Raises
    ------
    DataError
        If the data hold Inf, or NaN that does not mark `missing` entries, a dimension is never observed, or its squares
        are no numbers any more.
    """
    first = _first_row(shard, comm) if missing else comm.bcast(next(iter(shard.batches()))[1][0])
    first = np.asarray(first, dtype=np.float64)
    check_finite(first[None], missing=missing)
    reference = np.nan_to_num(first)
    buffer = np.zeros((3, shard.D))
    for start, Y in shard.batches():
        y = Y - reference
        seen = np.isfinite(y)
        if not seen.all():
            check_finite(Y, start, missing=missing)
            y = np.where(seen, y, 0)
        if weights is None:
            buffer += [seen.sum(axis=0), y.sum(axis=0), np.einsum("nd,nd->d", y, y)]
        else:
            w = weights.of(start, len(y))
            buffer += [w @ seen, w @ y, np.einsum("n,nd,nd->d", w, y, y)]
    N = np.array([shard.N])
    comm.allreduce(N)
    if weights is not None:
        N[0] = max(int(weights.total), weights.rows)
    comm.allreduce(buffer)
    if not np.all(np.isfinite(buffer)):
        column = int(np.argmin(np.isfinite(buffer).all(axis=0)))
        raise DataError(f"the squares of the data in column {column} exceed the range of float64: rescale them")
    if not buffer[0].all():
        raise DataError(f"dimension {int(np.argmin(buffer[0]))} is missing from every data point: leave it out")
    delta = buffer[1] / buffer[0]
    return Moments(int(N[0]), reference + delta, np.maximum(buffer[2] / buffer[0] - delta**2, 0))


def subsample(
    shard: Shard,
    total: int,
    count: int,
    comm: Communicator,
    rng: np.random.Generator,
    weights: SampleWeights | None = None,
) -> np.ndarray:
    """`count` rows drawn without replacement from all ranks' data, (count, D): the same on every rank.

    Of weighted points, as from `total` pieces of equal weight: a row of weight 2 is drawn as if it were there twice.
    """
    count = min(count, total)
    chosen = np.sort(rng.choice(total, size=count, replace=False))
    if weights is not None:
        chosen = _rows_at((chosen + 0.5) * (weights.total / total), weights, comm)
    mine = (chosen >= shard.start) & (chosen < shard.stop)
    rows = np.zeros((count, shard.D))
    rows[mine] = shard.rows(chosen[mine])
    comm.allreduce(rows)
    return rows


def _rows_at(places: np.ndarray, weights: SampleWeights, comm: Communicator) -> np.ndarray:
    """The row (its global index) of each of these places, if all ranks' weights are laid end to end; −1 elsewhere."""
    begin, end = weights.edges[comm.rank], weights.edges[comm.rank + 1]
    mine = (places >= begin) & (places < end)
    if comm.rank + 1 == comm.size:
        mine |= places >= end  # by rounding
    rows = np.full(len(places), -1)
    heavy = np.flatnonzero(weights.values)
    if len(heavy):
        found = np.searchsorted(np.cumsum(weights.values[heavy]), places[mine] - begin, side="right")
        rows[mine] = weights.start + heavy[np.minimum(found, len(heavy) - 1)]
    return rows


def shard_and_moments(
    data: Any, D: int, comm: Any, missing: bool = False, weights: Any = None
) -> tuple[Shard, Communicator, Moments, SampleWeights | None]:
    """What every initialisation begins with."""
    group = communicator(comm)
    shard = whole_shard(data, D, group)
    counts = None if weights is None else load_weights(weights, shard.source.shape[0], group)
    with telling_gaps(shard.source):
        return shard, group, moments(shard, group, missing, counts), counts


def squared_norms(backend: Backend, kernel: Kernel, rows: Array) -> Array:
    """‖row‖² of each row of a device array, (n,); `kernel` is "squared_norms" of their length.

    Not to be written to: those of data that stay on the device are kept for the next step.
    """
    notes = backend.notes(rows)
    if kernel.name not in notes:
        out = backend.empty((rows.shape[0],))
        kernel(rows.shape[0], rows, out)
        notes[kernel.name] = out
    return notes[kernel.name]


def column_sums(backend: Backend, rows: Array, keep: Array) -> Array:
    """Σ_n keep_n rows_n of a device array (n, H), in parts (groups, H)."""
    n, H = rows.shape
    kernel = backend.kernel("column_sums", H=H)
    sums = backend.empty((kernel.groups(n), H), backend.acc)
    kernel(n, rows, keep, sums)
    return sums
