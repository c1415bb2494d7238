"""New states that are drawn, from the prior and from what is known of each latent."""

import numpy as np

from gem.kernels.bits import flipped, packed
from gem.kernels.philox import philox, uniform

HEADERS = ("philox.h",)
STAGE = 1 << 16  # apart from the random numbers of other kernels


def sample_states(
    N: int, number: int, pi: float, keys: np.ndarray, mean: np.ndarray, drawn: np.ndarray, *, PRIOR: int
) -> None:
    """In the first PRIOR new states each latent is on with probability pi, in the others with probability mean[n, h].

    Parameters
    ----------
    number : int
        Of this E-step: with `keys` it says which random numbers are taken.
    pi : float
    keys : (N, 2) uint32 array
    mean : (N, H) array
    drawn : (N, M, W) uint32 array, out
    """
    H, dtype, rest = mean.shape[1], mean.dtype, drawn.shape[1] - PRIOR
    states = np.zeros((N, PRIOR, drawn.shape[2]), np.uint32)
    at, turn = np.full((N, PRIOR), -1 if pi > 0 else H, np.int64), 0
    while (at < H).any():
        if turn % 4 == 0:
            bits = philox(keys[:, None], number, STAGE, np.arange(PRIOR), turn // 4)
        jump = np.log(uniform(bits[turn % 4], dtype)) / np.log1p(-dtype.type(pi))
        at = np.minimum(at + 1 + np.where(jump < H, jump, H).astype(np.int64), H)
        flipped(states, np.where(at < H, at, 1 << 20))
        turn += 1
    drawn[:, :PRIOR] = states
    if rest:
        row, latent = np.nonzero(mean)
        blocks = np.arange(-(-rest // 4))
        bits = np.stack(philox(keys[row, None], number, STAGE + 1, blocks, latent[:, None]), axis=-1)
        on = uniform(bits.reshape(len(row), 4 * len(blocks))[:, :rest], dtype) < mean[row, latent, None]
        active = np.zeros((N, rest, H), np.uint8)
        active[row, :, latent] = on
        drawn[:, PRIOR:] = packed(active)


def tile(**_: int) -> int:
    """A group of a GPU takes one data point."""
    return 1
