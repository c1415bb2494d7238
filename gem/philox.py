"""Random numbers that do not depend on how data points are shared among ranks, threads or batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK = 1024  # data points drawn together; a part of the format: changing it changes every generated data set


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """A generator keyed by (seed, stream) with its counter at `index`: Philox, so any index is reached at once.

    Streams keep uses apart ("init", "noise", "data", ...). (Salmon et al., SC 2011.)
    """
    tag = int.from_bytes(stream.encode()[:8].ljust(8, b"\0"), "little")
    key = np.array([seed & (2**64 - 1), tag], dtype=np.uint64)
    counter = np.array([0, 0, index, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def per_point(
    seed: int, stream: str, start: int, stop: int, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> np.ndarray:
    """Rows start..stop of an endless table of random rows: `draw(generator, rows)` makes a whole block of it."""
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    rows = [draw(generator(seed, stream, block), BLOCK) for block in blocks]
    offset = (start // BLOCK) * BLOCK
    return np.concatenate(rows)[start - offset : stop - offset] if rows else draw(generator(seed, stream), BLOCK)[:0]
