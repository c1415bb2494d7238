"""A Source is an (N, D) table that is read in slices of rows; an array in memory is the simplest one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gem.errors import DataError, GemError

NUMERIC = "buif"  # dtype kinds: bool, unsigned, integer, float
PATCHES = "; if these are pictures, patch=16 (on the command line --patch 16) takes patches of them"
LISTED = 10  # arrays of a file that a message names: the largest

Spec = dict[str, Any]
Form = tuple[tuple[int, ...], np.dtype]  # shape and dtype


class Source(ABC):
    """An (N, D) table that can be read in slices of rows, by several threads at once.

    Attributes
    ----------
    shape : (N, D).
    dtype : as stored; a Shard converts.
    name : what messages call it.
    spec : JSON-able dict from which `from_spec` rebuilds the source; None for an array in memory.
    gaps : what marks missing entries in the file, which are read as NaN, such as "_FillValue = -999"; empty if
        nothing does.

    Raises
    ------
    DataError
        Not two axes, no row or no column, or not real numbers.
    """

    gaps = ""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, name: str, spec: Spec | None = None):
        check_form(shape, dtype, name)
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = dtype
        self.name = name
        self.spec = spec

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) within [0, N): a (stop - start, D) array of `dtype`, not to be edited."""

    def close(self) -> None:  # noqa: B027 (most sources hold nothing open)
        """Let go of an open file; nothing is read after this."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check_form(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    if dtype.names:
        problem = (
            f"it has the named columns {', '.join(dtype.names[:LISTED])}: "
            "numpy.lib.recfunctions.structured_to_unstructured(Y[['NAME', ...]]) makes an array of those of numbers"
        )
    elif len(shape) == 1:
        problem = "data is (N, D), a row per data point: Y[:, None] makes N points with D = 1 of it"
    elif not shape:
        problem = "data is (N, D), a row per data point, not a single number"
    elif len(shape) != 2:
        problem = "data is (N, D), a row per data point: Y.reshape(len(Y), -1) flattens each point" + (
            PATCHES if len(shape) > 2 else ""
        )
    elif 0 in shape:
        problem = "there is nothing to learn from: data has at least one row and one column"
    elif dtype.kind == "c":
        problem = "complex numbers are not supported: np.hstack([Y.real, Y.imag]) puts the parts side by side"
    elif dtype.kind not in NUMERIC:
        problem = "data is real numbers: convert it, Y.astype(float), or pick the numeric columns"
    else:
        return
    raise DataError(f"{name} has shape {tuple(shape)} and dtype {dtype}; {problem}")


class ArraySource(Source):
    """An (N, D) array in memory; `read` returns views of it."""

    def __init__(self, array: np.ndarray, name: str = "data", spec: Spec | None = None):
        super().__init__(array.shape, array.dtype, name, spec)
        self._array = array

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._array[start:stop]


def wide_enough(dtype: np.dtype, extremes: Iterable[tuple[Any, Any]]) -> np.dtype:
    """The type of columns side by side: wider than float64, if whole numbers of 64 bits lie beyond what that holds.

    Parameters
    ----------
    dtype : that all columns convert to.
    extremes : the least and the largest value of the columns of such numbers.
    """
    beyond = any(low < -(2**53) or high > 2**53 for low, high in extremes)
    return np.dtype(np.longdouble) if beyond and dtype == np.float64 else dtype


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Errors of the file system and of the format name the file."""
    try:
        yield
    except GemError:
        raise
    except Exception as error:  # broken files raise OSError, ValueError, RuntimeError, BadZipFile, ...
        raise DataError(f"cannot read {path}: {error}; is it there, whole, and of that kind?") from error
