"""Linear superposition, y = W s + ε with discrete latents: binary sparse coding (BSC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.errors import DataError
from gem.models.base import MIN_PROBABILITY, Params, Posterior, Step, shard_and_moments
from gem.models.truncated import Truncated, held
from gem.philox import generator
from gem.statistics import Layout, Statistics

FIXED_POINT = 2.0**40  # the scale of pair_sums: integers add up to the same bits in any order


@dataclass(frozen=True)
class Tables:
    """Parameters as the kernels want them."""

    backend: Backend
    W: Array
    fields: Array
    gram: Array
    slope: Array
    offset: Array
    score_slope: Array
    score_offset: Array
    beta: float
    shift: float
    constant: float
    half_precision: float
    squared_norms: Kernel
    preselect: Kernel
    gram_posterior: Kernel
    pair_sums: Kernel
    scale_rows: Kernel


class BSC(Truncated):
    """Binary sparse coding: y = W s + ε, s_h ∈ {0, 1} with p(s_h = 1) = π, ε ~ N(0, σ² I).

    Trained by Expectation Truncation. Henniges, Puertas, Bornschein, Eggert, Lücke, *Binary Sparse Coding*,
    LVA/ICA 2010; Lücke & Eggert, *Expectation Truncation*, JMLR 11, 2010.

    Settings as in `Truncated`.

    Notes
    -----
    Model parameters are ``W`` (D, H), ``pi`` () and ``sigma`` ().
    """

    domains: ClassVar[Mapping[str, str]] = {"W": "real", "pi": "probability", "sigma": "positive"}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.D, self.H), "pi": (), "sigma": ()}

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None) -> Params:
        """Fields at the data's mean plus noise of a quarter of its spread; σ the data's standard deviation; π = 1/H.

        Y: (N, D) array, path or Source; the result is the same on every rank of `comm`.
        """
        _, _, data = shard_and_moments(Y, self.D, comm)
        spread = np.sqrt(data.var)
        if not spread.any():
            raise DataError("all data points are equal: there is nothing to learn from them")
        noise = generator(seed, "init").standard_normal((self.D, self.H))
        return {
            "W": data.mean[:, None] + spread[:, None] * noise / 4,
            "pi": np.array(min(0.5, 1 / self.H)) if self.H > 1 else np.array(0.5),
            "sigma": np.array(np.sqrt(data.var.mean())),
        }

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.int8, (self.H,))])
        drawn["s"] = rng.random((n, self.H)) < params["pi"]
        drawn["Y"] = drawn["s"] @ params["W"].T + params["sigma"] * rng.standard_normal((n, self.D))
        return drawn

    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        active = np.count_nonzero(states, axis=1)
        return active * np.log(params["pi"]) + (self.H - active) * np.log1p(-params["pi"])

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        residual = Y[:, None, :] - states @ params["W"].T
        variance = params["sigma"] ** 2
        observed = np.isfinite(Y).sum(axis=1)[:, None]
        return -(np.nansum(residual**2, axis=2) / variance + observed * np.log(2 * np.pi * variance)) / 2

    # -- E-step --------------------------------------------------------------------------------------------

    def tables(self, params: Params, backend: Backend, step: Step) -> Tables:
        H, Hprime = self.H, self.Hprime
        W, pi = params["W"], np.clip(params["pi"], MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        precision = 1 / params["sigma"] ** 2
        gram = W.T @ W
        norms = np.sqrt(np.diag(gram))
        logit = float(np.log(pi) - np.log1p(-pi))
        seen = norms > 0  # a field of zeros explains nothing and is scored 0
        return Tables(
            backend=backend,
            W=backend.to_device(W),
            fields=backend.to_device(W.T),
            gram=backend.to_device(gram * precision),
            slope=backend.to_device(np.full(H, precision)),
            offset=backend.to_device(logit - np.diag(gram) * precision / 2),
            score_slope=backend.to_device(np.divide(1, norms, out=np.zeros(H), where=seen)[None]),
            score_offset=backend.to_device(np.zeros((1, H))),
            beta=1 / step.T,
            shift=0.0 if step.anneal_prior else (1 - 1 / step.T) * logit,
            constant=float(H * np.log1p(-pi) - self.D / 2 * np.log(2 * np.pi / precision)),
            half_precision=float(precision / 2),
            squared_norms=backend.kernel("squared_norms", D=self.D),
            preselect=backend.kernel("preselect", H=H, HPRIME=Hprime, VALUES=1),
            gram_posterior=backend.kernel(
                "gram_posterior", states=self.states, H=H, HPRIME=Hprime, GAMMA=self.gamma, ANNEAL=int(step.T != 1)
            ),
            pair_sums=backend.kernel("pair_sums", H=H, HPRIME=Hprime),
            scale_rows=backend.kernel("scale_rows", H=H),
        )

    def infer(self, tables: Tables, Y: Array) -> Posterior:
        """Preselect I_n, enumerate K_n, weigh: one matrix product and two kernels."""
        t, n = tables, Y.shape[0]
        b = t.backend.matmul(Y, t.W)
        candidates = t.backend.empty((n, self.Hprime), np.int32)
        t.preselect(n, b, t.score_slope, t.score_offset, candidates)
        log_evidence = t.backend.empty((n,))
        pairs = t.backend.empty((n, self.pairs))
        t.gram_posterior(n, b, t.gram, t.slope, t.offset, candidates, t.beta, t.shift, log_evidence, pairs)
        squares = t.backend.empty((n,))
        t.squared_norms(n, Y, squares)
        yy = t.backend.to_host(squares).astype(np.float64)
        relative = t.backend.to_host(log_evidence).astype(np.float64)
        log_joint = relative + t.constant - t.half_precision * yy
        return Posterior(log_joint, candidates, b, rest={"pairs": pairs, "yy": yy})

    def sums(self, tables: Tables, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> dict[str, Any]:
        t, n = tables, Y.shape[0]
        keep = np.ones(n) if weights is None else weights
        device_keep = t.backend.to_device(keep)
        if weights is not None:
            t.scale_rows(n, posterior.mean, device_keep)
        fixed = t.backend.to_device(np.zeros((self.H, self.H), dtype=np.int64))
        t.pair_sums(n, posterior.candidates, posterior.rest["pairs"], device_keep, fixed)
        ones = t.backend.to_device(np.ones((1, n)))
        return {
            "yy": posterior.rest["yy"] @ keep,
            "ys": t.backend.to_host(t.backend.matmul(Y, posterior.mean, transpose_a=True)),
            "s": t.backend.to_host(t.backend.matmul(ones, posterior.mean))[0],
            "ss": t.backend.to_host(fixed) / FIXED_POINT,
        }

    def reconstruct(self, tables: Tables, Y: Array, posterior: Posterior) -> Array:
        return tables.backend.matmul(posterior.mean, tables.fields)

    @property
    def layout(self) -> Layout:
        return {"yy": (), "ys": (self.D, self.H), "s": (self.H,), "ss": (self.H, self.H)}

    # -- M-step --------------------------------------------------------------------------------------------

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W = (Σ y⟨s⟩ᵀ)(Σ⟨ssᵀ⟩)⁻¹, σ² = Σ⟨‖y − Ws‖²⟩ / ND, π = Σ⟨|s|⟩ / NH, corrected for the data selection."""
        N = float(stats["N_use"])
        ss = symmetric(stats["ss"], stats["s"])
        W = solve_fields(stats["ys"], ss, params["W"])
        variance = (stats["yy"] - 2 * np.sum(W * stats["ys"]) + np.sum((W @ ss) * W)) / (N * self.D)
        pi = stats["s"].sum() / (N * self.H) * self.selection_factor(params, step)
        # A variance below the rounding of Σ‖y‖² cannot be told from zero.
        floor = self.H * step.resolution * stats["yy"] / (N * self.D)
        notes = [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(stats["s"] == 0)]
        new = {
            "W": W,
            "pi": held("pi", pi, MIN_PROBABILITY, 1 - MIN_PROBABILITY, notes),
            "sigma": np.sqrt(np.maximum(variance, floor)),
        }
        if variance < floor:
            notes.append(f"sigma was held at {new['sigma']:.3g}, the resolution of the E-step")
        return new, notes

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        kept = itemsize * (self.H + self.pairs + 1) + 4 * self.Hprime
        return kept + itemsize * (self.D + self.H), kept


def symmetric(upper: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """The full matrix from its strict upper triangle and its diagonal."""
    return upper + upper.T + np.diag(diagonal)


def solve_fields(ys: np.ndarray, ss: np.ndarray, W: np.ndarray) -> np.ndarray:
    """The minimiser of Σ⟨‖y − Ws‖²⟩, ys ss⁻¹; where the data leave it undetermined, the old W stays.

    A latent that was never active has a row of zeros in ss, two that are always active together make it
    singular: the correction to W is then taken in the span of the well-determined directions alone.
    """
    scale = np.sqrt(np.diag(ss))
    scale = np.where(scale > 0, scale, 1)  # a dead latent's row is zero, whatever divides it
    normal = ss / scale / scale[:, None]
    try:
        factor = np.linalg.cholesky(normal)
        well_posed = np.diag(factor).min() ** 2 > len(ss) * np.finfo(np.float64).eps
    except np.linalg.LinAlgError:
        well_posed = False
    if well_posed:
        return np.linalg.solve(normal, (ys / scale).T).T / scale
    rest = (ys - W @ ss) / scale
    values, vectors = np.linalg.eigh(normal)
    sure = values > len(ss) * np.finfo(np.float64).eps * values[-1]
    inverse = np.divide(1, values, out=np.zeros_like(values), where=sure)
    return W + ((rest @ vectors) * inverse @ vectors.T) / scale
