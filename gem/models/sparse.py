"""Sparse coding: continuous latents with a Laplace prior, inferred by their most probable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.batch import Batch
from gem.checks import number, whole_number
from gem.errors import DataError
from gem.models.base import Model, Step
from gem.models.estep import EStep, Evidence, Posterior, squared_norms
from gem.models.parameters import TINY, Parameter, Params
from gem.models.pictures import fields_for
from gem.philox import generator
from gem.statistics import N_ALL, Layout, Statistics, Sums
from gem.summary import Summary

PITCH = 32  # of the Gram matrix: its rows are as long as a multiple of this
ROOM = 1e4  # between the squares of data and the smallest number, for gaps and penalties
SWEEPS = 20  # of the M-step over the columns of W, at the most
STILL = 1e-6  # a sweep that turns no column by more than this is the last one


class SC(Model):
    """Sparse coding: y = W s + ε, p(s_h) = exp(−|s_h|/b)/2b, ε ~ N(0, σ² I), trained on the most probable ŝ.

    Olshausen & Field, Nature 381, 1996. The E-step finds ŝ, the minimum of ½‖y − Ws‖² + (σ²/b)‖s‖₁, by coordinate
    descent on devices (Friedman, Hastie & Tibshirani, J. Stat. Softw. 33, 2010), with numpy by FISTA (Beck & Teboulle,
    SIAM J. Imaging Sci. 2, 2009) with restarts (O'Donoghue & Candès, Found. Comput. Math. 15, 2015). The M-step turns
    one column of W after the other to its best direction (Mairal, Bach, Ponce & Sapiro, JMLR 11, 2010).

    Parameters
    ----------
    D, H : int
        Observed dimensions, latents.
    penalty : float, optional
        σ²/b of the initial parameters, in units of the data; only this ratio matters to ŝ and W (default: the data's
        standard deviation).
    iterations : int
        Of the search, at the most: sweeps over the latents on devices, steps along the gradient with numpy. Where they
        were too few for `tol` a note says of how many data points.
    tol : float
        Duality gap, in units of ‖y‖², at which the search for a data point's ŝ ends.

    Raises
    ------
    ConfigError
        If a size, the penalty or tol is not positive.

    Notes
    -----
    Model parameters are ``W`` (D, H), its columns of unit length after the first step, ``sigma`` () and ``b`` (); the
    last two are given, not learned: likelihood and prior at ŝ would grow for ever as both shrink. The free energy is
    Σ_n log p(y_n, ŝ_n), a density in ŝ, so it does not compare with that of other models. It never falls, but by the
    gaps that `tol` leaves. The posterior's `mean` is ŝ. A temperature makes the penalty T times as large; with
    ``anneal_prior=True`` it changes nothing.
    """

    tallies: Layout = MappingProxyType({"unfound": ()})
    reseeds: ClassVar[str] = "asked"

    def __init__(self, D: int, H: int, penalty: float | None = None, iterations: int = 1000, tol: float = 1e-4):
        self.D, self.H = whole_number("D", D), whole_number("H", H)
        self.iterations = whole_number("iterations", iterations)
        self.penalty = None if penalty is None else number("penalty", penalty, "positive and finite", 0, inside=True)
        self.tol = number("tol", tol, "a relative duality gap: between 0 and 1", 0, 1, inside=True)

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {
            "W": Parameter((self.D, self.H), "real", "fields", latents=1),
            "sigma": Parameter((), "deviation", "noise"),
            "b": Parameter((), "positive", "scale"),
        }

    def start(self, summary: Summary, rng: np.random.Generator) -> Params:
        """Fields in the directions of data points, with noise; σ the data's standard deviation, b = σ² / penalty."""
        sigma = np.sqrt(summary.varied().var.mean())
        rows = summary.rows(self.H, rng)
        W = rows[np.arange(self.H) % len(rows)].T + sigma / 10 * rng.standard_normal((self.D, self.H))
        return {"W": W / np.linalg.norm(W, axis=0), "sigma": sigma, "b": np.array(sigma**2 / (self.penalty or sigma))}

    @classmethod
    def sizes_for_patches(cls, count: int, noise: float, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"H": fields_for(count, noise), "penalty": 1.2 * (noise or 1.0)}

    def begin_on_patches(self, params: Params, Y: np.ndarray, noise: float, rng: np.random.Generator) -> Params:
        """The noise as it is; σ²/b is the penalty: it stays."""
        return {**params, "b": noise**2 * params["b"] / params["sigma"] ** 2, "sigma": np.array(noise)}

    def generate(self, params: Params, n: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.empty(n, dtype=[("Y", np.float64, (self.D,)), ("s", np.float64, (self.H,))])
        drawn["s"] = rng.laplace(scale=params["b"], size=(n, self.H))
        drawn["Y"] = drawn["s"] @ params["W"].T + params["sigma"] * rng.standard_normal((n, self.D))
        return drawn

    def log_prior(self, params: Params, states: np.ndarray) -> np.ndarray:
        return -np.abs(states).sum(axis=1) / params["b"] - self.H * np.log(2 * params["b"])

    def log_likelihood(self, params: Params, Y: np.ndarray, states: np.ndarray) -> np.ndarray:
        square = ((Y[:, None, :] - states @ params["W"].T) ** 2).sum(axis=2)
        variance = params["sigma"] ** 2
        return -(square / variance + self.D * np.log(2 * np.pi * variance)) / 2

    # -- E-step --------------------------------------------------------------------------------------------

    def on(self, backend: Backend, params: Params, step: Step) -> EStep[Codes]:
        W, sigma, b = params["W"], float(params["sigma"]), float(params["b"])
        if sigma**2 < ROOM * np.finfo(backend.dtype).tiny:  # the search would stop at once, and squares be 0
            raise DataError(
                f"sigma = {sigma:.3g}: the squares of data that small are no numbers in {backend.dtype}: use "
                "dtype='float64', or rescale the data"
            )
        gram = W.T @ W
        squares = np.diag(gram).astype(backend.dtype).astype(np.float64)
        inverse = np.divide(1, squares, out=np.zeros(self.H), where=squares > np.finfo(backend.dtype).tiny)
        pitch = -(-self.H // PITCH) * PITCH
        return Search(
            model=self,
            backend=backend,
            W=backend.to_device(W),
            fields=backend.to_device(W.T),
            gram=backend.to_device(np.pad(gram, ((0, 0), (0, pitch - self.H)))),
            inverse=backend.to_device(inverse),
            penalty=sigma**2 / b,
            sought=sigma**2 / b * (1 if step.anneal_prior else step.T),
            precision=1 / sigma**2,
            constant=-self.D / 2 * np.log(2 * np.pi * sigma**2) - self.H * np.log(2 * b),
            squared_norms=backend.kernel("squared_norms", D=self.D),
            scale_rows=backend.kernel("scale_rows", H=self.H),
            lasso=backend.kernel("lasso", H=self.H, PITCH=pitch),
        )

    def shortfalls(self, stats: Statistics) -> list[str]:
        share = float(stats["unfound"] / stats[N_ALL])
        if not share:
            return []
        return [
            f"the codes of {share:.1%} of the data points were not found to tol = {self.tol:g} within iterations = "
            f"{self.iterations}: raise iterations, or tol; a mean far from 0 taken off the data helps as well"
        ]

    @property
    def layout(self) -> Layout:
        return {"ys": (self.D, self.H), "ss": (self.H, self.H)}

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        return itemsize * (self.D + 6 * self.H), itemsize * self.H

    # -- M-step --------------------------------------------------------------------------------------------

    def maximize(self, moments: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W with columns of unit length, from Σyŝᵀ and Σŝŝᵀ; σ and b stay."""
        ys, ss = moments["ys"], moments["ss"]
        notes = [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(np.diag(ss) == 0)]
        return {"W": turned_fields(ys, ss, params["W"]), "sigma": params["sigma"], "b": params["b"]}, notes

    def refuses_to_hold(self, name: str, mask: np.ndarray) -> str | None:
        if name == "W" and not np.array_equal(mask.any(axis=0), mask.all(axis=0)):
            return "the fields of SC have length 1: one is held as a whole, or not"
        return None

    def reseed(self, new: Params, moments: Statistics) -> tuple[Params, list[str]]:
        """Turn fields that were never used 45° away from that of the most active latent, each its own way."""
        used = np.diag(moments["ss"])
        big, dead = int(np.argmax(used)), np.flatnonzero(used == 0)
        if not used[big]:
            return new, []
        W = new["W"].copy()
        for h in dead:
            aside = generator(int(h), "reseed").standard_normal(self.D)
            aside -= (aside @ W[:, big]) * W[:, big]
            turned = W[:, big] + aside / max(float(np.linalg.norm(aside)), TINY)
            W[:, h] = turned / np.linalg.norm(turned)
        return {**new, "W": W}, [f"latent {h} was dead and re-seeded beside latent {big}" for h in dead]


@dataclass(frozen=True)
class Codes:
    """What the search finds of a batch: ŝ (n, H), log p(y, ŝ), and (n,) 1 where ŝ was not found to `tol`, else 0."""

    evidence: Evidence
    s: Array
    unfound: Array


@dataclass(frozen=True)
class Search(EStep[Codes]):
    """The search for ŝ: parameters as the kernels want them; `sought` is the annealed penalty."""

    model: SC
    backend: Backend
    W: Array
    fields: Array
    gram: Array
    inverse: Array
    penalty: float
    sought: float
    precision: float
    constant: float
    squared_norms: Kernel
    scale_rows: Kernel
    lasso: Kernel

    def infer(self, batch: Batch) -> Codes:
        """One matrix product, and a kernel that takes each data point to its ŝ."""
        device, n, model = self.backend, batch.n, self.model
        squares = squared_norms(device, self.squared_norms, batch.Y, batch.notes)
        s, objective, unfound = device.empty((n, model.H)), device.empty((n,)), device.empty((n,))
        self.lasso(
            n, device.matmul(batch.Y, self.W), squares, self.gram, self.inverse, self.sought, self.penalty, model.tol,
            model.iterations, s, objective, unfound,
        )  # fmt: skip
        return Codes(Evidence(n, [(objective, -self.precision)], self.constant), s, unfound)

    def sums(self, batch: Batch, found: Codes) -> Sums:
        device, s = self.backend, found.s
        if batch.counts is None:
            return {"ys": device.sum_products(batch.Y, s), "ss": device.sum_products(s, s)}
        root = device.to_device(np.sqrt(batch.counts))  # each factor of ŝŝᵀ has one
        self.scale_rows(batch.n, s, root)
        ss = device.sum_products(s, s)
        self.scale_rows(batch.n, s, root)
        return {"ys": device.sum_products(batch.Y, s), "ss": ss}

    def tally(self, batch: Batch, found: Codes) -> Sums:
        """How many codes the search left before their gap was small enough."""
        weights = None if batch.counts is None else batch.weights
        return {"unfound": [self.backend.point_sums([(found.unfound, 1.0)], weights)]}

    def posterior(self, batch: Batch, reconstruct: bool = False) -> tuple[Posterior, Sums]:
        """ŝ, and with `reconstruct` W ŝ."""
        found = self.infer(batch)
        told = Posterior(found.evidence, mean=found.s)
        if reconstruct:
            told.reconstruction = self.backend.matmul(found.s, self.fields)
        return told, self.tally(batch, found)


def turned_fields(ys: np.ndarray, ss: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Σ‖y − Ws‖² lowered over unit columns of W by descent, column after column, each to its exact minimum.

    Of a single column the sum is a quadratic form that is the same in all directions: its minimum on the sphere is
    the free one, brought to unit length. Columns of latents that were never active stay.
    """
    fields, goal = W.T.copy(), np.ascontiguousarray(ys.T)  # a field after the other in memory
    active = np.flatnonzero(np.diag(ss) > 0)
    for _ in range(SWEEPS):
        before = fields.copy()
        for h in active:
            free = goal[h] - ss[:, h] @ fields + ss[h, h] * fields[h]
            length = np.sqrt(free @ free)
            if length > 0:
                fields[h] = free / length
        if np.abs(fields - before).max() <= STILL:
            break
    return np.ascontiguousarray(fields.T)
