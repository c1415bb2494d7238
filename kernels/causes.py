"""The truncated posterior of binary latents whose fields combine without being added: D stays in the inner loop.

What differs between models is a fragment, kernels/fragments/: its functions are explained in causes.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from types import ModuleType
from typing import Any

import numpy as np

from gem.kernels import winners
from gem.kernels.weights import settled_exp

LANES = 32  # of a warp: see gem.h
POINTS = 1  # that a warp takes at a time: its lanes are dimensions
TILE_ELEMENTS = 1 << 15  # of points × D that are worked on at once: those of all candidates stay in the cache
LONG_TILE = 1 << 18  # the same where states are not taken one by one: threads of longer calls wait less for each other
MANY_ROWS = 16  # for one place: more are summed first
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
    full: np.ndarray,
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
    full : (N,) array, out
        1 where γ latents are active in the state of the largest E, else 0.
    states : gem.states.StateTable
    fragment : module
    """
    if STATS:
        sums[...] = 0
    setting = settings.astype(b.dtype)
    wanted = _Wanted(fragment, setting, states, bool(MISSING), bool(STATS), bool(RECONSTRUCT))
    exclusive = fragment.EXCLUSIVE and states.Hprime <= winners.MAX_HPRIME
    by_sets = exclusive and winners.pays(states, Y.shape[1])
    tile = max(1, TILE_ELEMENTS // Y.shape[1])
    if by_sets:
        tile = max(1, min(LONG_TILE // Y.shape[1], winners.TABLE_ELEMENTS >> states.Hprime))
    for start in range(0, N, tile):
        part = slice(start, min(N, start + tile))
        y, chosen = Y[part], candidates[part]
        seen = observed[part] if MISSING else None
        own = fields[chosen.T]
        ordered = by_sets or (exclusive and (STATS or RECONSTRUCT))
        before = winners.larger([fragment.size(w) for w in own]) if ordered else []
        points = _Points(y, seen, fields, own, before)
        zero, alone, multi = _energies(wanted, points, prior[chosen], by_sets)
        single = b[part] + offset
        if fragment.EXCLUSIVE and not fragment.RELATIVE:
            _correct(single, chosen, alone + prior[chosen])
        full[part] = _full(zero, single, multi, states)
        moved = shift[chosen] @ states.active.T.astype(b.dtype)
        log_evidence[part], energy[part] = _weigh(zero, single, multi, beta, shift, moved)
        b[part] = single * weights[part, None]
        mean[part] = b[part]
        rows = np.arange(len(y))[:, None]
        mean[part][rows, chosen] += (multi @ states.active.astype(b.dtype)) * weights[part, None]
        if RECONSTRUCT:
            reconstruction[part] = _simple_means(wanted, y, zero, single, fields)
        if STATS or RECONSTRUCT:
            collect = _collect_winners if exclusive else _collect
            collect(wanted, points, multi, chosen, weights[part], reconstruction[part], sums)


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
    """Data points (n, D), all fields (H, D), those of the points' candidates, (H', n, D), and which of these come
    `before` each other, if only one is seen."""

    y: np.ndarray
    observed: np.ndarray | None
    table: np.ndarray
    fields: np.ndarray
    before: list[np.ndarray]


def _energies(
    wanted: _Wanted, points: _Points, prior: np.ndarray, by_sets: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E of the state without causes, (n,), and of those of several, (n, S); `by_sets`, or one by one.

    Between them Σ_d term of each candidate by itself, (n, H'), if only one cause is seen and energies are not relative.
    """
    states, dtype = wanted.states, points.y.dtype
    zero = _log_likelihood(wanted, points, wanted.fragment.start(points.y, wanted.setting))
    terms: list[np.ndarray] = []
    if wanted.fragment.EXCLUSIVE and (by_sets or not wanted.fragment.RELATIVE):
        terms = list(_terms_alone(wanted, points))
    alone = wanted.setting[0] * np.array([term.sum(axis=1) for term in terms], dtype).T
    if by_sets:
        out = winners.seen(terms, states, points.before)
        out = (wanted.setting[0] * out).astype(dtype)
    else:
        out = _descend(wanted, points)
    out += prior @ states.active.T.astype(dtype)
    if wanted.fragment.RELATIVE:
        out -= zero[:, None]
        zero[:] = 0
    return zero, alone, out


def _correct(single: np.ndarray, chosen: np.ndarray, exact: np.ndarray) -> None:
    """Give the candidates their exact energies, and take off the others by how much these had been off in the mean.

    What products add up from large terms is off by their rounding, and by what data points have in common.
    """
    rows = np.arange(len(single))[:, None]
    single -= (single[rows, chosen] - exact).mean(axis=1)[:, None]
    single[rows, chosen] = exact


def _log_likelihood(wanted: _Wanted, points: _Points, c: np.ndarray) -> np.ndarray:
    """log p(y | c) for combined causes (..., n, D), (..., n)."""
    y, terms = points.y, wanted.fragment.term(points.y, c, wanted.setting)
    if points.observed is not None:
        return wanted.setting[0] * np.einsum("...nd,nd->...n", terms, points.observed)
    ones = np.ones(y.shape[1], y.dtype)
    return wanted.setting[0] * (terms.reshape(-1, y.shape[1]) @ ones).reshape(terms.shape[:-1])  # faster than a sum


def _terms_alone(wanted: _Wanted, points: _Points) -> Iterator[np.ndarray]:
    """What each candidate, if it is seen, adds to the log likelihood, but for the factor, (n, D)."""
    f, y, setting = wanted.fragment, points.y, wanted.setting
    first = f.start(y, setting)
    for w in points.fields:
        term = f.term(y, f.combine(first, w, y, setting), setting)
        yield term if points.observed is None else term * points.observed


def _descend(wanted: _Wanted, points: _Points) -> np.ndarray:
    """The log likelihoods of the states of several causes, (n, S), depth first, so that few prefixes are held.

    All states that grow out of one prefix are taken at once, (states, n, D): threads wait less for each other.
    """
    f, setting, states, y = wanted.fragment, wanted.setting, wanted.states, points.y
    out = np.empty((len(y), states.S), y.dtype)

    def descend(c: np.ndarray, last: int, rows: list[int]) -> None:
        grown = f.combine(c, points.fields[last + 1 :], y, setting)
        out[:, rows] = _log_likelihood(wanted, points, grown).T
        for k, row in enumerate(rows):
            if children[row]:
                descend(grown[k], last + 1 + k, children[row])

    children: dict[int, list[int]] = {row: [] for row in range(-states.Hprime, states.S)}
    for row, parent in enumerate(states.parent.tolist()):
        children[parent].append(row)  # its last cause is any after the parent's, ascending
    first = f.start(y, setting)
    for k, field in enumerate(points.fields):
        if children[-1 - k]:
            descend(f.combine(first, field, y, setting), k, children[-1 - k])
    return out


def _full(zero: np.ndarray, single: np.ndarray, multi: np.ndarray, states: Any) -> np.ndarray:
    """Whether the largest of these energies is that of a state of γ causes."""
    if states.gamma == 1:
        return np.asarray(single.max(axis=1) > zero)
    largest = states.S - comb(states.Hprime, states.gamma)  # they are the last
    others = np.maximum(zero, single.max(axis=1))
    return np.asarray(
        multi[:, largest:].max(axis=1) >= np.maximum(others, multi[:, :largest].max(axis=1, initial=-np.inf))
    )


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
        settled_exp(a)
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


def _collect_winners(
    wanted: _Wanted,
    points: _Points,
    multi: np.ndarray,
    chosen: np.ndarray,
    weights: np.ndarray,
    reconstruction: np.ndarray,
    sums: np.ndarray,
) -> None:
    """As `_collect`, where only one cause is seen: it has all of A, and the combined value is its own."""
    f, setting, states = wanted.fragment, wanted.setting, wanted.states
    by_set = winners.Winners(multi, states)
    active = multi @ states.active.astype(multi.dtype)
    if wanted.reconstruct:  # the weight of the states in which none is seen
        rest = np.repeat(multi.sum(axis=1)[:, None], points.y.shape[1], axis=1)
    for i, field in enumerate(points.fields):
        live = np.flatnonzero(active[:, i] > SKIP[str(multi.dtype)])
        if not live.size:
            continue
        y, w = points.y[live], field[live]
        alone = f.combine(f.start(y, setting), w, y, setting)
        A = by_set.won(i, live, points.before[i][live])
        A *= f.share(w, alone, y, setting)  # nothing where less than no cause at all is seen
        if wanted.reconstruct:
            reconstruction[live] += A * f.value(alone, y, setting)
            rest[live] -= A
        if wanted.stats:
            A *= weights[live, None].astype(y.dtype)
            observed = None if points.observed is None else points.observed[live]
            expected = y if observed is None else y + (1 - observed) * f.value(alone, y, setting)
            _add_rows(chosen[live, i], (sums[0, 0], A), (sums[0, 1], A * expected))
    if wanted.reconstruct:
        reconstruction += rest * f.value(f.start(points.y, setting), points.y, setting)


def _collect(
    wanted: _Wanted,
    points: _Points,
    multi: np.ndarray,
    chosen: np.ndarray,
    weights: np.ndarray,
    reconstruction: np.ndarray,
    sums: np.ndarray,
) -> None:
    """⟨A⟩, ⟨A y⟩ and the mean of `value` over the states of several causes: of each the points where it counts.

    These pairs of a state and a point are listed, those with as many causes together, and taken a tile at a time.
    """
    n, D = points.y.shape
    Hprime, active = wanted.states.Hprime, wanted.states.active
    least = SKIP[str(multi.dtype)]
    which, rows = np.nonzero(np.greater(multi.T, least))
    size = active.sum(axis=1)
    A = np.zeros((n * Hprime, D), points.y.dtype)  # of each point's candidates
    Ay = np.zeros_like(A) if wanted.missing and wanted.fragment.IMPUTED else A
    tile = max(1, TILE_ELEMENTS // D)
    for k in np.unique(size[which]):
        of_size = np.flatnonzero(size == k)
        members = np.nonzero(active[of_size])[1].reshape(-1, k)
        listed = np.flatnonzero(size[which] == k)
        for start in range(0, len(listed), tile):
            pair = listed[start : start + tile]
            state, row = which[pair], rows[pair]
            q, places = multi[row, state], row * Hprime + members[state - of_size[0]].T
            _collect_pairs(wanted, points, row, places, chosen.ravel()[places], q, weights, reconstruction, A, Ay)
    if wanted.stats:
        seen = np.unique((rows[:, None] * Hprime + np.arange(Hprime))[active[which]])
        product = Ay[seen] if Ay is not A else A[seen] * points.y[seen // Hprime]
        _add_rows(chosen.ravel()[seen], (sums[0, 0], A[seen]), (sums[0, 1], product))


def _collect_pairs(
    wanted: _Wanted,
    points: _Points,
    row: np.ndarray,
    places: np.ndarray,
    latents: np.ndarray,
    q: np.ndarray,
    weights: np.ndarray,
    reconstruction: np.ndarray,
    A: np.ndarray,
    Ay: np.ndarray,
) -> None:
    """The same of pairs of a state of k causes and a point `row`: which latents, (k, pairs), and their rows of A."""
    f, setting, y = wanted.fragment, wanted.setting, points.y[row]
    field = [points.table[h] for h in latents]
    c = f.start(y, setting)
    for w in field:
        c = f.combine(c, w, y, setting)
    if wanted.reconstruct:
        _add_rows(row, (reconstruction, q[:, None] * f.value(c, y, setting)))
    if not wanted.stats:
        return
    seen = None if points.observed is None else points.observed[row]
    left = np.broadcast_to((q * weights[row].astype(q.dtype))[:, None], y.shape)
    if seen is not None and not f.IMPUTED:
        left = left * seen
    expected = y if Ay is A or seen is None else y + (1 - seen) * f.value(c, y, setting)
    for place, w in zip(places, field, strict=True):
        given = left * f.share(w, c, y, setting)
        _add_rows(place, (A, given), *([] if Ay is A else [(Ay, given * expected)]))
        if f.EXCLUSIVE:
            left = left - given


def _add_rows(where: np.ndarray, *sums: tuple[np.ndarray, np.ndarray]) -> None:
    """out[where[i]] += rows[i], for pairs (out, rows): of equal places the first together, then the second ones, ...

    Those of a place that has many are summed first.
    """
    order = np.argsort(where, kind="stable")
    places, first, counts = np.unique(where[order], return_index=True, return_counts=True)
    for n in range(min(MANY_ROWS, counts.max(initial=0))):
        some = n < counts
        to, of = places[some], order[first[some] + n]
        for out, rows in sums:
            out[to] += rows[of]
    for place, start, count in zip(*(a[counts > MANY_ROWS] for a in (places, first, counts)), strict=True):
        of = order[start + MANY_ROWS : start + count]
        for out, rows in sums:
            out[place] += rows[of].sum(axis=0, dtype=out.dtype)


def walks(cpu: bool, D: int, H: int, STATS: int, **_: int) -> int:
    """Groups walk over the data, each with sums of this size."""
    return 2 * H * D if STATS else 1
