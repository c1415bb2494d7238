"""Where a run begins, if not where its model does: at labels, responsibilities, a smaller run, what a function says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gem.data import SampleWeights, Source, open_data
from gem.errors import ConfigError
from gem.models import Model, Step, make
from gem.models.growth import grown
from gem.models.mixtures import Mixture
from gem.models.parameters import Params
from gem.parallel import Communicator
from gem.philox import generator
from gem.statistics import N_USE, Statistics
from gem.store import is_run_file, read_run
from gem.summary import summarize

PIECE = 1 << 20  # numbers that are read at a time
WANTED = (
    "labels (N,), responsibilities (N, K), a run or run file of the same model with fewer components or latents, or "
    "a function of a numpy Generator that gives parameters"
)


def is_drawn(start: Any) -> bool:
    """Whether another seed gives another start."""
    if start is None or callable(start) or hasattr(start, "model"):
        return True
    return (isinstance(start, str) or hasattr(start, "__fspath__")) and is_run_file(start)


def starting(
    model: Model, start: Any, source: Source, seed: int, comm: Communicator, weights: SampleWeights | None
) -> Params:
    """The first parameters; the same on every rank.

    Parameters
    ----------
    start
        See WANTED; labels and responsibilities may be a file.

    Raises
    ------
    ConfigError
        If it is none of these, or does not fit the model and its data, with what to write.
    """
    rng = generator(seed, "start")
    if callable(start):
        return _called(start, rng)
    if hasattr(start, "model") and hasattr(start, "params"):  # a run, or what was read of one
        smaller = start.model if isinstance(start.model, Model) else make(start.model, start.config["settings"])
        return grown(model, smaller, start.params, rng)
    if isinstance(start, str) or hasattr(start, "__fspath__"):
        if is_run_file(start):
            run = comm.bcast(read_run(start) if comm.rank == 0 else None)
            return grown(model, make(run.model, run.config["settings"]), run.params, rng)
        with open_data(start) as table:
            start = table.read(0, table.shape[0])
        start = start[:, 0] if start.shape[1] == 1 else start
    return _from_groups(model, start, source, comm, weights)


def _called(function: Any, rng: np.random.Generator) -> Params:
    params = function(rng)
    if not isinstance(params, Mapping):
        raise ConfigError(
            f"start: the function gave {type(params).__name__}: let it give parameters, a dict of name and array, as "
            "start=lambda rng: {'W': rng.normal(size=(D, H)), ...}"
        )
    return dict(params)


def _from_groups(model: Model, start: Any, source: Source, comm: Communicator, weights: SampleWeights | None) -> Params:
    """From which data point belongs to which component."""
    N = source.shape[0]
    try:
        given = np.asarray(start)
    except ValueError:
        given = np.zeros((), dtype=object)
    if given.dtype.kind not in "biuf" or given.ndim not in (1, 2):
        raise ConfigError(f"start = {start!r:.80} must be {WANTED}")
    if not isinstance(model, Mixture):
        raise ConfigError(
            f"start: labels and responsibilities are of mixtures, {model.name} has latents: give a function, or params="
        )
    r = _responsibilities(given, N, model.K)
    first, last = comm.slab(N)
    if weights is not None:
        r = r.copy()
        r[first:last] *= weights.values[:, None]
    return _of_groups(model, source, r, first, last, comm)


def _of_groups(model: Mixture, source: Source, r: np.ndarray, first: int, last: int, comm: Communicator) -> Params:
    """What the M-step makes of these responsibilities (N, K); this rank has the rows from first to last.

    The first round is about the mean of the data, the second about the centres that it found: no digits are lost.
    """
    about = summarize(source, model.D, comm, model.missing)
    centres = np.tile(about.mean, (model.K, 1))
    params = {"pi": np.full(model.K, 1 / model.K), **model.begin(centres, about.var, about)}
    rows = max(1, PIECE // source.shape[1])
    for _ in range(2):
        sums = Statistics({N_USE: (), **model.layout})
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            Y = source.read(start, stop).astype(np.float64)
            for name, value in model.sums_on_host(params, Y, r[start:stop]).items():
                sums.add(name, value)
        sums.add(N_USE, r[first:last].sum())
        comm.allreduce(sums.buffer)
        params, _ = model.maximize(model.moments(sums, params, Step()), params, Step())
    return params


def _responsibilities(given: np.ndarray, N: int, K: int) -> np.ndarray:
    """(N, K), each row with the sum 1.

    Raises
    ------
    ConfigError
    """
    if len(given) != N or (given.ndim == 2 and given.shape[1] != K):
        raise ConfigError(
            f"start has the shape {given.shape}: labels must be ({N},), one for each data point, responsibilities "
            f"({N}, {K})"
        )
    if given.ndim == 2:
        bad = np.flatnonzero(~(np.isfinite(given) & (given >= 0)).all(axis=1) | ~(given.sum(axis=1) > 0))
        if len(bad):
            raise ConfigError(f"start: the responsibilities of data point {bad[0]} must be ≥ 0, with a sum above 0")
        r = given.astype(np.float64)
        r = r / r.sum(axis=1, keepdims=True)
    else:
        bad = np.flatnonzero(~((given >= 0) & (given < K) & (np.floor(given) == given)))
        if len(bad):
            raise ConfigError(
                f"start: the label {given[bad[0]]} of data point {bad[0]} must be a whole number, 0 to K - 1 = {K - 1}"
            )
        r = np.zeros((N, K))
        r[np.arange(N), given.astype(int)] = 1
    empty = np.flatnonzero(r.sum(axis=0) == 0)
    if len(empty):
        raise ConfigError(f"start: no data point belongs to component {empty[0]} of K = {K}: choose a smaller K")
    return r
