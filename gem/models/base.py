"""What a model is: a generative model and its EM equations. Parameters and statistics are passed through it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter as Argument
from inspect import signature
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Backend
from gem.checks import number, whole_number
from gem.data import check_finite, open_data
from gem.memory import Memory
from gem.models import parameters
from gem.models.estep import EStep, Posterior
from gem.models.held import Masks, put_back
from gem.models.parameters import Parameter, Params
from gem.models.pictures import OfPictures
from gem.parallel import communicator
from gem.philox import generator, per_point
from gem.statistics import N_USE, Layout, Statistics
from gem.summary import Summary, summarize


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
    number : int
        Which E-step it is, counted from 1: kept states are improved by the first one of its number; 0: by none.
    """

    T: float = 1.0
    Ncut: float = 0.0
    anneal_prior: bool = False
    dtype: str = "float64"
    reseed: bool = False
    residuals: bool = False
    number: int = 0

    @property
    def resolution(self) -> float:
        """Machine epsilon of the E-step: what is smaller, relative to the data, cannot be told from rounding."""
        return float(np.finfo(self.dtype).eps)

    def __post_init__(self) -> None:
        number("T", self.T, "a number, finite and at least 1", 1)
        number("Ncut", self.Ncut, "a number between 0 and 1", 0, 1)


class Model(OfPictures):
    """A generative model and its EM equations; it never holds parameters and never names a backend.

    A subclass says what its parameters are (`parameters`) and where they begin (`start`); it is defined by `generate`,
    `log_prior` and `log_likelihood`; and its EM step has two parts: `on` puts it on a device, where the E-step gives
    the sums named in `layout`, and `maximize` makes new parameters of their `moments`.
    """

    missing: bool = False  # whether NaN in the data marks missing entries; else it is refused
    tallies: Layout = MappingProxyType({})  # numbers of data points that `EStep.tally` counts
    D: int

    # -- description ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return type(self).__name__

    @classmethod
    def arguments(cls) -> Mapping[str, Argument]:
        """What the constructor takes, in its order."""
        return signature(cls).parameters

    @classmethod
    def example(cls) -> Model:
        """A smallest model of its kind: all that the constructor must be given is 2."""
        return cls(**{name: 2 for name, about in cls.arguments().items() if about.default is Argument.empty})

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data, but those left out by default (None or False)."""
        given = {name: getattr(self, name) for name in self.arguments()}
        defaults = {name: about.default for name, about in self.arguments().items()}
        left_out = {name for name, default in defaults.items() if default is None or default is False}
        return {name: v for name, v in given.items() if not (name in left_out and v is defaults[name])}

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Parameter]:
        """What each parameter is; their order is that in which a user sees them."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter → shape."""
        return {name: about.shape for name, about in self.parameters.items()}

    def of_role(self, role: str) -> str | None:
        """The name of the parameter of this role, see `Parameter`; None if there is none."""
        return parameters.of_role(self.parameters, role)

    @property
    def fields_are_nonnegative(self) -> bool:
        """Whether latents have fields that can explain no negative values: a picture needs two channels for these."""
        name = self.of_role("fields")
        return name is not None and self.parameters[name].domain == "nonnegative"

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
        return parameters.checked(self, params)

    def moved(self, params: Params, by: np.ndarray | None) -> Params:
        """The parameters of data to which `by` (D,) was added; None: nothing was."""
        return parameters.moved(self.parameters, params, by)

    def perturb(self, params: Params, noise: Mapping[str, float], rng: np.random.Generator) -> Params:
        """Parameters with annealing noise: see `gem.models.parameters.perturbed`."""
        return parameters.perturbed(self.parameters, params, noise, rng)

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """Starting parameters from the data, the weights of its points, and a seed; the same on every rank.

        Parameters
        ----------
        Y : (N, D) array, path, or gem.data source
        seed : int
        comm : None, "world" or an mpi4py communicator
        weights : (N,) array, path, or gem.data source of one column, optional

        Raises
        ------
        ConfigError
            If the data have not D columns.
        DataError
            If they hold Inf, or NaN that marks nothing, or there is nothing to learn from them.
        """
        return self.start(summarize(Y, self.D, communicator(comm), self.missing, weights), generator(seed, "init"))

    # -- what is kept for each data point ----------------------------------------------------------------------

    @property
    def bytes_kept(self) -> int:
        """Bytes that are kept for a data point from step to step; by default nothing is."""
        return 0

    def first_memory(self, start: int, count: int, seed: int) -> dict[str, np.ndarray]:
        """What is kept of so many data points from the global row `start` on before the first step, (count, ...)."""
        return {}

    def init_memory(self, Y: Any, seed: int = 0, comm: Any = None) -> Memory:
        """What is kept for each data point of this rank before the first step, for `em_step`.

        Parameters
        ----------
        Y : (N, D) array, path, or gem.data source
        seed : int
            Of all that is random in the kept states, then and later.
        comm : None, "world" or an mpi4py communicator
        """
        start, stop = communicator(comm).slab(open_data(Y).shape[0])
        return Memory(start, self.first_memory(start, stop - start, whole_number("seed", seed, 0)))

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
    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """Starting parameters from a summary of the data; `rng` gives the same numbers on every rank."""

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        """Refuse data that the model cannot explain; `start` is the global index of the first row of Y (n, D).

        Raises
        ------
        DataError
            With row and column of the first such value.
        """
        check_finite(Y, start, missing=self.missing)

    # -- the definition ------------------------------------------------------------------------------------

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

    @abstractmethod
    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        """log p(s | Θ), (S,): the definition, in plain float64 numpy."""

    @abstractmethod
    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """log p(y_n | s, Θ) of every data point and state, (N, S), in plain float64 numpy; NaN is no observation."""

    def log_joint(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """log p(s, y_n | Θ), (N, S), of states (S, H), or of the components listed in (S,)."""
        return self.log_prior(params, states) + self.log_likelihood(params, Y, states)

    def top_states(self, params: Params, Y: np.ndarray, posterior: Posterior, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most probable states, (n, k, H), and their probabilities at T = 1, (n, k); all on the host.

        By default the one that has its `Posterior.mean`, of which no probability is known.
        """
        return posterior.mean[:, None], np.full((len(Y), 1), np.nan)

    # -- the EM step ---------------------------------------------------------------------------------------

    @abstractmethod
    def on(self, backend: Backend, params: Params, step: Step) -> EStep[Any]:
        """The E-step of this model with these parameters, which are then on the backend's device."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Names and shapes of the sums of an E-step, which may be in the frame of the parameters it was made with."""

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """The sums of all data and ranks as `maximize` takes them: with their frame, so that they outlive the step.

        `params` are those that the E-step was made with. By default the sums themselves, which need no frame.
        """
        return sums

    def combine(self, first: Statistics, second: Statistics, a: float, b: float) -> Statistics:
        """The moments of a data set in which the points of `first` count a times, and those of `second` b times.

        Moments of different frames are brought to one of them first, by formulas that take no difference of large
        numbers: that of `second`, or the one that loses fewer digits. By default they are plain sums.
        """
        return Statistics(second.layout, a * first.buffer + b * second.buffer)

    @abstractmethod
    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """New parameters from the moments and the old parameters, and notes on constraints that were active."""

    def needs_residuals(self, params: Params, step: Step, moments: Statistics | None = None) -> bool:
        """Whether σ² would be lost in the rounding of the data's squares, so that the sums must be of residuals.

        Asked about the old parameters before an E-step, and about the new ones with its `moments`, the same on all
        ranks.
        """
        return False

    def refuses_to_hold(self, name: str, mask: np.ndarray) -> str | None:
        """Why the entries of a parameter that `mask`, of its shape, marks cannot be held; None: they can."""
        return None

    def hold(self, new: Params, old: Params, masks: Masks, moments: Statistics, step: Step) -> Params:
        """What `maximize`, which gave `new`, would have given if the entries of `masks` kept the values of `old`.

        Held entries are those of `old`, and what depends on them is as good as it can be then; by default nothing does.
        """
        return put_back(new, old, masks, self.parameters)

    def settle(self, new: Params, old: Params) -> Params:
        """Parameters of the same likelihood as `new`, in which what it leaves open is as in `old`; `EM` keeps to it."""
        return new

    # -- what an EM step may ask besides -------------------------------------------------------------------

    reseeds: ClassVar[str] = "no"  # "no"; "asked", where `reseed` gives dead latents a new start; "always", unasked

    def reseed(self, new: Params, moments: Statistics) -> tuple[Params, list[str]]:
        """New parameters in which dead latents begin anew, and notes on them; by default there are none."""
        return new, []

    truncates: bool = False  # whether states are left out, so that data can be selected

    def truncation(self, params: Params) -> tuple[float, float]:
        """(A, B): prior mass of the states with at most γ causes, and their mean number of causes."""
        return 1.0, 1.0

    def advice(self, share_at_gamma: float) -> list[str]:
        """A note on what settings to change, where γ is short: of models that have one."""
        return []

    def shortfalls(self, stats: Statistics) -> list[str]:
        """Notes on where inference fell short of what was asked for, from the tallies of all ranks."""
        return []

    @property
    def monotone(self) -> bool:
        """Whether no EM step at T = 1 on all data can lower F, but by rounding: E-step and M-step are exact."""
        return False

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        """Device memory a data point takes during the E-step, and what its `EStep.infer` keeps of it.

        By default some rows as long as the data point, and as the model has latents.
        """
        latents = max(about.shape[about.latents] for about in self.parameters.values() if about.latents is not None)
        return itemsize * (2 * self.D + 4 * latents), itemsize * (self.D + 2 * latents)


def points(moments: Statistics) -> float:
    """How many data points are in the moments, counted by their weights."""
    return float(moments[N_USE])
