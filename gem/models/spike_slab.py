"""Spike-and-slab sparse coding (GSC): switches and Gaussian strengths, the strengths integrated out exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.models.base import Step, points
from gem.models.estep import Posterior, column_sums
from gem.models.held import Masks
from gem.models.imputation import completed, sums_of_gaps
from gem.models.linear import (
    GaussianEStep,
    Inferred,
    fields_and_noise,
    noise_is_lost,
    symmetric,
    with_held_fields,
)
from gem.models.observed import ObservedGram
from gem.models.parameters import MIN_PROBABILITY, TINY, Parameter, Params
from gem.models.residuals import SURE, blended, residual_sums, squares_about_zero, strength_spread
from gem.models.truncated import Truncated, held, log_odds, pieces
from gem.statistics import N_USE, Layout, Statistics, Sum, Sums
from gem.summary import Summary


@dataclass(frozen=True)
class Strengths(Inferred):
    """What the E-step finds of a batch, on the device.

    Attributes
    ----------
    product : (n, H)
        ⟨s∘z⟩
    square : (n, H)
        ⟨s (z − μ)²⟩ / ψ
    """

    product: Array
    square: Array


@dataclass(frozen=True)
class SpikeSlabEStep(GaussianEStep[Strengths]):
    """Parameters as the kernels want them, in the units of kernels/spike_slab.c; and μ/√ψ and √ψ on the host."""

    model: GSC
    pull: np.ndarray
    spread: np.ndarray
    projection: Array
    gram: Array
    norms: Array
    latents: Array
    one: Array
    zero: Array
    scores: Kernel
    spike_slab: Kernel
    strength_squares: Kernel

    def infer(self, batch: Batch) -> Strengths:
        """Score every latent by itself, preselect I_n, enumerate K_n, weigh: one matrix product and three kernels.

        Where entries are missing, norms and couplings of the fields are those of the observed part of each data point.
        """
        n, H, empty = batch.n, self.model.H, self.backend.empty
        filled, observed, entries, yy = self.split(batch)
        norms, gram = self.norms, self.gram
        if self.observed_gram is not None and observed is not None:
            norms = self.observed_gram.norms(observed)
        product = self.backend.matmul(batch.Y if filled is None else filled, self.projection)
        mean, square, candidates = empty((n, H)), empty((n, H)), empty((n, self.model.Hprime), np.int32)
        self.scores(n, product, norms, self.latents, mean)
        self.preselect(n, mean, self.one, self.zero, candidates)
        if self.observed_gram is not None and observed is not None:
            gram = self.observed_gram.couplings(observed, candidates)
        relative, pairs, full = empty((n,)), empty((n, self.model.pairs)), empty((n,))
        self.spike_slab(
            n, product, gram, norms, self.latents, candidates, self.beta, mean, relative, square, pairs, full
        )
        evidence = self.evidence(relative, yy, entries)
        return Strengths(evidence, candidates, mean, pairs, yy, full, filled, observed, entries, product, square)

    def sums(self, batch: Batch, found: Strengths) -> Sums:
        host, point_sums = self.backend.to_host, self.backend.point_sums
        rows = {"s": found.mean, "sz": found.product, "square": found.square}
        columns = {name: column_sums(self.backend, array, batch.weights) for name, array in rows.items()}
        sums: dict[str, Any] = {name: Sum(array) for name, array in columns.items()}
        sums["yy"] = [point_sums([(found.yy, 1.0)], batch.weights)]
        if self.residuals:
            sums["ys"], sums["rr"], sums["pairs"] = self._residuals(batch, found)
            return sums
        if self.observed_gram is not None:
            self.strength_squares(batch.n, found.mean, found.product, self.latents, found.square)
            sums |= self.of_gaps(batch, found, found.square, 1.0)
        if batch.counts is not None:
            self.scale_rows(batch.n, found.product, batch.weights)
        sums["ys"] = [self.backend.sum_products(found.data(batch), found.product)]
        # Strengths have no bound but what they are: the host waits for three short arrays.
        s, sz, square = (host(array).sum(axis=0, dtype=np.float64) for array in columns.values())
        most = float(np.max(self._about_zero(s, sz, square) / self.spread**2))
        sums["pairs"] = self.pair_moments(batch, found, most)
        return sums

    def _about_zero(self, s: np.ndarray, sz: np.ndarray, square: np.ndarray) -> np.ndarray:
        """⟨s z²⟩ from the moments about the prior's mean, `square` in units of ψ."""
        return second_moment(self.pull * self.spread, self.spread**2, s, sz, square)

    def _residuals(self, batch: Batch, found: Strengths) -> tuple[np.ndarray, float, np.ndarray]:
        """Σ⟨(y − W(s∘z))(s∘z)ᵀ⟩ and Σ⟨‖y − W(s∘z)‖²⟩ about the old W, and all of Σ⟨(s∘z)(s∘z)ᵀ⟩."""
        host, Hprime, D = self.backend.to_host, self.model.Hprime, self.model.D
        Y, s, sz, square, pairs = (
            host(rows).astype(np.float64)
            for rows in (found.data(batch), found.mean, found.product, found.square, found.pairs)
        )
        chosen = host(found.candidates)
        observed = None if found.observed is None else host(found.observed).astype(np.float64)
        squares, own = self._about_zero(s, sz, square), np.arange(Hprime)
        i, j = self.model.states.pairs
        for rows in pieces(len(Y), Hprime * (Hprime if observed is None else D)):
            at = chosen[rows]
            m, scale = np.take_along_axis(sz[rows], at, axis=1), self.spread[at]
            covariance = np.zeros((len(at), Hprime, Hprime))
            covariance[:, i, j] = covariance[:, j, i] = pairs[rows] * scale[:, i] * scale[:, j] - m[:, i] * m[:, j]
            covariance[:, own, own] = np.maximum(np.take_along_axis(squares[rows], at, axis=1) - m**2, 0)
            sure = np.take_along_axis(s[rows], at, axis=1) >= 1 - SURE * np.finfo(self.backend.dtype).eps
            gram = self._gram(at, None if observed is None else observed[rows])
            covariance = strength_spread(gram, scale, sure, covariance)
            pairs[rows] = covariance[:, i, j]
            np.put_along_axis(squares[rows], at, covariance[:, own, own], axis=1)
        return residual_sums(self.W, self.sigma2, Y, observed, sz, squares, chosen, pairs, batch.counts)

    def _gram(self, chosen: np.ndarray, observed: np.ndarray | None) -> np.ndarray:
        """WᵀW/σ² of each data point's candidates, over what was observed of it, (n, H', H')."""
        if observed is None:
            gram = self.W.T @ self.W / self.sigma2
            return np.asarray(gram[chosen[:, :, None], chosen[:, None, :]])
        fields = self.W.T[chosen] / np.sqrt(self.sigma2)
        return np.asarray((fields * observed[:, None, :]) @ fields.transpose(0, 2, 1))

    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        found = self.infer(batch)
        whole = self.backend.matmul(found.product, self.fields) if reconstruct else None
        told = Posterior(found.evidence, found.candidates, found.mean, found.product, whole)
        return told, self.tally(batch, found)


class GSC(Truncated):
    """Spike-and-slab sparse coding: y = W (s ∘ z) + ε, s_h ∈ {0, 1}, z_h ~ N(μ_h, ψ_h), ε ~ N(0, σ² I).

    The strengths z are integrated out in closed form, so strengths and their correlations are exact given s; the
    switches s are treated by Expectation Truncation. Sheikh, Shelton, Lücke, *A Truncated EM Approach for
    Spike-and-Slab Sparse Coding*, JMLR 15, 2014.

    Settings as in `Truncated`.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` (H,) with p(s_h = 1) = π_h, ``mu`` (H,) and ``psi`` (H,), mean and
    variance of the strengths, and ``sigma`` (). The scale of a field and that of its strengths are one degree of
    freedom: only their product is determined, and in a run (`EM`) each field keeps the norm it began with.
    `Posterior.mean` is ⟨s⟩, `Posterior.product` ⟨s∘z⟩.
    """

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {
            "W": Parameter((self.D, self.H), "real", "fields", latents=1),
            "pi": Parameter((self.H,), "probability", "prior", latents=0),
            "mu": Parameter((self.H,), "real", "strength", latents=0),
            "psi": Parameter((self.H,), "positive", "strength variance", latents=0),
            "sigma": Parameter((), "deviation", "noise"),
        }

    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """Fields at the data's mean plus noise of their spread; μ = 0, ψ = 1; σ their standard deviation; π = 1/H."""
        data = summary.varied()
        spread = np.sqrt(data.var)
        noise = rng.standard_normal((self.D, self.H))
        return {
            "W": data.mean[:, None] + spread[:, None] * noise,
            "pi": np.full(self.H, min(0.5, 1 / self.H)),
            "mu": np.zeros(self.H),
            "psi": np.ones(self.H),
            "sigma": np.array(np.sqrt(data.var.mean())),
        }

    most_on_patches = 3

    def with_known_noise(self, params: Params, noise: float, count: int) -> Params:
        """Strengths explain the signal: what is left is noise."""
        return {**params, "sigma": np.array(noise)}

    def strength(self, params: Params, h: int) -> float:
        return float(np.sqrt(params["mu"][h] ** 2 + params["psi"][h]))

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.int8, (self.H,))])
        drawn["s"] = rng.random((n, self.H)) < params["pi"]
        z = params["mu"] + np.sqrt(params["psi"]) * rng.standard_normal((n, self.H))
        drawn["Y"] = (drawn["s"] * z) @ params["W"].T + params["sigma"] * rng.standard_normal((n, self.D))
        return drawn

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        """log p(y_n | s, Θ), (N, S), of the switches: the strengths are integrated out."""
        found = np.empty((len(Y), len(states)))
        patterns, which = np.unique(np.isfinite(Y), axis=0, return_inverse=True)
        for number, seen in enumerate(patterns):
            rows = np.flatnonzero(which.ravel() == number)
            found[rows] = _integrated(params, Y[np.ix_(rows, seen)], params["W"][seen], states)
        return found

    # -- E-step --------------------------------------------------------------------------------------------

    def on(self, backend: Backend, params: Params, step: Step) -> SpikeSlabEStep:
        H, Hprime, masked, device = self.H, self.Hprime, int(self.missing), backend.to_device
        sigma, spread = float(params["sigma"]), np.sqrt(params["psi"])
        pi = self.activities(params)
        logit = log_odds(pi)
        pull = params["mu"] / spread
        V = params["W"] * (spread / sigma)
        gram = V.T @ V
        shift = np.zeros(H) if step.anneal_prior else (1 - 1 / step.T) * logit
        return SpikeSlabEStep(
            backend=backend,
            W=params["W"],
            sigma2=sigma**2,
            beta=1 / step.T,
            log_p0=float(np.log1p(-pi).sum()),
            residuals=step.residuals,
            fields=device(params["W"].T),
            observed_gram=ObservedGram.of(V, Hprime, backend) if self.missing else None,
            squared_norms=backend.kernel("squared_norms", D=self.D),
            preselect=backend.kernel("preselect", H=H, HPRIME=Hprime, VALUES=1),
            pair_sums=backend.kernel("pair_sums", H=H, HPRIME=Hprime),
            scale_rows=backend.kernel("scale_rows", H=H),
            model=self,
            pull=pull,
            spread=spread,
            projection=device(V / sigma),
            gram=device(gram),
            norms=device(np.diag(gram)),
            latents=device(np.array([pull, logit - pull**2 / 2, spread, shift])),
            one=device(np.ones((1, H))),
            zero=device(np.zeros((1, H))),
            scores=backend.kernel("spike_slab_scores", H=H, MASKED=masked),
            spike_slab=backend.kernel(
                "spike_slab",
                states=self.states, H=H, HPRIME=Hprime, GAMMA=self.gamma, ANNEAL=int(step.T != 1), MASKED=masked,
            ),
            strength_squares=backend.kernel("strength_squares", H=H),
        )  # fmt: skip

    @property
    def layout(self) -> Layout:
        gaps = sums_of_gaps(self.D, self.H) if self.missing else {}
        return {
            "yy": (), "rr": (), "ys": (self.D, self.H), "s": (self.H,), "sz": (self.H,), "square": (self.H,),
            "pairs": (self.H, self.H), **gaps,
        }  # fmt: skip

    def moments(self, sums: Statistics, params: Params, step: Step) -> Statistics:
        """`szsz`, all of Σ⟨(s∘z)(s∘z)ᵀ⟩, and `spread`, Σ⟨s_h (z_h − m_h)²⟩ about m = Σ⟨s∘z⟩ / Σ⟨s⟩ itself.

        The sums have it about the old μ and in units of the old ψ, so it is right even where ψ is far smaller than μ².
        Sums of residuals come with the fields W that they are `about`.
        """
        D, H, mu, psi = self.D, self.H, params["mu"], params["psi"]
        s, sz, square, szsz, yy = (sums[name] for name in ("s", "sz", "square", "pairs", "yy"))
        layout: Layout = {
            N_USE: (), "yy": (), "rr": (), "ys": (D, H), "s": (H,), "sz": (H,), "spread": (H,), "szsz": (H, H),
        }  # fmt: skip
        spread = psi * square - s * (average(sz, s, mu) - mu) ** 2
        if not step.residuals:
            root = np.sqrt(psi)
            szsz = symmetric(szsz * root * root[:, None], second_moment(mu, psi, s, sz, square))
            all_entries = completed(sums, params["W"], float(params["sigma"]) ** 2, root) if self.missing else {}
            return sums.but(layout, spread=spread, szsz=szsz, **all_entries)
        if self.missing:
            yy = squares_about_zero(sums, szsz, params["W"])
        return sums.but({**layout, "about": (D, H)}, yy=yy, spread=spread, szsz=szsz, about=params["W"])

    def combine(self, first: Statistics, second: Statistics, a: float, b: float) -> Statistics:
        """Plain sums, but `spread`, which grows by how far the two means are apart."""
        both = blended(first, second, a, b, "szsz")
        zero = np.zeros(self.H)
        apart = average(first["sz"], first["s"], zero) - average(second["sz"], second["s"], zero)
        between = a * first["s"] * average(b * second["s"], both["s"], zero) * apart**2
        return both.but(both.layout, spread=both["spread"] + between)

    # -- M-step --------------------------------------------------------------------------------------------

    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = (Σ y⟨s∘z⟩ᵀ)(Σ⟨(s∘z)(s∘z)ᵀ⟩)⁻¹, σ² from its residual, and the moments of the active strengths."""
        s, sz, spread = moments["s"], moments["sz"], moments["spread"]
        alive = s > 0
        new_psi = average(spread, s, params["psi"])
        # A variance below the rounding of z² cannot be told from zero.
        second = average(sz, s, np.zeros(self.H)) ** 2 + np.where(alive, new_psi, 0)
        floor = np.where(alive, np.maximum(step.resolution * second, TINY), 0)
        of_noise: list[str] = []
        W, sigma = fields_and_noise(moments, moments["szsz"], params["W"], step, of_noise)
        notes = [f"latent {h} was never active: its field and strengths were kept" for h in np.flatnonzero(~alive)]
        pi = s / points(moments) * self.selection_factor(params, step)
        new = {
            "W": W,
            "pi": held("pi", np.where(alive, pi, MIN_PROBABILITY), MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes),
            "mu": average(sz, s, params["mu"]),
            "psi": np.maximum(new_psi, floor),
        }
        if np.any(new_psi < floor):
            notes.append(f"{np.sum(new_psi < floor)} of {self.H} psi were held at the resolution of the E-step")
        return {**new, "sigma": sigma}, notes + of_noise

    def hold(self, new: Params, old: Params, masks: Masks, moments: Statistics, step: Step) -> Params:
        """σ follows the fields, and ψ the means of the strengths."""
        out = dict(new)
        if "mu" in masks:
            off = np.where(masks["mu"] & (moments["s"] > 0), new["mu"] - old["mu"], 0)
            out["psi"] = new["psi"] + off**2
        return with_held_fields(out, old, masks, moments["szsz"], points(moments), self.parameters)

    def needs_residuals(self, params: Params, step: Step, moments: Statistics | None = None) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            power = np.sum(params["pi"] * (params["mu"] ** 2 + params["psi"]) * params["W"] ** 2) / self.D
        return noise_is_lost(float(power), params, step, moments)

    def settle(self, new: Params, old: Params) -> Params:
        """The fields at the norms they had: W_h / c, c μ_h and c² ψ_h of any c > 0 have one likelihood.

        EM itself settles no scale: over many steps it drifts, of latents that explain little for ever.
        """
        norms, before = _norms(new["W"]), _norms(old["W"])
        c = np.divide(norms, before, out=np.ones(self.H), where=(norms > 0) & (before > 0))
        with np.errstate(over="ignore", under="ignore"):
            mu, psi = c * new["mu"], c**2 * new["psi"]
        c = np.where((psi >= TINY) & np.isfinite(psi) & np.isfinite(mu), c, 1)
        return {**new, "W": new["W"] / c, "mu": c * new["mu"], "psi": c**2 * new["psi"]}

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        kept = itemsize * (3 * self.H + self.pairs + 2 + 2 * self.D * self.missing) + 4 * self.Hprime
        return kept + itemsize * (self.D + self.H + (self.H + self.pairs) * self.missing), kept


def _norms(W: np.ndarray) -> np.ndarray:
    """‖W_h‖ of each field, (H,), whose squares need be no numbers."""
    largest = np.abs(W).max(axis=0)
    return np.asarray(largest * np.linalg.norm(W / np.where(largest > 0, largest, 1), axis=0))


def average(total: np.ndarray, count: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """total / count, and `otherwise` where there is none."""
    return np.asarray(np.divide(total, count, out=np.array(otherwise, dtype=np.float64), where=count > 0))


def second_moment(mu: np.ndarray, psi: np.ndarray, s: np.ndarray, sz: np.ndarray, square: np.ndarray) -> np.ndarray:
    """⟨s z²⟩ from the moments about μ, `square` in units of ψ."""
    return np.asarray(np.maximum(psi * square + mu * (2 * sz - mu * s), 0))


def _integrated(params: Params, Y: np.ndarray, W: np.ndarray, states: np.ndarray) -> np.ndarray:
    """log p(y_n | s) of complete data, by the matrices of the active latents, |s| × |s|."""
    sigma, spread = params["sigma"], np.sqrt(params["psi"])
    V, pull = W * (spread / sigma), params["mu"] / spread
    field, gram = Y @ V / sigma + pull, V.T @ V
    constant = -(np.sum(Y**2, axis=1) / sigma**2 + Y.shape[1] * np.log(2 * np.pi * sigma**2)) / 2
    found = np.repeat(constant[:, None], len(states), axis=1)
    sizes = np.count_nonzero(states, axis=1)
    for k in np.unique(sizes[sizes > 0]):
        rows = np.flatnonzero(sizes == k)
        on = np.nonzero(states[rows])[1].reshape(-1, k)
        factor = np.linalg.cholesky(np.eye(k) + gram[on[:, :, None], on[:, None, :]])
        x = np.einsum("sij,nsj->nsi", np.linalg.inv(factor), field[:, on])
        log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        found[:, rows] += np.sum(x**2, axis=2) / 2 - np.sum(pull[on] ** 2, axis=1) / 2 - log_det
    return found
