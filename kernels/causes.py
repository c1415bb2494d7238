"""The truncated posterior of binary latents whose fields combine without being added: D stays in the inner loop.

What differs between models is a fragment, kernels/fragments/: its functions are explained in causes.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

TILE_ELEMENTS = 1 << 16  # of points × D that are worked on at once: some such arrays stay in the cache
SKIP = {"float64": 1e-30, "float32": 1e-12}  # states of less weight do not enter ⟨A⟩: see causes.c


def causes(
    N: int,
    Y: np.ndarray,
    observed: np.ndarray,
    b: np.ndarray,
    fields: np.ndarray,
    offset: np.ndarray,
    prior: np.ndarray,
    shift: np.ndarray,
    settings: np.ndarray,
    candidates: np.ndarray,
    beta: float,
    weights: np.ndarray,
    log_evidence: np.ndarray,
    energy: np.ndarray,
    mean: np.ndarray,
    reconstruction: np.ndarray,
    sums: np.ndarray,
    *,
    states: Any,
    fragment: ModuleType,
    MISSING: int,
    STATS: int,
    RECONSTRUCT: int,
) -> None:
    """Weigh every state of K_n and sum the statistics of those with several causes.

    Parameters
    ----------
    Y, observed : (N, D) arrays
        `observed` is 0 where an entry is missing (Y is 0 there), if MISSING; any array otherwise.
    b : (N, H) array
        In: products that give the singletons' energies, b + offset. Out: weights_n q of the singletons.
    fields : (H, D) array
    offset, prior, shift : (H,) arrays
        `prior`: what an active latent adds to the energy of a state of several causes; `shift`: what it adds to
        the exponent of q.
    settings : (3,) array
        The fragment's numbers.
    candidates : (N, H') int32 array, ascending
    beta : float
        q ∝ exp(beta E(s) + Σ shift).
    weights : (N,) array
    log_evidence, energy : (N,) arrays, out
        log Σ_{s ∈ K_n} exp E(s); the mean of E under q.
    mean : (N, H) array, out
        weights_n ⟨s⟩.
    reconstruction : (N, D) array, out, if RECONSTRUCT
    sums : (groups, 2, H, D) array, out, if STATS
        Of each group of data points (here: one): Σ_n weights_n ⟨A⟩ and Σ_n weights_n ⟨A y⟩ over the states of
        several causes.
    states : gem.states.StateTable
    fragment : module
    """
    if STATS:
        sums[...] = 0
    setting = settings.astype(b.dtype)
    wanted = _Wanted(fragment, setting, states, bool(MISSING), bool(STATS), bool(RECONSTRUCT))
    tile = max(1, TILE_ELEMENTS // Y.shape[1])
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        y, chosen = Y[part], candidates[part]
        seen = observed[part] if MISSING else None
        points = _Points(y, seen, [fields[chosen[:, k]] for k in range(chosen.shape[1])])
        zero, multi = _energies(wanted, points, prior[chosen])
        single = b[part] + offset
        moved = shift[chosen] @ states.active.T.astype(b.dtype)
        log_evidence[part], energy[part] = _weigh(zero, single, multi, beta, shift, moved)
        b[part] = single * weights[part, None]
        mean[part] = b[part]
        rows = np.arange(len(y))[:, None]
        mean[part][rows, chosen] += (multi @ states.active.astype(b.dtype)) * weights[part, None]
        if RECONSTRUCT:
            reconstruction[part] = _simple_means(wanted, y, zero, single, fields)
        if STATS or RECONSTRUCT:
            _collect(wanted, points, multi, chosen, weights[part], reconstruction[part], sums)


@dataclass(frozen=True)
class _Wanted:
    """The fragment with its numbers, and what is asked of it."""

    fragment: ModuleType
    setting: np.ndarray
    states: Any
    missing: bool
    stats: bool
    reconstruct: bool


@dataclass(frozen=True)
class _Points:
    """Data points, and the fields of their candidates one after the other."""

    y: np.ndarray
    observed: np.ndarray | None
    fields: list[np.ndarray]


def _energies(wanted: _Wanted, points: _Points, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E of the state without causes, (n,), and of those of several, (n, S): depth first, so that few are held."""
    f, setting, states, y = wanted.fragment, wanted.setting, wanted.states, points.y
    out = np.empty((len(y), states.S), y.dtype)

    def log_likelihood(c: np.ndarray) -> np.ndarray:
        terms = f.term(y, c, setting)
        return setting[0] * (terms if points.observed is None else terms * points.observed).sum(axis=1)

    def descend(c: np.ndarray, rows: list[int]) -> None:
        for row in rows:
            grown = f.combine(c, points.fields[states.last[row]], y, setting)
            out[:, row] = log_likelihood(grown)
            descend(grown, children[row])

    children: dict[int, list[int]] = {row: [] for row in range(-states.Hprime, states.S)}
    for row, parent in enumerate(states.parent.tolist()):
        children[parent].append(row)
    first = f.start(y, setting)
    zero = log_likelihood(first)
    for k, field in enumerate(points.fields):
        if children[-1 - k]:
            descend(f.combine(first, field, y, setting), children[-1 - k])
    out += prior @ states.active.T.astype(y.dtype)
    if f.RELATIVE:
        out -= zero[:, None]
        zero[:] = 0
    return zero, out


def _weigh(
    zero: np.ndarray, single: np.ndarray, multi: np.ndarray, beta: float, shift: np.ndarray, moved: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Energies to q, in place; log evidence and mean energy."""
    states = (zero[:, None], single, multi)
    moves: tuple[np.ndarray | int, ...] = (0, shift, moved)
    plain = [a.copy() for a in states]
    if beta != 1 or shift.any():
        log_evidence = _softmax(*(a.copy() for a in states))
        for E, by in zip(states, moves, strict=True):
            np.multiply(E, E.dtype.type(beta), out=E)
            np.add(E, by, out=E)
        _softmax(*states)
    else:
        log_evidence = _softmax(*states)
    energy = sum(np.where(q > 0, q * E, 0).sum(axis=1) for q, E in zip(states, plain, strict=True))
    return log_evidence, energy


def _softmax(*parts: np.ndarray) -> np.ndarray:
    """Exponents to probabilities, in place; the log of the sum."""
    top = np.max([a.max(axis=1) for a in parts if a.shape[1]], axis=0)
    for a in parts:
        np.subtract(a, top[:, None], out=a)
        np.exp(a, out=a)
    total = np.sum([a.sum(axis=1) for a in parts], axis=0)
    for a in parts:
        np.divide(a, total[:, None], out=a)
    return np.log(total) + top


def _simple_means(
    wanted: _Wanted, y: np.ndarray, zero: np.ndarray, single: np.ndarray, fields: np.ndarray
) -> np.ndarray:
    """The part of the states without causes, and with one, in the mean of `value`."""
    f, setting = wanted.fragment, wanted.setting
    first = f.start(y, setting)
    out = zero[:, None] * f.value(first, y, setting)
    for h, field in enumerate(fields):
        live = np.flatnonzero(single[:, h] > SKIP[str(y.dtype)])
        c = f.combine(first[live], field, y[live], setting)
        out[live] += single[live, h, None] * f.value(c, y[live], setting)
    return np.asarray(out)


def _collect(
    wanted: _Wanted,
    points: _Points,
    multi: np.ndarray,
    chosen: np.ndarray,
    weights: np.ndarray,
    reconstruction: np.ndarray,
    sums: np.ndarray,
) -> None:
    """⟨A⟩, ⟨A y⟩ and the mean of `value` over the states of several causes: of each the points where it counts."""
    f, setting, states = wanted.fragment, wanted.setting, wanted.states
    n, D = points.y.shape
    A = np.zeros((states.Hprime, n, D), points.y.dtype)
    Ay = np.zeros_like(A) if wanted.missing and f.IMPUTED else A
    for s in range(states.S):
        live = np.flatnonzero(multi[:, s] > SKIP[str(points.y.dtype)])
        if not len(live):
            continue
        y, q = points.y[live], multi[live, s, None]
        active = np.flatnonzero(states.active[s])
        field = {k: points.fields[k][live] for k in active}
        c = f.start(y, setting)
        for k in active:
            c = f.combine(c, field[k], y, setting)
        if wanted.reconstruct:
            reconstruction[live] += q * f.value(c, y, setting)
        if not wanted.stats:
            continue
        left = np.broadcast_to(q * weights[live, None].astype(y.dtype), y.shape)
        if wanted.missing and not f.IMPUTED:
            left = left * points.observed[live]  # type: ignore[index]  # there is a mask
        expected = y
        if Ay is not A:
            expected = y + (1 - points.observed[live]) * f.value(c, y, setting)  # type: ignore[index]
        for k in active:
            given = left * f.share(field[k], c, y, setting)
            A[k, live] += given
            if Ay is not A:
                Ay[k, live] += given * expected
            if f.EXCLUSIVE:
                left = left - given
    if wanted.stats:
        several = multi @ states.active.astype(multi.dtype) > 0
        for i in range(states.Hprime):
            rows = np.flatnonzero(several[:, i])
            _add_rows(sums[0, 0], chosen[rows, i], A[i, rows].astype(np.float64))
            product = Ay[i, rows] if Ay is not A else A[i, rows] * points.y[rows]
            _add_rows(sums[0, 1], chosen[rows, i], product.astype(np.float64))


def _add_rows(out: np.ndarray, where: np.ndarray, rows: np.ndarray) -> None:
    """out[where[i]] += rows[i], of equal places all: sorted by place, a run at a time."""
    if len(where):
        order = np.argsort(where, kind="stable")
        places, first = np.unique(where[order], return_index=True)
        out[places] += np.add.reduceat(rows[order], first, axis=0)


def walks(cpu: bool, D: int, H: int, STATS: int, **_: int) -> int:
    """Groups walk over the data, each with sums of this size."""
    return 2 * H * D if STATS else 1


def local_reals(D: int, HPRIME: int, MANY: int, **_: int) -> int:
    """Local memory a data point takes on a GPU: its states, a piece of the fields, and of the statistics."""
    piece = min(D, 32 if HPRIME > 8 else 64)
    return MANY + 1 + HPRIME + (3 * HPRIME + 2) * (piece | 1)
