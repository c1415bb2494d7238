"""Expectation maximization: one step as a pure function, and the posterior."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar, overload

import numpy as np

from gem.backends import Backend, Batches, Totals, blas, select
from gem.batch import Batch
from gem.checks import whole_number
from gem.data import Reading, SampleWeights, Shard, Source, Survey, holds, load_weights, open_data
from gem.data.shard import telling_gaps
from gem.errors import BackendError, ConfigError, DataError
from gem.holding import Hold
from gem.memory import Memory
from gem.models import EStep, Model, Posterior, Step
from gem.models.parameters import Params, shifting
from gem.notes import kind
from gem.parallel import Communicator, communicator, heaviest, largest
from gem.statistics import FREE_ENERGY, N_ALL, N_USE, STOP, Layout, Statistics, Sums
from gem.trace import OFF, Trace

log = logging.getLogger("gem")

Found = TypeVar("Found")
MAX_BATCH = 1 << 22  # data points at a time: kernels count them in 32 bits
SWEEPS = 20  # E-steps in which `posterior` finds the states that a model keeps
KEEP_BYTES = 64 << 20  # posteriors up to this size wait for the data selection; beyond it they are inferred again


@dataclass(frozen=True)
class Info:
    """What an EM step tells about itself.

    Attributes
    ----------
    free_energy : float
        F(Θ) = Σ_n log Z_n over all N points (of weighted ones Σ_n w_n log Z_n), at T = 1, of the parameters the step
        began with; `EM` gives the last step of a run that of the parameters it ended with.
    N, N_use : int
        Data points, and those in the M-step's set M; of weighted points the sums of their weights, as floats.
    T, Ncut : float
    seconds : float
        Wall time of the step on this rank.
    notes : list of str
        Constraints that were active, components re-seeded, searches that did not come to their end.
    share_at_gamma : float
        Share of the N points whose most probable state, at T = 1, has γ active latents, the most that a state of K_n
        may have, of the parameters that `free_energy` belongs to: where it is large γ is too small. NaN of a model
        that truncates nothing.
    held_out : float
        F per point of held-out data, of the parameters that `free_energy` belongs to; NaN where it is not told.
    replaced : float
        How many of the kept states of a data point were replaced by better ones, on an average; NaN of a model that
        keeps none.
    """

    free_energy: float
    N: float
    N_use: float
    T: float
    Ncut: float
    seconds: float
    notes: list[str] = field(default_factory=list)
    share_at_gamma: float = math.nan
    held_out: float = math.nan
    replaced: float = math.nan

    def scalars(self) -> dict[str, float]:
        """Everything but the notes, and but `share_at_gamma`, `held_out` and `replaced` where there are none."""
        some = ("share_at_gamma", "held_out", "replaced")
        numbers = {about.name: getattr(self, about.name) for about in fields(self) if about.name != "notes"}
        return {k: v for k, v in numbers.items() if not (k in some and math.isnan(v))}


# fmt: off
@overload
def em_step(
    model: Model, params: Mapping[str, Any], data: Any, *, backend: Any = None, dtype: Any = "auto", T: float = 1.0,
    Ncut: float = 0.0, anneal_prior: bool = False, reseed: bool = False, comm: Any = None, batch: int | None = None,
    weights: Any = None, hold: Any = None, memory: None = None,
) -> tuple[Params, Info]: ...


@overload
def em_step(
    model: Model, params: Mapping[str, Any], data: Any, *, backend: Any = None, dtype: Any = "auto", T: float = 1.0,
    Ncut: float = 0.0, anneal_prior: bool = False, reseed: bool = False, comm: Any = None, batch: int | None = None,
    weights: Any = None, hold: Any = None, memory: Memory,
) -> tuple[Params, Info, Memory]: ...
# fmt: on


def em_step(
    model: Model,
    params: Mapping[str, Any],
    data: Any,
    *,
    backend: Any = None,
    dtype: Any = "auto",
    T: float = 1.0,
    Ncut: float = 0.0,
    anneal_prior: bool = False,
    reseed: bool = False,
    comm: Any = None,
    batch: int | None = None,
    weights: Any = None,
    hold: Any = None,
    memory: Memory | None = None,
) -> tuple[Params, Info] | tuple[Params, Info, Memory]:
    """One step of (truncated) EM: new parameters from old ones and the data.

    Parameters
    ----------
    model : Model
    params : dict of arrays
        Not edited.
    data : (N, D) array, path, or gem.data source
        The whole data set, on every rank; each reads its own slab.
    backend
        See `gem.backends.select`.
    dtype : "auto", "float32" or "float64"
        What the E-step computes in. "auto" is float32, unless it would lose digits of the data that matter: more
        than 1 % of a column's spread, or whole numbers beyond 2²⁴. Then a model that allows it (MoG) takes the data
        shifted, which the parameters that are returned do not show, and others are computed in float64.
    T, Ncut, anneal_prior, reseed
        See `gem.models.Step`.
    comm : None, "world" or an mpi4py communicator
    batch : int, optional
        Data points at a time (default: the backend's choice). It does not change the result.
    weights : (N,) array, path, or gem.data source of one column, optional
        How often each data point counts, a number ≥ 0: 2 is the point twice, 0 the point left out. Those that are all
        below 1 count in units of the largest, where a number of data points is a threshold (math.md, sample weights).
    hold : list of str, or dict of name to bool array, optional
        Parameters, or entries of them where a mask is True, that keep the values of `params`; the others are as good as
        they can be beside them, and the free entries of a distribution share what the held ones leave.
    memory : Memory, of models that keep states (`gem.sets`)
        What is kept for each data point of this rank, not edited: `model.init_memory(data, seed)` to begin with, then
        what the last step gave.

    Returns
    -------
    params : dict of float64 arrays
    info : Info
    memory : Memory
        If one was given: what the next step begins with.

    Raises
    ------
    ConfigError
        If settings, parameters and data do not fit each other.
    DataError
        If the data hold NaN or Inf (with row and column), also where their weight is 0, or the `dtype` asked for loses
        digits of them; if a weight is negative or not finite (with its row), or all are 0.
    BackendError
        If the backend is not available, or has no float64 where the data need it.
    """

    def one_step(batches: Batches, chosen: Backend, reading: Reading) -> tuple[Params, Info, Memory | None]:
        step = Step(T, Ncut, anneal_prior, str(chosen.dtype), reseed)
        mine = None if memory is None else memory.copy()
        if mine is not None:
            batches.remember(mine)
            step = replace(step, number=mine.step + 1)
        check_options(model, Ncut > 0, reseed)
        work = Work(model, batches, chosen, group, counts, hold=held)
        checked = model.check(params)
        new, info, _ = run_step(work, inward(model, checked, reading), step)
        new = model.moved(new, reading.shift)
        new = new if held is None else held.put_back(new, checked)
        if mine is not None:
            batches.bring_back()
            mine.step += 1
        return new, replace(info, notes=[*reading.notes, *info.notes]), mine

    group = communicator(comm)
    with group.guard():
        source = open_for(model, data)
        held = Hold.of(model, hold)
        check_memory(model, memory, *group.slab(source.shape[0]))
        counts = None if weights is None else load_weights(weights, source.shape[0], group)
        new, info, mine = _on_data(model, source, backend, dtype, group, batch, one_step, counts, one_pass=Ncut == 0)
    return (new, info) if mine is None else (new, info, mine)


def posterior(
    model: Model,
    params: Mapping[str, Any],
    data: Any,
    *,
    backend: Any = None,
    dtype: Any = "auto",
    T: float = 1.0,
    anneal_prior: bool = False,
    comm: Any = None,
    batch: int | None = None,
    top: int = 0,
    reconstruct: bool = False,
    impute: bool = False,
    memory: Memory | None = None,
) -> Posterior:
    """The (truncated, annealed) posterior of every data point of this rank.

    Parameters
    ----------
    top : int
        How many of the most probable states to list (they are enumerated on the host, point by point).
    reconstruct : bool
        Whether to give E[y] as well: the data smoothed, observed entries too, and what is missing filled in.
    impute : bool
        Whether to give E[y] of what is missing only: observed entries are as the backend read them.
    memory : Memory, optional
        What a model that keeps states (`gem.sets`) kept for each data point of this rank; not edited. By default
        states are found anew, in SWEEPS = 20 E-steps.

    Returns
    -------
    Posterior
        `log_evidence` (N,), `candidates` (N, H'), `mean` (N, H) ⟨s⟩ and `product` (N, H) as host arrays, and with
        `top` `states`, `probabilities` and `map_state`, with `reconstruct` or `impute` `reconstruction` (N, D); for a
        mixture `mean` (N, K) holds the responsibilities and `candidates` is None; of a model that keeps states
        `candidates` is None and `sets` (N, S, W) has these, as words of 32 bits. Other arguments and errors
        as in `em_step`; what is not finite is never returned, but raises `DataError`. Codes of SC that were not found
        within its iterations are told by a warning of the logger "gem".
    """
    group = communicator(comm)
    with group.guard():
        top = whole_number("top", top, 0)

        source = open_for(model, data)
        begun = memory or model.init_memory(source, 0, group)
        check_memory(model, begun if model.bytes_kept else memory, *group.slab(source.shape[0]))

        def infer_all(batches: Batches, chosen: Backend, reading: Reading) -> Posterior:
            if model.bytes_kept:
                batches.remember(begun.copy())
                local = inward(model, model.check(params), reading)
                _find_states(model, local, batches, chosen, T, anneal_prior, 0 if memory else SWEEPS)
            return _infer_all(
                model, params, batches, chosen, reading, T, anneal_prior, top, reconstruct or impute, impute
            )

        return _on_data(model, source, backend, dtype, group, batch, infer_all)


def _find_states(
    model: Model, params: Params, batches: Batches, backend: Backend, T: float, anneal_prior: bool, sweeps: int
) -> None:
    """E-steps that improve the kept states of every data point, so many."""

    def improve(batch: Batch) -> None:
        e_step.infer(batch)

    for number in range(1, sweeps + 1):
        e_step = model.on(backend, params, Step(T, 0.0, anneal_prior, str(backend.dtype), number=number))
        with blas.limited(1):
            for _ in backend.map(improve, batches):
                pass


def _infer_all(
    model: Model,
    params: Mapping[str, Any],
    batches: Batches,
    chosen: Backend,
    reading: Reading,
    T: float,
    anneal_prior: bool,
    top: int,
    reconstruct: bool,
    impute: bool,
) -> Posterior:
    """The posterior of every data point, as `posterior` gives it."""
    checked = inward(model, model.check(params), reading)
    with _room_for_tables(model, chosen):
        e_step = model.on(chosen, checked, Step(T, 0.0, anneal_prior, str(chosen.dtype)))
    counts = chosen.totals({N_ALL: (), **model.tallies})

    def infer(batch: Batch) -> tuple[Posterior, Sums]:
        found, tallies = e_step.posterior(batch, reconstruct)
        log_evidence = found.log_evidence.values(chosen)
        _check(log_evidence, model, chosen, batch)
        names = ("candidates", "mean", "product", "reconstruction", "sets")
        host: dict[str, Any] = {
            name: None if getattr(found, name) is None else chosen.to_host(getattr(found, name)) for name in names
        }
        _check_finite(host, model, chosen, batch)
        if impute:
            seen = chosen.to_host(batch.Y)
            host["reconstruction"] = np.where(np.isnan(seen), host["reconstruction"], seen)
        if reading.shift is not None and host["reconstruction"] is not None:
            host["reconstruction"] = host["reconstruction"] + reading.shift
        told = Posterior(log_evidence, **host)
        if top:
            told.states, told.probabilities = model.top_states(
                checked, chosen.to_host(batch.Y).astype(float), told, top
            )
        return told, {N_ALL: batch.n, **tallies}

    parts = []
    with blas.limited(1):
        for part, count in chosen.map(infer, batches):
            parts.append(part)
            counts.add(count)
    for note in model.shortfalls(counts.reduce(communicator(None))):
        log.warning(note)
    return _joined(parts)


def _joined(parts: list[Posterior]) -> Posterior:
    """The batches' posteriors as one; what the first does not have, none has."""

    def whole(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.concatenate(arrays)

    names = ("log_evidence", "candidates", "mean", "product", "states", "probabilities", "reconstruction", "sets")
    return Posterior(**{name: whole(name) for name in names})


@dataclass(frozen=True)
class Work:
    """Where a model learns: on which data, with which weights, on what device, with which other ranks; what is held."""

    model: Model
    batches: Batches
    backend: Backend
    comm: Communicator
    weights: SampleWeights | None = None
    trace: Trace = OFF
    hold: Hold | None = None

    def counted(self, stats: Statistics, name: str) -> float:
        """A sum over data points, which were weighted in units of `weights`."""
        return float(stats[name]) * (1.0 if self.weights is None else self.weights.unit)


def run_step(work: Work, params: Params, step: Step, stop: Callable[[], bool] = bool) -> tuple[Params, Info, bool]:
    """E-step on this rank's data, one reduction, M-step.

    `stop` is asked, after the E-step, whether this rank wants to end; the last thing returned is whether any does.
    """
    began = time.perf_counter()
    new, _, stats, notes = maximized(work, params, step, stop)
    return new, told(work, stats, step, [*notes, *work.model.shortfalls(stats)], began), bool(stats[STOP] > 0)


def maximized(
    work: Work,
    params: Params,
    step: Step,
    stop: Callable[[], bool] = bool,
    blend: Callable[[Statistics, Statistics], Statistics] = lambda stats, moments: moments,
) -> tuple[Params, Statistics, Statistics, list[str]]:
    """New parameters, the moments they maximize, the sums of the E-step that these are of, and notes.

    `blend` makes the moments to be maximized of the sums and their own moments; it may be asked a second time.
    """
    model = work.model
    params = {name: np.asarray(value, order="C") for name, value in params.items()}  # as a file has them: to the bit
    with blas.limited(1):  # threads are the backend's: those of BLAS spin after their work, in the way of all others
        if model.needs_residuals(params, step):
            step = replace(step, residuals=True)
        done = False
        while not done:
            stats = expect(work, params, step, stop)
            with work.trace.span("M-step"):
                moments = blend(stats, model.moments(stats, params, step))
                new, notes = model.maximize(moments, params, step)
                if work.hold is not None:
                    new = work.hold.after(new, params, moments, step)
                done = step.residuals or not model.needs_residuals(new, step, moments)
                if done and step.reseed:
                    new, revived = model.reseed(new, moments)
                    notes = notes + revived
                    new = new if work.hold is None else work.hold.put_back(new, params)
            if not done:
                step = replace(step, residuals=True)
    check_learned(new)
    return new, moments, stats, notes


def check_learned(new: Params) -> None:
    """Refuse parameters that are no numbers.

    Raises
    ------
    DataError
        With the name of the first.
    """
    for name, value in new.items():
        if not np.all(np.isfinite(value)):
            raise DataError(f"the M-step gave a {name} that is not finite: use dtype='float64', or rescale the data")


def told(work: Work, stats: Statistics, step: Step, notes: list[str], began: float) -> Info:
    """What a step tells of itself, from the sums of its E-step and the time when it began."""
    whole = work.weights is None
    return Info(
        free_energy=work.counted(stats, FREE_ENERGY),
        N=int(stats[N_ALL]) if whole else work.counted(stats, N_ALL),
        N_use=int(stats[N_USE]) if whole else work.counted(stats, N_USE),
        T=step.T,
        Ncut=step.Ncut,
        seconds=time.perf_counter() - began,
        notes=notes,
        share_at_gamma=_share(stats),
        replaced=float(stats["replaced"] / stats[N_ALL]) if "replaced" in stats else math.nan,
    )


def closing(work: Work, info: Info, params: Params) -> Info:
    """What the last step of a run tells: one more E-step, at T = 1 and on all points, says how good its result is.

    `free_energy` and `share_at_gamma` are those of `params`, what the run ended with, and `notes` says where inference
    falls short of what was asked for.
    """
    with blas.limited(1):
        stats = expect(work, params, Step(dtype=str(work.backend.dtype)))
    said = {kind(note) for note in info.notes}
    share = _share(stats)
    more = [*work.model.shortfalls(stats), *work.model.advice(share)]
    return replace(
        info,
        free_energy=work.counted(stats, FREE_ENERGY),
        share_at_gamma=share,
        notes=info.notes + [note for note in more if kind(note) not in said],
    )


def _share(stats: Statistics) -> float:
    return float(stats["at_gamma"] / stats[N_ALL]) if "at_gamma" in stats else math.nan


def expect(work: Work, params: Params, step: Step, stop: Callable[[], bool] = bool) -> Statistics:
    """The sums of an E-step over all ranks; BLAS has been limited.

    Raises
    ------
    DataError
        If they are not finite.
    """
    model, backend, weights = work.model, work.backend, work.weights
    with work.trace.span("E-step"):
        with _room_for_tables(model, backend):
            counts: Layout = {FREE_ENERGY: (), N_ALL: (), N_USE: (), STOP: (), **model.tallies}
            totals = backend.totals({**counts, **model.layout})
            e_step = model.on(backend, params, step)
        if step.Ncut == 0:
            _expect_all(work, e_step, totals)
        else:
            _expect_selected(work, e_step, totals, step.Ncut, params)
        backend.synchronize()
    totals.add({N_ALL: work.batches.N if weights is None else weights.values.sum(), STOP: int(stop())})
    with work.trace.span("reduction", bytes=totals.nbytes), _room_for_tables(model, backend):
        stats = totals.reduce(work.comm)
    if not np.all(np.isfinite(stats.buffer)):
        _refuse(work, e_step)
    return stats


@contextmanager
def _room_for_tables(model: Model, backend: Backend) -> Iterator[None]:
    """Parameters cannot be taken in parts as data can: where memory runs out, say what to do."""
    try:
        yield
    except Exception as error:
        # CuPy's error is a MemoryError, PyOpenCL's only has the name
        if not any(kind.__name__ == "MemoryError" for kind in type(error).__mro__):
            raise
        raise BackendError(
            f"{backend.name} has no memory left for the parameters of {model!r} ({error}): choose dtype='float32', a "
            "smaller model, a smaller batch, or a device with more memory"
        ) from error


def _expect_all(work: Work, e_step: EStep[Any], totals: Totals) -> None:
    """Posterior and statistics of every batch in one pass: all points count. A device is not waited for."""

    def sums_of(batch: Batch) -> Sums:
        evidence, sums = e_step(batch)
        return {FREE_ENERGY: evidence.sums(work.backend, batch), N_USE: batch.total, **sums}

    for sums in work.backend.map(sums_of, work.batches):
        totals.add(sums)
        del sums  # before the next batch makes its own


def _refuse(work: Work, e_step: EStep[Any]) -> None:
    """The evidence of some data point is not finite: name the first one, on all ranks.

    Raises
    ------
    DataError
        In any case.
    """

    def look(batch: Batch) -> str:
        try:
            _check(e_step.infer(batch).evidence.values(work.backend), work.model, work.backend, batch)
        except DataError as error:
            return str(error)
        return ""

    found = next((said for said in work.backend.map(look, work.batches) if said), "")
    for rank, said in enumerate(work.comm.allgather(found)):
        if said:
            raise DataError(said if rank == work.comm.rank else f"on rank {rank}: {said}")
    raise DataError("the sums over the data are not finite: use dtype='float64', or rescale the data")


def _expect_selected(work: Work, e_step: EStep[Any], totals: Totals, Ncut: float, params: Params) -> None:
    """Data selection: the points of largest evidence, over all ranks, make the statistics (math.md, the set M)."""
    backend, batches, weights = work.backend, work.batches, work.weights
    keep = batches.N * work.model.bytes_per_point(backend.dtype.itemsize)[1] <= KEEP_BYTES
    log_evidence = np.empty(batches.N)
    kept: dict[int, Any] = {}

    def infer(batch: Batch) -> Sums:
        found = e_step.infer(batch)
        values = found.evidence.values(backend)
        _check(values, work.model, backend, batch)
        log_evidence[batch.start - batches.start :][: batch.n] = values
        if keep:
            kept[batch.start] = found
        return e_step.tally(batch, found)

    def sums_of_chosen(batch: Batch) -> Sums:
        some = chosen[batch.start - batches.start :][: batch.n].astype(float)
        found = kept.pop(batch.start, None)
        if found is None or found.evidence.n != batch.n:  # not kept, or the batch came in other parts
            found = e_step.infer(batch)
        return e_step.sums(backend.reweighted(batch, some), found) if some.any() else {}

    for counts in backend.map(infer, batches):
        totals.add(counts)
    with work.trace.span("selection"):
        chosen = _selection(work, log_evidence, Ncut, params)
    F = log_evidence.sum() if weights is None else log_evidence @ weights.values
    totals.add({FREE_ENERGY: F, N_USE: chosen.sum()})
    for sums in backend.map(sums_of_chosen, batches):
        totals.add(sums)
        del sums


def _selection(work: Work, log_evidence: np.ndarray, Ncut: float, params: Params) -> np.ndarray:
    """How often each of this rank's points counts in the set M, (n,): a mask, or the weights or what is left of them.

    The weights in M add up to a whole number, of which the last point may bring a part.
    """
    A, _ = work.model.truncation(params)
    share = 1 - Ncut * (1 - A)
    if work.weights is not None:
        sought = max(1, math.floor(work.weights.total * share))
        return heaviest(work.comm, log_evidence, work.weights.values, sought)
    total = np.array([work.batches.N])
    work.comm.allreduce(total)
    return largest(work.comm, log_evidence, max(1, math.floor(total[0] * share)))


def _check(log_evidence: np.ndarray, model: Model, backend: Backend, batch: Batch) -> None:
    """NaN or Inf in the data show up in the evidence: look for them only then."""
    if np.all(np.isfinite(log_evidence)):
        return
    model.check_data(backend.to_host(batch.Y), batch.start)
    row = batch.start + int(np.argmin(np.isfinite(log_evidence)))
    raise DataError(f"the evidence of data point {row} is not finite: use dtype='float64', or rescale the data")


def _check_finite(found: Mapping[str, Any], model: Model, backend: Backend, batch: Batch) -> None:
    """The evidence may be finite where means are not: of parameters near the ends of the range of a float.

    Raises
    ------
    DataError
        With the first data point, and what of it is not finite.
    """
    for name, array in found.items():
        if array is not None and not np.all(np.isfinite(array)):
            model.check_data(backend.to_host(batch.Y), batch.start)
            row = batch.start + int(np.argmin(np.isfinite(array).all(axis=1)))
            raise DataError(
                f"the {name} of data point {row} is not finite, as parameters are too large or too small for "
                f"{backend.dtype}: use dtype='float64', or rescale the parameters"
            )


def check_memory(model: Model, memory: Memory | None, start: int, stop: int) -> None:
    """Refuse a step without what the model keeps for each data point, and a memory of other data.

    Raises
    ------
    ConfigError
        With how to begin.
    """
    if (memory is None) != (model.bytes_kept == 0):
        said = "none is given" if memory is None else "this one keeps none"
        raise ConfigError(
            f"memory is what a model that keeps states has for each data point, and {said}: begin with "
            "memory=model.init_memory(data, seed), and pass on what each step gives"
        )
    if memory is not None and (memory.start, memory.n) != (start, stop - start):
        raise ConfigError(
            f"memory has the rows {memory.start} to {memory.start + memory.n}, this rank's data {start} to {stop}"
        )
    wanted = {} if memory is None else model.first_memory(0, 1, 0)
    found = {} if memory is None else memory.arrays
    if {n: (a.shape[1:], a.dtype) for n, a in found.items()} != {n: (a.shape[1:], a.dtype) for n, a in wanted.items()}:
        raise ConfigError(f"memory is that of another model than {model!r}: begin with model.init_memory(data, seed)")


def check_options(model: Model, selects: bool, reseed: bool) -> None:
    """Refuse what a model could only ignore: data selection without a truncation, re-seeding of what never dies.

    Raises
    ------
    ConfigError
        With what the model does instead.
    """
    if selects and not model.truncates:
        raise ConfigError(
            f"Ncut > 0 selects the data points that truncated states explain; {model.name} truncates nothing, so all "
            "points count: leave Ncut at 0"
        )
    if reseed and model.reseeds != "asked":
        instead = "re-seeds its empty components by itself" if model.reseeds == "always" else "has no re-seeding"
        raise ConfigError(f"reseed: {model.name} {instead}: leave it out")


def inward(model: Model, params: Params, reading: Reading) -> Params:
    """The parameters of the data as they are read."""
    return params if reading.shift is None else model.moved(params, -reading.shift)


def _on_data(
    model: Model,
    data: Any,
    backend: Any,
    dtype: Any,
    comm: Communicator,
    batch: int | None,
    work: Callable[[Batches, Backend, Reading], Found],
    weights: SampleWeights | None = None,
    one_pass: bool = True,
) -> Found:
    """`work` on the data; what marks gaps in them is told where they are refused."""
    source = open_for(model, data)
    with telling_gaps(source):
        return _on_source(model, source, backend, dtype, comm, batch, work, weights, one_pass)


def _on_source(
    model: Model,
    source: Source,
    backend: Any,
    dtype: Any,
    comm: Communicator,
    batch: int | None,
    work: Callable[[Batches, Backend, Reading], Found],
    weights: SampleWeights | None,
    one_pass: bool,
) -> Found:
    """`work` on the data, read so that no digits are lost that matter; what was lost is seen while they are read.

    Where the data stay on the device that is before the work, else after it, which then is done once more if it was
    in vain (so it must read the data in one pass, `one_pass`, or they are read before).
    """
    chosen = select(backend, dtype, comm)
    asked = named_type(backend, dtype, chosen)
    reading = Reading(str(chosen.dtype))
    if holds(chosen.dtype, source.dtype):
        return work(chosen.load(local_shard(model, source, chosen, comm, batch), weights), chosen, reading)
    survey = Survey(source, *comm.slab(source.shape[0]))
    batches = chosen.load(local_shard(model, survey, chosen, comm, batch), weights)
    seen = all(comm.allgather(survey.complete))
    found, refused = None, None
    if one_pass and not seen:
        try:
            found = work(batches, chosen, reading)
        except DataError as error:
            refused = error
    needed = settled(model, survey, asked, comm)
    if needed.dtype == reading.dtype and needed.shift is None:
        if refused:
            raise refused
        return work(batches, chosen, reading) if found is None else found
    del batches
    chosen = select(backend, needed.dtype, comm)
    return work(chosen.load(local_shard(model, source, chosen, comm, batch, needed), weights), chosen, needed)


def named_type(backend: Any, dtype: Any, chosen: Backend) -> str:
    """The type that a user asked for by its name, or by that of a backend which has it; or "auto"."""
    by_name = isinstance(backend, Backend) or not (isinstance(dtype, str) and dtype == "auto")
    return str(chosen.dtype) if by_name else "auto"


def settled(model: Model, survey: Survey, asked: str, comm: Communicator) -> Reading:
    """How the data must be read, of which `survey` has seen some rows, or all; told in the log."""
    survey.finish()
    reading = survey.reading(asked, shifting(model.parameters) is not None, comm)
    for note in reading.notes if comm.rank == 0 else ():
        log.info("%s: %s", survey.name, note)
    return reading


def open_for(model: Model, data: Any) -> Source:
    """The data, which must have the model's dimensions."""
    if not isinstance(model, Model):
        raise ConfigError(f"model = {model!r} must be a model of gem.models, such as gem.models.BSC(D=256, H=200)")
    source = open_data(data)
    if source.shape[1] != model.D:
        raise ConfigError(f"the data have {source.shape[1]} dimensions, the model D = {model.D}: they must agree")
    return source


def local_shard(
    model: Model, data: Any, backend: Backend, comm: Communicator, batch: int | None, reading: Reading | None = None
) -> Shard:
    """This rank's slab in the backend's type, cut into batches."""
    source = open_for(model, data)
    return part_of(model, source, *comm.slab(source.shape[0]), backend, batch, reading)


def part_of(
    model: Model,
    source: Source,
    start: int,
    stop: int,
    backend: Backend,
    batch: int | None,
    reading: Reading | None = None,
) -> Shard:
    """The rows [start, stop) in the backend's type, cut into batches."""
    size = batch_of(model, stop - start, backend, batch)
    shift = None if reading is None else reading.shift
    return Shard(source, start, stop, dtype=backend.dtype, batch=size, shift=shift)


def batch_of(model: Model, count: int, backend: Backend, batch: int | None) -> int:
    """How many of so many data points to take at a time: `batch`, or the backend's choice."""
    if batch is not None:
        batch = whole_number("batch", batch)
    return min(batch or backend.batch_size(count, model.bytes_per_point(backend.dtype.itemsize)[0]), MAX_BATCH)
