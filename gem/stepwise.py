"""Stepwise EM: an M-step after every minibatch, of moments that forget the older ones.

Cappé & Moulines, *On-line expectation-maximization algorithm for latent data models*, J. R. Stat. Soc. B 71, 2009;
Liang & Klein, *Online EM for unsupervised models*, NAACL 2009. docs/math.md, stepwise EM.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gem.annealing import curve
from gem.batch import Batch
from gem.checks import whole_number
from gem.data import Deal, Dealt, Reading, SampleWeights, Shard, Source
from gem.em import Info, Work, batch_of, maximized, part_of, told
from gem.errors import ConfigError, DataError
from gem.memory import Memory
from gem.models import Step
from gem.models.parameters import Params
from gem.statistics import FREE_ENERGY, N_ALL, N_USE, STOP, Statistics

DEFAULT = "t^-0.6"
KEPT_BYTES = 256 << 20  # of a rank's data: up to here they are read once and stay
POWER = re.compile(r"t\^-(0?\.\d+|1(?:\.0*)?)")


@dataclass(frozen=True)
class Carry:
    """What outlives a step and belongs to no data point; checkpointed with the parameters.

    Attributes
    ----------
    moments : dict of float64 arrays
        The running moments (`Model.moments`), as if of all data; empty before the first minibatch.
    updates : int
        Minibatches done in the run.
    done : int
        Minibatches done of the pass over the data that is at hand.
    heard : dict of float
        Sums over these: the free energy and numbers of data points, for the `Info` of the pass.
    N : float
        Data points that the moments count as, by their weights.
    """

    moments: Mapping[str, np.ndarray] = field(default_factory=dict)
    updates: int = 0
    done: int = 0
    heard: Mapping[str, float] = field(default_factory=dict)
    N: float = 0.0

    def arrays(self, params: Params) -> dict[str, np.ndarray]:
        """All of it as named float64 arrays, with the parameters it goes with, for the run file; `of` gives it back."""
        numbers = {"updates": self.updates, "done": self.done, "N": self.N}
        numbers |= {f"heard/{name}": value for name, value in self.heard.items()}
        return {
            **{name: np.array(value, dtype=np.float64) for name, value in numbers.items()},
            **{f"moments/{name}": value for name, value in self.moments.items()},
            **{f"params/{name}": value for name, value in params.items()},
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> tuple[Carry, Params]:
        """The inverse of `arrays`."""

        def under(folder: str) -> dict[str, Any]:
            return {name.removeprefix(folder): value for name, value in arrays.items() if name.startswith(folder)}

        done = int(arrays["done"])
        heard = {name: float(value) for name, value in under("heard/").items() if done}
        carry = cls(under("moments/"), int(arrays["updates"]), done, heard, float(arrays["N"]))
        return carry, under("params/")


class Rate:
    """How much of the running moments a minibatch takes the place of.

    Parameters
    ----------
    rate : number, list of (position, value), or "t^-KAPPA"
        Between 0 and 1: a number, or breakpoints as those of `Annealing`; or a power of t, the number of minibatches
        done, with 0.5 < KAPPA ≤ 1, for which Cappé & Moulines show that it converges.
    steps : int
        Passes over the data, of which the breakpoints may be fractions.

    Raises
    ------
    ConfigError
        For any other.
    """

    def __init__(self, rate: Any, steps: int):
        self.given = rate
        power = POWER.fullmatch(rate.replace(" ", "")) if isinstance(rate, str) else None
        self._kappa = float(power[1]) if power else 0.0
        if isinstance(rate, str):
            if power is None or self._kappa <= 0.5:
                raise ConfigError(f"rate = {rate!r}: a power is written t^-0.6, its exponent above 0.5 and at most 1")
        else:
            self._x, self._values = curve("rate", rate, steps, 0.0, 1.0)
            if not self._values.any():
                raise ConfigError(f"rate = {rate!r} is 0 throughout: nothing would be learned")

    def __call__(self, position: float, update: int) -> float:
        """At a position in passes over the data, for the minibatch of this number, from 0 on."""
        if self._kappa:
            return float((update + 1.0) ** -self._kappa)
        return float(np.interp(position, self._x, self._values))

    def plain(self) -> Any:
        """As the run file keeps it."""
        return self.given if isinstance(self.given, str | int | float) else [list(point) for point in self.given]


def rate_of(minibatch: Any, rate: Any, steps: int) -> Rate:
    """The rate of a run; without minibatches there is nothing that it could be of.

    Raises
    ------
    ConfigError
        If one is given and no `minibatch`.
    """
    if minibatch is None and rate is not None:
        raise ConfigError(f"rate = {rate!r} is that of minibatches: give minibatch, such as minibatch=4096, too")
    return Rate(DEFAULT if rate is None else rate, steps)


class Minibatches:
    """A rank's part of every minibatch of a data set, on the device when it is needed.

    They stay there, as far as it has room, where all of this rank's data take KEPT_BYTES at the most; else they are
    read at each pass, the next one while the last one is worked on.

    Parameters
    ----------
    work : Work
        Its batches are not used.
    source : Source
    size : int
        Rows of a minibatch, of all ranks together.
    seed : int
        Of what is dealt out to which minibatch, and of their order.
    batch : int, optional
        Data points at a time.
    reading : Reading, optional
        How the data are read.
    weights : SampleWeights, optional
        Of all rows, on every rank: its rows are from all over the data.

    Attributes
    ----------
    total : float
        All data points, counted by their weights.
    batch : int
        Data points at a time: the same for all minibatches.

    Raises
    ------
    ConfigError
        If the size is no positive whole number.
    """

    def __init__(
        self,
        work: Work,
        source: Source,
        size: int,
        seed: int,
        batch: int | None = None,
        reading: Reading | None = None,
        weights: SampleWeights | None = None,
    ):
        comm = work.comm
        self.deal, self.seed = Deal.of(source.shape[0], whole_number("minibatch", size), seed), seed
        self._dealt = Dealt(source, self.deal, comm.rank, comm.size)
        self._work, self._reading, self._size = work, reading, size
        longest = int(np.diff(self._dealt.edges).max())
        self.batch = batch_of(work.model, longest, work.backend, batch)
        self._weights = weights
        self.total = float(source.shape[0]) if weights is None else weights.total
        self.N, self.start, self.stop = int(self._dealt.edges[-1]), 0, int(self._dealt.edges[-1])
        bytes_here = self.N * source.shape[1] * work.backend.dtype.itemsize
        self._kept: dict[int, Work] | None = {} if bytes_here <= KEPT_BYTES else None

    def __len__(self) -> int:
        return len(self.deal)

    def dealt_by(self, seed: int) -> Minibatches:
        """Others of the same data and size, dealt out by another seed."""
        return Minibatches(self._work, self._dealt.original, self._size, seed, self.batch, self._reading, self._weights)

    def works(self, epoch: int, first: int = 0) -> Iterator[Work]:
        """The minibatches of a pass, from the `first` in its order on, each as the `Work` of an E-step."""
        order = self.deal.order(self.seed, epoch)[first:]
        if self._kept is not None:
            yield from (self._kept_work(self._kept, int(number)) for number in order)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(self._shard, int(order[0])) if len(order) else None
            for at, number in enumerate(order):
                shard = ahead.result() if ahead else self._shard(int(number))
                ahead = reader.submit(self._shard, int(order[at + 1])) if at + 1 < len(order) else None
                yield self._load(int(number), shard)

    def __iter__(self) -> Iterator[Batch]:
        """All batches of all minibatches, as one data set."""
        for work in self.works(0):
            yield from work.batches

    def remember(self, memory: Memory) -> None:
        """Minibatches are dealt out, and a memory has the rows of a slab.

        Raises
        ------
        ConfigError
            In any case.
        """
        raise ConfigError("minibatches of a model that keeps states from step to step are not there yet")

    def bring_back(self) -> None:
        """Nothing is kept."""

    def explained(self, error: DataError) -> DataError:
        """The error, of data that some model refuses: with the row as the data have it, and not as it was dealt out."""
        for start, stop in self._dealt.places(0, self.N):
            try:
                self._work.model.check_data(self._dealt.original.read(start, stop).astype(np.float64), start)
            except DataError as found:
                return found
        return error

    def _kept_work(self, kept: dict[int, Work], number: int) -> Work:
        if number not in kept:
            kept[number] = self._load(number, self._shard(number))
        return kept[number]

    def _shard(self, number: int) -> Shard:
        """This rank's rows of a minibatch, read."""
        start, stop = (int(edge) for edge in self._dealt.edges[number : number + 2])
        work = self._work
        return part_of(work.model, self._dealt, start, stop, work.backend, self.batch, self._reading)

    def _load(self, number: int, shard: Shard) -> Work:
        weights = None if self._weights is None else self._weights_of(self._weights, number, shard)
        return replace(self._work, batches=self._work.backend.load(shard, weights, tell=False), weights=weights)

    def _weights_of(self, all_weights: SampleWeights, number: int, shard: Shard) -> SampleWeights:
        """The weights of a minibatch's rows; those of this rank, and where those of each rank begin."""
        ranks, whole = self._work.comm.size, all_weights.values
        values = [
            np.concatenate([whole[a:b] for a, b in self.deal.runs(number, rank, ranks)] or [whole[:0]])
            for rank in range(ranks)
        ]
        edges = np.concatenate([[0.0], np.cumsum([part.sum() for part in values])])
        rows = sum(np.count_nonzero(part) for part in values)
        return SampleWeights(shard.start, values[self._work.comm.rank], all_weights.unit, edges, int(rows), {})


@dataclass(frozen=True)
class Settings:
    """What is asked of a pass over the data.

    Attributes
    ----------
    epoch : int
        Passes done before.
    step : function of a position in passes
        The settings of the step at hand.
    noisy : function of (parameters, position, minibatch)
        Parameters with annealing noise.
    settle : function of (new, old parameters)
        New parameters, in which what is left open or held is as in the old ones.
    stop : function
        Whether this rank wants to end.
    pause : function of (parameters, Carry)
        Called after each minibatch but the last: where a checkpoint may be due.
    """

    epoch: int
    step: Callable[[float], Step]
    noisy: Callable[[Params, float, int], Params]
    settle: Callable[[Params, Params], Params]
    stop: Callable[[], bool]
    pause: Callable[[Params, Carry], None]


def run_epoch(
    data: Minibatches, rate: Rate, params: Params, carry: Carry, settings: Settings
) -> tuple[Params, Carry, Info | None, bool]:
    """The rest of a pass over the data: an E-step, one reduction and an M-step for each minibatch.

    Returns
    -------
    params, carry
    info : Info, or None where the pass was left before its end
        Its free energy is the sum of the minibatches', each of the parameters it met.
    stop : bool
        Whether any rank wants to end.
    """
    began, notes, count = time.perf_counter(), list[str](), len(data)
    for work in data.works(settings.epoch, carry.done):
        position = settings.epoch + carry.done / count
        old = params
        params, carry, stats, said = update(
            work,
            settings.noisy(params, position, carry.done),
            carry,
            settings.step(position),
            rate(position, carry.updates),
            data.total,
            settings.stop,
        )
        params = settings.settle(params, old)
        notes += [note for note in said if note not in notes]
        if carry.done == count:
            break
        settings.pause(params, carry)
        if stats[STOP] > 0:
            return params, carry, None, True
    heard = Statistics(dict.fromkeys(carry.heard, ()))
    for name, value in carry.heard.items():
        heard[name][...] = value
    step = settings.step(float(settings.epoch))
    info = told(work, heard, step, notes, began)
    return params, replace(carry, done=0, heard={}), info, bool(stats[STOP] > 0)


def update(
    work: Work, params: Params, carry: Carry, step: Step, rate: float, N: float, stop: Callable[[], bool] = bool
) -> tuple[Params, Carry, Statistics, list[str]]:
    """One minibatch: its moments take the place of so much of the running ones, and the M-step follows.

    Returns the new parameters, the new Carry, the sums of this E-step, and notes.
    """

    def blend(stats: Statistics, moments: Statistics) -> Statistics:
        begun = bool(carry.moments)
        mine = (rate if begun else 1.0) * N / float(stats[N_ALL])
        if not begun or rate == 1:
            return moments if mine == 1 else work.model.combine(moments, moments, 0.0, mine)
        kept = _statistics(carry.moments, moments)
        return work.model.combine(kept, moments, (1 - rate) * N / carry.N, mine)

    new, moments, stats, notes = maximized(work, params, step, stop, blend)
    heard = {
        name: carry.heard.get(name, 0.0) + float(stats[name])
        for name in (FREE_ENERGY, N_ALL, N_USE, *work.model.tallies)
    }
    return new, Carry(dict(moments), carry.updates + 1, carry.done + 1, heard, N), stats, notes


def _statistics(arrays: Mapping[str, np.ndarray], like: Statistics) -> Statistics:
    """Running moments as they were, in the order of others: a file has them in the order of their names."""
    names = [*(name for name in like if name in arrays), *(name for name in arrays if name not in like)]
    found = Statistics({name: np.shape(arrays[name]) for name in names})
    for name in names:
        found[name][...] = arrays[name]
    return found
