"""Noisy-OR: binary data, each active cause may switch an entry on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array
from gem.models.base import MIN_PROBABILITY, Evidence, Params, Step, shard_and_moments
from gem.models.causes import Causes, Expectation, Likelihood, Tables, refuse
from gem.models.truncated import held
from gem.philox import generator
from gem.statistics import Layout, Statistics

LEAST = 1e-5  # of W and of 1 − W


class NoisyOR(Causes):
    """Noisy-OR: p(y_d = 1 | s) = 1 − Π_h (1 − W_dh s_h), s_h ∈ {0, 1} with p(s_h = 1) = π_h.

    Šingliar & Hauskrecht, *Noisy-OR Component Analysis and its Application to Link Analysis*, JMLR 7, 2006; the
    M-step as a fixed point: math.md, noisy-OR. Trained by Expectation Truncation.

    Settings as in `Truncated`. Data are 0 or 1; of missing entries (NaN) none counts.

    Notes
    -----
    Model parameters are ``W`` (D, H), probabilities from 1e-5 to 1 − 1e-5, and ``pi`` (H,).
    """

    domains: ClassVar[Mapping[str, str]] = {"W": "probability", "pi": "probability"}
    imputes: ClassVar[bool] = False
    noisy: ClassVar[float] = 3.5  # it wears off: where W comes near 0 or 1, noise on its logit moves it less

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.D, self.H), "pi": (self.H,)}

    def check_data(self, Y: np.ndarray, start: int = 0) -> None:
        super().check_data(Y, start)
        refuse(Y, ~np.isnan(Y) & (Y != 0) & (Y != 1), start, "is neither 0 nor 1: noisy-OR explains binary data")

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """W from half to one and a half times the frequency of 1, at random; π = 1/H.

        Y: (N, D) array, path or Source; the result is the same on every rank of `comm`.
        """
        _, _, data, _ = shard_and_moments(Y, self.D, comm, self.missing, weights)
        W = data.mean[:, None] * (0.5 + generator(seed, "init").random((self.D, self.H)))
        return {"W": np.clip(W, 0.01, 0.99), "pi": np.full(self.H, min(0.5, 1 / self.H))}

    def spread(self, params: Params) -> float:
        """That of log W / (1 − W), on whose scale W gets its noise: 1 / √(W (1 − W))."""
        W = _inside(params["W"])
        return float(1 / np.sqrt(np.mean(W * (1 - W))))

    def combined(self, params: Params, states: np.ndarray) -> np.ndarray:
        out = np.zeros((len(states), self.D))
        for h, field in enumerate(_inside(params["W"]).T):  # latent by latent: nothing of size S × D × H is formed
            on = np.flatnonzero(states[:, h])
            out[on] += (1 - out[on]) * field
        return out

    def observe(self, params: Params, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (rng.random(mean.shape) < mean).astype(np.float64)

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        mean = self.combined(params, states)
        off = np.log1p(-_inside(params["W"])) @ (states != 0).T  # log Π (1 − W), (D, S)
        seen = np.isfinite(Y)
        on = np.where(seen, Y, 0)
        known = on @ np.log(np.where(mean > 0, mean, 1)).T + (seen - on) @ off
        return np.where(on @ (mean == 0).T > 0, -np.inf, known)  # no cause, yet something is on

    def likelihood(self, params: Params, step: Step) -> Likelihood:
        W = _inside(params["W"])
        fields = np.where(W <= 0.5, W, W - 1)
        return Likelihood("noisyor", fields, (1.0,), np.log(W) - np.log1p(-W), np.log1p(-W), (1 - W) / W, W)

    def reference(self, tables: Tables, Y: Array) -> Evidence:
        """0, or −∞ where a row holds what is not binary."""
        n, backend = Y.shape[0], tables.backend
        nothing = backend.empty((n,))
        backend.kernel("check_rows", D=self.D)(n, Y, nothing)
        return Evidence(n, [(nothing, 1.0)])

    def statistics(self, t: Tables, found: Expectation, keep: Array) -> dict[str, Any]:
        """As in `Causes`, and Σ⟨s_h⟩y_d, and of the observed entries Σ⟨s_h⟩."""
        sums = super().statistics(t, found, keep)
        sums["on"] = t.backend.sum_products(found.Y, found.mean)
        if self.missing:
            sums["active"] = t.backend.sum_products(found.observed, found.mean)
        return sums

    @property
    def layout(self) -> Layout:
        active: Layout = {"active": (self.D, self.H)} if self.missing else {}
        return {**super().layout, "on": (self.D, self.H), **active}

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = 1 + Σ(y − 1)⟨B⟩ / Σ⟨C⟩, a fixed point; π = Σ⟨s⟩ / N, corrected for the data selection.

        With A = P / (1 − P) of an active latent, and f = 1 − W: B = (s + A) / f and C = A / f².
        """
        notes: list[str] = []
        old = _inside(params["W"])
        A, Ay = self.effects(stats, params, step)
        wins = A > 0
        notes += [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(~wins.any(axis=0))]
        off = (stats["active"] if self.missing else stats["s"]) - stats["on"]
        W = 1 - np.divide((1 - old) * (off + A - Ay), A, out=1 - old, where=wins)
        pi = stats["s"] / float(stats["N_use"]) * self.selection_factor(params, step)
        new = {
            "W": held("W", W, LEAST, 1 - LEAST, notes),
            "pi": held("pi", pi, MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes),
        }
        return new, notes


def _inside(W: np.ndarray) -> np.ndarray:
    return np.clip(W, LEAST, 1 - LEAST)
