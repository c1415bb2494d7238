"""A Summary of the data: what a model starts from, without knowing where the data are or how many ranks share them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from gem.data import SampleWeights, Shard, check_finite, load_weights, open_data
from gem.data.shard import telling_gaps
from gem.errors import ConfigError, DataError
from gem.parallel import Communicator

Value = TypeVar("Value")


@dataclass(frozen=True)
class Summary:
    """Number of data points, mean (D,) and variance (D,) of what was observed, over all ranks; and a draw of rows.

    Attributes
    ----------
    N : int
        Of weighted points the sum of the weights as a whole number, or how many count at all if these are more.
    mean, var : (D,) arrays
    """

    N: int
    mean: np.ndarray
    var: np.ndarray
    _shard: Shard
    _comm: Communicator
    _weights: SampleWeights | None = None

    def rows(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` rows, or all if there are fewer, drawn without replacement from all ranks' data, (count, D).

        The same on every rank. Of weighted points, as from N pieces of equal weight: a row of weight 2 is drawn as if
        it were there twice. NaN is no observation.
        """
        return subsample(self._shard, self.N, count, self._comm, rng, self._weights)

    def once(self, function: Callable[[], Value]) -> Value:
        """What the function gives on one rank, on all: rounding differs between machines, and with it what is drawn."""
        value: Value = self._comm.bcast(function() if self._comm.rank == 0 else None)
        return value

    def varied(self) -> Summary:
        """This, if the data vary at all.

        Raises
        ------
        DataError
            If all data points are equal.
        """
        if not self.var.any():
            raise DataError("all data points are equal: there is nothing to learn from them")
        return self


def summarize(data: Any, D: int, comm: Communicator, missing: bool = False, weights: Any = None) -> Summary:
    """One pass over the data: an array, a path, a Source, or a Shard of this rank's rows.

    Raises
    ------
    ConfigError
        If they do not have D columns.
    DataError
        If the data hold Inf, or NaN that does not mark `missing` entries, a dimension is never observed, or its squares
        are no numbers any more; or for weights, see `gem.data.load_weights`.
    """
    shard = _whole_shard(data, D, comm)
    counts = None if weights is None else load_weights(weights, shard.source.shape[0], comm)
    with telling_gaps(shard.source):
        N, mean, var = _moments(shard, comm, missing, counts)
    return Summary(N, mean, var, shard, comm, counts)


def _whole_shard(data: Any, D: int, comm: Communicator, batch: int = 4096) -> Shard:
    """This rank's slab in float64, checked against D."""
    if isinstance(data, Shard):
        shard = data
    else:
        source = open_data(data)
        shard = Shard(source, *comm.slab(source.shape[0]), dtype=np.float64, batch=batch)
    if shard.D != D:
        raise ConfigError(f"the data have {shard.D} dimensions, the model D = {D}: they must agree")
    return shard


def _first_row(shard: Shard, comm: Communicator) -> np.ndarray:
    """The first number of each column that is there, over all ranks, (D,); NaN if none is."""
    found = np.full(shard.D, np.nan)
    for _, Y in shard.batches():
        first = Y[np.argmax(np.isfinite(Y), axis=0), np.arange(shard.D)]
        found = np.where(np.isnan(found), first, found)
        if not np.isnan(found).any():
            break
    ranks = np.array(comm.allgather(found))
    return np.asarray(ranks[np.argmin(np.isnan(ranks), axis=0), np.arange(shard.D)])


def _moments(
    shard: Shard, comm: Communicator, missing: bool, weights: SampleWeights | None
) -> tuple[int, np.ndarray, np.ndarray]:
    """N, mean and variance in one pass, about the first numbers so that a large mean costs no digits."""
    first = _first_row(shard, comm) if missing else comm.bcast(next(iter(shard.batches()))[1][0])
    first = np.asarray(first, dtype=np.float64)
    check_finite(first[None], missing=missing)
    reference = np.nan_to_num(first)
    buffer = np.zeros((3, shard.D))
    for start, Y in shard.batches():
        y = Y - reference
        seen = np.isfinite(y)
        if not seen.all():
            check_finite(Y, start, missing=missing)
            y = np.where(seen, y, 0)
        if weights is None:
            buffer += [seen.sum(axis=0), y.sum(axis=0), np.einsum("nd,nd->d", y, y)]
        else:
            w = weights.of(start, len(y))
            buffer += [w @ seen, w @ y, np.einsum("n,nd,nd->d", w, y, y)]
    N = np.array([shard.N])
    comm.allreduce(N)
    if weights is not None:
        N[0] = max(int(weights.total), weights.rows)
    comm.allreduce(buffer)
    if not np.all(np.isfinite(buffer)):
        column = int(np.argmin(np.isfinite(buffer).all(axis=0)))
        raise DataError(f"the squares of the data in column {column} exceed the range of float64: rescale them")
    if not buffer[0].all():
        raise DataError(f"dimension {int(np.argmin(buffer[0]))} is missing from every data point: leave it out")
    delta = buffer[1] / buffer[0]
    return int(N[0]), reference + delta, np.maximum(buffer[2] / buffer[0] - delta**2, 0)


def subsample(
    shard: Shard,
    total: int,
    count: int,
    comm: Communicator,
    rng: np.random.Generator,
    weights: SampleWeights | None = None,
) -> np.ndarray:
    """`Summary.rows`, of `total` data points of all ranks."""
    count = min(count, total)
    chosen = np.sort(rng.choice(total, size=count, replace=False))
    if weights is not None:
        chosen = _rows_at((chosen + 0.5) * (weights.total / total), weights, comm)
    mine = (chosen >= shard.start) & (chosen < shard.stop)
    rows = np.zeros((count, shard.D))
    rows[mine] = shard.rows(chosen[mine])
    comm.allreduce(rows)
    return rows


def _rows_at(places: np.ndarray, weights: SampleWeights, comm: Communicator) -> np.ndarray:
    """The row (its global index) of each of these places, if all ranks' weights are laid end to end; −1 elsewhere."""
    begin, end = weights.edges[comm.rank], weights.edges[comm.rank + 1]
    mine = (places >= begin) & (places < end)
    if comm.rank + 1 == comm.size:
        mine |= places >= end  # by rounding
    rows = np.full(len(places), -1)
    heavy = np.flatnonzero(weights.values)
    if len(heavy):
        found = np.searchsorted(np.cumsum(weights.values[heavy]), places[mine] - begin, side="right")
        rows[mine] = weights.start + heavy[np.minimum(found, len(heavy) - 1)]
    return rows
