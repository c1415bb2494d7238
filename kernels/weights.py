"""Weights of states and components, for the twins: from energies, and from log joints."""

import numpy as np

LEAST = {"float64": 1e-290, "float32": 1e-30}  # REAL_LEAST of gem.h


def settled_exp(energies: np.ndarray) -> None:
    """exp of energies ≤ 0, in place; what is below LEAST becomes 0.

    Of numbers below the normal range a processor makes a product, and an exponential, in a hundred times the time.
    """
    least = energies.dtype.type(LEAST[str(energies.dtype)])
    np.maximum(energies, np.log(least), out=energies)
    np.exp(energies, out=energies)
    np.subtract(energies, 2 * least, out=energies)  # a mask would cost more than all the rest
    np.maximum(energies, 0, out=energies)


def annealed_softmax(
    joint: np.ndarray, beta: float, shift: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give log Σ_k exp joint (N,), and w_n times the softmax over k of beta joint + shift (N, K); nothing is edited."""
    annealed = beta * joint + shift
    r = weights[:, None] * np.exp(annealed - np.logaddexp.reduce(annealed, axis=1, keepdims=True))
    return np.logaddexp.reduce(joint, axis=1), r
