"""Restarts: one model from several seeds, of which the best goes on.

All runs do the same first steps, then the better half of them some more, and so on: successive halving (Karnin, Koren &
Somekh, ICML 2013; Jamieson & Talwalkar, AISTATS 2016). F is compared at the same step of the same schedules, and not
before these are at rest: what is hot tells little. The run that is left is that of its seed, as if there were no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from math import ceil, inf
from typing import Any, NamedTuple

import numpy as np

from gem.annealing import WINDOW, Annealing
from gem.checks import whole_number
from gem.data import Source, open_data
from gem.errors import ConfigError
from gem.keeping import lasting
from gem.models import Model
from gem.models.parameters import Params
from gem.parallel import Communicator, Serial, communicator
from gem.run import EM
from gem.run_checks import check_numbers, refuse_with_sets
from gem.starts import is_drawn
from gem.store import STOPPED, RunFile

SMALL = 256 << 20  # bytes of data that each rank may hold as a whole
NEVER = 10**9  # steps
ALONE, TOGETHER = "seeds", "data"  # what ranks share out


class Restart(NamedTuple):
    """One of several runs.

    Attributes
    ----------
    seed : int
    steps : int
        Steps that it did.
    free_energy : float
        F after these; of the best one, at its end.
    """

    seed: int
    steps: int
    free_energy: float


def best_of(
    n: int,
    model: Model,
    data: Any,
    anneal: Annealing,
    *,
    seed: int = 0,
    comm: Any = None,
    output: Any = None,
    overwrite: bool = False,
    checkpoint: int = 10,
    short: int | None = None,
    share: str | None = None,
    progress: bool = False,
    **options: Any,
) -> EM:
    """The best of n runs, with the seeds `seed` to `seed` + n − 1; done to its end, its `restarts` tell of all.

    Parameters
    ----------
    n : int
    model, data, anneal, options
        As in `EM`.
    output : path, optional
        The run file, of the run that wins: it is begun at once, and has steps as soon as one run is left.
    short : int, optional
        Steps that all runs do before the first of them are given up. By default so many that each halving costs about
        as much as the one before, and at least until nothing moves any more.
    share : "seeds" or "data", optional
        Whether each rank runs seeds of its own on all data, or all ranks run one after the other together. By default
        seeds where there are at least as many as ranks and the data are small (256 MB): then no rank waits for another
        in each step. The winner's last steps are done by rank 0 only then, with the numbers of a run without ranks (but
        for rounding, unless `batch` is given: by itself it depends on the cores that a rank has).
    progress : bool
        Show how far the last run is.

    Returns
    -------
    EM
        On every rank. If SIGTERM ended the restarts it is `stopped`, and no run can be taken up.

    Raises
    ------
    ConfigError
        If runs would not differ by their seeds, and as `EM`.
    """
    refuse_with_sets(model, restarts=n)
    n, group = whole_number("n", n), communicator(comm)
    check_numbers(seed, checkpoint, 1.0)
    _check(n, anneal, short, share, options)
    with group.guard():
        source = open_data(data)
        alone = _shared(share, n, source, group) == ALONE
        seeds = list(range(seed, seed + n))
        within = _Alone(group) if alone else group
        writes: dict[str, Any] = {"output": output if group.rank == 0 or not alone else None, "overwrite": overwrite}
        first = EM(model, source, anneal, comm=within, seed=seed, checkpoint=checkpoint, **writes, **options)
        if first._file is not None:
            undecided = {"n": n, "seeds": seeds, "decided": False}
            first._file.describe({**first._about, "restarts": undecided})
        mine = seeds[group.rank :: group.size] if alone else seeds
        runs = {each: first if each == seed else first.again(each) for each in mine}
        for run in runs.values():
            run._file = _Memory(run)  # type: ignore[assignment]  # what EM asks of a run file
        won, told, stopped = _halved(runs, seeds, rungs(first.anneal, n, short), group if alone else None)
        best = _sent(runs.get(won), first, group) if alone else runs[won]
        if stopped:
            best.reason = STOPPED
        else:
            if group.rank == 0:
                _pour(best, output, {**_record(told), "won": won, "decided": True})
            if group.rank == 0 or not alone:
                best.run(progress=progress)
            best = _sent(best if group.rank == 0 else None, first, group) if alone else best
            last = Restart(won, best.step, _free_energy(best))
            told = [last if each.seed == won else each for each in told]
        best.restarts = told
    return best


def _shared(share: str | None, n: int, source: Source, group: Communicator) -> str:
    """What the ranks share out."""
    small = source.shape[0] * source.shape[1] * np.dtype(source.dtype).itemsize <= SMALL
    if group.size == 1:
        return TOGETHER
    return share or (ALONE if n >= group.size and small else TOGETHER)


def _check(n: int, anneal: Annealing, short: int | None, share: str | None, options: Mapping[str, Any]) -> None:
    if options.get("params") is not None or not is_drawn(options.get("start")):
        raise ConfigError(
            f"restarts: all {n} runs would begin with the same parameters: leave them out, or give start=function(rng)"
        )
    if options.get("trace") is not None:
        raise ConfigError("restarts: a trace is of one run: leave it out, or give one seed")
    if share not in (None, ALONE, TOGETHER):
        raise ConfigError(f"share = {share!r} must be 'seeds' (each rank its own), 'data' (all together), or None")
    if short is not None and whole_number("short", short) > len(anneal):
        raise ConfigError(f"short = {short} is more than the {len(anneal)} steps of a run")


def rungs(anneal: Annealing, n: int, short: int | None = None) -> list[int]:
    """After how many steps the worse half of the runs that are left is given up, until there is one; see `best_of`."""
    rounds, steps = ceil(np.log2(n)), len(anneal)
    if short is None:
        settled = anneal.at_rest + WINDOW + 1 if anneal.at_rest < inf else steps
        short = min(steps, max(ceil(steps / 2**rounds), ceil(settled)))
    return [round(short * (steps / short) ** (i / max(1, rounds))) for i in range(rounds)]


def _halved(
    runs: Mapping[int, EM], seeds: Sequence[int], steps: Sequence[int], group: Communicator | None
) -> tuple[int, list[Restart], bool]:
    """The best run's seed, how far all got, and whether SIGTERM came; `group`: of ranks with runs of their own."""
    left, told, stopped = list(seeds), {seed: Restart(seed, 0, -inf) for seed in seeds}, False
    for until in steps:
        for seed in left:
            if seed in runs and not stopped:
                stopped = _advance(runs[seed], until)
        found = {s: Restart(s, r.step, _free_energy(r)) for s, r in runs.items() if s in left and r.step}
        for part in [found] if group is None else group.allgather(found):
            told |= part
        left = sorted(left, key=lambda seed: (-told[seed].free_energy, seed))
        stopped = stopped if group is None else any(group.allgather(stopped))
        if stopped:
            break
        left = left[: ceil(len(left) / 2)]
    return left[0], [told[seed] for seed in seeds], stopped


def _advance(run: EM, until: int) -> bool:
    """Do the steps up to this one; whether SIGTERM came."""
    if run.step < until:
        for _ in run:
            if run.step >= until:
                break
    return run.stopped


def _free_energy(run: EM) -> float:
    return float(run._records[-1][0]["free_energy"])


class _Alone(Serial):
    """A rank that works by itself, on its part of the host."""

    def __init__(self, group: Communicator):
        self.local_rank, self._threads = group.local_rank, group.threads

    @property
    def threads(self) -> int:
        return self._threads


class _Memory:
    """Steps of a run that has no file yet: what `EM` asks of a `RunFile`."""

    def __init__(self, run: EM):
        self._keep = run._keep
        self.start = run.params
        self.rows: list[list[Any]] = []
        self.finished = False

    def record(self, step: int, params: Params, *told: Any) -> None:
        if self.rows and not lasting(self._keep, step - 1):
            self.rows[-1][1] = None
        self.rows.append([step, params, *told])

    def carry(self, arrays: Mapping[str, Any]) -> None:
        """What is within a step is not kept."""

    def save(self) -> None:
        """Nothing is on a disk."""

    release = save

    def finish(self, reason: str) -> None:
        self.finished = True

    def pour(self, file: RunFile, last: Params) -> None:
        """Record all steps in a file; where parameters are not kept any will do."""
        for step, params, *told in self.rows:
            file.record(step, last if params is None else params, *told)


def _sent(run: EM | None, like: EM, group: Communicator) -> EM:
    """The run that one rank has, on every rank; it can go on there."""
    state = None
    if run is not None:
        state = run.seed, run.params, run._records, run._best, run._carry, run.reason, run._file
    (seed, params, records, best, carry, reason, file) = next(
        each for each in group.allgather(_picklable(state)) if each
    )
    if run is None:
        run = copy(like)
        run.seed, run.params, run._records, run._best, run._carry, run.reason, run._file = (
            seed, params, records, best, carry, reason, file,
        )  # fmt: skip
    return run


def _picklable(state: Any) -> Any:
    """A file that is written is that of its rank."""
    return state and (*state[:-1], state[-1] if isinstance(state[-1], _Memory) else None)


def _pour(run: EM, output: Any, restarts: dict[str, Any]) -> None:
    """Give the run that is left its file, with the steps that it did."""
    memory: Any = run._file
    run._file, now = None, run.params
    if output is not None:
        run.params = memory.start
        run._begin(output, {**run._about, "restarts": restarts}, True)
        run.params = now
    if run._file is not None:
        run._file.checkpoint_every(NEVER)
        memory.pour(run._file, now)
        run._file.checkpoint_every(run._about["checkpoint"])
        run._file.checkpoint()


def _record(told: Sequence[Restart]) -> dict[str, Any]:
    return {
        "n": len(told),
        "seeds": [each.seed for each in told],
        "steps": [each.steps for each in told],
        "free_energy": [each.free_energy for each in told],
    }
