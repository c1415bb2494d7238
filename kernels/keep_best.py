"""The best of the states that are kept and of new ones, each of them once."""

import numpy as np

from gem.kernels.bits import repeats


def keep_best(
    N: int,
    number: int,
    last: int,
    found: np.ndarray,
    found_energies: np.ndarray,
    sets: np.ndarray,
    energies: np.ndarray,
    age: np.ndarray,
    replaced: np.ndarray,
) -> None:
    """Of the S states of a data point and M found ones the S of the largest energies stay, none of them twice.

    Of equal energies the one that was there first stays. A found state takes the place of one that goes, in their
    order.

    Parameters
    ----------
    number : int
        Of this E-step. A data point whose `age` has come to it is left as it is.
    last : int
        1: then the age becomes `number`.
    found : (N, M, W) uint32 array
    found_energies : (N, M) array
    sets : (N, S, W) uint32 array, in and out
        All different.
    energies : (N, S) array, in and out
    age : (N,) int32 array, in and out
    replaced : (N,) array, in and out
        Plus the states that were replaced.
    """
    S = sets.shape[1]
    better = found_energies > energies.min(axis=1)[:, None]
    some = np.flatnonzero((age < number) & better.any(axis=1))
    if last:
        np.maximum(age, number, out=age)
    if not some.size:
        return
    again = repeats(np.concatenate([sets[some], found[some]], axis=1))[:, S:]
    both = np.concatenate([energies[some], np.where(better[some] & ~again, found_energies[some], -np.inf)], axis=1)
    stays = np.zeros(both.shape, bool)
    np.put_along_axis(stays, np.argsort(-both, axis=1, kind="stable")[:, :S], True, axis=1)
    row, place = np.nonzero(~stays[:, :S])
    _, new = np.nonzero(stays[:, S:])
    sets[some[row], place] = found[some[row], new]
    energies[some[row], place] = found_energies[some[row], new]
    replaced[some] += stays[:, S:].sum(axis=1)


def tile(**_: int) -> int:
    """A group of a GPU takes one data point."""
    return 1


def local_reals(COUNT: int, NEW: int, **_: int) -> int:
    """Numbers in local memory."""
    return 3 * (COUNT + NEW)
