"""Expectation maximization: one step as a pure function, and the posterior."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np

from gem.backends import Backend, Batches, Totals, blas, select
from gem.checks import whole_number
from gem.data import Reading, SampleWeights, Shard, Source, Survey, holds, load_weights, open_data
from gem.data.shard import telling_gaps
from gem.errors import BackendError, ConfigError, DataError
from gem.holding import Hold
from gem.models import Model, Posterior, Step
from gem.models.base import Params
from gem.models.mixtures import Mixture
from gem.notes import kind
from gem.parallel import Communicator, communicator, heaviest, largest
from gem.statistics import Layout, Statistics, Sums
from gem.trace import OFF, Trace

log = logging.getLogger("gem")

Found = TypeVar("Found")
MAX_BATCH = 1 << 22  # data points at a time: kernels count them in 32 bits
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

    def scalars(self) -> dict[str, float]:
        """Everything but the notes, and but `share_at_gamma` and `held_out` where there are none."""
        some = ("share_at_gamma", "held_out")
        return {k: v for k, v in asdict(self).items() if k != "notes" and not (k in some and math.isnan(v))}


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
) -> tuple[Params, Info]:
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

    Returns
    -------
    params : dict of float64 arrays
    info : Info

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

    def one_step(batches: Batches, chosen: Backend, reading: Reading) -> tuple[Params, Info]:
        step = Step(T, Ncut, anneal_prior, str(chosen.dtype), reseed)
        check_options(model, Ncut > 0, reseed)
        new, info, _ = step_on(model, model.check(params), batches, chosen, group, step, reading, counts, held)
        return new, replace(info, notes=[*reading.notes, *info.notes])

    group = communicator(comm)
    with group.guard():
        source = open_for(model, data)
        held = Hold.of(model, hold)
        counts = None if weights is None else load_weights(weights, source.shape[0], group)
        return _on_data(model, source, backend, dtype, group, batch, one_step, one_pass=Ncut == 0)


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

    Returns
    -------
    Posterior
        `log_evidence` (N,), `candidates` (N, H'), `mean` (N, H) ⟨s⟩ and `product` (N, H) as host arrays, and with
        `top` `states`, `probabilities` and `map_state`, with `reconstruct` or `impute` `reconstruction` (N, D); for a
        mixture `mean` (N, K) holds the responsibilities and `candidates` is None. Other arguments and errors
        as in `em_step`; what is not finite is never returned, but raises `DataError`. Codes of SC that were not found
        within its iterations are told by a warning of the logger "gem".
    """
    group = communicator(comm)
    with group.guard():
        top = whole_number("top", top, 0)

        def infer_all(batches: Batches, chosen: Backend, reading: Reading) -> Posterior:
            return _infer_all(
                model, params, batches, chosen, reading, T, anneal_prior, top, reconstruct or impute, impute
            )

        return _on_data(model, data, backend, dtype, group, batch, infer_all)


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
        tables = model.tables(checked, chosen, Step(T, 0.0, anneal_prior, str(chosen.dtype)))
    counts = chosen.totals({"N": (), **model.tallies})

    def infer(start: int, Y: Any) -> tuple[Posterior, Sums]:
        found = model.infer_full(tables, Y)
        count = {"N": Y.shape[0], **model.tally(tables, found)}
        log_evidence = found.log_evidence.values(chosen)
        _check(log_evidence, model, chosen, Y, start)
        y = model.reconstruct(tables, Y, found) if reconstruct else None
        host: dict[str, Any] = {
            name: None if array is None else chosen.to_host(array)
            for name, array in (
                ("candidates", found.candidates),
                ("mean", found.mean),
                ("product", found.product),
                ("reconstruction", y),
            )
        }
        _check_finite(host, model, chosen, Y, start)
        if impute:
            seen = chosen.to_host(Y)
            host["reconstruction"] = np.where(np.isnan(seen), host["reconstruction"], seen)
        if reading.shift is not None and host["reconstruction"] is not None:
            host["reconstruction"] = host["reconstruction"] + reading.shift
        told = Posterior(log_evidence, **host)
        if top:
            told.states, told.probabilities = model.top_states(checked, chosen.to_host(Y).astype(float), told, top)
        return told, count

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

    names = ("log_evidence", "candidates", "mean", "product", "states", "probabilities", "reconstruction")
    return Posterior(**{name: whole(name) for name in names})


@dataclass(frozen=True)
class _Task:
    """An E-step: of whom, on what, where."""

    model: Model
    params: Params
    tables: Any
    batches: Batches
    backend: Backend
    comm: Communicator
    step: Step
    trace: Trace
    weights: SampleWeights | None


def run_step(
    model: Model,
    params: Params,
    batches: Batches,
    backend: Backend,
    comm: Communicator,
    step: Step,
    stop: Callable[[], bool] = bool,
    trace: Trace = OFF,
    weights: SampleWeights | None = None,
    hold: Hold | None = None,
) -> tuple[Params, Info, bool]:
    """E-step on this rank's data, one reduction, M-step.

    `stop` is asked, after the E-step, whether this rank wants to end; the last thing returned is whether any does.
    """
    began = time.perf_counter()
    params = {name: np.asarray(value) for name, value in params.items()}  # a scalar's powers round otherwise
    with blas.limited(1):  # threads are the backend's: those of BLAS spin after their work, in the way of all others
        step = replace(step, residuals=model.needs_residuals(params, step))
        done = False
        while not done:
            stats = _expect(model, params, batches, backend, comm, step, stop, trace, weights)
            with trace.span("M-step"):
                new, notes = model.m_step(stats, params, step)
                if hold is not None:
                    new = hold.after(new, params, stats, step)
                done = step.residuals or not model.needs_residuals(new, step, stats)
                if done and step.reseed:
                    new, revived = model.reseed(new, stats)
                    notes = notes + revived
                    new = new if hold is None else hold.put_back(new, params)
            step = replace(step, residuals=True)  # of the second time, if there is one
    for name, value in new.items():
        if not np.all(np.isfinite(value)):
            raise DataError(f"the M-step gave a {name} that is not finite: use dtype='float64', or rescale the data")
    info = Info(
        free_energy=_counted(stats, "free_energy", weights),
        N=int(stats["N"]) if weights is None else _counted(stats, "N", weights),
        N_use=int(stats["N_use"]) if weights is None else _counted(stats, "N_use", weights),
        T=step.T,
        Ncut=step.Ncut,
        seconds=time.perf_counter() - began,
        notes=notes,
        share_at_gamma=_share_at_gamma(stats),
    )
    return new, info, bool(stats["stop"] > 0)


def closing(
    info: Info,
    model: Model,
    params: Params,
    batches: Batches,
    backend: Backend,
    comm: Communicator,
    trace: Trace = OFF,
    weights: SampleWeights | None = None,
) -> Info:
    """What the last step of a run tells: one more E-step, at T = 1 and on all points, says how good its result is.

    `free_energy` and `share_at_gamma` are those of `params`, what the run ended with, and `notes` says where inference
    falls short of what was asked for.
    """
    with blas.limited(1):
        stats = _expect(model, params, batches, backend, comm, Step(dtype=str(backend.dtype)), bool, trace, weights)
    said = {kind(note) for note in info.notes}
    share = _share_at_gamma(stats)
    return replace(
        info,
        free_energy=_counted(stats, "free_energy", weights),
        share_at_gamma=share,
        notes=info.notes + [n for n in model.shortfalls(stats) + model.advice(share) if kind(n) not in said],
    )


def _counted(stats: Statistics, name: str, weights: SampleWeights | None) -> float:
    """A sum over data points, which were weighted in units of `weights`."""
    return float(stats[name]) * (1.0 if weights is None else weights.unit)


def _share_at_gamma(stats: Statistics) -> float:
    return float(stats["at_gamma"] / stats["N"]) if "at_gamma" in stats else math.nan


def _expect(
    model: Model,
    params: Params,
    batches: Batches,
    backend: Backend,
    comm: Communicator,
    step: Step,
    stop: Callable[[], bool],
    trace: Trace,
    weights: SampleWeights | None,
) -> Statistics:
    """The sums of an E-step over all ranks; BLAS has been limited.

    Raises
    ------
    DataError
        If they are not finite.
    """
    with trace.span("E-step"):
        with _room_for_tables(model, backend):
            counts: Layout = {"free_energy": (), "N": (), "N_use": (), "stop": (), **model.tallies}
            totals = backend.totals({**counts, **model.layout})
            tables = model.tables(params, backend, step)
        expectation = _e_step if step.Ncut == 0 else _selective_e_step
        task = _Task(model, params, tables, batches, backend, comm, step, trace, weights)
        expectation(task, totals)
        backend.synchronize()
    totals.add({"N": batches.N if weights is None else weights.values.sum(), "stop": int(stop())})
    with trace.span("reduction", bytes=totals.nbytes), _room_for_tables(model, backend):
        stats = totals.reduce(comm)
    if not np.all(np.isfinite(stats.buffer)):
        _refuse(task)
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


def _e_step(task: _Task, totals: Totals) -> None:
    """Posterior and statistics of every batch in one pass: all points count. A device is not waited for."""

    def expect(start: int, Y: Any) -> Sums:
        evidence, sums = task.model.e_step(task.tables, Y)
        return {"free_energy": evidence.sums(task.backend), "N_use": Y.shape[0], **sums}

    def expect_weighted(start: int, Y: Any) -> Sums:
        some = cast(SampleWeights, task.weights).of(start, Y.shape[0])
        evidence, sums = task.model.e_step(task.tables, Y, some)
        return {"free_energy": evidence.sums(task.backend, some), "N_use": some.sum(), **sums}

    for sums in task.backend.map(expect if task.weights is None else expect_weighted, task.batches):
        totals.add(sums)
        del sums  # before the next batch makes its own


def _refuse(task: _Task) -> None:
    """The evidence of some data point is not finite: name the first one, on all ranks.

    Raises
    ------
    DataError
        In any case.
    """

    def look(start: int, Y: Any) -> str:
        try:
            values = task.model.infer(task.tables, Y).log_evidence.values(task.backend)
            _check(values, task.model, task.backend, Y, start)
        except DataError as error:
            return str(error)
        return ""

    found = next((said for said in task.backend.map(look, task.batches) if said), "")
    for rank, said in enumerate(task.comm.allgather(found)):
        if said:
            raise DataError(said if rank == task.comm.rank else f"on rank {rank}: {said}")
    raise DataError("the sums over the data are not finite: use dtype='float64', or rescale the data")


def _selective_e_step(task: _Task, totals: Totals) -> None:
    """Data selection: the points of largest evidence, over all ranks, make the statistics (math.md, the set M)."""
    model, tables, batches, weights = task.model, task.tables, task.batches, task.weights
    keep = batches.N * model.bytes_per_point(task.backend.dtype.itemsize)[1] <= KEEP_BYTES
    log_evidence = np.empty(batches.N)
    kept: dict[int, Posterior] = {}

    def infer(start: int, Y: Any) -> Sums:
        found = model.infer(tables, Y)
        values = found.log_evidence.values(task.backend)
        _check(values, model, task.backend, Y, start)
        log_evidence[start - batches.start :][: len(values)] = values
        if keep:
            kept[start] = found
        return model.tally(tables, found, None if weights is None else weights.of(start, Y.shape[0]))

    def select_and_sum(start: int, Y: Any) -> Sums:
        some = chosen[start - batches.start :][: Y.shape[0]].astype(float)
        found = kept.pop(start, None)
        if found is None or found.log_evidence.n != len(some):  # not kept, or the batch came in other parts
            found = model.infer(tables, Y)
        return model.sums(tables, Y, found, some) if some.any() else {}

    for counts in task.backend.map(infer, batches):
        totals.add(counts)
    with task.trace.span("selection"):
        chosen = _selection(task, log_evidence)
    F = log_evidence.sum() if weights is None else log_evidence @ weights.values
    totals.add({"free_energy": F, "N_use": chosen.sum()})
    for sums in task.backend.map(select_and_sum, batches):
        totals.add(sums)
        del sums


def _selection(task: _Task, log_evidence: np.ndarray) -> np.ndarray:
    """How often each of this rank's points counts in the set M, (n,): a mask, or the weights or what is left of them.

    The weights in M add up to a whole number, of which the last point may bring a part.
    """
    A, _ = task.model.truncation(task.params)
    share = 1 - task.step.Ncut * (1 - A)
    if task.weights is not None:
        sought = max(1, math.floor(task.weights.total * share))
        return heaviest(task.comm, log_evidence, task.weights.values, sought)
    total = np.array([task.batches.N])
    task.comm.allreduce(total)
    return largest(task.comm, log_evidence, max(1, math.floor(total[0] * share)))


def _check(log_evidence: np.ndarray, model: Model, backend: Backend, Y: Any, start: int) -> None:
    """NaN or Inf in the data show up in the evidence: look for them only then."""
    if np.all(np.isfinite(log_evidence)):
        return
    model.check_data(backend.to_host(Y), start)
    row = start + int(np.argmin(np.isfinite(log_evidence)))
    raise DataError(f"the evidence of data point {row} is not finite: use dtype='float64', or rescale the data")


def _check_finite(found: Mapping[str, Any], model: Model, backend: Backend, Y: Any, start: int) -> None:
    """The evidence may be finite where means are not: of parameters near the ends of the range of a float.

    Raises
    ------
    DataError
        With the first data point, and what of it is not finite.
    """
    for name, array in found.items():
        if array is not None and not np.all(np.isfinite(array)):
            model.check_data(backend.to_host(Y), start)
            row = start + int(np.argmin(np.isfinite(array).all(axis=1)))
            raise DataError(
                f"the {name} of data point {row} is not finite, as parameters are too large or too small for "
                f"{backend.dtype}: use dtype='float64', or rescale the parameters"
            )


def check_options(model: Model, selects: bool, reseed: bool) -> None:
    """Refuse what a model could only ignore: data selection without a truncation, re-seeding of what never dies.

    Raises
    ------
    ConfigError
        With what the model does instead.
    """
    if selects and type(model).truncation is Model.truncation:
        raise ConfigError(
            f"Ncut > 0 selects the data points that truncated states explain; {model.name} truncates nothing, so all "
            "points count: leave Ncut at 0"
        )
    if reseed and type(model).reseed is Model.reseed:
        instead = "re-seeds its empty components by itself" if isinstance(model, Mixture) else "has no re-seeding"
        raise ConfigError(f"reseed: {model.name} {instead}: leave it out")


def inward(model: Model, params: Params, reading: Reading) -> Params:
    """The parameters of the data as they are read."""
    return params if reading.shift is None else model.moved(params, -reading.shift)


def step_on(
    model: Model,
    params: Params,
    batches: Batches,
    backend: Backend,
    comm: Communicator,
    step: Step,
    reading: Reading,
    weights: SampleWeights | None = None,
    hold: Hold | None = None,
) -> tuple[Params, Info, bool]:
    """`run_step` on data that may have been shifted, with parameters of the data as they were."""
    local = inward(model, params, reading)
    new, info, stop = run_step(model, local, batches, backend, comm, step, weights=weights, hold=hold)
    new = model.moved(new, reading.shift)
    return new if hold is None else hold.put_back(new, params), info, stop


def _on_data(
    model: Model,
    data: Any,
    backend: Any,
    dtype: Any,
    comm: Communicator,
    batch: int | None,
    work: Callable[[Batches, Backend, Reading], Found],
    one_pass: bool = True,
) -> Found:
    """`work` on the data; what marks gaps in them is told where they are refused."""
    source = open_for(model, data)
    with telling_gaps(source):
        return _on_source(model, source, backend, dtype, comm, batch, work, one_pass)


def _on_source(
    model: Model,
    source: Source,
    backend: Any,
    dtype: Any,
    comm: Communicator,
    batch: int | None,
    work: Callable[[Batches, Backend, Reading], Found],
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
        return work(chosen.load(local_shard(model, source, chosen, comm, batch)), chosen, reading)
    survey = Survey(source, *comm.slab(source.shape[0]))
    batches = chosen.load(local_shard(model, survey, chosen, comm, batch))
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
    return work(chosen.load(local_shard(model, source, chosen, comm, batch, needed)), chosen, needed)


def named_type(backend: Any, dtype: Any, chosen: Backend) -> str:
    """The type that a user asked for by its name, or by that of a backend which has it; or "auto"."""
    by_name = isinstance(backend, Backend) or not (isinstance(dtype, str) and dtype == "auto")
    return str(chosen.dtype) if by_name else "auto"


def settled(model: Model, survey: Survey, asked: str, comm: Communicator) -> Reading:
    """How the data must be read, of which `survey` has seen some rows, or all; told in the log."""
    survey.finish()
    reading = survey.reading(asked, model.location is not None, comm)
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
    if batch is not None:
        batch = whole_number("batch", batch)
    start, stop = comm.slab(source.shape[0])
    needed = model.bytes_per_point(backend.dtype.itemsize)[0]
    size = min(batch or backend.batch_size(stop - start, needed), MAX_BATCH)
    shift = None if reading is None else reading.shift
    return Shard(source, start, stop, dtype=backend.dtype, batch=size, shift=shift)
