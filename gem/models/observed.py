"""The observed part of data with missing entries: its Gram matrix differs from one data point to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gem.backends.base import Array, Backend, Kernel


def split_missing(backend: Backend, Y: Array) -> tuple[Array, Array]:
    """The data with 0 for what is missing (NaN), and their mask of 0 and 1, both (n, D)."""
    n, D = Y.shape
    filled, observed = backend.empty((n, D)), backend.empty((n, D))
    backend.kernel("split_missing", D=D)(n, Y, filled, observed)
    return filled, observed


@dataclass(frozen=True)
class ObservedGram:
    """Fields whose products over the observed d are asked for: as (H, D), and their entries' squares (D, H)."""

    backend: Backend
    fields: Array
    squares: Array
    masked_gram: Kernel
    impute: Kernel

    @classmethod
    def of(cls, fields: np.ndarray, Hprime: int, backend: Backend) -> ObservedGram:
        """For fields (D, H)."""
        D, H = fields.shape
        masked_gram = backend.kernel("masked_gram", D=D, HPRIME=Hprime)
        impute = backend.kernel("impute", D=D, H=H, HPRIME=Hprime)
        return cls(backend, backend.to_device(fields.T), backend.to_device(fields**2), masked_gram, impute)

    def norms(self, observed: Array) -> Array:
        """Squared norms of the fields' observed parts, (n, H)."""
        return self.backend.matmul(observed, self.squares)

    def couplings(self, observed: Array, candidates: Array) -> Array:
        """Products of the candidates' observed parts, (n, H'(H'−1)/2), i < j, row after row."""
        n, Hprime = candidates.shape
        out = self.backend.empty((n, Hprime * (Hprime - 1) // 2))
        self.masked_gram(n, observed, self.fields, candidates, out)
        return out

    def imputed(self, observed: Array, candidates: Array, pairs: Array, weights: Array) -> Array:
        """Σ over missing entries of what the fields of others make of them, (groups, H, D); kernels/impute.c.

        `observed` becomes the weight of each missing entry.
        """
        n, (H, D) = observed.shape[0], self.fields.shape
        sums = self.backend.empty((self.impute.groups(n), H, D), self.backend.acc)
        self.impute(n, observed, self.fields, candidates, pairs, weights, sums)
        return sums
