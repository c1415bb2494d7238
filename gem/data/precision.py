"""What reading a table as float32 would take of its digits, and how they are kept: by a shift, or by float64."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from gem.data.source import Source
from gem.errors import DataError, RunFileError
from gem.parallel import Communicator

LOSS = 0.01  # of a column's spread: more than this the step between two neighbouring floats must not be
SAMPLED = 64  # every so many rows give a lower bound of the spread
CHUNK = 1 << 18  # bytes looked at while they are in the cache
BLOCK = 16 << 20  # bytes read at once
BODY = (0.05, 0.95)  # the quantiles between which a column's body is: a few outliers do not hide its spread
WITHIN = 3.0  # standard deviations, at most, that are between these of what has no outliers
KEPT, KEPT_BYTES = 256, 8 << 20  # rows that tell these quantiles, and the bytes that they may take
LARGE, SMALL = 1e18, 1e-14  # what is beyond has squares, or a floor of variances, that float32 cannot hold
CONSTANT = 2.0**-48  # a spread below this part of the largest value is the rounding of a constant in float64
SHOWN = 3  # columns that a message names


@dataclass(frozen=True)
class Reading:
    """How the data of a run are read.

    Attributes
    ----------
    dtype : str
        "float32" or "float64": the type in which the E-step sees them.
    shift : (D,) float64 array, or None
        What is taken from each column before it is rounded to that type; the parameters that a user sees are of the
        data as they were.
    notes : tuple of str
        Why this is not plain float32.
    """

    dtype: str
    shift: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def stored(cls, path: Any, config: dict[str, Any], movable: bool) -> Reading:
        """The reading that a run file tells of.

        Raises
        ------
        RunFileError
            If its shift is none.
        """
        if "shift" not in config:
            return cls(config["dtype"])
        try:
            shift = np.array(config["shift"], dtype=np.float64)
        except (TypeError, ValueError):
            shift = np.full(1, np.nan)
        if shift.shape != (config["shape"][1],) or not np.all(np.isfinite(shift)) or not movable:
            raise RunFileError(f"{path}: its shift of the data is none that its model and data can have")
        return cls(config["dtype"], shift)


def holds(dtype: Any, stored: np.dtype) -> bool:
    """Whether numbers of the type `stored` are all numbers of the floating-point type `dtype`, too."""
    if stored.kind in "iu":
        return 8 * stored.itemsize - (stored.kind == "i") <= np.finfo(dtype).nmant + 1
    return stored.kind == "b" or stored.itemsize <= np.dtype(dtype).itemsize


def less(block: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """block − shift in the widest type, float64 or more; of 64-bit integers exactly, by their own arithmetic."""
    if block.dtype.kind not in "iu" or block.dtype.itemsize < 8:
        return block - shift  # float64, or the data's wider type
    if block.dtype.kind == "i":
        return (block - shift.astype(np.int64)).astype(np.float64)
    return (block - shift.astype(np.uint64)).view(np.int64).astype(np.float64)


@dataclass(frozen=True)
class _Body:
    """The columns without their outliers, of a sample: the middle, the spread and the largest absolute value, (D,)."""

    middle: np.ndarray
    sd: np.ndarray
    largest: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> _Body:
        if rows.dtype.kind == "b":
            rows = rows.astype(np.uint8)
        ordered = np.sort(rows, axis=0)  # NaN last
        last = np.maximum(np.count_nonzero(np.isfinite(rows), axis=0) - 1, 0)
        low, middle, high = (
            np.take_along_axis(ordered, np.rint(share * last).astype(int)[None], axis=0)[0]
            for share in (BODY[0], 0.5, BODY[1])
        )
        largest = _size(low, high)
        sd = np.nan_to_num(_extent(low, high), nan=0, posinf=0) / WITHIN
        return cls(middle.astype(np.float64), np.where(sd > CONSTANT * largest, sd, 0), largest)

    def coarse(self, dtype: str) -> np.ndarray:
        """Whether the step of `dtype` is too long beside the spread."""
        return (self.sd > 0) & (_step(dtype, self.largest) > LOSS * self.sd)


@dataclass(frozen=True)
class _Columns:
    """What was measured of some columns, over all ranks: the arrays have an entry for each of `at`.

    Mean, spread and largest value are those of a column's body where this has the more to lose.
    """

    at: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    largest: np.ndarray
    low: np.ndarray
    high: np.ndarray
    whole: np.ndarray
    altered: dict[str, np.ndarray]


class Survey(Source):
    """A source that looks at the rows [start, stop) as they pass: how large they are, and how far from each other.

    Rows count once, in their order, whoever reads them; `finish` reads what nobody has. To look is cheap: the extremes
    of each column, and the spread of some rows. Only columns that these do not acquit are measured.
    """

    def __init__(self, source: Source, start: int, stop: int):
        super().__init__(source.shape, source.dtype, source.name, source.spec)
        self.gaps, self._source, self._place, self._lock = source.gaps, source, start, Lock()
        self.start, self.stop = start, stop
        D = source.shape[1]
        self._low: np.ndarray | None = None
        self._high = np.zeros(D)
        self._reference = np.zeros(D)
        self._sums = np.zeros((3, D))  # of sampled rows: how many, their sum and squares about the reference
        self._fractions = np.zeros(D, dtype=bool)
        N = source.shape[0]
        kept = np.linspace(0, max(N - 1, 0), min(N, max(16, min(KEPT, KEPT_BYTES // (8 * D))))).astype(np.int64)
        self._keep = kept[(start <= kept) & (kept < stop)]  # of all rows, however many ranks share them
        self._kept: list[np.ndarray] = []

    @property
    def complete(self) -> bool:
        """Whether all rows have passed."""
        return self._place >= self.stop

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = self._source.read(start, stop)
        with self._lock:
            if start <= self._place < min(stop, self.stop):
                self._see(rows[self._place - start : self.stop - start])
                seen, self._place = self._place, min(stop, self.stop)
                self._kept.append(rows[self._keep[(seen <= self._keep) & (self._keep < self._place)] - start])
        return rows

    def close(self) -> None:
        self._source.close()

    def finish(self) -> None:
        """Read the rows that nobody has read."""
        for start in range(self._place, self.stop, self._step()):
            self.read(start, min(self.stop, start + self._step()))

    def _step(self) -> int:
        return max(1, BLOCK // (self.shape[1] * self.dtype.itemsize))

    def _see(self, rows: np.ndarray) -> None:
        step = max(1, CHUNK // (self.shape[1] * self.dtype.itemsize))
        for begin in range(0, len(rows), step):
            chunk = rows[begin : begin + step]
            low, high = np.minimum.reduce(chunk, axis=0), np.maximum.reduce(chunk, axis=0)
            if np.isnan(low).any():  # a NaN loses, which takes longer
                low, high = np.fmin.reduce(chunk, axis=0), np.fmax.reduce(chunk, axis=0)
            if self._low is None:
                self._low, self._high = low, high
                self._reference = np.nan_to_num(low.astype(np.float64), posinf=0, neginf=0)
            self._low, self._high = np.fmin(self._low, low), np.fmax(self._high, high)
        sample = less(rows[::SAMPLED], self._reference).astype(np.float64)
        seen = np.isfinite(sample)
        sample = np.where(seen, sample, 0)
        with np.errstate(over="ignore"):
            self._sums += [seen.sum(axis=0), sample.sum(axis=0), np.einsum("nd,nd->d", sample, sample)]
        self._fractions |= np.any(np.floor(sample) < sample, axis=0)

    def _gathered(self, comm: Communicator) -> tuple[np.ndarray, ...]:
        """Over all ranks: lowest, highest, a lower bound of the standard deviation, and whether fractions were seen."""
        count, total, squares = self._sums
        with np.errstate(over="ignore", invalid="ignore"):
            scatter = squares - total**2 / np.maximum(count, 1)  # about each rank's own mean: not more than about one
        found = comm.allgather((self._low, self._high, scatter, self._fractions, self.stop - self.start))
        found = [rank for rank in found if rank[0] is not None]  # a rank without data
        low, high = np.fmin.reduce([r[0] for r in found]), np.fmax.reduce([r[1] for r in found])
        N = sum(r[4] for r in found)
        with np.errstate(over="ignore", invalid="ignore"):
            extent = _extent(low, high)
            least = np.fmax(extent**2 / 2, sum(r[2] for r in found))
        return low, high, np.sqrt(np.maximum(np.nan_to_num(least, nan=0), 0) / N), np.any([r[3] for r in found], axis=0)

    def _body(self, comm: Communicator) -> _Body:
        return _Body.of(np.concatenate([rows for rank in comm.allgather(self._kept) for rows in rank]))

    def _measure(
        self, dtype: str, at: np.ndarray, low: np.ndarray, high: np.ndarray, body: _Body, comm: Communicator
    ) -> _Columns:
        """One more pass over the data, for the columns `at`; none without any."""
        low, high = low[at], high[at]
        reference = np.rint(low.astype(np.float64)) if self.dtype.kind in "iu" else low.astype(np.float64)
        sums = np.zeros((6, len(at)))
        for start in range(self.start, self.stop, self._step()) if len(at) else ():
            rows = self._source.read(start, min(self.stop, start + self._step()))[:, at]
            y = less(rows, reference).astype(np.float64)
            seen = np.isfinite(y)
            y = np.where(seen, y, 0)
            rounded = [(_rounded(rows, dtype) != rows) & seen for dtype in ("float32", "float64")]
            with np.errstate(over="ignore", invalid="ignore"):
                parts = [seen, y, y * y, *rounded, (np.floor(rows) < rows) & seen]
                sums += [part.sum(axis=0) for part in parts]
        if len(at):
            comm.allreduce(sums)
        n, first, second, lost32, lost64, fractions = sums
        moved, largest = first / np.maximum(n, 1), _size(low, high)
        with np.errstate(over="ignore", invalid="ignore"):
            sd = np.sqrt(np.maximum(second / np.maximum(n, 1) - moved**2, 0))
        noise = CONSTANT * largest if self.dtype.kind == "f" and self.dtype.itemsize <= 8 else 0
        hidden = body.coarse(dtype)[at] & ~(_step(dtype, largest) > LOSS * sd)
        sd = np.where(hidden, body.sd[at], np.where(sd > noise, np.nan_to_num(sd, nan=np.inf), 0))
        return _Columns(
            at=at,
            mean=np.where(hidden, body.middle[at], reference + moved),
            sd=sd,
            largest=np.where(hidden, body.largest[at], largest),
            low=low,
            high=high,
            whole=fractions == 0,
            altered={"float32": lost32 > 0, "float64": lost64 > 0},
        )

    def reading(self, asked: str, movable: bool, comm: Communicator) -> Reading:
        """How these data are to be read; called by all ranks, once the rows have passed.

        Parameters
        ----------
        asked : "auto", "float32" or "float64"
        movable : whether the model can take data that were shifted.

        Raises
        ------
        DataError
            If the type that was asked for by name would lose digits that a shift cannot keep.
        """
        if self._low is None and comm.size == 1:
            return Reading("float32" if asked == "auto" else asked)
        low, high, least, fractions = self._gathered(comm)
        dtype = "float32" if asked == "auto" else asked
        body = self._body(comm)
        suspects = _suspects(dtype, low, high, least, fractions, self.dtype, body)
        columns = self._measure(dtype, suspects, low, high, body, comm)
        self._refuse_unheld(columns)
        worst = _lost(dtype, columns, self.dtype)
        shift, kept = None, True
        if worst.any():
            shift, kept = _shift(dtype, columns, worst, self.dtype, self.shape[1])
            kept &= movable
        left = (low, high) if shift is None else (less(low, shift), less(high, shift))
        beyond = _beyond_squares(*left) if asked == "auto" and kept else None
        if kept and beyond is None:
            return Reading(dtype, shift, () if shift is None else (_told_shift(dtype, columns, worst, shift),))
        if asked == "float32":
            raise DataError(
                f"{self.name}: {_told(dtype, columns, worst)}: choose dtype='auto' or 'float64', or pass "
                "Y.astype('float32') if these digits do not matter"
            )
        notes = (f"float64, because {beyond or _told(dtype, columns, worst)}",) if asked == "auto" else ()
        return self._in_float64(notes, movable, columns)

    def _in_float64(self, notes: tuple[str, ...], movable: bool, columns: _Columns) -> Reading:
        """Even float64 may have too few digits: of large integers, and of wider floats."""
        worst = _lost("float64", columns, self.dtype)
        if not worst.any():
            return Reading("float64", None, notes)
        if movable:
            shift, kept = _shift("float64", columns, worst, self.dtype, self.shape[1])
            if kept:
                return Reading("float64", shift, (*notes, _told_shift("float64", columns, worst, shift)))
        return Reading("float64", None, (*notes, _told("float64", columns, worst)))

    def _refuse_unheld(self, columns: _Columns) -> None:
        """Even shifted, data have their centres as float64, which may tell no two of them apart.

        Raises
        ------
        DataError
            If that is so of data in a wider type: integers of 64 bits, extended floats.
        """
        unheld = columns.altered["float64"] & _coarse("float64", columns)
        if unheld.any():
            told = _told("float64", columns, unheld)
            raise DataError(f"{self.name}: {told}: subtract a constant from that column in its own type first")


def _rounded(rows: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers as `dtype` holds them, in their own type again."""
    with np.errstate(over="ignore", invalid="ignore"):
        return rows.astype(dtype).astype(rows.dtype)


def _extent(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    if low.dtype.kind == "b":
        return (high & ~low).astype(np.float64)
    if low.dtype.kind in "iu":
        return np.array([float(int(b) - int(a)) for a, b in zip(low, high, strict=True)])
    return (high - low).astype(np.float64)


def _size(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The largest absolute values."""
    return np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))


def _step(dtype: str, size: np.ndarray) -> np.ndarray:
    """The distance of a number of that size from its neighbour; Inf beyond the largest."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.nan_to_num(np.spacing(size.astype(dtype)).astype(np.float64), nan=np.inf)


def _whole_limit(dtype: str) -> float:
    return 2.0 ** (np.finfo(dtype).nmant + 1)


def _suspects(
    dtype: str,
    low: np.ndarray,
    high: np.ndarray,
    least: np.ndarray,
    fractions: np.ndarray,
    stored: np.dtype,
    body: _Body,
) -> np.ndarray:
    """Columns that have to be measured: their spread may be small, or they may be large whole numbers."""
    extent = _extent(low, high)
    size = _size(low, high)
    coarse = (_step(dtype, size) > LOSS * least) | body.coarse(dtype)
    whole = (size >= _whole_limit(dtype)) & ~fractions & ((stored.kind in "iu") | (size < _whole_limit("float64")))
    return np.flatnonzero((coarse | whole) & (extent > 0) & np.isfinite(size))


def _coarse(dtype: str, c: _Columns) -> np.ndarray:
    """Whether the step of `dtype` at the largest value is too long beside the spread."""
    return (c.sd > 0) & (_step(dtype, c.largest) > LOSS * c.sd)


def _lost(dtype: str, c: _Columns, stored: np.dtype) -> np.ndarray:
    """Which columns lose what matters: digits of their spread, or whole numbers their identity."""
    beyond = (c.largest >= _whole_limit(dtype)) & ((stored.kind in "iu") | (c.largest < _whole_limit("float64")))
    return c.altered[dtype] & (_coarse(dtype, c) | (c.whole & beyond & (c.sd > 0)))


def _shift(dtype: str, c: _Columns, which: np.ndarray, stored: np.dtype, D: int) -> tuple[np.ndarray, bool]:
    """Near the mean of each column that loses digits, of few digits itself, (D,); and whether it keeps them all."""
    unit = 2.0 ** np.ceil(np.log2(c.sd[which]))
    unit = np.where(c.whole[which], np.maximum(unit, 1), unit)  # whole numbers stay whole
    shift = np.zeros(D)
    shift[c.at[which]] = near = np.rint(c.mean[which] / unit) * unit
    left = np.maximum(np.abs(less(c.low[which], near)), np.abs(less(c.high[which], near))).astype(np.float64)
    kept = _step(dtype, left) <= LOSS * c.sd[which]
    kept &= ~c.whole[which] | (left <= _whole_limit(dtype))
    return shift, bool(kept.all())


def _beyond_squares(low: np.ndarray, high: np.ndarray) -> str | None:
    """What is said where float32 holds the numbers, but not their squares."""
    size, extent = _size(low, high), _extent(low, high)
    for bad, what in ((size > LARGE, "large"), ((extent > CONSTANT * size) & (extent < SMALL), "close")):
        found = np.flatnonzero(bad & np.isfinite(size))
        if len(found):
            d = found[0]
            return f"the values of column {d}, {low[d]:g} to {high[d]:g}, are too {what} for squares in float32"
    return None


def _names(at: np.ndarray) -> str:
    listed = ", ".join(str(d) for d in at[:SHOWN])
    more = f" and {len(at) - SHOWN} more" if len(at) > SHOWN else ""
    return f"column{'s' if len(at) > 1 else ''} {listed}{more}"


def _told(dtype: str, c: _Columns, which: np.ndarray) -> str:
    """Why `dtype` will not do."""
    i = int(np.flatnonzero(which)[0])
    if _coarse(dtype, c)[i]:
        step = _step(dtype, c.largest[i : i + 1])[0]
        limit = f"where {dtype} has steps of {step:.3g}" if np.isfinite(step) else f"beyond the largest of {dtype}"
        what = f"values to {c.largest[i]:.6g} with a spread of {c.sd[i]:.3g}, {limit}"
    else:
        what = f"whole numbers to {c.largest[i]:.6g}, and {dtype} has all of them to {_whole_limit(dtype):,.0f} only"
    return f"{_names(c.at[which])} ha{'ve' if which.sum() > 1 else 's'} {what}"


def _told_shift(dtype: str, c: _Columns, which: np.ndarray, shift: np.ndarray) -> str:
    """What is said where a shift helps."""
    at = c.at[which]
    amounts = ", ".join(f"{shift[d]:.10g}" for d in at[:SHOWN])
    verb = "were" if len(at) > 1 else "was"
    return f"{_names(at)} {verb} shifted by {amounts}: {_told(dtype, c, which)}"
