"""Random numbers by counter: Philox 4x32-10, the same on every device.

Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.
"""

import numpy as np

MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(keys: np.ndarray, *counters: np.ndarray | int) -> list[np.ndarray]:
    """Four uint32 arrays of random bits for each key (..., 2) and four counters, which are broadcast against it."""
    key = [keys[..., i].astype(np.uint64) for i in (0, 1)]
    some = np.broadcast_arrays(key[0], *(np.asarray(c).astype(np.uint64) for c in counters))[1:]
    a, b, c, d = some
    for turn in range(10):
        k0, k1 = ((key[i] + np.uint64(turn * WEYL[i] & 0xFFFFFFFF)) & LOW for i in (0, 1))
        p, q = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (q >> HALF) ^ b ^ k0, q & LOW, (p >> HALF) ^ d ^ k1, p & LOW
    return [x.astype(np.uint32) for x in (a, b, c, d)]


def below(bits: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """A whole number from 0 to count − 1, int64, of 32 random bits."""
    return ((bits.astype(np.uint64) * np.asarray(count).astype(np.uint64)) >> HALF).astype(np.int64)


def uniform(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A number between 0 and 1 of 32 random bits."""
    kind = np.dtype(dtype).type
    return (bits.astype(dtype) + kind(0.5)) * kind(2.0**-32)
