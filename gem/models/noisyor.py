"""Noisy-OR: binary data, each active cause may switch an entry on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gem.batch import Batch
from gem.models.base import Step, points
from gem.models.causes import Causes, Expectation, Likelihood, refuse
from gem.models.maximal import BinaryEStep
from gem.models.noises import LEAST, Bernoulli, check_cell
from gem.models.parameters import MIN_PROBABILITY, Parameter, Params
from gem.models.truncated import held
from gem.statistics import N_USE, Layout, Statistics
from gem.summary import Summary


@dataclass(frozen=True)
class NoisyOREStep(BinaryEStep):
    """As in `BinaryEStep`, and what the active latents add where nothing is combined."""

    def statistics(self, batch: Batch, found: Expectation) -> dict[Any, Any]:
        """As in `BinaryEStep`, and Σ⟨s_h⟩y_d, and of the observed entries Σ⟨s_h⟩."""
        sums = super().statistics(batch, found)
        sums["on"] = self.backend.sum_products(found.Y, found.mean)
        if found.observed is not None:
            sums["active"] = self.backend.sum_products(found.observed, found.mean)
        return sums


class NoisyOR(Causes):
    """Noisy-OR: p(y_d = 1 | s) = 1 − Π_h (1 − W_dh s_h), s_h ∈ {0, 1} with p(s_h = 1) = π_h.

    Šingliar & Hauskrecht, *Noisy-OR Component Analysis and its Application to Link Analysis*, JMLR 7, 2006; the
    M-step as a fixed point: math.md, noisy-OR. Trained by Expectation Truncation.

    Parameters
    ----------
    D, H, Hprime, gamma, missing
        As in `Truncated`. Data are 0 or 1; of missing entries (NaN) none counts.
    noise : str
        "bernoulli": what is combined are its probabilities.

    Notes
    -----
    Model parameters are ``W`` (D, H), probabilities from 1e-5 to 1 − 1e-5, and ``pi`` (H,).
    """

    field_domain = "probability"
    e_step = NoisyOREStep
    imputes = False
    unfit_for_pictures = "its data are 0 or 1"
    noisy = Bernoulli.noisy

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None = None,
        gamma: int | None = None,
        missing: bool = False,
        noise: str = "bernoulli",
    ):
        self.noise = check_cell("NoisyOR", noise)
        super().__init__(D, H, Hprime, gamma, missing)
        self.of = Bernoulli()

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {**super().parameters, "pi": Parameter((self.H,), "probability", "prior", latents=0)}

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        super().check_data(Y, start)
        refuse(Y, *self.of.bad(Y), start)

    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """W from half to one and a half times the frequency of 1, at random; π = 1/H."""
        W = summary.mean[:, None] * (0.5 + rng.random((self.D, self.H)))
        return {"W": np.clip(W, 0.01, 0.99), "pi": np.full(self.H, min(0.5, 1 / self.H))}

    def spread(self, params: Params) -> float:
        return self.of.spread(params)

    def combined(self, params: Params, states: np.ndarray) -> np.ndarray:
        out = np.zeros((len(states), self.D))
        for h, field in enumerate(_inside(params["W"]).T):  # latent by latent: nothing of size S × D × H is formed
            on = np.flatnonzero(states[:, h])
            out[on] += (1 - out[on]) * field
        return out

    def observe(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.of.draw(params, mean, rng)

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        mean = self.combined(params, states)
        off = np.log1p(-_inside(params["W"])) @ (states != 0).T  # log Π (1 − W), (D, S)
        seen = np.isfinite(Y)
        on = np.where(seen, Y, 0)
        known = on @ np.log(np.where(mean > 0, mean, 1)).T + (seen - on) @ off
        return np.where(on @ (mean == 0).T > 0, -np.inf, known)  # no cause, yet something is on

    def likelihood(self, params: Params, step: Step) -> Likelihood:
        W = _inside(params["W"])
        odds = W / (1 - W)
        return Likelihood("noisyor+bernoulli", odds, (1.0, 0.0), np.log(odds), np.log1p(-W), 1 / odds, W)

    @property
    def layout(self) -> Layout:
        active: Layout = {"active": (self.D, self.H)} if self.missing else {}
        return {**super().layout, "on": (self.D, self.H), **active}

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """Σ(1 − y)⟨B⟩ and Σ⟨C⟩, both times f = 1 − W of the step, and Σ⟨s⟩.

        So f is the mean of 1 − y for what the other active causes leave off, R, both weighted by 1 / (1 − P):
        Σ⟨(1 − y) / (1 − P)⟩ / Σ⟨R / (1 − P)⟩ with P = f R, where an f near 0 counts no more than another. As
        A = P / (1 − P) of an active latent, they are ⟨s + A⟩ of what is off, and ⟨A⟩ / f.
        """
        A, Ay = self.effects(sums, params, step)
        off = (sums["active"] if self.missing else sums["s"]) - sums["on"]
        shape = (self.D, self.H)
        return sums.but(
            {N_USE: (), "B": shape, "C": shape, "s": (self.H,)}, B=off + A - Ay, C=A / (1 - _inside(params["W"]))
        )

    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = 1 − Σ(1 − y)⟨B⟩ / Σ⟨C⟩, a fixed point; π = Σ⟨s⟩ / N, corrected for the data selection."""
        notes: list[str] = []
        wins = moments["C"] > 0
        notes += [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(~wins.any(axis=0))]
        W = 1 - np.divide(moments["B"], moments["C"], out=1 - _inside(params["W"]), where=wins)
        pi = moments["s"] / points(moments) * self.selection_factor(params, step)
        new = {
            "W": held("W", W, LEAST, 1 - LEAST, notes),
            "pi": held("pi", pi, MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes),
        }
        return new, notes


def _inside(W: np.ndarray) -> np.ndarray:
    return np.clip(W, LEAST, 1 - LEAST)
