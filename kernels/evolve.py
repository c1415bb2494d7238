"""New states from old ones: parents are drawn, and their children are mutants of them.

Drefs, Guiraud, Lücke, *Evolutionary variational optimization of generative models*, JMLR 23(21), 2022.
"""

import numpy as np

from gem.kernels.bits import flipped, listed
from gem.kernels.philox import below, philox, uniform

RANDFLIP, SPARSEFLIP, CROSS = range(3)
FLIPS = 2.0  # of a child by sparseflip, on an average
TILE = 1 << 10  # data points at once
HEADERS = ("philox.h",)


def evolve(
    N: int,
    number: int,
    generation: int,
    kappa: float,
    keys: np.ndarray,
    pool: np.ndarray,
    energies: np.ndarray,
    children: np.ndarray,
    *,
    H: int,
    PARENTS: int,
    CHILDREN: int,
    MUTATION: int,
    FIT: int,
) -> None:
    """PARENTS states of the `pool` of each data point have CHILDREN each: `children`, in the parents' order.

    Parents are drawn without replacement: with FIT by weights E − 2 min(0, E_1, E_2, ...), else all alike. A state of
    weight f waits for an exponential time of rate f, and the first ones are drawn.

    Parameters
    ----------
    number, generation : int
        Of this E-step, and within it: together with `keys` they say which random numbers are taken.
    kappa : float
        By SPARSEFLIP FLIPS latents are flipped on an average, so many of them off that kappa would be on.
    keys : (N, 2) uint32 array
    pool : (N, M, W) uint32 array
    energies : (N, M) array
    children : (N, PARENTS CHILDREN, W) uint32 array, out
        RANDFLIP: each child of a parent has another latent flipped. CROSS: child (i, j) begins as parent i and ends as
        parent j ≠ i, which change places with (j, i), and has one latent flipped.
    """
    for start in range(0, N, TILE):
        part = slice(start, min(N, start + TILE))
        key = keys[part, None]
        clock = _uniforms(key, number, 2 * generation, energies.shape[1], energies.dtype)
        wait = -np.log(clock)
        if FIT:
            wait /= energies[part] - 2 * np.minimum(energies[part].min(axis=1), 0)[:, None]
            wait[~(wait >= 0)] = np.inf  # 0 / 0
        drawn = np.argsort(wait, axis=1, kind="stable")[:, :PARENTS]
        parents = np.take_along_axis(pool[part], drawn[..., None], axis=1)
        if MUTATION == RANDFLIP:
            made = np.repeat(parents[:, :, None], CHILDREN, axis=2)
            flipped(made, _distinct(key, number, 2 * generation + 1, PARENTS, CHILDREN, H))
        elif MUTATION == SPARSEFLIP:
            made = np.repeat(parents, CHILDREN, axis=1)
            _sparse_flips(made, key, number, 2 * generation + 1, kappa, H, energies.dtype)
        else:
            made = _crossed(parents, key, number, 2 * generation + 1, H)
        children[part] = made.reshape(children[part].shape)


def _uniforms(key: np.ndarray, number: int, stage: int, count: int, dtype: np.dtype) -> np.ndarray:
    """(n, count) numbers between 0 and 1."""
    bits = philox(key, number, stage, np.arange(-(-count // 4)), 0)
    return uniform(np.stack(bits, axis=-1).reshape(len(key), -1)[:, :count], dtype)


def _distinct(key: np.ndarray, number: int, stage: int, items: int, many: int, H: int) -> np.ndarray:
    """(n, items, many) latents, for each item different ones."""
    blocks = np.arange(-(-many // 4))
    bits = np.stack(philox(key[..., None, :], number, stage, np.arange(items)[:, None], blocks), axis=-1)
    bits = bits.reshape(len(key), items, -1)
    out = np.empty((len(key), items, many), np.int64)
    taken = np.full(out.shape, H, np.int64)  # ascending
    for c in range(many):
        at = below(bits[..., c], H - c)
        for i in range(c):
            at += at >= taken[..., i]
        out[..., c] = taken[..., c] = at
        taken[..., : c + 1].sort(axis=-1)
    return out


def _sparse_flips(
    states: np.ndarray, key: np.ndarray, number: int, stage: int, kappa: float, H: int, dtype: np.dtype
) -> None:
    """Flip each latent that is on with one probability and each that is off with another, in place."""
    n, M, _ = states.shape
    before = states.copy()
    active = listed(states, H)
    size = (active < H).sum(axis=-1).astype(dtype)
    flips = min(FLIPS, H)
    more = np.clip(kappa - size, -flips, flips)
    with np.errstate(divide="ignore", invalid="ignore"):
        on = (flips - more) / (2 * size)
        off = np.minimum((flips + more) / (2 * (H - size)), 1)
        rate = np.log1p(-off)
    items = np.arange(M)[:, None]
    goes = uniform(philox(key[..., None, :], number, stage, items, active | 1 << 16)[0], dtype) < on[..., None]
    for i in range(active.shape[-1]):
        flipped(states, np.where(goes[..., i] & (active[..., i] < H), active[..., i], 1 << 20))
    at, turn = np.full((n, M), -1, np.int64), 0
    at[(size == H) | (off <= 0)] = H
    while (at < H).any():
        if turn % 4 == 0:
            bits = philox(key, number, stage, np.arange(M), turn // 4)
        jump = np.log(uniform(bits[turn % 4], dtype)) / rate
        at = np.minimum(at + 1 + np.where(jump < H, jump, H).astype(np.int64), H)
        word = np.take_along_axis(before, np.minimum(at >> 5, before.shape[-1] - 1)[..., None], axis=-1)[..., 0]
        was_on = (word >> (at & 31).astype(np.uint32)) & 1
        flipped(states, np.where((at < H) & (was_on == 0), at, 1 << 20))
        turn += 1


def _crossed(parents: np.ndarray, key: np.ndarray, number: int, stage: int, H: int) -> np.ndarray:
    """(n, P (P − 1), W) children of pairs of parents."""
    P, W = parents.shape[1:]
    i, j = np.nonzero(~np.eye(P, dtype=bool))
    pair = np.minimum(i, j) * P + np.maximum(i, j)
    cut = 1 + below(philox(key, number, stage, pair, 0)[0], H - 1)
    head = np.clip(cut[..., None] - 32 * np.arange(W), 0, 32).astype(np.uint64)  # latents of each word before the cut
    mask = ((np.uint64(1) << head) - np.uint64(1)).astype(np.uint32)
    made = (parents[:, i] & mask) | (parents[:, j] & ~mask)
    flipped(made, below(philox(key, number, stage, np.arange(len(i)), 1)[0], H))
    return np.asarray(made)


def tile(**_: int) -> int:
    """A group of a GPU takes one data point."""
    return 1


def local_reals(COUNT: int, PARENTS: int, CHILDREN: int, **_: int) -> int:
    """Numbers in local memory."""
    return COUNT + PARENTS * (1 + CHILDREN)
