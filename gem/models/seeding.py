"""First centres of a mixture: k-means++ with several candidates for each (Arthur & Vassilvitskii, SODA 2007).

What is seeded are rows in units of each column's standard deviation, so the unit of a column does not count. A further
seeding takes the spread within the clusters of the one before as its units, so that columns which tell clusters apart
count for more; the best of all seedings is kept. (Units of this kind: Art, Gnanadesikan & Kettenring, Util. Math. 21A,
1982.) Costs are bounded beside those of an EM step: fewer rows, candidates and seedings where there are many centres.
"""

from __future__ import annotations

import numpy as np

MANY, FEW = 40, 10  # rows for a centre, if they cost little or much beside an EM step
ROWS = 2000  # or so many in any case; and so many, at least, tell which of the candidates is best
SEEDINGS = 8
CHEAP = 5e7  # multiplications that need no comparison with an EM step: some 10 ms
OVERHEAD = 20  # what a distance costs besides D multiplications, in these
SLOWER = 4  # float64 in one thread than float32 in several
NARROW = 1e-6  # of a column's variance: clusters are not told apart below that
SAME = 1e-9  # of a score: clusters may be found again, in another order
EXACT = 1e-7  # of two squared norms: a smaller difference of theirs has lost too many digits


def rows_for(N: int, K: int) -> int:
    """How many of N data points to draw for seeding K centres: enough for each, and no more than an EM step can pay."""
    return min(N, max(ROWS, FEW * K, min(MANY * K, N // 2)))


def first_centres(rows: np.ndarray, K: int, N: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """K of the rows, which stand for N data points, and for each row the nearest of these.

    Parameters
    ----------
    rows : (n, D) array
        In units of each column's standard deviation, about the mean; a column without spread is 0.
    K, N : int
    rng : numpy Generator

    Returns
    -------
    chosen : (K,) array
        Indices into `rows`; a row comes twice where fewer than K differ.
    nearest : (n,) array
        Indices into `chosen`.
    """
    n, D = rows.shape
    candidates = _candidates(K)
    cost = (n + candidates * len(_judges(rows, K))) * K * (D + OVERHEAD)
    steps = 4 * N * K * D / SLOWER  # an EM step: four products
    affordable = int(max(CHEAP, steps) / cost)
    kept = kmeans_plusplus(rows, K, rng, candidates)
    best, units = _classification(rows, kept[1])
    for _ in range(min(SEEDINGS, affordable) - 1 if K > 1 else 0):
        found = kmeans_plusplus(rows / units, K, rng, candidates)
        score, within = _classification(rows, found[1])
        if score > best + SAME * abs(best):
            best, kept, units = score, found, within
    return kept


def kmeans_plusplus(
    rows: np.ndarray, K: int, rng: np.random.Generator, candidates: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (K,) of rows drawn one after the other, and (n,) which of these each row is nearest to.

    Each is the best of `candidates` (by default 2 + log K) that are drawn with probability ∝ their squared distance to
    those before: the one that leaves the smallest sum of squared distances.
    """
    candidates = candidates or _candidates(K)
    norms = np.einsum("nd,nd->n", rows, rows)
    judges = _judges(rows, K)
    seen = np.concatenate([rows[judges], np.ones((len(judges), 1)), norms[judges, None]], axis=1).T
    chosen = np.empty(K, dtype=int)
    chosen[0] = rng.integers(len(rows))
    distance = _squared_distances(rows, norms, chosen[0])
    nearest = np.zeros(len(rows), dtype=int)
    for k in range(1, K):
        cumulated = np.cumsum(distance)
        if cumulated[-1] > 0:
            drawn = np.searchsorted(cumulated, rng.random(candidates) * cumulated[-1], side="right")
            drawn = np.minimum(drawn, len(rows) - 1)
        else:  # each row is a centre already
            drawn = rng.integers(len(rows), size=1)
        terms = np.concatenate([-2 * rows[drawn], norms[drawn, None], np.ones((len(drawn), 1))], axis=1)
        left = np.minimum(terms @ seen, distance[judges]).sum(axis=1)
        chosen[k] = drawn[np.argmin(left)]
        new = _squared_distances(rows, norms, chosen[k])
        nearest[new < distance] = k
        np.minimum(distance, new, out=distance)
    return chosen, nearest


def _candidates(K: int) -> int:
    return 2 + int(np.log(K))


def _judges(rows: np.ndarray, K: int) -> np.ndarray:
    """Of which rows the distances are summed to compare candidates: indices evenly spread."""
    count = max(ROWS, 2 * K)
    return np.arange(len(rows)) if len(rows) <= count else np.linspace(0, len(rows) - 1, count).astype(int)


def _squared_distances(rows: np.ndarray, norms: np.ndarray, chosen: int) -> np.ndarray:
    """Of the rows to one of them, (n,), exact to rounding: those of close rows are no differences of large numbers."""
    scale = norms[chosen] + norms
    squares = scale - 2 * (rows @ rows[chosen])
    close = np.flatnonzero(squares < EXACT * scale)
    apart = rows[close] - rows[chosen]
    squares[close] = np.einsum("nd,nd->n", apart, apart)
    return np.asarray(squares)


def _classification(rows: np.ndarray, nearest: np.ndarray) -> tuple[float, np.ndarray]:
    """The log likelihood of axis-parallel Gaussians to which the rows are allotted, but for constants; and the standard
    deviation (D,) within clusters. To a cluster's own variance that of all is added, as if it were one more row."""
    order = np.argsort(nearest, kind="stable")
    _, starts, counts = np.unique(nearest[order], return_index=True, return_counts=True)
    rows, per_cluster = rows[order], counts[:, None]
    rows = rows - np.repeat(np.add.reduceat(rows, starts) / per_cluster, counts, axis=0)
    squares = np.add.reduceat(rows**2, starts)
    within = squares.sum(axis=0) / len(rows)
    var = np.maximum((squares + within) / (per_cluster + 1), NARROW)
    return float(counts @ np.log(counts) - (per_cluster * np.log(var)).sum() / 2), np.sqrt(np.maximum(within, NARROW))
