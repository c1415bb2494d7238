"""Sample weights: how often each data point counts; each rank reads those of its own slab."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from gem.data.hdf5 import of_dataset, open_hdf5
from gem.data.kinds import kind_of, split_name
from gem.data.numpy_files import NpySource, NpzSource
from gem.data.source import NUMERIC, Source, Spec
from gem.data.tables import open_table
from gem.errors import ConfigError, DataError
from gem.parallel import Communicator

MOST = 2.0**30  # larger weights count in units of the largest, and so do those that are all below 1


@dataclass(frozen=True)
class SampleWeights:
    """The weights of one rank's slab of the data.

    Attributes
    ----------
    start : int
        The global row of the first.
    values : (n,) float64 array
        In units of `unit`.
    unit : float
        1; or the largest weight, where this is below 1 (or above 2³⁰): what is told from a threshold in data points,
        such as a dead latent, must not depend on weights that add up to 1.
    edges : (ranks + 1,) float64 array
        Where the weights of each rank begin and end if those of all ranks are laid end to end, in units of `unit`.
    rows : int
        How many of all ranks' weights are not 0.
    record : dict
        What the run file keeps: `data`, where they can be read again (None: they were an array), and `fingerprint`.
    """

    start: int
    values: np.ndarray
    unit: float
    edges: np.ndarray
    rows: int
    record: dict[str, Any]

    @property
    def total(self) -> float:
        """Σ_n w_n over all ranks, in units of `unit`."""
        return float(self.edges[-1])

    def everywhere(self, comm: Communicator) -> SampleWeights:
        """The weights of all rows, on every rank."""
        values = np.concatenate(comm.allgather(self.values))
        return SampleWeights(0, values, self.unit, np.array([0.0, self.total]), self.rows, self.record)

    def of(self, start: int, n: int) -> np.ndarray:
        """Those of n points from the global row `start` on."""
        return self.values[start - self.start :][:n]


def load_weights(weights: Any, N: int, comm: Communicator) -> SampleWeights:
    """Read and check this rank's part of the weights of N data points.

    Parameters
    ----------
    weights : (N,) array, path, or gem.data source of one column
        An array in a file is ``PATH:NAME``. `SampleWeights` are returned as they are.
    N : int
    comm : Communicator

    Raises
    ------
    ConfigError
        If there are not N of them.
    DataError
        If one is negative, NaN or Inf (with its row), all are 0, or they cannot be read.
    """
    if isinstance(weights, SampleWeights):
        return weights
    start, stop = comm.slab(N)
    values, spec, name = _read(weights, N, start, stop)
    refused = _refusal(values, start, name)  # told on all ranks
    said = [text for text in comm.allgather(refused) if text]
    if said:
        raise DataError(refused or said[0])
    with np.errstate(over="ignore"):
        moment = float(values @ (np.arange(start, stop) + 1.0))
        sums = comm.allgather((float(values.sum()), moment, float(values.max(initial=0))))
    largest = max(peak for *_, peak in sums)
    total = sum(part for part, *_ in sums)
    if largest == 0:
        raise DataError(f"{name}: all {N} are 0, from row 0 on: no data point is left to learn from")
    if not np.isfinite(sum(moment for _, moment, _ in sums)):
        raise DataError(f"{name}: they add up to no number: divide them by the largest, {largest:g}")
    unit = largest if largest < 1 or largest > MOST else 1.0
    values = values / unit
    ends, rows = np.array(comm.allgather((np.cumsum(values)[-1] if len(values) else 0.0, np.count_nonzero(values)))).T
    record = {"data": spec, "fingerprint": [total, sum(moment for _, moment, _ in sums) / N]}
    return SampleWeights(start, values, unit, np.concatenate([[0.0], np.cumsum(ends)]), int(rows.sum()), record)


def place_of(path: str | None) -> Spec | None:
    """Where the weights at this path can be read again, as `SampleWeights.record` has it under `data`."""
    if path is None:
        return None
    opened = _open_file(path)
    opened.close()
    return {"data": opened.name}


def _refusal(values: np.ndarray, start: int, name: str) -> str:
    """Why these values are no weights; empty if they are."""
    bad = ~(np.isfinite(values) & (values >= 0))
    if not bad.any():
        return ""
    row = int(bad.argmax())
    return (
        f"{name}: {values[row]} at row {start + row}, the first of {bad.sum()} such values in rows {start} to "
        f"{start + len(values) - 1}: a weight is a finite number, 0 or more"
    )


def _read(weights: Any, N: int, start: int, stop: int) -> tuple[np.ndarray, Spec | None, str]:
    """Rows [start, stop) in float64, where they can be read again, and what messages call them."""
    if isinstance(weights, str | os.PathLike):
        opened: Any = _open_file(os.fsdecode(weights))
    elif isinstance(weights, Source):
        opened = weights
    elif type(weights).__module__.startswith("h5py"):
        opened = of_dataset(weights)
    else:
        array = _array(weights)
        _check_form(array.shape, array.dtype, N, "weights")
        return array[start:stop].astype(np.float64).ravel(), None, "weights"
    try:
        name = f"weights {opened.name}"
        _check_form(opened.shape, opened.dtype, N, name)
        values = np.asarray(opened.read(start, stop)).astype(np.float64).ravel()
        spec = opened.spec if isinstance(opened, Source) else {"data": opened.name}  # an HDF5Array
    finally:
        if opened is not weights:
            opened.close()
    return values, spec, name


def _open_file(given: str) -> Any:
    """An array (N,), or a table of one column, at ``PATH`` or ``PATH:NAME``."""
    path, name = split_name(given)
    kind = kind_of(path)
    if kind == "npy" and name is None:
        return NpySource(path, column=True)
    if kind == "npz":
        return NpzSource(path, name, column=True)
    if kind == "hdf5":
        return open_hdf5(path, name, dims=(1, 2))
    return open_table(given)


def _array(weights: Any) -> np.ndarray:
    """An object of numbers in memory; what is masked is NaN."""
    try:
        if isinstance(weights, np.ma.MaskedArray):
            return np.ma.filled(weights.astype(np.float64), np.nan)
        return np.asarray(weights.to_numpy() if hasattr(weights, "to_numpy") else weights)
    except (TypeError, ValueError) as error:
        raise DataError(f"weights must be an array of numbers, one for each data point: {error}") from error


def _check_form(shape: tuple[int, ...], dtype: np.dtype, N: int, name: str) -> None:
    if dtype.kind not in NUMERIC:
        raise DataError(f"{name} are {dtype}: they must be real numbers, one for each data point")
    if tuple(shape) not in ((N,), (N, 1)):
        count = f"{shape[0]} of them" if len(shape) == 1 or tuple(shape[1:]) == (1,) else f"an array {tuple(shape)}"
        where = f", none for row {shape[0]}" if shape and shape[0] < N and "of them" in count else ""
        raise ConfigError(f"{name}: there are {count} for {N} data points{where}: give one for each, ({N},)")
