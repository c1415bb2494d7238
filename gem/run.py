"""EM: the loop over annealed steps, its run file, and how it ends and is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np

from gem.annealing import WINDOW, Annealing
from gem.backends import select
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
from gem.em import Info, closing, inward, local_shard, named_type, open_for, run_step, settled
from gem.errors import ConfigError, RunFileError
from gem.falling import fall, must_rise, told
from gem.held_out import EVERY, HeldOut
from gem.holding import Hold
from gem.keeping import automatic, with_best
from gem.models import Model, Step
from gem.parallel import communicator
from gem.philox import generator
from gem.progress import Progress
from gem.run_checks import check_kinds, check_numbers, functions_of, one_of, place_on_disk, refuse_own_data
from gem.starts import starting
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
        keep_best: bool = False,
        hold: Any = None,
        held_out: Any = None,
        held_out_every: int = EVERY,
    ):
        check_kinds(model, anneal)
        asked_keep, keep_best = with_best(keep, keep_best)
        check_numbers(seed, checkpoint, checkpoint_seconds)
        self.model, self.seed, self.planned, self._longer = model, int(seed), len(anneal), False
        self._hold = Hold.of(model, hold, anneal.noisy)
        self._keep_best, self._best = keep_best, Best(keep_best)
        self.reason: str | None = None
        self.restarts: list[Any] = []
        self._calling = False  # a callback, on rank 0
        self.comm = communicator(comm)
        self._file: RunFile | None = None
        self._records: list[tuple[dict[str, float], list[str]]] = []
        with self.comm.guard():
            self._source = source = open_for(model, data)
            counts = None if weights is None else load_weights(weights, source.shape[0], self.comm)
            self._weights = counts
            self._held_out = None if held_out is None else HeldOut(model, held_out, held_out_every)
            asked_params = place_on_disk(params)
            if asked_params is not None:
                params = params_of(model, asked_params, self.comm)
            others = [each.record["data"] for each in (counts, self._held_out) if each is not None]
            refuse_own_data((output, trace), (source.spec, *others))
            self._trace: Trace = OFF if trace is None else Recording(trace, self.comm)
            stored = dtype if isinstance(dtype, Reading) else None  # of a run that is taken up
            chosen = select(backend, stored.dtype if stored else dtype, self.comm)
            looks = stored is None and not holds(chosen.dtype, source.dtype)
            seen = Survey(source, *self.comm.slab(source.shape[0])) if looks else source
            self._start = one_of(params, start)
            with self._trace.span("initialisation"):
                self.params = self._first_params(seen) if params is None else model.check(params)
            self.anneal = anneal.resolved(model.schedules(self.params), self._hold.whole if self._hold else ())
            self._reading = stored or Reading(str(chosen.dtype))
            if isinstance(seen, Survey):
                self._reading = settled(model, seen, named_type(backend, dtype, chosen), self.comm)
            if self._reading.dtype != str(chosen.dtype):
                chosen = select(backend, self._reading.dtype, self.comm)
            self.backend = Traced(chosen, self._trace) if self._trace.on else chosen
            self._keep = asked_keep or automatic(len(anneal), sum(value.nbytes for value in self.params.values()))
            shard = local_shard(model, source, self.backend, self.comm, batch, self._reading)
            self._batch, self._batches = shard.batch, self.backend.load(shard)
            if self._held_out is not None:
                self._held_out.load(self.backend, self.comm, self._reading)
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
            if output is not None:  # it may replace a run, which data that the first step refuses should not cost
                self._check_data(shard, given=params is not None or start is not None)
                if self.comm.rank == 0:
                    self._begin(output, config, overwrite)

    def _begin(self, output: Any, config: dict[str, Any], overwrite: bool) -> None:
        """Begin the run file."""
        self._file = RunFile.create(
            output,
            model=self.model.name,
            config=config,
            machine={**environment(), **self.backend.describe()},
            seed=self.seed,
            params=self.params,
            every=config["checkpoint"],
            seconds=config["checkpoint_seconds"],
            overwrite=overwrite,
            keep=self._keep,
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
        other._best = Best(self._keep_best)
        other.params = other._first_params(self._source)
        return other

    @classmethod
    def best_of(cls, n: int, model: Model, data: Any, anneal: Annealing, **options: Any) -> EM:
        """The best of n runs, which differ in their seeds: see `gem.restarts.best_of`."""
        from gem.restarts import best_of

        return best_of(n, model, data, anneal, **options)

    def _check_data(self, shard: Shard, given: bool) -> None:
        """What the initialisation has not seen: data beside given parameters, and what only this model asks of them."""
        if given or type(self.model).check_data is not Model.check_data:
            with telling_gaps(shard.source):
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
            names = list(run.history)
            em._records = [({n: float(run.history[n][t]) for n in names}, run.notes[t]) for t in range(run.step)]
            for t, (scalars, _) in enumerate(em._records):
                em._best.see(scalars["free_energy"], t + 1, None)
            if run.best is not None:
                em._best = Best(True)
                em._best.see(run.best[1], run.best[0], run.best[2])
            em.planned, em._longer, em._keep = run.planned, "steps" in config, config.get("keep", "all")
            longer = {}
            if steps is not None:
                em.planned, em._longer = run.step + whole_number("steps", steps), True
                longer = {"config": {**config, "steps": em.planned}}
            elif is_over(run.reason) or run.step >= em.planned:
                em.reason = run.reason if is_over(run.reason) else USED_UP
            if group.rank == 0 and (longer or not run.finished):
                seconds = config.get("checkpoint_seconds", CHECKPOINT_SECONDS)
                em._file = RunFile.open(path, every=config["checkpoint"], seconds=seconds, keep=em._keep, **longer)
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
        """Per step, as float64: free_energy, N, N_use, T, Ncut, seconds, share_at_gamma of a truncated model, and
        held_out if there are such data, NaN where it was not told.

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

    def _advance(self, asked: Callable[[], bool]) -> Info:
        now = self.anneal[self.step]
        span = self._trace.span("EM step", step=self.step + 1, T=now["T"], Ncut=now["Ncut"])
        # saving comes first: the guard ends the job
        with self.comm.guard(), self._saving(), span, telling_gaps(self._source):
            noisy = self.model.perturb(self.params, now, generator(self.seed, "noise", self.step))
            settings = Step(
                now["T"], now["Ncut"], self.anneal.anneal_prior, str(self.backend.dtype), self.anneal.reseed
            )
            if self._hold is not None:
                noisy = self._hold.put_back(noisy, self.params)
            local = inward(self.model, noisy, self._reading)
            new, info, stop = run_step(
                self.model, local, self._batches, self.backend, self.comm, settings, asked, self._trace, self._weights,
                self._hold,
            )  # fmt: skip
            new = self.model.moved(new, self._reading.shift)
            new = (self.model.settle if self._hold is None else self._hold.settled)(new, self.params)
            self._best.see(info.free_energy, self.step + 1, noisy)
            fallen = self._fallen(info)
            ended = self._ended_by(info, fallen)
            if fallen:
                info = replace(info, notes=[*info.notes, told(self.step + 1, fallen, self.model)])
            if ended:  # what is told last belongs to what is left
                info, new = self._closed(info, new)
            elif self._held_out is not None and self._held_out.due(self.step + 1):
                info = replace(info, held_out=self._held_out.per_point(local))
            self.params = new
            if self.step == 0:
                info = replace(info, notes=[*self._reading.notes, *info.notes])
            self._records.append((info.scalars(), info.notes))
            stop = stop or (self.comm.size == 1 and asked())  # of several ranks, each may have another answer by now
            self.reason = ended or (STOPPED if stop else None)  # after the last step there is nothing to stop
            if self._file is not None:
                with self._trace.span("record"):
                    best = self._best
                    kept = None if best.params is None else (best.step, best.free_energy, best.params)
                    self._file.record(self.step, self.params, info.scalars(), info.notes, self.reason, kept)
        return info

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
        info = closing(info, self.model, last, self._batches, self.backend, self.comm, self._trace, self._weights)
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
        if self._file is not None:
            self._file.save()

    def _save_soon(self) -> Callable[[], None] | None:
        """What stores the steps done when SIGTERM comes; None where this rank has no file."""
        return None if self._file is None else self._file.save

    def _end(self) -> None:
        with self.comm.guard():
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
    some = {name: scalars.get(name, nan) for name in ("share_at_gamma", "held_out")}
    counts = {name: float(scalars[name]) for name in ("N", "N_use")}
    counts = {name: int(count) if count.is_integer() else count for name, count in counts.items()}
    return Info(**counts, notes=notes, **some, **numbers)
