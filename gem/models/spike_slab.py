"""Spike-and-slab sparse coding (GSC): switches and Gaussian strengths, the strengths integrated out exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.models.base import (
    MIN_PROBABILITY,
    TINY,
    Params,
    Posterior,
    Step,
    Weights,
    column_sums,
    squared_norms,
)
from gem.models.held import Masks
from gem.models.imputation import impute
from gem.models.linear import (
    fields_and_noise,
    in_white_noise,
    noise_is_lost,
    pair_moments,
    symmetric,
    with_held_fields,
)
from gem.models.observed import ObservedGram, split_missing
from gem.models.residuals import SURE, residual_sums, strength_spread
from gem.models.truncated import Truncated, held, log_odds, pieces
from gem.philox import generator
from gem.statistics import Layout, Statistics, Sum


@dataclass(frozen=True)
class Tables:
    """Parameters as the kernels want them, in the units of kernels/spike_slab.c."""

    backend: Backend
    weights: Weights
    dictionary: np.ndarray
    sigma2: float
    projection: Array
    fields: Array
    gram: Array
    norms: Array
    latents: Array
    one: Array
    zero: Array
    pull: np.ndarray
    spread: np.ndarray
    beta: float
    log_p0: float
    squared_norms: Kernel
    scores: Kernel
    preselect: Kernel
    spike_slab: Kernel
    pair_sums: Kernel
    scale_rows: Kernel
    observed_gram: ObservedGram | None
    residuals: bool


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

    domains: ClassVar[Mapping[str, str]] = {
        "W": "real",
        "pi": "probability",
        "mu": "real",
        "psi": "positive",
        "sigma": "deviation",
    }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.D, self.H), "pi": (self.H,), "mu": (self.H,), "psi": (self.H,), "sigma": ()}

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """Fields at the data's mean plus noise of their spread; μ = 0, ψ = 1; σ their standard deviation; π = 1/H.

        Y: (N, D) array, path or Source; the result is the same on every rank of `comm`.
        """
        data = self.varied_moments(Y, comm, weights)
        spread = np.sqrt(data.var)
        noise = generator(seed, "init").standard_normal((self.D, self.H))
        return {
            "W": data.mean[:, None] + spread[:, None] * noise,
            "pi": np.full(self.H, min(0.5, 1 / self.H)),
            "mu": np.zeros(self.H),
            "psi": np.ones(self.H),
            "sigma": np.array(np.sqrt(data.var.mean())),
        }

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

    def tables(self, params: Params, backend: Backend, step: Step) -> Tables:
        H, Hprime, masked = self.H, self.Hprime, int(self.missing)
        sigma, spread = float(params["sigma"]), np.sqrt(params["psi"])
        pi = self.activities(params)
        logit = log_odds(pi)
        pull = params["mu"] / spread
        V = params["W"] * (spread / sigma)
        gram = V.T @ V
        shift = np.zeros(H) if step.anneal_prior else (1 - 1 / step.T) * logit
        return Tables(
            backend=backend,
            weights=Weights(backend),
            dictionary=params["W"],
            sigma2=sigma**2,
            projection=backend.to_device(V / sigma),
            fields=backend.to_device(params["W"].T),
            gram=backend.to_device(gram),
            norms=backend.to_device(np.diag(gram)),
            latents=backend.to_device(np.array([pull, logit - pull**2 / 2, spread, shift])),
            one=backend.to_device(np.ones((1, H))),
            zero=backend.to_device(np.zeros((1, H))),
            pull=pull,
            spread=spread,
            beta=1 / step.T,
            log_p0=float(np.log1p(-pi).sum()),
            squared_norms=backend.kernel("squared_norms", D=self.D),
            scores=backend.kernel("spike_slab_scores", H=H, MASKED=masked),
            preselect=backend.kernel("preselect", H=H, HPRIME=Hprime, VALUES=1),
            spike_slab=backend.kernel(
                "spike_slab",
                states=self.states, H=H, HPRIME=Hprime, GAMMA=self.gamma, ANNEAL=int(step.T != 1), MASKED=masked,
            ),
            pair_sums=backend.kernel("pair_sums", H=H, HPRIME=Hprime),
            scale_rows=backend.kernel("scale_rows", H=H),
            observed_gram=ObservedGram.of(V, Hprime, backend) if self.missing else None,
            residuals=step.residuals,
        )  # fmt: skip

    def infer(self, tables: Tables, Y: Array) -> Posterior:
        """Score every latent alone, preselect I_n, enumerate K_n, weigh: one matrix product and three kernels.

        Where entries are missing, norms and couplings of the fields are those of the observed part of each data point.
        """
        t, n, H = tables, Y.shape[0], self.H
        empty = t.backend.empty
        observed, norms, gram = None, t.norms, t.gram
        if t.observed_gram is not None:
            Y, observed = split_missing(t.backend, Y)
            norms = t.observed_gram.norms(observed)
        product, mean, square = t.backend.matmul(Y, t.projection), empty((n, H)), empty((n, H))
        t.scores(n, product, norms, t.latents, mean)
        candidates = empty((n, self.Hprime), np.int32)
        t.preselect(n, mean, t.one, t.zero, candidates)
        if t.observed_gram is not None:
            gram = t.observed_gram.couplings(observed, candidates)
        log_evidence, pairs, full = empty((n,)), empty((n, self.pairs)), empty((n,))
        t.spike_slab(n, product, gram, norms, t.latents, candidates, t.beta, mean, log_evidence, square, pairs, full)
        yy = squared_norms(t.backend, t.squared_norms, Y)
        rest = {"square": square, "pairs": pairs, "yy": yy, "Y": Y, "observed": observed, "full": full}
        return Posterior(in_white_noise(t, self.D, log_evidence, yy, observed), candidates, mean, product, rest)

    def sums(self, tables: Tables, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> dict[str, Any]:
        t, n, device = tables, Y.shape[0], tables.backend
        keep = t.weights(n, weights)
        moments = {"s": posterior.mean, "sz": posterior.product, "square": posterior.rest["square"]}
        about = self._residuals(t, posterior, weights) if t.residuals else None
        imputed = self._imputed(t, posterior, weights) if self.missing and not t.residuals else ()
        if weights is not None:
            for rows in moments.values():
                t.scale_rows(n, rows, keep)
        sums: dict[str, Any] = {name: Sum(column_sums(device, rows, t.weights(n))) for name, rows in moments.items()}
        sums["yy"] = [device.point_sums([(posterior.rest["yy"], 1.0)], keep)]
        if about is not None:
            sums["ys"], sums["rr"], sums["pairs"] = about
            return sums
        sums["ys"] = [device.sum_products(posterior.rest["Y"], posterior.product)]
        for name, more in zip(("ys", "yy"), imputed, strict=False):
            sums[name].append(more)
        # Strengths have no bound but what they are: the host waits for three short arrays.
        s, sz, square = (device.to_host(sums[name].rows).sum(axis=0, dtype=np.float64) for name in moments)
        sums["pairs"] = pair_moments(t, n, posterior, keep, float(np.max(_about_zero(t, s, sz, square) / t.spread**2)))
        return sums

    def _imputed(self, t: Tables, posterior: Posterior, weights: np.ndarray | None) -> tuple[np.ndarray, float]:
        """What the expectations of missing entries add to the sums."""
        square, pairs, s, sz, observed, chosen = (
            t.backend.to_host(rows)
            for rows in (
                posterior.rest["square"], posterior.rest["pairs"], posterior.mean, posterior.product,
                posterior.rest["observed"], posterior.candidates,
            )
        )  # fmt: skip
        i, j = self.states.pairs
        strengths = pairs * (t.spread[chosen[:, i]] * t.spread[chosen[:, j]])
        return impute(t.dictionary, t.sigma2, observed, _about_zero(t, s, sz, square), chosen, strengths, weights)

    def _residuals(
        self, t: Tables, posterior: Posterior, weights: np.ndarray | None
    ) -> tuple[np.ndarray, float, np.ndarray]:
        """Σ⟨(y − W(s∘z))(s∘z)ᵀ⟩ and Σ⟨‖y − W(s∘z)‖²⟩ about the old W, and all of Σ⟨(s∘z)(s∘z)ᵀ⟩."""
        host, rest = t.backend.to_host, posterior.rest
        Y, s, sz, square, pairs = (
            host(rows).astype(np.float64)
            for rows in (rest["Y"], posterior.mean, posterior.product, rest["square"], rest["pairs"])
        )
        chosen, observed = host(posterior.candidates), host(rest["observed"]).astype(float) if self.missing else None
        squares = _about_zero(t, s, sz, square)
        i, j = self.states.pairs
        for rows in pieces(len(Y), self.Hprime * (self.D if self.missing else self.Hprime)):
            at = chosen[rows]
            m, scale = np.take_along_axis(sz[rows], at, axis=1), t.spread[at]
            covariance = np.zeros((len(at), self.Hprime, self.Hprime))
            covariance[:, i, j] = covariance[:, j, i] = pairs[rows] * scale[:, i] * scale[:, j] - m[:, i] * m[:, j]
            own = np.arange(self.Hprime)
            covariance[:, own, own] = np.maximum(np.take_along_axis(squares[rows], at, axis=1) - m**2, 0)
            sure = np.take_along_axis(s[rows], at, axis=1) >= 1 - SURE * np.finfo(t.backend.dtype).eps
            gram = _gram(t, at, None if observed is None else observed[rows])
            covariance = strength_spread(gram, scale, sure, covariance)
            pairs[rows] = covariance[:, i, j]
            np.put_along_axis(squares[rows], at, covariance[:, own, own], axis=1)
        return residual_sums(t.dictionary, t.sigma2, Y, observed, sz, squares, chosen, pairs, weights)

    def reconstruct(self, tables: Tables, Y: Array, posterior: Posterior) -> Array:
        return tables.backend.matmul(posterior.product, tables.fields)

    @property
    def layout(self) -> Layout:
        return {
            "yy": (), "rr": (), "ys": (self.D, self.H), "s": (self.H,), "sz": (self.H,), "square": (self.H,),
            "pairs": (self.H, self.H),
        }  # fmt: skip

    # -- M-step --------------------------------------------------------------------------------------------

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = (Σ y⟨s∘z⟩ᵀ)(Σ⟨(s∘z)(s∘z)ᵀ⟩)⁻¹, σ² from its residual, and the moments of the active strengths.

        `square` holds Σ⟨s (z − μ)²⟩ / ψ about the old mean, so ψ is right even where it is far smaller than μ².
        """
        N = float(stats["N_use"])
        s, sz, mu, psi = stats["s"], stats["sz"], params["mu"], params["psi"]
        alive = s > 0
        count = np.where(alive, s, 1)
        new_mu = np.where(alive, sz / count, mu)
        second = np.maximum(psi * stats["square"] + mu * (2 * sz - mu * s), 0)  # Σ⟨s z²⟩
        # A variance below the rounding of z² cannot be told from zero.
        floor = np.where(alive, np.maximum(step.resolution * second / count, TINY), 0)
        new_psi = np.where(alive, psi * stats["square"] / count - (new_mu - mu) ** 2, psi)

        spread = np.sqrt(psi)
        szsz = stats["pairs"]
        if not step.residuals:
            szsz = symmetric(szsz * spread * spread[:, None], second)
        of_noise: list[str] = []
        W, sigma = fields_and_noise(stats, szsz, params["W"], step, of_noise)
        notes = [f"latent {h} was never active: its field and strengths were kept" for h in np.flatnonzero(~alive)]
        pi = s / N * self.selection_factor(params, step)
        new = {
            "W": W,
            "pi": held("pi", np.where(alive, pi, MIN_PROBABILITY), MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes),
            "mu": new_mu,
            "psi": np.maximum(new_psi, floor),
        }
        if np.any(new_psi < floor):
            notes.append(f"{np.sum(new_psi < floor)} of {self.H} psi were held at the resolution of the E-step")
        return {**new, "sigma": sigma}, notes + of_noise

    def hold(self, new: Params, old: Params, masks: Masks, stats: Statistics, step: Step) -> Params:
        """σ follows the fields, and ψ the means of the strengths."""
        spread, ss = np.sqrt(old["psi"]), stats["pairs"]
        if not step.residuals:
            mu, s = old["mu"], stats["s"]
            second = np.maximum(old["psi"] * stats["square"] + mu * (2 * stats["sz"] - mu * s), 0)
            ss = symmetric(ss * spread * spread[:, None], second)
        out = dict(new)
        if "mu" in masks:
            off = np.where(masks["mu"] & (stats["s"] > 0), new["mu"] - old["mu"], 0)
            out["psi"] = new["psi"] + off**2
        return with_held_fields(out, old, masks, ss, float(stats["N_use"]), self.domains)

    def needs_residuals(self, params: Params, step: Step, stats: Statistics | None = None) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            power = np.sum(params["pi"] * (params["mu"] ** 2 + params["psi"]) * params["W"] ** 2) / self.D
        return noise_is_lost(float(power), params, step, stats)

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
        kept = itemsize * (3 * self.H + self.pairs + 2) + 4 * self.Hprime
        return kept + itemsize * (self.D + self.H), kept


def _norms(W: np.ndarray) -> np.ndarray:
    """‖W_h‖ of each field, (H,), whose squares need be no numbers."""
    largest = np.abs(W).max(axis=0)
    return np.asarray(largest * np.linalg.norm(W / np.where(largest > 0, largest, 1), axis=0))


def _gram(t: Tables, chosen: np.ndarray, observed: np.ndarray | None) -> np.ndarray:
    """WᵀW/σ² of each data point's candidates, over what was observed of it, (n, H', H')."""
    if observed is None:
        gram = t.dictionary.T @ t.dictionary / t.sigma2
        return np.asarray(gram[chosen[:, :, None], chosen[:, None, :]])
    fields = t.dictionary.T[chosen] / np.sqrt(t.sigma2)
    return np.asarray((fields * observed[:, None, :]) @ fields.transpose(0, 2, 1))


def _about_zero(t: Tables, s: np.ndarray, sz: np.ndarray, square: np.ndarray) -> np.ndarray:
    """⟨s z²⟩ from the moments about the prior's mean, `square` in units of ψ."""
    mu = t.pull * t.spread
    return np.maximum(t.spread**2 * square + mu * (2 * sz - mu * s), 0)


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
