"""EM: the loop over annealed steps, its run file, and how it ends and is taken up again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np

from gem import memory_files
from gem.annealing import WINDOW, Annealing
from gem.backends import NoBatches, blas, select
from gem.backends._traced import Traced
from gem.best import Best
from gem.checks import whole_number
from gem.data import (
    Reading,
    Shard,
    Source,
    Survey,
    fingerprint,
    holds,
    load_weights,
)
from gem.data.shard import telling_gaps
from gem.em import (
    Info,
    Work,
    closing,
    expect,
    inward,
    local_shard,
    named_type,
    open_for,
    run_step,
    settled,
    told,
)
from gem.errors import ConfigError, DataError, RunFileError
from gem.falling import fall, must_rise, note_of_fall
from gem.held_out import EVERY, HeldOut
from gem.holding import Hold
from gem.keeping import automatic, with_best
from gem.models import Model, Step
from gem.models.parameters import Params
from gem.parallel import communicator
from gem.philox import generator
from gem.progress import Progress
from gem.run_checks import (
    check_kinds,
    check_numbers,
    functions_of,
    one_of,
    place_on_disk,
    refuse_own_data,
    refuse_with_sets,
)
from gem.starts import starting
from gem.statistics import N_ALL
from gem.stepwise import Carry, Minibatches, Settings, rate_of, run_epoch, update
from gem.store import (
    CHECKPOINT_SECONDS,
    FELL,
    FINISHED,
    SETTLED,
    STOPPED,
    USED_UP,
    RunFile,
    environment,
    is_over,
    read_run,
)
from gem.taking_up import arguments, params_of
from gem.termination import Termination
from gem.trace import OFF, Recording, Trace

NEVER = 2**62  # steps


class EM:
    """A run: the steps of an `Annealing`, one after the other, recorded.

    Parameters
    ----------
    model : Model
    data : (N, D) array, path, or gem.data source
    anneal : Annealing
        `Annealing.auto(steps)` for the model's own schedules.
    params : dict or path, optional
        Where to start: parameters, or the run file whose last ones are taken (default: `model.init_params`).
    start : array, path, run, or function, optional
        Where to start, in place of `params`: labels (N,) or responsibilities (N, K) of a mixture, or a file of them; a
        run, or run file, of the same model with fewer components or latents, which are split; or a function that gives
        parameters, of a numpy Generator that depends on the seed.
    backend, dtype, comm, batch
        As in `em_step`. What dtype "auto" finds is part of the run: it is in the run file,
        with the shift of the data if there is one, and `resume` keeps it.
    seed : int
        Of the initialisation and the parameter noise.
    output : path, optional
        The run file (see `gem.store`), written by rank 0.
    checkpoint : int
        Steps between checkpoints of it.
    checkpoint_seconds : float
        Seconds between checkpoints of it, at most: one is due after the first step that is done later than that.
    overwrite : bool
        Whether an existing run file may be replaced.
    trace : path, optional
        Where the time line of all ranks goes (see `gem.trace`), written by rank 0 when the last step is done.
    weights : (N,) array, path, or gem.data source of one column, optional
        How often each data point counts, in the initialisation and in every step: see `em_step`.
    keep : "all", "last" or int, optional
        Of which steps the run file keeps the parameters: of all, of the last one, or of the start, every k-th and the
        last one. By default of all while they take 8 MB at most, else of every 2nd, 5th, 10th, 20th, ..., so that they
        do; of parameters that are larger than 2 MB, of the last step (`gem.keeping.automatic`).
    minibatch : int, optional
        Stepwise EM: an M-step after every so many data points (of all ranks together), from running moments. A step is
        then a pass over the data. Each minibatch costs a reduction over the ranks (docs/math.md, stepwise EM).
    rate : number, list of (position, value), or "t^-KAPPA", optional
        How much of the running moments a minibatch takes the place of: see `gem.stepwise.Rate` (default: "t^-0.6").
    keep_best : bool
        End with the best parameters, those of the largest F, where these are not the last ones: F may fall where states
        are truncated or left out. keep="best" is the same, with the default for the steps. In any case a note says so.
    hold : list of str, or dict of name to bool array, optional
        Parameters, or entries of them, that keep the values they begin with: see `em_step`.
    held_out : (N', D) array, path, or gem.data source, optional
        Data that nothing is learned from: their F per point, at T = 1 and with each point once, is `held_out` of the
        steps' `Info`, of `history` and of the run file, and `gem show` draws it.
    held_out_every : int
        Steps from one such look to the next; the last step of a run has one in any case.

    Attributes
    ----------
    params : dict of float64 arrays
    anneal : Annealing
        As given, or of `Annealing.auto` what the model chose, in units of the parameters that the run began with.
    step : int
        Steps done.
    restarts : list of gem.restarts.Restart
        Of `best_of`: seed, steps and F of each run. Else empty.
    planned : int
        Steps that the run is to have: those of `anneal`, or more where `resume` was asked for more.
    reason : str or None
        Why no step follows: "settled" (see `Annealing`, until), "steps used up", "ended by finish()", "F fell at step
        17" (of a run that may settle: F of a model that `must_rise` fell by more than rounding; without `until` a note
        says so, and the run goes on); or "stopped by SIGTERM", its last step checkpointed, after which the run can go
        on. None as long as none of these holds.
    stopped : bool
        Whether SIGTERM ended `run` early.

    Raises
    ------
    ConfigError, DataError, BackendError, RunFileError

    Examples
    --------
    >>> em = EM(model, "patches.npy", Annealing(steps=100, T=[(0, 4.0), (0.8, 1.0)]))  # doctest: +SKIP
    >>> em.run().params["W"]                                                           # doctest: +SKIP
    """

    _place: Path | None = None  # of the run file that a memory is stored beside
    _stored, _when = 0, 0.0  # up to which step it is, and since when

    def __init__(
        self,
        model: Model,
        data: Any,
        anneal: Annealing,
        *,
        params: Any = None,
        start: Any = None,
        backend: Any = None,
        dtype: Any = "auto",
        comm: Any = None,
        batch: int | None = None,
        seed: int = 0,
        output: Any = None,
        checkpoint: int = 10,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        overwrite: bool = False,
        trace: Any = None,
        weights: Any = None,
        keep: Any = None,
        minibatch: int | None = None,
        rate: Any = None,
        keep_best: bool = False,
        hold: Any = None,
        held_out: Any = None,
        held_out_every: int = EVERY,
    ):
        check_kinds(model, anneal, minibatch=minibatch, held_out=held_out)
        asked_keep, keep_best = with_best(keep, keep_best)
        if keep_best and minibatch is not None:
            raise ConfigError("keep_best: F of a pass over minibatches is that of many parameters: leave it out")
        check_numbers(seed, checkpoint, checkpoint_seconds)
        self.model, self.anneal, self.seed = model, anneal, int(seed)
        self.planned, self._longer = len(anneal), False
        self._hold = Hold.of(model, hold, anneal.noisy)
        self._keep_best, self._best = keep_best, Best(keep_best)
        self.reason: str | None = None
        self.restarts: list[Any] = []
        self._calling = False  # a callback, on rank 0
        self.comm = communicator(comm)
        self._file: RunFile | None = None
        self._records: list[tuple[dict[str, float], list[str]]] = []
        self._rate, self._carry = rate_of(minibatch, rate, len(anneal)), Carry()
        with self.comm.guard():
            self._source = source = open_for(model, data)
            self._memory = model.init_memory(source, self.seed, self.comm)
            counts = None if weights is None else load_weights(weights, source.shape[0], self.comm)
            self._weights = counts
            self._held_out = None if held_out is None else HeldOut(model, held_out, held_out_every)
            asked_params = place_on_disk(params)
            if asked_params is not None:
                params = params_of(model, asked_params, self.comm)
            others = [each.record["data"] for each in (counts, self._held_out) if each is not None]
            refuse_own_data((output, trace), (source.spec, *others))
            self._trace: Trace = OFF if trace is None else Recording(trace, self.comm)
            self._start = one_of(params, start)
            self._prepare(params, backend, dtype)
            self._keep = asked_keep or automatic(len(anneal), sum(value.nbytes for value in self.params.values()))
            shard = self._load(minibatch, batch)
            asked = {
                "backend": backend if backend is None else str(backend),
                "dtype": str(dtype),
                "batch": batch if batch is None else int(batch),
                "keep": asked_keep,
                "params": asked_params,
                "start": place_on_disk(start),
            }
            self._about = config = {**self._config(source), "asked": asked}
            config |= {"checkpoint": int(checkpoint), "checkpoint_seconds": float(checkpoint_seconds)}
            config |= {} if minibatch is None else {"minibatch": int(minibatch), "rate": self._rate.plain()}
            if output is not None:  # it may replace a run, which data that the first step refuses should not cost
                self._check_data(shard, given=params is not None or start is not None)
                if self.comm.rank == 0:
                    self._begin(output, config, overwrite)
                self._remembers_at(output, 0)

    def _begin(self, output: Any, config: dict[str, Any], overwrite: bool) -> None:
        """Begin the run file."""
        self._file = RunFile.create(
            output,
            model=self.model.name,
            config=config,
            machine={**environment(), **self.backend.describe()},
            seed=self.seed,
            params=self.params,
            **self._own_checkpoints(config),
            overwrite=overwrite,
            keep=self._keep,
            carries=self._minibatches is not None,
        )

    def _first_params(self, seen: Any) -> dict[str, np.ndarray]:
        """Where the run begins, by its seed; `seen` is the data, which the model may read."""
        if self._start is None:
            weighted = {} if self._weights is None else {"weights": self._weights}
            return self.model.check(self.model.init_params(seen, self.seed, self.comm, **weighted))
        found = starting(self.model, self._start, self._source, self.seed, self.comm, self._weights)
        return self.model.check(found)

    def again(self, seed: int) -> EM:
        """Another run of the same model on the same data, which are not read anew, by another seed; with no file."""
        other = copy(self)
        other.seed, other.reason, other._records, other._file = int(seed), None, [], None
        other._best, other._carry = Best(self._keep_best), Carry()
        other._place = None
        other._memory = self.model.init_memory(self._source, other.seed, self.comm)
        if self._minibatches is not None:  # they are dealt out by the seed
            other._minibatches = self._minibatches.dealt_by(other.seed)
            other._work = replace(self._work, batches=other._minibatches)
        other.params = other._first_params(self._source)
        return other

    @classmethod
    def best_of(cls, n: int, model: Model, data: Any, anneal: Annealing, **options: Any) -> EM:
        """The best of n runs, which differ in their seeds: see `gem.restarts.best_of`."""
        from gem.restarts import best_of

        return best_of(n, model, data, anneal, **options)

    def _prepare(self, params: Mapping[str, Any] | None, backend: Any, dtype: Any) -> None:
        """Find the starting parameters, how the data must be read, and the backend that can."""
        source, model = self._source, self.model
        stored = dtype if isinstance(dtype, Reading) else None  # of a run that is taken up
        chosen = select(backend, stored.dtype if stored else dtype, self.comm)
        looks = stored is None and not holds(chosen.dtype, source.dtype)
        seen = Survey(source, *self.comm.slab(source.shape[0])) if looks else source
        with self._trace.span("initialisation"):
            self.params = self._first_params(seen) if params is None else model.check(params)
        self.anneal = self.anneal.resolved(model.schedules(self.params), self._hold.whole if self._hold else ())
        self._reading = stored or Reading(str(chosen.dtype))
        if isinstance(seen, Survey):
            self._reading = settled(model, seen, named_type(backend, dtype, chosen), self.comm)
        if self._reading.dtype != str(chosen.dtype):
            chosen = select(backend, self._reading.dtype, self.comm)
        self.backend = Traced(chosen, self._trace) if self._trace.on else chosen

    def _load(self, minibatch: int | None, batch: int | None) -> Shard | None:
        """Make the work of the run, and load what it looks at; of a run on all data their shard is returned."""
        self._minibatches: Minibatches | None = None
        shard = None
        if minibatch is None:
            shard = local_shard(self.model, self._source, self.backend, self.comm, batch, self._reading)
            self._batch, loaded = shard.batch, self.backend.load(shard, self._weights)
            self._work = Work(self.model, loaded, self.backend, self.comm, self._weights, self._trace, self._hold)
        else:
            self._work = self._in_minibatches(minibatch, batch)
        if self._held_out is not None:
            self._held_out.load(self.backend, self.comm, self._reading)
        return shard

    def _in_minibatches(self, size: int, batch: int | None) -> Work:
        """The work of a run that learns from minibatches of this size."""
        self.comm.slab(self._source.shape[0])  # refuses more ranks than data points
        every = None if self._weights is None else self._weights.everywhere(self.comm)
        bare = Work(self.model, NoBatches(), self.backend, self.comm, self._weights, self._trace, self._hold)
        self._minibatches = Minibatches(bare, self._source, size, self.seed, batch, self._reading, every)
        self._batch = self._minibatches.batch
        return replace(bare, batches=self._minibatches)

    def _check_data(self, shard: Shard | None, given: bool) -> None:
        """What the initialisation has not seen: data beside given parameters, and what only this model asks of them.

        Of a run that learns from minibatches, whose rows no `shard` has in their order, one is read for this.
        """
        if given or type(self.model).check_data is not Model.check_data:
            if shard is None:
                shard = local_shard(self.model, self._source, self.backend, self.comm, self._batch, self._reading)
            with telling_gaps(self._source):
                for start, Y in shard.batches():
                    self.model.check_data(Y, start)
        self.comm.allgather(None)  # on every rank

    def _config(self, source: Source) -> dict[str, Any]:
        """Everything `resume` needs but the data, where these were an array."""
        return {
            "settings": self.model.settings(),
            "annealing": self.anneal.to_dict(),
            "data": source.spec,
            "shape": list(source.shape),
            "fingerprint": fingerprint(source),
            **({} if self._weights is None else {"weights": self._weights.record}),
            **({} if self._held_out is None else {"held_out": self._held_out.record}),
            **({} if self._hold is None else {"hold": self._hold.record}),
            **({"keep_best": True} if self._keep_best else {}),
            "dtype": str(self.backend.dtype),
            "keep": self._keep,
            **({} if self._reading.shift is None else {"shift": self._reading.shift.tolist()}),
            "ranks": self.comm.allgather({"backend": self.backend.name, "batch": self._batch}),
        }

    @classmethod
    def resume(
        cls,
        path: Any,
        data: Any = None,
        weights: Any = None,
        *,
        backend: Any = None,
        comm: Any = None,
        trace: Any = None,
        steps: int | None = None,
        held_out: Any = None,
    ) -> EM:
        """Take up a run at its last checkpoint: the numbers are those of a run that was never interrupted.

        Parameters
        ----------
        path : path of the run file
        data : optional
            Needed only if the run was on an in-memory array.
        weights : optional
            Needed only if those of the run were an array in memory.
        backend : optional
            By default the run's own, on the same device for each rank.
        comm : optional
            The number of ranks may differ from the run's own; sums then differ by rounding.
        trace : path, optional
            As in `EM`.
        steps : int, optional
            Do so many more steps and end, also where the run is finished, whatever it was to have: along its schedules,
            which keep their last values from their end on, and without a look at whether it has settled.
        held_out : optional
            Needed only if the held-out data of the run were an array in memory.

        Raises
        ------
        RunFileError
            If there is no such run, or it does not fit the data or their weights.
        """
        group = communicator(comm)
        with group.guard():
            run = group.bcast(read_run(path) if group.rank == 0 else None)
            config = run.config
            em = cls(**arguments(path, run, data, weights, held_out, backend, group), trace=trace)
            if run.carry:
                em._carry, inner = Carry.of(run.carry)
                em.params = inner or em.params
            names = list(run.history)
            em._records = [({n: float(run.history[n][t]) for n in names}, run.notes[t]) for t in range(run.step)]
            for t, (scalars, _) in enumerate(em._records):
                em._best.see(scalars["free_energy"], t + 1, None)
            if run.best is not None:
                em._best = Best(True)
                em._best.see(run.best[1], run.best[0], run.best[2])
            em.planned, em._longer, em._keep = run.planned, "steps" in config, config.get("keep", "all")
            longer: dict[str, Any] = {}
            if steps is not None:
                em.planned, em._longer = run.step + whole_number("steps", steps), True
                longer = {"config": {**config, "steps": em.planned}}
            elif is_over(run.reason) or run.step >= em.planned:
                em.reason = run.reason if is_over(run.reason) else USED_UP
            if group.rank == 0 and (longer or not run.finished):
                em._file = RunFile.open(path, **em._own_checkpoints(config), keep=em._keep, **longer)
            em._about = config
            em._remembers_at(path, run.step)
        return em

    # -- the loop ------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        return len(self._records)

    @property
    def best(self) -> tuple[int, float] | None:
        """The largest F so far, and the step, counted from 1, that began with its parameters; None before any step."""
        found = self._best
        return (found.step, found.free_energy) if found.step else None

    @property
    def stopped(self) -> bool:
        return self.reason == STOPPED

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Per step, as float64: free_energy, N, N_use, T, Ncut, seconds, share_at_gamma of a truncated model, replaced
        of one that keeps states, and held_out if there are such data, NaN where it was not told.

        As in `Info`: `free_energy` is that of the parameters a step began with, and in the last step of the run that
        of the parameters it ended with, `params`.
        """
        names = dict.fromkeys(name for scalars, _ in self._records for name in scalars)
        return {n: np.array([scalars.get(n, nan) for scalars, _ in self._records], dtype=float) for n in names}

    @property
    def notes(self) -> list[tuple[int, str]]:
        """(step, what happened): constraints that were active, components re-seeded, searches that were cut short."""
        return [(t + 1, note) for t, (_, notes) in enumerate(self._records) for note in notes]

    def __iter__(self) -> Iterator[Info]:
        """Do the remaining steps, yielding the `Info` of each; SIGTERM ends them early.

        Leaving the loop early loses no step either. Under MPI all ranks leave it after the same step: one that leaves
        it on its own, by `break`, `return`, an exception or `sys.exit`, ends the job with its exit status (1 for 0).
        """
        self._go_on()
        with self.comm.together() as agree, Termination(self._save_soon()) as asked, self._saving():
            while self._unfinished():
                info = self._advance(asked.is_set)
                if info is None:  # stopped within a pass
                    break
                asked.suspend()
                yield info
                asked.take_up()
                if self._unfinished():
                    agree(self.step)
            self._end()

    def _unfinished(self) -> bool:
        return self.reason is None and self.step < self.planned

    def _go_on(self) -> None:
        """SIGTERM ended what was begun before: it may go on."""
        if self.stopped:
            self.reason = None

    def run(
        self, progress: bool = False, callbacks: Iterable[Callable[[Info], object]] = (), on_all_ranks: bool = False
    ) -> EM:
        """Do the remaining steps; SIGTERM has those that are done stored at once, and ends the run after the next.

        Parameters
        ----------
        progress : bool
            Show a line that says how far the run is.
        callbacks : list of functions
            Each is called with the `Info` of a step once that is recorded, on rank 0 only; the other ranks are then at
            the next step. What it returns does not count; an exception in it ends the run like any other, with all
            steps kept. To end a run from its steps, iterate over it, and call `finish` on all ranks.
        on_all_ranks : bool
            Call them on every rank instead, where they may call `finish`, or communicate, if all ranks do.

        Raises
        ------
        ConfigError
            If a callback is no function.
        """
        functions = functions_of(callbacks)
        self._go_on()
        with (
            Termination(self._save_soon()) as asked,
            self._saving(),
            Progress(self.planned, self.step, progress and self.comm.rank == 0) as line,
        ):
            while self._unfinished():
                info = self._advance(asked.is_set)
                if info is None:  # stopped within a pass
                    break
                line.update(self.step, info)
                self._call(functions, info, on_all_ranks)
            self._end()
        return self

    def _call(self, functions: list[Callable[[Info], object]], info: Info, on_all_ranks: bool) -> None:
        if not functions or (self.comm.rank and not on_all_ranks):
            return
        with self.comm.guard(), self._saving():  # in this order, as in a step
            self._calling = not on_all_ranks
            try:
                for function in functions:
                    function(info)
            except SystemExit as error:
                if self.comm.size > 1 and not error.code:  # the others' work is not done
                    raise SystemExit(1) from error
                raise
            finally:
                self._calling = False

    def finish(self) -> EM:
        """End a run before its last step, by all ranks together: after a loop over it that was left, or in its body.

        As at the end of any run one more E-step says how good `params` are, the last `free_energy` of `history`, and
        the run file is finished. A run that is over already stays as it is.

        Raises
        ------
        ConfigError
            If no step is done, or in a callback of `run`: the other ranks do not know of it.
        """
        if self._calling:
            raise ConfigError(
                "finish() is for all ranks, a callback is on rank 0: run(callbacks=..., on_all_ranks=True), or iterate "
                "over the run, for info in em"
            )
        if not is_over(self.reason):
            if not self.step:
                raise ConfigError("no step of the run is done: there is nothing to finish")
            with self.comm.guard(), self._saving():
                info, params = self._closed(_told(*self._records[-1]), self.params)
                self._records[-1] = info.scalars(), info.notes
                if self._file is not None:
                    self._file.amend(info.scalars(), info.notes, params)
                self.params = params
            self.reason = FINISHED
        self._end()
        return self

    def _advance(self, asked: Callable[[], bool]) -> Info | None:
        """Do a step, and record it; None where a pass over minibatches was left before its end."""
        now = self.anneal[self.step]
        span = self._trace.span("EM step", step=self.step + 1, T=now["T"], Ncut=now["Ncut"])
        # saving comes first: the guard ends the job
        with self.comm.guard(), self._saving(), span, telling_gaps(self._source):
            new, info, stop = self._step(asked) if self._minibatches is None else self._pass(self._minibatches, asked)
            if info is None:
                self.params, self.reason = new, STOPPED
                return None
            fallen = 0.0
            if self._minibatches is None:  # F of a pass is that of many parameters
                self._best.see(info.free_energy, self.step + 1, self._noisy(self.params, self.step))
                fallen = self._fallen(info)
            ended = self._ended_by(info, fallen)
            if fallen:
                info = replace(info, notes=[*info.notes, note_of_fall(self.step + 1, fallen, self.model)])
            if ended:  # what is told last belongs to what is left
                info, new = self._closed(info, new)
            elif self._held_out is not None and self._held_out.due(self.step + 1):
                met = inward(self.model, self._noisy(self.params, self.step), self._reading)
                info = replace(info, held_out=self._held_out.per_point(met))
            self.params = new
            if self.step == 0:
                info = replace(info, notes=[*self._reading.notes, *info.notes])
            stop = stop or (self.comm.size == 1 and asked())  # of several ranks, each may have another answer by now
            self.reason = ended or (STOPPED if stop else None)  # after the last step there is nothing to stop
            self._record(info, carries=self._minibatches is not None)
            self._checkpoint_all()
        return info

    def _record(self, info: Info, carries: bool) -> None:
        """Record a step that is done, the best parameters so far, and what `carries` over to the next one."""
        self._records.append((info.scalars(), info.notes))
        if self._file is None:
            return
        with self._trace.span("record"):
            best = self._best
            carry = self._carry.arrays(self.params) if carries else None
            kept = None if best.params is None else (best.step, best.free_energy, best.params)
            self._file.record(self.step, self.params, info.scalars(), info.notes, self.reason, kept, carry)

    def _own_checkpoints(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """When the run file stores steps by itself: of a run with a memory never, as that has to be stored with it."""
        if self.model.bytes_kept:
            return {"every": NEVER, "seconds": inf}
        return {"every": config["checkpoint"], "seconds": config.get("checkpoint_seconds", CHECKPOINT_SECONDS)}

    def _remembers_at(self, path: Any, step: int) -> None:
        """Store the memory beside this run file from now on; take it up as it was after this step."""
        if not self.model.bytes_kept:
            return
        self._place, self._stored, self._when = Path(path).resolve(), step, time.monotonic()
        if step:
            self._memory = memory_files.load(self._place, step, self._memory, self._source.shape[0])
        elif self.comm.rank == 0:
            memory_files.forget_others(self._place, None)

    def _checkpoint_all(self, due: bool = False) -> None:
        """Store memory and run file, by all ranks together, if that is `due`, or the time has come for it."""
        if self._place is None or self._stored == self.step:
            return
        every, seconds = self._about["checkpoint"], self._about.get("checkpoint_seconds", CHECKPOINT_SECONDS)
        late = self.comm.bcast(time.monotonic() - self._when >= seconds)  # by the clock of rank 0
        if due or late or self.step % every == 0:
            self._work.batches.bring_back()
            memory_files.store(self._place, self.step, self._memory, self._source.shape[0], self.comm)
            if self._file is not None:
                self._file.checkpoint()
                memory_files.forget_others(self._place, self.step)
            self._stored, self._when = self.step, time.monotonic()

    def _remember(self) -> None:
        """Have the batches bring this run's memory along: runs that `again` makes share the batches."""
        if self.model.bytes_kept:
            self._work.batches.remember(self._memory)

    def _settings(self, position: float) -> Step:
        """The settings of the step at this position in the run."""
        now, anneal = self.anneal[position], self.anneal
        return Step(now["T"], now["Ncut"], anneal.anneal_prior, str(self.backend.dtype), anneal.reseed)

    def _noisy(self, params: Params, position: float, minibatch: int = 0) -> Params:
        """The parameters with the noise of this position in the run."""
        if not self.anneal.noisy:
            return params
        rng = generator(self.seed, "noise", int(position) + (minibatch << 32))
        noisy = self.model.perturb(params, self.anneal[position], rng)
        return noisy if self._hold is None else self._hold.put_back(noisy, params)

    def _settled(self, new: Params, old: Params) -> Params:
        """New parameters, in which what their likelihood leaves open, and what is held, is as in the old ones."""
        return self.model.settle(new, old) if self._hold is None else self._hold.settled(new, old)

    def partial(self, data: Any, weights: Any = None) -> Info:
        """Learn from data that are not seen again: one minibatch of stepwise EM, recorded as a step.

        What was learned before counts with all its points: the running moments are those of all minibatches and chunks
        so far, or, of a run on all data, of these. `Annealing` gives T, Ncut and noise of the step; once its steps are
        used up, those of its end.

        Parameters
        ----------
        data : (n, D) array, path, or gem.data source
            The same on every rank; each reads its own slab.
        weights : (n,) array, path, or gem.data source of one column, optional

        Returns
        -------
        Info
            Its free energy is that of these data, under the parameters from before.

        Raises
        ------
        ConfigError, DataError
            As `em_step`. Nothing is learned from data that are refused.
        """
        began = time.perf_counter()
        with self.comm.guard(), self._saving(), blas.limited(1):
            refuse_with_sets(self.model, partial=True)
            source = open_for(self.model, data)
            counts = None if weights is None else load_weights(weights, source.shape[0], self.comm)
            shard = local_shard(self.model, source, self.backend, self.comm, None, self._reading)
            work = replace(self._work, batches=self.backend.load(shard, counts), weights=counts)
            carry = self._carried()
            N = carry.N + (source.shape[0] if counts is None else counts.total)
            step, old = self._settings(self.step), inward(self.model, self.params, self._reading)
            with telling_gaps(source):
                new, carry, stats, notes = update(
                    work, self._noisy(old, self.step), carry, step, self._rate(self.step, carry.updates), N
                )
            self.params = self._settled(self.model.moved(new, self._reading.shift), self.params)
            self._carry = replace(carry, done=0, heard={})
            info = told(work, stats, step, notes, began)
            self._record(info, carries=True)
        return info

    def _carried(self) -> Carry:
        """What outlives the last step; of steps on all data it has to be made, by an E-step."""
        if self._carry.moments or not self.step:
            return self._carry
        params, step = inward(self.model, self.params, self._reading), self._settings(self.step)
        stats = expect(self._work, params, step)
        moments = self.model.moments(stats, params, step)
        return Carry(dict(moments), updates=1, N=float(stats[N_ALL]))

    def _step(self, asked: Callable[[], bool]) -> tuple[Params, Info, bool]:
        """An EM step on all data: new parameters, its Info, and whether any rank wants to end."""
        local = inward(self.model, self._noisy(self.params, self.step), self._reading)
        settings = self._settings(self.step)
        self._remember()
        if self.model.bytes_kept:
            settings = replace(settings, number=self.step + 1)
        new, info, stop = run_step(self._work, local, settings, asked)
        return self._settled(self.model.moved(new, self._reading.shift), self.params), info, stop

    def _pass(self, data: Minibatches, asked: Callable[[], bool]) -> tuple[Params, Info | None, bool]:
        """The rest of a pass over minibatches: the same, and no Info where it was left before its end."""

        def pause(params: Params, carry: Carry) -> None:
            self._carry = carry
            if self._file is not None:
                self._file.carry(carry.arrays(self.model.moved(params, self._reading.shift)))

        settings = Settings(self.step, self._settings, self._noisy, self._settled, asked, pause)
        local = inward(self.model, self.params, self._reading)
        try:
            new, self._carry, info, stop = run_epoch(data, self._rate, local, self._carry, settings)
        except DataError as error:
            raise data.explained(error) from error
        return self.model.moved(new, self._reading.shift), info, stop

    def _fallen(self, info: Info) -> float:
        """By how much the F that this step began with is below that of the step before, where that cannot be."""
        if not self._records:
            return 0.0
        before, notes = self._records[-1]
        noted = [note for note in notes if note not in self._reading.notes]
        if self._hold is not None or not must_rise(self.model, self.anneal, self.step, bool(noted)):
            return 0.0
        return fall(before["free_energy"], info.free_energy, info.N, self.model.D, self._reading.dtype)

    def _ended_by(self, info: Info, fallen: float) -> str | None:
        """Why the step at hand is the last one; the same on all ranks and after `resume`, by the sums over all."""
        if self.anneal.until is not None and not self._longer:
            if fallen:
                return f"{FELL} {self.step + 1}"
            recent = [scalars["free_energy"] / scalars["N"] for scalars, _ in self._records[-WINDOW:]]
            if self.anneal.settled([*recent, info.free_energy / info.N], self.step + 1):
                return SETTLED
        return USED_UP if self.step + 1 == self.planned else None

    def _closed(self, info: Info, params: dict[str, np.ndarray]) -> tuple[Info, dict[str, np.ndarray]]:
        """The `Info` of the last step, with how good what it leaves is, and this: the best parameters, if kept."""
        told_last, best = self._look(info, params), self._best
        before = fall(best.free_energy, told_last.free_energy, info.N, self.model.D, self._reading.dtype)
        if not before:
            return told_last, params
        kept = best.params is not None
        note = best.told(told_last.free_energy, info.N, kept)
        if best.params is not None:
            params = {name: np.array(value) for name, value in best.params.items()}
            told_last = self._look(info, params)
        return replace(told_last, notes=[*told_last.notes, note]), params

    def _look(self, info: Info, params: dict[str, np.ndarray]) -> Info:
        """How good these parameters are: F on all data, at T = 1, and that of the held-out data."""
        last = inward(self.model, params, self._reading)
        self._remember()
        info = closing(self._work, info, last)
        return info if self._held_out is None else replace(info, held_out=self._held_out.per_point(last))

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """An exception on rank 0 loses no step that was done; one on another rank, those since the last checkpoint.

        The trace of a rank that has one is stored too.
        """
        try:
            yield
        except BaseException as error:
            self._trace.write_alone()
            if not isinstance(error, RunFileError):
                self._save()
            if self._file is not None:
                self._file.release()
            raise

    def _save(self) -> None:
        if self._file is not None and self._place is None:
            self._file.save()
        elif self.comm.size == 1 and self._file is not None and self._file.step == self.step:
            self._checkpoint_all(due=True)  # of several ranks one cannot: the others may be elsewhere

    def _save_soon(self) -> Callable[[], None] | None:
        """What stores the steps done when SIGTERM comes; None where this rank has no file."""
        return None if self._file is None or self._place is not None else self._file.save

    def _end(self) -> None:
        with self.comm.guard():
            self._checkpoint_all(due=True)
            with self._trace.span("record"):
                if self.stopped and self._file is not None:
                    self._save()
                    self._file.release()
                elif self._file is not None and not self._file.finished:
                    self._file.finish(self.reason or USED_UP)
            self._trace.write()


def _told(scalars: dict[str, float], notes: list[str]) -> Info:
    """The `Info` of a step from its record."""
    numbers = {name: scalars[name] for name in ("free_energy", "T", "Ncut", "seconds")}
    some = {name: scalars.get(name, nan) for name in ("share_at_gamma", "held_out", "replaced")}
    counts = {name: float(scalars[name]) for name in ("N", "N_use")}
    counts = {name: int(count) if count.is_integer() else count for name, count in counts.items()}
    return Info(**counts, notes=notes, **some, **numbers)
