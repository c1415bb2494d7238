"""Mixtures: one latent, the component. What they share, with an E-step on the host that serves any of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gem.backends import blas
from gem.backends.base import Backend
from gem.batch import Batch
from gem.checks import number, whole_number, yes_or_no
from gem.errors import DataError
from gem.models import seeding
from gem.models.base import Model, Step
from gem.models.estep import EStep, Evidence, Posterior
from gem.models.parameters import TINY, Parameter, Params, of_role
from gem.philox import generator
from gem.statistics import Layout, Statistics, Sums
from gem.summary import Summary

FLOOR = 1e-6  # of variances, and of rates
EMPTY = 1e-3  # of a data point: a component that has less explains nothing
UNMOVED = 1e-10  # and one that has less stays where it is: what it has may be rounding
WORTHWHILE = 0.01  # of a component's weight: a smaller part would take long to grow


class Mixture(Model):
    """p(y) = Σ_k π_k p(y | k).

    A new mixture says what its `parameters` are (`pi`, "centres", which are E[y | k], and what else it has), where it
    starts (`begin`), how it is drawn (`draw`) and its `log_likelihood`; `update` where the best parameters are more
    than the mean that each component explains, or have bounds. Its E-step then runs on the host, in float64; one with a
    kernel for devices is a `gem.models.mixture_kernel.KernelMixture`.

    Parameters
    ----------
    D, K : int
        Observed dimensions, components.
    reg : float
        Floor of what must not vanish.
    missing : bool
        Whether NaN in the data marks missing entries; else it is refused.
    alpha : float
        Of the Dirichlet prior of pi: see `MoG`.

    Raises
    ------
    ConfigError
        If a size is not a positive whole number.
    """

    reseeds: ClassVar[str] = "always"

    def __init__(self, D: int, K: int, reg: float = FLOOR, missing: bool = False, alpha: float = 1.0):
        self.D, self.K = whole_number("D", D), whole_number("K", K)
        self.reg = number("reg", reg, "a number, finite and not negative: a floor", 0)
        self.missing = yes_or_no("missing", missing)
        self.alpha = number("alpha", alpha, "a positive number, the concentration of the prior of pi", 0, inside=True)

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        if self.alpha == 1:  # no prior
            given.pop("alpha", None)
        return given

    @property
    def proportions(self) -> Parameter:
        """What `pi` is."""
        return Parameter((self.K,), "distribution", "prior", latents=0)

    @property
    def centre(self) -> str:
        """The name of the parameter (K, D) that is E[y | k]."""
        return str(of_role(self.parameters, "centres"))

    @property
    def monotone(self) -> bool:
        return self.alpha == 1

    # -- the definition, but for log_likelihood ------------------------------------------------------------

    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """Centres by k-means++ on a subsample, equal proportions, the subsample's spread about its nearest centre.

        Distances are in units of each column's standard deviation: see `gem.models.seeding`.
        """
        if summary.N < self.K:
            raise DataError(f"{summary.N} data points cannot start K = {self.K} components: choose a smaller K")
        rows = summary.rows(seeding.rows_for(summary.N, self.K), rng) - summary.mean
        seen = np.isfinite(rows)
        unit = np.sqrt(np.where(summary.var > 0, summary.var, 1))
        scaled = np.where(seen & (summary.var > 0), rows / unit, 0)
        with blas.limited(1):  # its threads would spin after each of many small products
            chosen, nearest = summary.once(lambda: seeding.first_centres(scaled, self.K, summary.N, rng))
        centres = np.where(seen, rows, 0)[chosen]
        share = np.where(seen, (scaled - scaled[chosen][nearest]) ** 2, 1).mean(axis=0)
        begun = self.begin(centres + summary.mean, share * summary.var, summary)
        return {"pi": np.full(self.K, 1 / self.K), **begun}

    @abstractmethod
    def begin(self, centres: np.ndarray, var: np.ndarray, summary: Summary) -> Params:
        """Parameters but pi, from points (K, D) amid the data and the variance (D,) about the nearest one."""

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.int64)])
        drawn["s"] = rng.choice(self.K, size=n, p=params["pi"] / params["pi"].sum())
        drawn["Y"] = self.draw(params, drawn["s"], rng)
        return drawn

    @abstractmethod
    def draw(self, params: Params, k: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Data points (n, D) of the components k (n,)."""

    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        return np.log(params["pi"])[np.asarray(states, dtype=int)]

    def top_states(self, params: Params, Y: np.ndarray, posterior: Posterior, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most probable components, (n, k), and their responsibilities at T = 1."""
        joint = self.log_joint(params, Y, np.arange(self.K))
        best = np.argsort(-joint, axis=1, kind="stable")[:, :k]
        total = np.logaddexp.reduce(joint, axis=1, keepdims=True)
        return best, np.exp(np.take_along_axis(joint, best, axis=1) - total)

    # -- E-step --------------------------------------------------------------------------------------------

    def on(self, backend: Backend, params: Params, step: Step) -> EStep[Any]:
        return HostEStep(self, backend, params, 1 / step.T, self.shift(params, step))

    def shift(self, params: Params, step: Step) -> np.ndarray:
        """What the annealed log joint needs added, (K,), where the prior is not annealed."""
        return np.zeros(self.K) if step.anneal_prior else (1 - 1 / step.T) * np.log(params["pi"])

    def sums_on_host(self, params: Params, Y: np.ndarray, r: np.ndarray) -> Sums:
        """What `layout` names, of data points (n, D) and their responsibilities (n, K) times their weights.

        An entry that is missing counts as E[y | k]: what is observed tells nothing of it, given k.
        """
        first = np.empty((self.K, self.D))
        for k, centre in enumerate(params[self.centre]):
            from_centre = Y - centre
            first[k] = r[:, k] @ (np.where(np.isnan(Y), 0, from_centre) if self.missing else from_centre)
        return {"counts": r.sum(axis=0), "first": first}

    def expected(self, params: Params, Y: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Σ_k r_nk E[y | k], (n, D): given k, what is observed of a point tells nothing more."""
        return r @ params[self.centre]

    @property
    def layout(self) -> Layout:
        return {"counts": (self.K,), "first": (self.K, self.D)}

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        return itemsize * (self.D + self.K), 8

    # -- M-step --------------------------------------------------------------------------------------------

    def frame(self, params: Params, step: Step) -> np.ndarray:
        """The points (K, D) about which the E-step took its sums."""
        return params[self.centre]

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """Weighted counts, and Σ r (y − centre) with the centres (K, D)."""
        return sums.but({**sums.layout, "centres": (self.K, self.D)}, centres=self.frame(params, step))

    def combine(self, first: Statistics, second: Statistics, a: float, b: float) -> Statistics:
        both = super().combine(first, second, a, b)
        apart = first["centres"] - second["centres"]
        both["first"][...] = a * (first["first"] + first["counts"][:, None] * apart) + b * second["first"]
        both["centres"][...] = second["centres"]
        return both

    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """Weighted counts, centres and what else there is; an empty component begins anew if F can pay."""
        counts = moments["counts"]
        idle = counts < UNMOVED
        mean = np.where(idle[:, None], params[self.centre], moments["centres"] + from_centres(moments))
        notes: list[str] = []
        new = {"pi": self._shares(counts), **self.update(mean, params, moments, idle, step, notes)}
        if np.any(counts < EMPTY) and self.alpha >= 1:  # a sparse prior means them to be empty
            live = counts >= EMPTY
            gain = counts[live] @ np.log(new["pi"][live] / params["pi"][live])
            gain += self.gain(new, params, moments, live) - 2 * counts[~live].sum()
            new = self._reseeded(new, counts, float(gain) / 2, notes)
        return new, notes

    def _shares(self, counts: np.ndarray) -> np.ndarray:
        """The mode of the posterior of pi, π_k ∝ max(N_k + α − 1, 0); at α = 1 the largest likelihood."""
        mass = np.maximum(counts + (self.alpha - 1), 0)
        if not mass.any():  # no component has what the prior takes
            mass = np.where(counts == counts.max(), counts, 0)
        return np.maximum(mass / mass.sum(), TINY)

    def update(
        self, mean: np.ndarray, old: Params, moments: Statistics, idle: np.ndarray, step: Step, notes: list[str]
    ) -> Params:
        """All parameters but pi, held above the floor, which `notes` then tell: by default only the centres.

        `mean` (K, D) is that of the data each component explains; those `idle` (K,) explain none, and keep what they
        have: theirs is the old centre.
        """
        return {self.centre: mean}

    def gain(self, new: Params, old: Params, moments: Statistics, live: np.ndarray) -> float:
        """By how much log p(y | k), summed over data points and `live` components with their responsibilities, is
        larger under the new parameters, at least: F has risen by that, and by what the proportions add."""
        return 0.0

    def beside(self, params: Params, k: int, rng: np.random.Generator) -> np.ndarray:
        """A centre (D,) about one standard deviation from that of component k, of its spread: towards a point of it."""
        centre = params[self.centre][k]
        point = self.draw(params, np.array([k]), rng)[0]
        return np.asarray(centre + (point - centre) / max(2.0, np.sqrt(self.D)))

    def _reseeded(self, params: Params, counts: np.ndarray, budget: float, notes: list[str]) -> Params:
        """Give each empty component a part of the largest one's weight, beside it: math.md, mixtures.

        The part is what the `budget` allows, in nats of F: that of a component which has c data points may lose the
        share s of its weight for at most c log 1 / (1 - s) nats, wherever the share goes. None is given if that is
        little: then F hardly rises any more, and no component that fell empty again would begin anew for ever.
        """
        new = {name: value.copy() for name, value in params.items()}
        own = [name for name, about in self.parameters.items() if about.latents == 0]
        empty = np.flatnonzero(counts < EMPTY)
        for left, k in zip(range(len(empty), 0, -1), empty, strict=True):
            big = int(np.argmax(new["pi"]))
            share = min(0.5, -np.expm1(-max(budget, 0) / left / max(counts[big], EMPTY)))
            if share < WORTHWHILE:
                notes.append(f"component {k} is empty: no data point is explained by it")
                continue
            budget += counts[big] * np.log1p(-share)
            centre = self.beside(new, big, generator(int(k), "reseed"))
            for name in own:
                new[name][k] = new[name][big]
            new[self.centre][k] = centre
            taken = share * new["pi"][big]
            new["pi"][k], new["pi"][big] = params["pi"][k] + taken, new["pi"][big] - taken  # their sum stays 1
            notes.append(f"component {k} was empty and re-seeded beside component {big}")
        return new


def from_centres(moments: Statistics) -> np.ndarray:
    """From the centres of the moments to the mean of the data that each component explains, (K, D)."""
    counts = moments["counts"][:, None]
    return np.divide(moments["first"], counts, out=np.zeros_like(moments["first"]), where=counts > 0)


def direction(D: int, rng: np.random.Generator) -> np.ndarray:
    """A vector (D,) of length 1."""
    drawn = rng.standard_normal(D)
    return np.asarray(drawn / np.linalg.norm(drawn))


@dataclass(frozen=True)
class Explained:
    """What the E-step of a mixture finds of a batch: its sums, too, for which it needs the weights of the points.

    These are the same whenever they are asked for, as a mixture truncates nothing that data could be selected by.
    """

    evidence: Evidence
    sums: Sums


@dataclass(frozen=True)
class HostEStep(EStep[Explained]):
    """The E-step from the definition, in float64 on the host, whatever the backend."""

    model: Mixture
    backend: Backend
    params: Params
    beta: float
    shift: np.ndarray

    def infer(self, batch: Batch) -> Explained:
        with np.errstate(all="ignore"):  # what is not finite shows in the evidence, which the caller checks
            Y, log_evidence, r = self._responsibilities(batch)
            weighted = r if batch.counts is None else r * batch.counts[:, None]
            sums = self.model.sums_on_host(self.params, Y, weighted)
        return Explained(Evidence(batch.n, constant=log_evidence), sums)

    def sums(self, batch: Batch, found: Explained) -> Sums:
        return found.sums

    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        with np.errstate(all="ignore"):
            Y, log_evidence, r = self._responsibilities(batch)
            found = Posterior(Evidence(batch.n, constant=log_evidence), mean=self.backend.to_device(r))
            if reconstruct:
                found.reconstruction = self.backend.to_device(self.model.expected(self.params, Y, r))
        return found, {}

    def _responsibilities(self, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The data points on the host (n, D), their log evidence (n,) and their annealed responsibilities (n, K)."""
        Y = self.backend.to_host(batch.Y).astype(np.float64)
        joint = np.full((batch.n, self.model.K), np.nan)  # of data that the model refuses: the caller says why
        if self._accepted(Y):
            joint = self.model.log_joint(self.params, Y, np.arange(self.model.K))
        annealed = self.beta * joint + self.shift
        r = np.exp(annealed - np.logaddexp.reduce(annealed, axis=1)[:, None])
        return Y, np.logaddexp.reduce(joint, axis=1), r

    def _accepted(self, Y: np.ndarray) -> bool:
        """Whether the model explains data like these."""
        try:
            self.model.check_data(Y)
        except DataError:
            return False
        return True
