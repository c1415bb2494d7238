"""What all models of many causes share: sizes, the states of K_n, data selection (Expectation Truncation)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import frexp
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend
from gem.batch import Batch
from gem.checks import whole_number, yes_or_no
from gem.errors import ConfigError
from gem.kernels.bits import unpacked
from gem.models.base import Model, Step
from gem.models.estep import Posterior
from gem.models.parameters import MIN_PROBABILITY, SMALL, Params, of_role
from gem.models.pictures import contrasted, fields_for
from gem.philox import generator
from gem.sets import AnySets, Kept, Preselect, sets_of
from gem.sets.first import first_memory, kept_bytes
from gem.states import log_binomial, state_table
from gem.statistics import Layout, Statistics, Sums

FIXED_POINT = 2.0**40  # the scale of sums of pairs: integers add up to the same bits in any order
ROOM = 21  # these stay below 2²¹ units of 2⁴⁰: a quarter of what 64 bits hold
FLOAT_RANGE = 120  # exponents that a float32 holds with some to spare
PIECE = 1 << 21  # numbers held at once by what is enumerated on the host
HOT = 1.5  # the temperature that Annealing.auto begins with
SHORT = 0.05  # share of data points at γ from which on a user is told
VAGUE = 0.05  # rounding of a data point's log evidence from which on a user is told


class Truncated(Model):
    """A model of H latents, at most γ of which are active in a state, all but single ones among H' candidates.

    Lücke & Eggert, *Expectation Truncation*, JMLR 11, 2010.

    Parameters
    ----------
    D, H : int
        Observed dimensions, latents.
    Hprime : int, optional
        Latents preselected per data point (default: H, at most 8).
    gamma : int, optional
        Most active latents per state (default: H', at most 5). H' = γ = H is exact EM.
    missing : bool
        Whether NaN in the data marks missing entries; else it is refused.
    sets : one of `gem.sets`, its name, or a mapping, optional
        Which states there are, in place of H' and γ: Evolve or Sample keep those of each data point from step to step,
        for models that take them.

    Raises
    ------
    ConfigError
        If H' > H or γ > H', or a size is not a positive whole number; if states are to be kept that cannot be.
    """

    tallies: Layout = MappingProxyType({"at_gamma": ()})
    reseeds: ClassVar[str] = "asked"
    truncates: bool = True
    takes_sets: ClassVar[bool] = False  # whether states can be kept
    noisy: float = 2.0  # nats by which the noise of Annealing.auto moves the log joint of a state at first
    values: tuple[float, ...] = (1.0,)  # that a latent takes when it is not 0

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None = None,
        gamma: int | None = None,
        missing: bool = False,
        sets: AnySets | Mapping[str, Any] | str | None = None,
    ):
        self.D, self.H = whole_number("D", D), whole_number("H", H)
        self.sets = sets_of(sets)
        if self.sets is not None and not (Hprime is None and gamma is None):
            raise ConfigError(
                "Hprime and gamma are those of preselected states, and sets says which there are: leave them out (a "
                "mix of both is Evolve(..., preselect=Preselect(Hprime, gamma)))"
            )
        if isinstance(self.sets, Preselect):
            Hprime, gamma = self.sets.Hprime, self.sets.gamma
        self.kept = self.sets if isinstance(self.sets, Kept) else None
        self.Hprime = min(self.H, 8) if Hprime is None else whole_number("Hprime", Hprime)
        self.gamma = min(self.Hprime, 5) if gamma is None else whole_number("gamma", gamma)
        self.missing = yes_or_no("missing", missing)
        if self.Hprime > self.H:
            raise ConfigError(
                f"Hprime = {self.Hprime} > H = {self.H}: no more latents can be preselected than there are"
            )
        if self.kept is None:
            self.states = state_table(self.Hprime, self.gamma)
        else:
            self._keep(self.kept)

    def _keep(self, kept: Kept) -> None:
        """States are kept: each may have any number of active latents."""
        if not self.takes_sets:
            raise ConfigError(f"{self.name} takes no sets yet that are kept from step to step: choose Hprime and gamma")
        if self.missing:
            raise ConfigError("missing entries with sets that are kept from step to step are not there yet")
        kept.check(self.H)
        if kept.preselect is not None:
            type(self)(self.D, self.H, kept.preselect.Hprime, kept.preselect.gamma)  # refuses what does not fit
        self.Hprime = self.gamma = self.H
        self.truncates, self.tallies = False, {"replaced": ()}

    def settings(self) -> dict[str, Any]:
        given = super().settings()
        given.pop("sets", None)
        if self.kept is None:
            return given
        return {**{n: v for n, v in given.items() if n not in ("Hprime", "gamma")}, "sets": self.kept.plain()}

    @property
    def bytes_kept(self) -> int:
        return 0 if self.kept is None else kept_bytes(self.kept, self.H)

    def first_memory(self, start: int, count: int, seed: int) -> dict[str, np.ndarray]:
        return {} if self.kept is None else first_memory(self.kept, self.H, seed, start, count)

    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        """Of binary latents, active with probability `pi`, one for all or (H,)."""
        pi = np.broadcast_to(params["pi"], (self.H,))
        active = states != 0
        return active @ np.log(pi) + ~active @ np.log1p(-pi)

    @property
    def pairs(self) -> int:
        """Pairs of candidates."""
        return self.Hprime * (self.Hprime - 1) // 2

    # -- annealing ---------------------------------------------------------------------------------------------

    def schedules(self, params: Params) -> dict[str, Any]:
        """T from 1.5 to 1 by 80 % of the run, and noise on the fields, held for half of the run and 0 by 85 % of it.

        The noise moves the log joint of a state with one latent by 2 nats (`noisy`; the root mean square, to first
        order) at the start, in any units and any number of dimensions D: its standard deviation is 2 times `spread` /
        √D, over the size that a latent has. It takes a field that stands for two causes, and two that stand for the
        same, apart, which heat does not. math.md ("Annealing") says what this was measured on.
        """
        size = np.mean([self.strength(params, h) for h in range(self.H)])
        noise = float(self.noisy * self.spread(params) / (size * np.sqrt(self.D)))
        return {"T": [(0, HOT), (0.8, 1.0)], "W_noise": [(0, noise), (0.5, noise), (0.85, 0.0)]}

    def spread(self, params: Params) -> float:
        """How far a data point is from its mean given s, in the units of W, on an average of its dimensions."""
        return float(params["sigma"])

    # -- what γ leaves out ---------------------------------------------------------------------------------

    def advice(self, share_at_gamma: float) -> list[str]:
        """A note, where γ is so small that many data points may have more active latents than it allows."""
        if self.gamma == self.H or not share_at_gamma >= SHORT:
            return []
        both = " and Hprime" if self.gamma == self.Hprime else ""
        return [
            f"gamma = {self.gamma} is short: {share_at_gamma:.1%} of the data points have as many active latents in "
            f"their most probable state, and may need more: raise gamma{both}"
        ]

    # -- data selection ------------------------------------------------------------------------------------

    def activities(self, params: Params) -> np.ndarray:
        """p(s_h = 1) of binary latents, (H,), none of them 0 or 1."""
        return np.clip(np.broadcast_to(params["pi"], (self.H,)), MIN_PROBABILITY, 1 - MIN_PROBABILITY)

    def activity(self, params: Params) -> float:
        """The mean probability that a latent is active."""
        return float(np.mean(params["pi"]))

    def truncation(self, params: Params) -> tuple[float, float]:
        return truncated_prior(self.H, self.gamma, self.activity(params))

    def selection_factor(self, params: Params, step: Step) -> float:
        """π H A / B: what the update of a prior is multiplied by where data were selected; else 1."""
        if step.Ncut == 0:
            return 1.0
        A, B = self.truncation(params)
        return self.activity(params) * self.H * A / B

    def usage(self, moments: Statistics) -> np.ndarray:
        """How many data points each latent explains, (H,)."""
        return moments["s"]

    def strength(self, params: Params, h: int) -> float:
        """The size of latent h where it is active."""
        return float(np.sqrt(np.mean(np.square(self.values))))

    def reseed(self, new: Params, moments: Statistics) -> tuple[Params, list[str]]:
        """Give a latent that explains less than one data point the parameters of the most active one, moved a bit."""
        used = self.usage(moments)
        big = int(np.argmax(used))
        dead = np.flatnonzero(used < min(1.0, used[big]))
        if not dead.size:
            return dict(new), []
        taken = dict(new)
        for name, about in self.parameters.items():
            if about.latents is not None:
                taken[name] = new[name].copy()
                taken[name][..., dead] = new[name][..., big, None]
        fields = str(of_role(self.parameters, "fields"))
        noise = of_role(self.parameters, "noise")  # so near that it shares the data of its neighbour
        scale = np.std(new[fields][:, big]) if noise is None else new[noise]
        apart = {f"{fields}_noise": float(scale / self.strength(new, big) * np.sqrt(2 / self.D))}
        noisy = self.perturb(taken, apart, generator(int(dead[0]), "reseed"))[fields]
        taken[fields] = np.where(np.isin(np.arange(self.H), dead), noisy, new[fields])
        return taken, [f"latent {h} was dead and re-seeded beside latent {big}" for h in dead]

    # -- pictures ------------------------------------------------------------------------------------------

    most_on_patches: ClassVar[int] = 5  # gamma, for patches of pictures

    @classmethod
    def sizes_for_patches(cls, count: int, noise: float, settings: Mapping[str, Any]) -> dict[str, Any]:
        H = int(settings.get("H") or fields_for(count, noise))
        Hprime = int(settings.get("Hprime") or min(H, 8))
        return {"H": H, "Hprime": min(H, 8), "gamma": min(H, cls.most_on_patches, Hprime)}

    def begin_on_patches(self, params: Params, Y: np.ndarray, noise: float, rng: np.random.Generator) -> Params:
        """Fields at patches of much contrast."""
        name = str(of_role(self.parameters, "fields"))
        fields = contrasted(Y, self.H, rng)
        return {**params, name: np.maximum(fields, 0) if self.fields_are_nonnegative else fields.copy()}

    # -- the states themselves, for who asks ---------------------------------------------------------------

    def top_states(self, params: Params, Y: np.ndarray, posterior: Posterior, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most probable states of K_n by enumeration: one data point at a time, on the host."""
        if self.kept is not None:
            return self._top_kept(params, Y, posterior.sets, k)
        few = self._zero_and_singletons()
        several = self._multiples()
        k = min(k, len(few) + len(several))
        best = np.empty((len(Y), k, self.H), few.dtype)
        chance = np.empty((len(Y), k))
        for rows in pieces(len(Y), len(few)):
            known = self.log_joint(params, Y[rows], few)
            for n, energies in enumerate(known, rows.start):
                states = np.zeros((len(several), self.H), few.dtype)
                states[:, posterior.candidates[n]] = several
                energy = np.concatenate([energies, self.log_joint(params, Y[n : n + 1], states)[0]])
                order = np.argsort(-energy, kind="stable")[:k]
                best[n] = [few[i] if i < len(few) else states[i - len(few)] for i in order]
                chance[n] = np.exp(energy[order] - np.logaddexp.reduce(energy))
        return best, chance

    def _top_kept(self, params: Params, Y: np.ndarray, sets: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of kept states, words of bits (n, S, W)."""
        k = min(k, sets.shape[1])
        best, chance = np.empty((len(Y), k, self.H)), np.empty((len(Y), k))
        for n, some in enumerate(sets):
            states = unpacked(some, self.H).astype(np.float64)
            energy = self.log_joint(params, Y[n : n + 1], states)[0]
            order = np.argsort(-energy, kind="stable")[:k]
            best[n], chance[n] = states[order], np.exp(energy[order] - np.logaddexp.reduce(energy))
        return best, chance

    def _zero_and_singletons(self) -> np.ndarray:
        """(1 + V H, H)"""
        return np.concatenate([np.zeros((1, self.H)), *(v * np.eye(self.H) for v in self.values)])

    def _multiples(self) -> np.ndarray:
        """The states of several candidates, (S, H'): every active set, with every choice of values."""
        rows = []
        for active in self.states.active:
            for choice in product(self.values, repeat=int(active.sum())):
                row = np.zeros(self.Hprime)
                row[active] = choice
                rows.append(row)
        return np.array(rows).reshape(-1, self.Hprime)


def count_full(backend: Backend, batch: Batch, full: Array) -> Sums:
    """How many data points have γ active latents in their most probable state: `full` (n,) is 1 for these."""
    return {"at_gamma": [backend.point_sums([(full, 1.0)], None if batch.counts is None else batch.weights)]}


def pair_scale(bound: float) -> float:
    """The power of 2 by which sums of pairs are multiplied, none of which exceeds `bound`, before they are rounded."""
    _, exponent = frexp(bound)
    return 2.0 ** float(np.clip(ROOM - exponent, -FLOAT_RANGE, FLOAT_RANGE))


def log_odds(pi: np.ndarray) -> np.ndarray:
    """Of probabilities between 0 and 1."""
    return np.asarray(np.log(pi) - np.log1p(-pi))


def pieces(count: int, size: int) -> Iterator[slice]:
    """Slices of `count` rows of `size` numbers each that take 16 MB or one row at a time."""
    step = max(1, PIECE // max(1, size))
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def truncated_prior(H: int, gamma: int, pi: float) -> tuple[float, float]:
    """A = Σ_{g≤γ} C(H,g) π^g (1−π)^(H−g) and B = Σ g (the same): math.md, data selection. In log space."""
    pi = min(max(pi, MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    sizes = range(gamma + 1)
    mass = np.exp([log_binomial(H, g) + g * np.log(pi) + (H - g) * np.log1p(-pi) for g in sizes])
    return min(1.0, float(mass.sum())), float(mass @ sizes)


def held(name: str, value: Any, low: float, high: float, notes: list[str]) -> np.ndarray:
    """`value` clipped to [low, high]; `notes` says so where that changed something."""
    clipped = np.clip(value, low, high)
    changed = np.count_nonzero(clipped != value)
    if np.ndim(value) == 0 and changed:
        notes.append(f"{name} = {value:.3g} was held at {clipped:.3g}")
    elif changed:
        notes.append(f"{changed} of {np.size(value)} {name} were held in [{low:.3g}, {high:.3g}]")
    return np.asarray(clipped)


def noise_level(
    variance: float,
    square: float,
    terms: int,
    D: int,
    step: Step,
    notes: list[str],
    residual: float | None = None,
) -> np.ndarray:
    """σ of this variance; `notes` says where rounding shows.

    The variance is what is left of `square`, the mean of y_d², and so many `terms` of that size: below their rounding
    it is held. The evidence of a data point is what is left of ‖y‖²/2σ². If it is what is left of the mean `residual`
    of float64 sums instead, the square of y_d's own rounding is in it; one that is not positive is rounding only (of
    fields that are nearly the same, where it is not sure which of them is active): then it is held as above.
    """
    floor = terms * step.resolution * square
    if residual is not None and min(variance, residual) > 0:
        floor = terms * (step.resolution**2 * square + np.finfo(np.float64).eps * residual)
    sigma = np.maximum(np.sqrt(np.maximum(variance, floor)), SMALL)
    error = D * step.resolution * square / sigma**2
    if variance < floor:
        notes.append(f"sigma was held at {sigma:.3g}, the resolution of the E-step")
    elif error > VAGUE:
        notes.append(
            f"log evidence of a data point is rounded by about {error:.1g}, as y² is {square / sigma**2:.1g} times σ²: "
            "use dtype='float64', or data nearer to 0"
        )
    return sigma
