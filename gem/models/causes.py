"""What all models share whose causes hide each other: their E-step, and the sums that the M-step is made of.

The models themselves: maximal.py (MCA, MMCA), poisson_causes.py (PMCA), noisyor.py (NoisyOR); their noise: noises.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.errors import ConfigError, DataError
from gem.models.base import Step, points
from gem.models.estep import EStep, Evidence, Posterior, column_sums, squared_norms
from gem.models.observed import split_missing
from gem.models.parameters import MIN_PROBABILITY, Parameter, Params
from gem.models.truncated import Truncated, count_full, held, log_odds
from gem.statistics import N_USE, Layout, Statistics, Sum, Sums

MAX_STATES = 1 << 14  # of several causes: kernels hold the energies of all for a data point
SETTINGS = 4  # numbers that a fragment is given, as in kernels/causes.c


@dataclass(frozen=True)
class Likelihood:
    """What a model tells the kernel of log p(y | s), up to what is the same for all states.

    Attributes
    ----------
    fragments : str
        How causes combine, and their noise: two files in kernels/fragments, joined by a "+".
    fields : (D, H) array
        As the fragment wants them.
    settings : tuple of float
        The fragment's numbers.
    slope, offset : (D, H) arrays
        Σ_d (slope_dh y_d + offset_dh) is log p(y | only latent h is active), over the observed d.
    share, value : (D, H) arrays
        The statistic A of latent h where no other is active, and E[y_d].
    """

    fragments: str
    fields: np.ndarray
    settings: tuple[float, ...]
    slope: np.ndarray
    offset: np.ndarray
    share: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Tables:
    """Parameters as the kernels want them, and what of them is needed on the host.

    Attributes
    ----------
    params : dict of name to array
    likelihood : Likelihood
    log_p0 : float
        log p(s = 0).
    per_entry : float
        What every observed entry adds to log p(y | s), and is not in the kernel's energies.
    fields : (H, D) device array
    slope, entry_offset : (D, H) device arrays
        As in `likelihood`.
    offset, prior, shift : (H,) device arrays
        As `kernels/causes.py` takes them.
    score_slope, score_offset : (1, H) device arrays
        The line on the scores that `preselect` takes.
    settings : (4,) device array
    beta : float
        1 / T
    nothing : (1,) device array
        Given to kernels that look for nothing there.
    causes : callable
        The kernel, of STATS and RECONSTRUCT.
    """

    params: Params
    likelihood: Likelihood
    log_p0: float
    per_entry: float
    fields: Array
    slope: Array
    entry_offset: Array
    offset: Array
    prior: Array
    shift: Array
    score_slope: Array
    score_offset: Array
    settings: Array
    beta: float
    nothing: Array
    causes: Callable[..., Kernel]
    preselect: Kernel
    squared_norms: Kernel


@dataclass(frozen=True)
class Chosen:
    """What inference keeps of a batch, which `sums` can weigh K_n from.

    Attributes
    ----------
    evidence : Evidence
    candidates : (n, H') int32 device array
    full : (n,) device array
        1 where the most probable state has γ causes.
    """

    evidence: Evidence
    candidates: Array
    full: Array


@dataclass(frozen=True)
class Expectation(Chosen):
    """What the kernel says of a batch, on the device.

    Attributes
    ----------
    Y, observed : (n, D) arrays
        The data with 0 for what is missing, and their mask, or None if nothing can be.
    entries : (n,) array, or None
        The number of observed entries of each point.
    single, mean : (n, H) arrays
        q of the states of one cause, and ⟨s⟩, both times the data points' weights.
    sums : (groups, 2, H, D) array
        Σ⟨A⟩ and Σ⟨A y⟩ over the states of several causes, if they were asked for.
    reconstruction : (n, D) array
        E[y] under the posterior, if it was asked for.
    energy : (n,) array
        ⟨E⟩, E the energy of a state as the kernel takes it.
    reference : Evidence
        The part of log p(y | s) that is not in E.
    """

    Y: Array
    observed: Array | None
    entries: Array | None
    single: Array
    mean: Array
    sums: Array
    reconstruction: Array
    energy: Array
    reference: Evidence


@dataclass(frozen=True)
class CausesEStep(EStep[Chosen]):
    """Preselect, and weigh K_n: a matrix product and kernels; a subclass knows what its model does otherwise."""

    backend: Backend
    model: Causes
    tables: Tables

    # -- what differs between models -----------------------------------------------------------------------

    def products(self, batch: Batch, Y: Array, observed: Array) -> Array:
        """What of log p(y | only latent h is active) differs between data points, (n, H); `observed` is their mask."""
        b = self.backend.matmul(Y, self.tables.slope)
        if self.model.missing:
            host = self.backend.to_host
            b = self.backend.to_device(host(b) + host(self.backend.matmul(observed, self.tables.entry_offset)))
        return b

    def scores(self, Y: Array, observed: Array, b: Array) -> Array:
        """Scores of the latents (n, H), of which `preselect` takes a line; by default the products `b`."""
        return b

    def reference(self, batch: Batch, Y: Array, observed: Array) -> Evidence:
        """The part of log p(y_n | s) that depends on y only and is not in the kernel's energies.

        `Y` are the batch's data, with 0 for what is missing, and `observed` their mask, if something can be.
        """
        return Evidence(batch.n)

    def statistics(self, batch: Batch, found: Expectation) -> dict[Any, Any]:
        """The kernel's sums over states of several causes, and those of the others: `Causes.effects` adds them up."""
        device = self.backend
        columns = partial(column_sums, device, weights=device.ones(batch.n))  # the kernel has weighted them
        sums = {
            "several": Sum(found.sums),
            "alone": device.sum_products(found.Y, found.single),
            "count": Sum(columns(found.single)),
            "s": Sum(columns(found.mean)),
        }
        if found.observed is not None:
            sums["seen"] = device.sum_products(found.observed, found.single)
        return sums

    # -- what does not -------------------------------------------------------------------------------------

    def weigh(self, batch: Batch, weights: Array, candidates: Array | None = None, **wanted: int) -> Expectation:
        """Preselect, if `candidates` are not given, and weigh K_n; each point counts as its weight (n,) says."""
        n, device, t = batch.n, self.backend, self.tables
        Y, observed, entries = batch.Y, t.nothing, None
        if self.model.missing:
            Y, observed = split_missing(device, Y)
            entries = squared_norms(device, t.squared_norms, observed)  # of 0 and 1
        b = self.products(batch, Y, observed)
        if candidates is None:
            candidates = device.empty((n, self.model.Hprime), np.int32)
            t.preselect(n, self.scores(Y, observed, b), t.score_slope, t.score_offset, candidates)
        kernel = t.causes(**{"STATS": 0, "RECONSTRUCT": 0, **wanted})
        log_evidence, energy, full = (device.empty((n,)) for _ in range(3))
        mean = device.empty((n, self.model.H))
        sums, reconstruction = t.nothing, t.nothing
        if wanted.get("STATS"):
            sums = device.empty((kernel.groups(n), 2, self.model.H, self.model.D), device.acc)
        if wanted.get("RECONSTRUCT"):
            reconstruction = device.empty((n, self.model.D))
        kernel(
            n, Y, observed, b, t.fields, t.offset, t.prior, t.shift, t.settings, candidates, t.beta,
            weights, log_evidence, energy, mean, reconstruction, sums, full,
        )  # fmt: skip
        reference = self.reference(batch, Y, observed)
        return Expectation(
            self._evidence(log_evidence, reference, entries), candidates, full, Y,
            observed if self.model.missing else None, entries, b, mean, sums, reconstruction, energy, reference,
        )  # fmt: skip

    def _evidence(self, log_evidence: Array, reference: Evidence, entries: Array | None) -> Evidence:
        """The whole of it, from what the kernel says, and what it does not know."""
        t = self.tables
        parts, constant = [(log_evidence, 1.0), *reference.parts], t.log_p0 + reference.constant
        if entries is None:
            constant = constant + self.model.D * t.per_entry
        elif t.per_entry:
            parts.append((entries, t.per_entry))
        return Evidence(reference.n, parts, constant)

    def infer(self, batch: Batch) -> Chosen:
        found = self.weigh(batch, self.backend.ones(batch.n))
        return Chosen(found.evidence, found.candidates, found.full)

    def sums(self, batch: Batch, found: Chosen) -> Sums:
        return self.statistics(batch, self.weigh(batch, batch.weights, found.candidates, STATS=1))

    def __call__(self, batch: Batch) -> tuple[Evidence, Sums]:
        found = self.weigh(batch, batch.weights, STATS=1)
        return found.evidence, {**self.statistics(batch, found), **self.tally(batch, found)}

    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        found = self.weigh(batch, self.backend.ones(batch.n), RECONSTRUCT=int(reconstruct))
        whole = found.reconstruction if reconstruct else None
        told = Posterior(found.evidence, found.candidates, found.mean, reconstruction=whole)
        return told, self.tally(batch, found)

    def tally(self, batch: Batch, found: Chosen) -> Sums:
        return count_full(self.backend, batch, found.full)


class Causes(Truncated):
    """Binary latents whose fields combine dimension by dimension, but not by a sum: they share the kernel `causes`.

    A subclass says how (`likelihood`, with a fragment of the kernel), what its E-step does besides (`e_step`), and what
    the M-step makes of Σ⟨A_dh⟩ and Σ⟨A_dh⟩y_d.

    Settings as in `Truncated`.

    Raises
    ------
    ConfigError
        If there are more than 2¹⁴ states of several causes.
    """

    field_domain: str  # of W
    e_step: ClassVar[type[CausesEStep]] = CausesEStep
    imputes: ClassVar[bool] = True  # a missing y enters ⟨A y⟩ by its expectation; else it does not count
    offset_in_b: bool = False  # whether `products` has the offsets of the singletons' energies as well

    def __init__(self, D: int, H: int, Hprime: int | None = None, gamma: int | None = None, missing: bool = False):
        super().__init__(D, H, Hprime, gamma, missing)
        if self.states.S > MAX_STATES:
            raise ConfigError(
                f"H' = {self.Hprime}, gamma = {self.gamma} give {self.states.S:,} states per data point, {self.name} "
                f"takes up to {MAX_STATES:,}: lower one of them"
            )

    @abstractmethod
    def likelihood(self, params: Params, step: Step) -> Likelihood:
        """The likelihood with these parameters."""

    def per_entry(self, params: Params) -> float:
        """What every observed entry adds to log p(y | s), and is not in the kernel's energies."""
        return 0.0

    def score_offset(self, alone: np.ndarray) -> np.ndarray:
        """What is added to the scores, (H,): by default as to the products, Σ_d offset_dh, which is `alone`."""
        return alone

    def settings(self) -> dict[str, Any]:
        """As in `Model`, but the noise only if it is not the one that comes by default."""
        given = super().settings()
        usual = "noise" in given and given["noise"] == self.arguments()["noise"].default
        return {name: value for name, value in given.items() if not (name == "noise" and usual)}

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {
            "W": Parameter((self.D, self.H), self.field_domain, "fields", latents=1),
            "pi": Parameter((), "probability", "prior"),
        }

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.int8, (self.H,))])
        drawn["s"] = rng.random((n, self.H)) < params["pi"]
        drawn["Y"] = self.observe(params, self.combined(params, drawn["s"]), rng)
        return drawn

    @abstractmethod
    def combined(self, params: Params, states: np.ndarray) -> np.ndarray:
        """E[y | s], (S, D)."""

    @abstractmethod
    def observe(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw data with these means, of the same shape."""

    # -- E-step --------------------------------------------------------------------------------------------

    def on(self, backend: Backend, params: Params, step: Step) -> CausesEStep:
        return self.e_step(backend, self, self.tables(backend, params, step))

    def tables(self, backend: Backend, params: Params, step: Step) -> Tables:
        """The parameters on a device."""
        known = self.likelihood(params, step)
        pi = self.activities(params)
        logit = log_odds(pi)
        alone = np.zeros(self.H) if self.missing or self.offset_in_b else known.offset.sum(axis=0)
        sizes = {"D": self.D, "H": self.H, "HPRIME": self.Hprime, "GAMMA": self.gamma, "MANY": self.states.S}
        flags = {"ANNEAL": int(step.T != 1), "MISSING": int(self.missing)}
        return Tables(
            params=params,
            likelihood=known,
            log_p0=float(np.log1p(-pi).sum()),
            per_entry=self.per_entry(params),
            fields=backend.to_device(known.fields.T),
            slope=backend.to_device(known.slope),
            entry_offset=backend.to_device(known.offset),
            offset=backend.to_device(alone + logit),
            prior=backend.to_device(logit),
            shift=backend.to_device(np.zeros(self.H) if step.anneal_prior else (1 - 1 / step.T) * logit),
            score_slope=backend.to_device(np.ones((1, self.H))),
            score_offset=backend.to_device(self.score_offset(alone)[None]),
            settings=backend.to_device(np.pad(np.array(known.settings), (0, SETTINGS - len(known.settings)))),
            beta=1 / step.T,
            nothing=backend.to_device(np.zeros(1)),
            causes=partial(backend.kernel, "causes", states=self.states, fragment=known.fragments, **sizes, **flags),
            preselect=backend.kernel("preselect", H=self.H, HPRIME=self.Hprime, VALUES=1),
            squared_norms=backend.kernel("squared_norms", D=self.D),
        )

    @property
    def layout(self) -> Layout:
        D, H = self.D, self.H
        seen: Layout = {"seen": (D, H)} if self.missing else {}
        return {"several": (2, H, D), "alone": (D, H), "count": (H,), "s": (H,), **seen}

    # -- M-step --------------------------------------------------------------------------------------------

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """Σ⟨A⟩, Σ⟨A y⟩ and Σ⟨s⟩: weights of a mean of data and their sums, whatever W they were found with."""
        A, Ay = self.effects(sums, params, step)
        shape = (self.D, self.H)
        return sums.but({N_USE: (), "A": shape, "Ay": shape, "s": (self.H,)}, A=A, Ay=Ay)

    def effects(self, sums: Statistics, params: Params, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """Σ⟨A⟩ and Σ⟨A y⟩, (D, H): of states of several causes, and of latents that are active without others."""
        known = self.likelihood(params, step)
        A, Ay = sums["several"].swapaxes(1, 2)
        alone, count = sums["alone"], sums["count"]
        seen = sums["seen"] if self.missing else count
        if self.imputes:
            alone, seen = alone + (count - seen) * known.value, count
        return A + known.share * seen, Ay + known.share * alone

    def weighted_means(self, moments: Statistics, old: np.ndarray, notes: list[str]) -> np.ndarray:
        """W = Σ⟨A⟩y / Σ⟨A⟩; what never wins stays."""
        A, Ay = moments["A"], moments["Ay"]
        wins = A > 0
        notes += [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(~wins.any(axis=0))]
        some = int(np.count_nonzero(~wins & wins.any(axis=0)))
        if some:
            notes.append(f"{some} of {wins.size} W never had the largest effect: they were kept")
        return np.divide(Ay, A, out=old.copy(), where=wins)

    def common_pi(self, moments: Statistics, params: Params, step: Step, notes: list[str]) -> np.ndarray:
        """π = Σ⟨|s|⟩ / NH, corrected for the data selection."""
        pi = moments["s"].sum() / (points(moments) * self.H) * self.selection_factor(params, step)
        return held("pi", pi, MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes)

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        kept = 4 * itemsize + 4 * self.Hprime
        rows = 3 if self.missing else 1
        return kept + itemsize * (3 * self.H + 2 + rows * self.D), kept


def refuse(Y: np.ndarray, bad: np.ndarray, why: str, start: int) -> None:
    """Name the first bad entry."""
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(f"data: {Y[row, column]} at row {start + row}, column {column} {why}")
