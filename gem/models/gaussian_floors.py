"""What holds the variances and covariances of a mixture of Gaussians above a floor, and covariances invertible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gem.errors import DataError

SPREAD = {"diag": "var", "spherical": "var", "tied": "cov", "full": "cov"}  # covariance → name of the parameter
CHOLESKY_RESOLUTION = 100 * float(np.finfo(np.float64).eps)  # times D: what rounding takes of an eigenvalue, and room


@dataclass(frozen=True)
class Floors:
    """The floor `reg` of variances and of eigenvalues of covariances.

    Attributes
    ----------
    D : int
    covariance : "diag", "spherical", "tied" or "full"
    reg : float
    relative : bool
        Whether the variance of the data may lower it.
    """

    D: int
    covariance: str
    reg: float
    relative: bool

    def of(self, var: np.ndarray) -> np.ndarray:
        """The floor of the variance of each dimension, (D,), in which the data have variance `var`."""
        if not self.relative:
            return np.full(self.D, self.reg)
        if self.covariance == "spherical":
            var = np.full(self.D, var.mean())
        return np.where(var > 0, self.reg * np.minimum(var, 1), self.reg)  # without spread there is no unit to go by

    def hold(self, spread: np.ndarray, floor: np.ndarray, resolution: float, notes: list[str]) -> np.ndarray:
        """Raise variances that are below the floor (D,) to it, and covariances to where none of their eigenvalues is,
        in units in which the floor is one number; other components stay bit for bit.

        Raises
        ------
        DataError
            If a variance vanishes and reg = 0.
        """
        if SPREAD[self.covariance] == "cov":
            return self._hold_covariances(spread, floor, resolution, notes)
        least = floor[0] if self.covariance == "spherical" else floor
        low = spread < least
        held = np.where(low, least, spread)
        self._tell(held, low, floor, notes)
        return held

    def _tell(self, variances: np.ndarray, low: np.ndarray, floor: np.ndarray, notes: list[str]) -> None:
        """Say how many spreads were `low`; refuse variances, held as they are, that vanish."""
        name = SPREAD[self.covariance]
        if low.any():
            of = " of the variance of the data" if floor.min() < self.reg else ""
            notes.append(f"{int(low.sum())} {name} held at reg = {self.reg:g}{of}")
        if not np.all(variances > 0):
            where = tuple(int(i) for i in np.argwhere(~(variances > 0))[0])
            raise DataError(
                f"the variance {name} at {where} vanishes and reg = 0: set a floor reg, or choose a smaller K"
            )

    def _hold_covariances(
        self, spread: np.ndarray, floor: np.ndarray, resolution: float, notes: list[str]
    ) -> np.ndarray:
        """`hold`, of covariances (K, D, D) or (D, D)."""
        units = np.sqrt(floor / self.reg) if self.relative else np.ones(self.D)
        units = np.outer(units, units)
        spread = (spread + np.swapaxes(spread, -1, -2)) / 2
        held = spread.reshape(-1, self.D, self.D).copy()
        least = max(resolution, CHOLESKY_RESOLUTION * self.D)
        close = np.array([_near_singular(sigma, self.reg, least) for sigma in held / units], dtype=bool)
        values, vectors = np.linalg.eigh(held[close] / units)
        missing = np.maximum(self.reg - values, 0)
        low = missing[:, 0] > CHOLESKY_RESOLUTION * self.D * values[:, -1]  # by more than rounding
        missing[~low] = 0
        held[close] += (vectors * missing[:, None, :]) @ np.swapaxes(vectors, -1, -2) * units
        self._tell(np.diagonal(held.reshape(spread.shape), axis1=-2, axis2=-1), low, floor, notes)
        close[close] = np.maximum(values[:, 0], self.reg) < least * values[:, -1]
        self._resolve(held, least, close, notes)
        return held.reshape(spread.shape)

    def _resolve(self, cov: np.ndarray, least: float, doubtful: np.ndarray, notes: list[str]) -> None:
        """Raise eigenvalues that neither the E-step nor a Cholesky factor in float64 can tell from 0; others stay.

        What can be told is a matter of the correlations, whose eigenvalues shall be `least`: the units of the
        dimensions do not count. `doubtful` (K,): which of `cov`, (K, D, D), need a look, by their own eigenvalues.
        """
        for k in np.flatnonzero(doubtful):
            scale = np.sqrt(np.diagonal(cov[k]))
            values, vectors = np.linalg.eigh(cov[k] / np.outer(scale, scale))
            if values[0] < least:
                cov[k] = (vectors * np.maximum(values, least)) @ vectors.T * np.outer(scale, scale)
                of = "" if self.covariance == "tied" else f" of component {k}"
                notes.append(f"covariance{of} was held at {least:.2g} of its scale: some dimensions depend on others")


def _near_singular(cov: np.ndarray, floor: float, least: float) -> bool:
    """Whether an eigenvalue may be below the floor, or below `least` times the largest one: by a Cholesky factor."""
    try:
        np.linalg.cholesky(cov - max(floor, least * np.trace(cov)) * np.eye(len(cov)))
    except np.linalg.LinAlgError:
        return True
    return False
