"""Sparse coding: continuous latents with a Laplace prior, inferred by their most probable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gem.backends.base import Array, Backend, Kernel
from gem.checks import number, whole_number
from gem.errors import DataError
from gem.models.base import TINY, Evidence, Model, Params, Posterior, Step, shard_and_moments, subsample
from gem.philox import generator
from gem.statistics import Layout, Statistics, Sums

CHECK_EVERY = 10  # iterations: reading the gaps waits for the device
ROOM = 1e4  # between the squares of data and the smallest number, for gaps and penalties
SWEEPS = 20  # of the M-step over the columns of W, at the most
STILL = 1e-6  # a sweep that turns no column by more than this is the last one


@dataclass(frozen=True)
class Tables:
    """Parameters as the kernels want them."""

    backend: Backend
    W: Array
    fields: Array
    gram: Array
    step: float
    penalty: float
    sought: float
    precision: float
    constant: float
    squared_norms: Kernel
    scale_rows: Kernel
    move: Kernel
    judge: Kernel


class SC(Model):
    """Sparse coding: y = W s + ε, p(s_h) = exp(−|s_h|/b)/2b, ε ~ N(0, σ² I), trained on the most probable ŝ.

    Olshausen & Field, Nature 381, 1996. The E-step finds ŝ, the minimum of ½‖y − Ws‖² + (σ²/b)‖s‖₁, by FISTA (Beck &
    Teboulle, SIAM J. Imaging Sci. 2, 2009) with restarts (O'Donoghue & Candès, Found. Comput. Math. 15, 2015); the
    M-step turns one column of W after the other to its best direction (Mairal, Bach, Ponce & Sapiro, JMLR 11, 2010).

    Parameters
    ----------
    D, H : int
        Observed dimensions, latents.
    penalty : float, optional
        σ²/b of the initial parameters, in units of the data; only this ratio matters to ŝ and W (default: the data's
        standard deviation).
    iterations : int
        Of FISTA, at the most. Where they were too few for `tol` a note says of how many data points.
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

    domains: ClassVar[Mapping[str, str]] = {"W": "real", "sigma": "deviation", "b": "positive"}
    tallies: ClassVar[Layout] = {"unfound": ()}

    def __init__(self, D: int, H: int, penalty: float | None = None, iterations: int = 200, tol: float = 1e-4):
        self.D, self.H = whole_number("D", D), whole_number("H", H)
        self.iterations = whole_number("iterations", iterations)
        self.penalty = None if penalty is None else number("penalty", penalty, "positive and finite", 0, inside=True)
        self.tol = number("tol", tol, "a relative duality gap: between 0 and 1", 0, 1, inside=True)

    def settings(self) -> dict[str, Any]:
        given = {"D": self.D, "H": self.H, "iterations": self.iterations, "tol": self.tol}
        return given if self.penalty is None else {**given, "penalty": self.penalty}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"W": (self.D, self.H), "sigma": (), "b": ()}

    def init_params(self, Y: Any, seed: int = 0, comm: Any = None, weights: Any = None) -> Params:
        """Fields in the directions of data points, with noise; σ the data's standard deviation, b = σ² / penalty.

        Y: (N, D) array, path or Source; the result is the same on every rank of `comm`.
        """
        shard, group, data, counts = shard_and_moments(Y, self.D, comm, weights=weights)
        sigma = np.sqrt(data.var.mean())
        if not sigma:
            raise DataError("all data points are equal: there is nothing to learn from them")
        rng = generator(seed, "init")
        rows = subsample(shard, data.N, self.H, group, rng, counts)
        W = rows[np.arange(self.H) % len(rows)].T + sigma / 10 * rng.standard_normal((self.D, self.H))
        return {"W": W / np.linalg.norm(W, axis=0), "sigma": sigma, "b": np.array(sigma**2 / (self.penalty or sigma))}

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

    def tables(self, params: Params, backend: Backend, step: Step) -> Tables:
        W, sigma, b = params["W"], float(params["sigma"]), float(params["b"])
        if sigma**2 < ROOM * np.finfo(backend.dtype).tiny:  # the search would stop at once, and squares be 0
            raise DataError(
                f"sigma = {sigma:.3g}: the squares of data that small are no numbers in {backend.dtype}: use "
                "dtype='float64', or rescale the data"
            )
        gram = W.T @ W
        steepest = float(np.linalg.eigvalsh(gram)[-1]) * (1 + self.H * step.resolution)  # of the rounded gram, too
        return Tables(
            backend=backend,
            W=backend.to_device(W),
            fields=backend.to_device(W.T),
            gram=backend.to_device(gram),
            step=1 / steepest if steepest > 0 else 1.0,
            penalty=sigma**2 / b,
            sought=sigma**2 / b * (1 if step.anneal_prior else step.T),
            precision=1 / sigma**2,
            constant=-self.D / 2 * np.log(2 * np.pi * sigma**2) - self.H * np.log(2 * b),
            squared_norms=backend.kernel("squared_norms", D=self.D),
            scale_rows=backend.kernel("scale_rows", H=self.H),
            move=backend.kernel("shrink", H=self.H, MOVE=1),
            judge=backend.kernel("shrink", H=self.H, MOVE=0),
        )

    def infer(self, tables: Tables, Y: Array) -> Posterior:
        """ŝ of all data points of the batch at once: one matrix product and one kernel an iteration."""
        t, n = tables, Y.shape[0]
        device = t.backend
        b, squares = device.matmul(Y, t.W), device.empty((n,))
        t.squared_norms(n, Y, squares)
        s, z, zG = (device.zeros((n, self.H)) for _ in range(3))
        inertia, gap = device.to_device(np.ones(n)), device.to_device(np.full(n, np.inf))
        objective = device.empty((n,))
        enough, unfound = self.tol * device.to_host(squares), np.zeros(n, bool)
        for iteration in range(1, self.iterations + 1):
            t.move(n, zG, b, squares, t.step, t.sought, self.tol, s, z, inertia, objective, gap)
            if iteration % CHECK_EVERY == 0 and np.all(device.to_host(gap) <= enough):
                break
            zG = device.matmul(z, t.gram)
        else:  # how far the last z were from the minimum, and then how far s is: neither may be near enough
            unfound = ~(device.to_host(gap) <= enough)
        sG = device.matmul(s, t.gram)
        if t.sought != t.penalty and unfound.any():
            t.judge(n, sG, b, squares, t.step, t.sought, self.tol, z, s, inertia, objective, gap)
            unfound &= ~(device.to_host(gap) <= enough)
        t.judge(n, sG, b, squares, t.step, t.penalty, self.tol, z, s, inertia, objective, gap)
        if t.sought == t.penalty and unfound.any():
            unfound &= ~(device.to_host(gap) <= enough)
        rest = {"unfound": unfound}
        return Posterior(Evidence(n, [(objective, -t.precision)], t.constant), mean=s, rest=rest)

    def tally(self, tables: Tables, posterior: Posterior, weights: np.ndarray | None = None) -> Sums:
        """How many codes the search left before their gap was small enough."""
        unfound = posterior.rest["unfound"]
        return {"unfound": int(unfound.sum()) if weights is None else float(unfound @ weights)}

    def shortfalls(self, stats: Statistics) -> list[str]:
        share = float(stats["unfound"] / stats["N"])
        if not share:
            return []
        return [
            f"the codes of {share:.1%} of the data points were not found to tol = {self.tol:g} within iterations = "
            f"{self.iterations}: raise iterations, or tol; a mean far from 0 taken off the data helps as well"
        ]

    def sums(self, tables: Tables, Y: Array, posterior: Posterior, weights: np.ndarray | None) -> Sums:
        t, s, n = tables, posterior.mean, Y.shape[0]
        if weights is None:
            return {"ys": t.backend.sum_products(Y, s), "ss": t.backend.sum_products(s, s)}
        root = t.backend.to_device(np.sqrt(weights))
        t.scale_rows(n, s, root)
        ss = t.backend.sum_products(s, s)
        t.scale_rows(n, s, root)
        return {"ys": t.backend.sum_products(Y, s), "ss": ss}

    def reconstruct(self, tables: Tables, Y: Array, posterior: Posterior) -> Array:
        """W ŝ."""
        return tables.backend.matmul(posterior.mean, tables.fields)

    def top_states(self, params: Params, Y: np.ndarray, posterior: Posterior, k: int) -> tuple[np.ndarray, np.ndarray]:
        """ŝ, the one state there is to list, (n, 1, H); it has a density, no probability: (n, 1) NaN."""
        return posterior.mean[:, None, :], np.full((len(Y), 1), np.nan)

    @property
    def layout(self) -> Layout:
        return {"ys": (self.D, self.H), "ss": (self.H, self.H)}

    def bytes_per_point(self, itemsize: int) -> tuple[int, int]:
        return itemsize * (self.D + 6 * self.H), itemsize * self.H

    # -- M-step --------------------------------------------------------------------------------------------

    def m_step(self, stats: Statistics, params: Params, step: Step) -> tuple[Params, list[str]]:
        """W with columns of unit length, from Σyŝᵀ and Σŝŝᵀ; σ and b stay."""
        W = turned_fields(stats["ys"], stats["ss"], params["W"])
        notes = [f"latent {h} was never active: its field was kept" for h in np.flatnonzero(np.diag(stats["ss"]) == 0)]
        return {"W": W, "sigma": params["sigma"], "b": params["b"]}, notes + self.shortfalls(stats)

    def refuses_to_hold(self, name: str, mask: np.ndarray) -> str | None:
        if name == "W" and not np.array_equal(mask.any(axis=0), mask.all(axis=0)):
            return "the fields of SC have length 1: one is held as a whole, or not"
        return None

    def reseed(self, new: Params, stats: Statistics) -> tuple[Params, list[str]]:
        """Turn fields that were never used 45° away from that of the most active latent, each its own way."""
        used = np.diag(stats["ss"])
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


def turned_fields(ys: np.ndarray, ss: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Σ‖y − Ws‖² lowered over unit columns of W by descent, column after column, each to its exact minimum.

    Of a single column the sum is a quadratic form that is the same in all directions: its minimum on the sphere is
    the free one, brought to unit length. Columns of latents that were never active stay.
    """
    W = W.copy()
    active = np.flatnonzero(np.diag(ss) > 0)
    for _ in range(SWEEPS):
        turned = 0.0
        for h in active:
            free = ys[:, h] - W @ ss[:, h] + ss[h, h] * W[:, h]
            length = np.linalg.norm(free)
            if length > 0:
                turned = max(turned, np.abs(free / length - W[:, h]).max())
                W[:, h] = free / length
        if turned <= STILL:
            break
    return W
