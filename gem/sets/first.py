"""The states that a data point has before its first E-step."""

from __future__ import annotations

from itertools import combinations, islice

import numpy as np

from gem.kernels.bits import flipped, repeats, words
from gem.kernels.philox import below, philox, uniform
from gem.sets import Kept

STREAM = 0x73657473  # keeps these random numbers apart from all others of the seed
TILE = 1 << 20  # states at once
MOST = 24  # latents that are on in a first state: one in 10²³ would have more


def point_keys(seed: int, start: int, count: int) -> np.ndarray:
    """(count, 2) uint32: what the random numbers of each data point from global row `start` on are keyed by."""
    whole = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], dtype=np.uint32)
    n = np.arange(start, start + count, dtype=np.uint64)
    bits = philox(np.broadcast_to(whole, (count, 2)), n & np.uint64(0xFFFFFFFF), n >> np.uint64(32), STREAM, 0)
    return np.stack(bits[:2], axis=-1)


def first_states(keys: np.ndarray, S: int, H: int) -> np.ndarray:
    """(n, S, W) uint32: the zero state and draws in which each latent is on with probability 1/H, all different.

    Where draws repeat, states of one active latent take their place, from a random one on, then those of two, ...
    """
    out = np.empty((len(keys), S, words(H)), np.uint32)
    tile = max(1, TILE // (3 * S))
    for start in range(0, len(keys), tile):
        part = slice(start, min(len(keys), start + tile))
        out[part] = _first(keys[part], S, H)
    return out


def _first(keys: np.ndarray, S: int, H: int) -> np.ndarray:
    n = len(keys)
    drawn = _drawn(keys, S - 1, H)
    singles = np.zeros((n, min(H, 2 * S), words(H)), np.uint32)
    begin = below(philox(keys, 0, 1, 0, 0)[0], H)
    flipped(singles, (begin[:, None] + np.arange(singles.shape[1])) % H)
    rest = np.zeros((max(0, min(2 ** min(H, 30) - 1 - H, 2 * S - H)), words(H)), np.uint32)
    larger = (some for size in range(2, H + 1) for some in combinations(range(H), size))
    for row, some in enumerate(islice(larger, len(rest))):
        for h in some:
            rest[row, h >> 5] |= np.uint32(1 << (h & 31))
    zero = np.zeros((n, 1, words(H)), np.uint32)
    every = np.concatenate([zero, drawn, singles, np.broadcast_to(rest, (n, *rest.shape))], axis=1)
    order = np.argsort(repeats(every), axis=1, kind="stable")[:, :S]
    return np.take_along_axis(every, order[..., None], axis=1)


def _drawn(keys: np.ndarray, count: int, H: int) -> np.ndarray:
    """(n, count, W) states in which each latent is on with probability 1/H: how many are, then which."""
    most, item = min(H, MOST), np.arange(count)
    size = np.arange(most + 1)
    steps = np.cumsum(np.log((H - size[1:] + 1.0) / size[1:]) - np.log(max(H - 1.0, 1e-300)))
    chance = np.exp(np.concatenate([[0.0], steps]))  # relative to that of 0
    edges = np.cumsum(chance / chance.sum())
    number = np.searchsorted(edges, uniform(philox(keys[:, None], 0, 0, item, 0)[0], np.dtype(float)), side="right")
    number = np.minimum(number, most)
    states = np.zeros((number.size, words(H)), np.uint32)
    taken = np.full((number.size, max(1, int(number.max(initial=0)))), H, np.int64)
    for c in range(int(number.max(initial=0))):
        some = np.flatnonzero(number.ravel() > c)
        at = below(philox(keys[some // count], 0, 0, some % count, 1 + c)[0], H - c)
        for i in range(c):
            at += at >= taken[some, i]
        states[some, at >> 5] |= np.uint32(1) << (at & 31).astype(np.uint32)
        taken[some, c] = at
        taken[some, : c + 1] = np.sort(taken[some, : c + 1], axis=1)
    return states.reshape(*number.shape, -1)


def first_memory(kept: Kept, H: int, seed: int, start: int, count: int) -> dict[str, np.ndarray]:
    """What is kept of so many data points from the global row `start` on before the first E-step."""
    keys = point_keys(seed, start, count)
    return {"states": first_states(keys, kept.states, H), "keys": keys, "age": np.zeros(count, np.int32)}


def kept_bytes(kept: Kept, H: int) -> int:
    """Bytes of these for a data point."""
    return 4 * words(H) * kept.states + 12
