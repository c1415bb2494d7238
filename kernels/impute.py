"""What missing entries owe to pairs of latents that are active together."""

import numpy as np

LANES = 32  # of a part of D
POINTS = 1  # that a warp takes at a time
TILE_ELEMENTS = 1 << 20  # of points × candidates × D that are held at once


def impute(
    N: int,
    observed: np.ndarray,
    fields: np.ndarray,
    candidates: np.ndarray,
    pairs: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Σ_n w_n (1 − observed_nd) Σ_{j≠i} ⟨s_i s_j⟩ fields[c_j, d], in row c_i of the sums, for the candidates c of n.

    Parameters
    ----------
    observed : (N, D) array of 0 and 1
        Out: w_n (1 − observed_nd).
    fields : (H, D) array
    candidates : (N, H') int array
    pairs : (N, H'(H'−1)/2) array
        Of the candidates i < j, lexicographic.
    weights : (N,) array
    sums : (1, H, D) float64 array, out
        A row for each group that takes part, here one.
    """
    np.subtract(1, observed, out=observed)
    observed *= weights[:, None]
    sums[...] = 0
    (_, D), Hprime = fields.shape, candidates.shape[1]
    i, j = np.triu_indices(Hprime, 1)
    concerned = np.flatnonzero(observed.any(axis=1)) if len(i) else np.empty(0, np.intp)
    tile = max(1, TILE_ELEMENTS // (Hprime * D))
    for start in range(0, len(concerned), tile):
        part = concerned[start : start + tile]
        second = np.zeros((len(part), Hprime, Hprime))
        second[:, i, j] = second[:, j, i] = pairs[part]
        expected = second @ fields[candidates[part]]
        expected *= observed[part, None, :]
        _add_rows(sums[0], candidates[part].ravel(), expected.reshape(-1, D))


def _add_rows(out: np.ndarray, where: np.ndarray, rows: np.ndarray) -> None:
    """out[where[k]] += rows[k], of equal places all: sorted by place, a run at a time."""
    order = np.argsort(where, kind="stable")
    places, first = np.unique(where[order], return_index=True)
    out[places] += np.add.reduceat(rows[order], first, axis=0)


def walks(cpu: bool, D: int, H: int, **_: int) -> int:
    """The sums of a group."""
    return H * D
