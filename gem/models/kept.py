"""The E-step of binary sparse coding on kept states: log joints, new states, the best of all, weights, moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.kernels.bits import words
from gem.models.base import Step
from gem.models.estep import EStep, Evidence, Posterior, column_sums, squared_norms
from gem.models.parameters import Params
from gem.models.truncated import FIXED_POINT, pair_scale
from gem.sets import MUTATIONS, Evolve, Kept, Preselect, Sample
from gem.states import StateTable, state_table
from gem.statistics import Sum, Sums

if TYPE_CHECKING:
    from gem.models.linear import LinearSuperposition


@dataclass(frozen=True)
class Found:
    """What the E-step finds of a batch, on the device.

    Attributes
    ----------
    evidence : Evidence
    states : (n, S, W) uint32
        The batch's own memory.
    weights : (n, S)
        q of each state.
    mean : (n, H)
        ⟨s⟩
    yy, replaced : (n,)
        ‖y‖²; how many states were replaced.
    """

    evidence: Evidence
    states: Array
    weights: Array
    mean: Array
    yy: Array
    replaced: Array


@dataclass(frozen=True)
class KeptEStep(EStep[Found]):
    """Parameters of binary sparse coding as the kernels of explicit states want them."""

    backend: Backend
    kept: Kept
    shape: tuple[int, int]  # D, H
    step: Step
    sigma2: float
    constant: float  # log p(s = 0) + log N(0; 0, σ² I)
    active: float  # latents that are on by the prior, on an average
    shift: float
    fields: Array
    dictionary: Array
    gram: Array
    slope: Array
    offset: Array
    table: StateTable | None
    masks: Array
    scores: tuple[Array, ...]

    def infer(self, batch: Batch) -> Found:
        """Log joints of the kept states, once a step better states in their place, and the weights of these."""
        n, S, (_, H), empty = batch.n, self.kept.states, self.shape, self.backend.empty
        yy = squared_norms(self.backend, self.backend.kernel("squared_norms", D=self.shape[0]), batch.Y, batch.notes)
        b = self.backend.matmul(batch.Y, self.dictionary)
        states = batch.memory["states"]
        energies, relative, weights, mean = empty((n, S)), empty((n,)), empty((n, S)), empty((n, H))
        replaced = self.backend.zeros((n,))
        self._energies(n, b, states, energies)
        if self.step.number:
            for found, found_energies, last in self._proposed(batch, b, energies, weights, mean):
                keep = self.kernel("keep_best", S, NEW=found.shape[1])
                age = batch.memory["age"]
                keep(n, self.step.number, int(last), found, found_energies, states, energies, age, replaced)
        self._weigh(n, states, energies, relative, weights, mean)
        evidence = Evidence(n, [(relative, 1.0), (yy, -0.5 / self.sigma2)], self.constant)
        return Found(evidence, states, weights, mean, yy, replaced)

    def _energies(self, n: int, b: Array, states: Array, energies: Array) -> None:
        kernel = self.kernel("linear_energies", energies.shape[1])
        kernel(n, b, self.gram, self.slope, self.offset, states, energies)

    def _proposed(
        self, batch: Batch, b: Array, energies: Array, weights: Array, mean: Array
    ) -> Iterator[tuple[Array, Array, bool]]:
        """New states, their energies, and whether they are the step's last ones."""
        if self.table is not None:
            yield (*self._preselected(batch.n, b), False)
        if isinstance(self.kept, Evolve):
            yield from self._evolved(self.kept, batch, b, energies)
        elif isinstance(self.kept, Sample):
            yield (*self._sampled(self.kept, batch, b, energies, weights, mean), True)

    def _preselected(self, n: int, b: Array) -> tuple[Array, Array]:
        """All states of at most γ of the candidates."""
        H, Hprime = self.shape[1], self.table.Hprime  # type: ignore[union-attr]  # asked before
        candidates = self.backend.empty((n, Hprime), np.int32)
        self.backend.kernel("preselect", H=H, HPRIME=Hprime, VALUES=1)(n, b, *self.scores, candidates)
        found, new = self._room(n, self.masks.shape[0])
        self.kernel("preselected_states", self.masks.shape[0], HPRIME=Hprime)(n, candidates, self.masks, found)
        self._energies(n, b, found, new)
        return found, new

    def _evolved(self, kept: Evolve, batch: Batch, b: Array, energies: Array) -> Iterator[tuple[Array, Array, bool]]:
        """Each generation, the parents of which are from the one before, and at first from the kept states."""
        n, pool, scores = batch.n, batch.memory["states"], energies
        rooms = [self._room(n, kept.proposed) for _ in range(min(2, kept.generations))]
        for generation in range(kept.generations):
            found, new = rooms[generation % 2]
            breed = self.kernel(
                "evolve", scores.shape[1], PARENTS=kept.parents, CHILDREN=kept.offspring,
                MUTATION=MUTATIONS.index(kept.mutation), FIT=int(kept.selection == "fit"),
            )  # fmt: skip
            breed(n, self.step.number, generation, self.active, batch.memory["keys"], pool, scores, found)
            self._energies(n, b, found, new)
            yield found, new, generation + 1 == kept.generations
            pool, scores = found, new

    def _sampled(
        self, kept: Sample, batch: Batch, b: Array, energies: Array, weights: Array, mean: Array
    ) -> tuple[Array, Array]:
        """Draws from the prior, and from what the kept states say of each latent."""
        n = batch.n
        self._weigh(n, batch.memory["states"], energies, self.backend.empty((n,)), weights, mean)
        found, new = self._room(n, kept.proposed)
        draw = self.kernel("sample_states", kept.proposed, PRIOR=kept.prior)
        draw(n, self.step.number, self.active / self.shape[1], batch.memory["keys"], mean, found)
        self._energies(n, b, found, new)
        return found, new

    def _weigh(self, n: int, states: Array, energies: Array, relative: Array, weights: Array, mean: Array) -> None:
        weigh = self.kernel("weigh_states", energies.shape[1])
        weigh(n, states, energies, 1 / self.step.T, self.shift, relative, weights, mean)

    def _room(self, n: int, count: int) -> tuple[Array, Array]:
        """Where so many new states of each data point go, and their energies."""
        return self.backend.empty((n, count, words(self.shape[1])), np.uint32), self.backend.empty((n, count))

    def kernel(self, name: str, count: int, **sizes: int) -> Kernel:
        """A kernel of so many explicit states."""
        H = self.shape[1]
        constants = {"H": H, "WORDS": words(H), "COUNT": count, **sizes}
        return self.backend.kernel(name, states=None, fragment=None, **constants)

    def sums(self, batch: Batch, found: Found) -> Sums:
        H, scale = self.shape[1], pair_scale(batch.total)
        pairs = self.backend.zeros((H, H), np.int64)
        self.kernel("state_pairs", self.kept.states)(batch.n, found.states, found.weights, batch.weights, scale, pairs)
        squares = Sum(column_sums(self.backend, found.mean, batch.weights))
        if batch.counts is not None:
            self.backend.kernel("scale_rows", H=H)(batch.n, found.mean, batch.weights)
        return {
            "yy": [self.backend.point_sums([(found.yy, 1.0)], batch.weights)],
            "squares": squares,
            "ss": Sum(pairs, 1 / (FIXED_POINT * scale)),
            "ys": [self.backend.sum_products(batch.Y, found.mean)],
        }

    def tally(self, batch: Batch, found: Found) -> Sums:
        counts = None if batch.counts is None else batch.weights
        return {"replaced": [self.backend.point_sums([(found.replaced, 1.0)], counts)]}

    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        found = self.infer(batch)
        whole = self.backend.matmul(found.mean, self.fields) if reconstruct else None
        told = Posterior(found.evidence, mean=found.mean, reconstruction=whole, sets=found.states)
        return told, self.tally(batch, found)


def on_kept(model: LinearSuperposition, kept: Kept, backend: Backend, params: Params, step: Step) -> KeptEStep:
    """The E-step of a linear model of binary latents on its kept states."""
    H, W, device = model.H, params["W"], backend.to_device
    sigma2 = float(params["sigma"] ** 2)
    log_p = np.log(model.probabilities(params))
    odds = float(log_p[1] - log_p[0])
    gram = W.T @ W / sigma2
    norms = np.diag(gram)
    slope, offset = np.full(H, 1 / sigma2), odds - norms / 2
    table = None if kept.preselect is None else proposed_table(kept.preselect, H)
    return KeptEStep(
        backend=backend,
        kept=kept,
        shape=(model.D, H),
        step=step,
        sigma2=sigma2,
        constant=float(H * log_p[0]) - model.D * float(np.log(2 * np.pi * sigma2)) / 2,
        active=H * model.activity(params),
        shift=0.0 if step.anneal_prior else (1 - 1 / step.T) * odds,
        fields=device(W.T),
        dictionary=device(W),
        gram=device(gram),
        slope=device(slope),
        offset=device(offset),
        table=table,
        masks=None if table is None else device(table_masks(table)),
        scores=tuple(device(line) for line in model.score_lines(slope, offset[None], norms)),
    )


def proposed_table(preselect: Preselect, H: int) -> StateTable:
    """The states that preselection proposes, in terms of candidates."""
    Hprime = min(H, 8) if preselect.Hprime is None else preselect.Hprime
    return state_table(Hprime, min(Hprime, 5) if preselect.gamma is None else preselect.gamma)


def table_masks(table: StateTable) -> np.ndarray:
    """Which candidates are active in each state, one, or several: (C,) uint32."""
    singles = np.uint32(1) << np.arange(table.Hprime, dtype=np.uint32)
    return np.concatenate([singles, table.masks.astype(np.uint32)])
