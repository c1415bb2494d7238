"""States of binary latents as words of 32 bits, for the twins: bit h % 32 of word h // 32 is latent h."""

import numpy as np

MIX = np.uint64(0x9E3779B97F4A7C15)


def words(H: int) -> int:
    """Words of a state."""
    return -(-H // 32)


def unpacked(states: np.ndarray, H: int) -> np.ndarray:
    """(..., W) uint32 words as (..., H) uint8."""
    some = np.ascontiguousarray(states, "<u4").view(np.uint8)
    return np.unpackbits(some, axis=-1, bitorder="little")[..., :H]


def packed(active: np.ndarray) -> np.ndarray:
    """(..., H), 0 or 1, as (..., W) uint32 words."""
    H = active.shape[-1]
    room = np.zeros((*active.shape[:-1], 32 * words(H)), np.uint8)
    room[..., :H] = active
    return np.packbits(room, axis=-1, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def listed(states: np.ndarray, H: int) -> np.ndarray:
    """The active latents of each state, ascending, (..., m) with m those of the largest; filled up with H."""
    flat = unpacked(states, H).reshape(-1, H)
    row, latent = np.nonzero(flat)
    counts = np.bincount(row, minlength=len(flat))
    out = np.full((len(flat), max(1, int(counts.max(initial=0)))), H, np.int64)
    out[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = latent
    return out.reshape(*states.shape[:-1], out.shape[1])


def flipped(states: np.ndarray, latents: np.ndarray) -> None:
    """Flip one latent of each state (..., W) of a contiguous array, in place; `latents` (...) ≥ 32 W flips none."""
    flat, which = states.reshape(-1, states.shape[-1]), latents.reshape(-1)
    some = np.flatnonzero(which < 32 * states.shape[-1])
    flat[some, which[some] >> 5] ^= np.uint32(1) << (which[some] & 31).astype(np.uint32)


def repeats(states: np.ndarray) -> np.ndarray:
    """Whether an earlier one of the states (n, M, W) of a row is the same, (n, M).

    Up to 64 latents are compared as they are, more by 64 bits that they are mixed to: two different ones may be taken
    for the same once in 10¹⁹ pairs.
    """
    key = states[..., 0].astype(np.uint64)
    if states.shape[-1] > 1:
        key |= states[..., 1].astype(np.uint64) << np.uint64(32)
    for v in range(2, states.shape[-1]):
        key = (key ^ (key >> np.uint64(29))) * MIX + states[..., v]
    order = np.argsort(key, axis=1, kind="stable")
    ordered = np.take_along_axis(key, order, axis=1)
    same = np.zeros(key.shape, bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    out = np.empty_like(same)
    np.put_along_axis(out, order, same, axis=1)
    return out
