"""On paper: the fewest flops and bytes that each kernel of a step takes for a data point.

Bytes are those that must cross device memory when each array is read or written once per kernel, in float32; an
exponential, logarithm or root counts EXP flops. What a group does once (its sums) is not counted, and what each state
costs besides its arithmetic (its place among the states, its candidates) is not, either.
"""

from __future__ import annotations

from math import comb

REAL, INDEX, EXP = 4, 4, 8
PRODUCT = "cuBLAS: "  # how products begin that a GPU's library makes
Floor = tuple[float, float]


def _states(Hprime: int, gamma: int, values: int = 1) -> dict[int, int]:
    """g → how many states have g > 1 active latents, each with one of so many values."""
    return {g: comb(Hprime, g) * values**g for g in range(2, gamma + 1)}


def _common(D: int, H: int, Hprime: int) -> dict[str, Floor]:
    pairs = Hprime * (Hprime - 1) // 2
    return {
        "squared_norms": (2 * D, REAL * (D + 1)),
        "column_sums": (2 * H, REAL * (H + 1)),
        "pair_sums": (2 * pairs, REAL * (pairs + 1) + INDEX * Hprime),
    }


def linear(D: int, H: int, Hprime: int, gamma: int, values: int = 1) -> dict[str, Floor]:
    """Kernel → (flops, bytes) per data point of BSC, or of a latent with so many `values` that are not 0."""
    pairs, count = Hprime * (Hprime - 1) // 2, _states(Hprime, gamma, values)
    states = sum(count.values())
    couplings = sum((g - 1) * n for g, n in count.items())
    members = sum((g + comb(g, 2)) * n for g, n in count.items())
    return {
        f"{PRODUCT}Y W": (2 * D * H, REAL * (D + H)),
        "preselect": (2 * H + H * Hprime, REAL * H + INDEX * Hprime),
        "gram_posterior": (
            (4 + EXP) * H * values + (2 + EXP) * states + couplings + members,
            REAL * (2 * H + pairs + 2) + INDEX * Hprime,
        ),
        f"{PRODUCT}Yᵀ⟨s⟩": (2 * D * H, REAL * (D + H)),
        **_common(D, H, Hprime),
    }


def spike_slab(D: int, H: int, Hprime: int, gamma: int) -> dict[str, Floor]:
    """GSC: for each state a pivot, the strength of its last latent, a logarithm, an exponential, and the moments."""
    pairs, states = Hprime * (Hprime - 1) // 2, sum(_states(Hprime, gamma).values())
    each = (30 + 2 * EXP) * states
    read_and_written = REAL * (5 * H + pairs + 2) + INDEX * Hprime
    return {
        f"{PRODUCT}Y W": (2 * D * H, REAL * (D + H)),
        "spike_slab_scores": ((4 + EXP) * H, REAL * 2 * H),
        "preselect": (2 * H + H * Hprime, REAL * H + INDEX * Hprime),
        "spike_slab": ((4 + EXP) * H + each, read_and_written),
        f"{PRODUCT}Yᵀ⟨s⟩": (2 * D * H, REAL * (D + H)),
        **_common(D, H, Hprime),
    }


def causes(D: int, H: int, Hprime: int, gamma: int) -> dict[str, Floor]:
    """MCA: for each state and dimension a maximum, an error and the winner's weight."""
    states = sum(_states(Hprime, gamma).values())
    return {
        "cause_scores": (D * H, REAL * (D + H)),
        "preselect": (2 * H + H * Hprime, REAL * H + INDEX * Hprime),
        "causes": ((4 + EXP) * H + (6 * D + EXP) * states, REAL * (D + 2 * H + 4) + INDEX * Hprime),
        **{name: _common(D, H, Hprime)[name] for name in ("squared_norms", "column_sums")},
    }


def noisy_or(D: int, H: int, Hprime: int, gamma: int) -> dict[str, Floor]:
    """NoisyOR: for each state and dimension a product, the probability of y_d, and two sums of the M-step."""
    states = sum(_states(Hprime, gamma).values())
    found = causes(D, H, Hprime, gamma) | {
        "causes": ((4 + EXP) * H + (8 * D + EXP) * states, REAL * (D + 2 * H + 4) + INDEX * Hprime)
    }
    return {name: floor for name, floor in found.items() if name not in ("squared_norms", "cause_scores")}


def mixture(D: int, K: int) -> dict[str, Floor]:
    """The diagonal mixture: differences, squares, softmax, and the sums; its two products are in its kernels."""
    return {"mixture": (4 * D * K + (3 + EXP) * K + 4 * D * K, REAL * (D + 2))}
