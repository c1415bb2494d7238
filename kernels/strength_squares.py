"""Second moments of spike-and-slab latents about zero."""

import numpy as np


def strength_squares(N: int, s: np.ndarray, sz: np.ndarray, latents: np.ndarray, square: np.ndarray) -> None:
    """⟨s z²⟩ = ψ square + μ (2⟨s z⟩ − μ⟨s⟩), at least 0, in place of `square`, ⟨s (z − μ)²⟩ / ψ.

    Parameters
    ----------
    s, sz : (N, H) arrays
    latents : (4, H) array
        Its rows 0 and 2 are μ/√ψ and √ψ.
    square : (N, H) array, in and out
    """
    spread, mu = latents[2], latents[0] * latents[2]
    square *= spread**2
    square += mu * (2 * sz - mu * s)
    np.maximum(square, 0, out=square)
