"""Maximal causes under Poisson noise by their own name: PMCA."""

from __future__ import annotations

from gem.models.maximal import MaximalCauses
from gem.models.noises import Poisson


class PMCA(MaximalCauses):
    """Poisson maximal causes: y_d ~ Poisson(λ_d), λ_d the largest W_dh of the active h, at least a `background`.

    Mousavi, Drefs, Hirschberger, Lücke, *Generic Unsupervised Optimization for a Latent Variable Model With
    Exponential Family Observables*, JMLR 24, 2023. The same as ``MCA(..., noise="poisson")``.

    Parameters
    ----------
    background : float
        The rate where no active cause exceeds it, > 0. Other settings as in `Truncated`.

    Notes
    -----
    Model parameters are ``W`` (D, H), rates, and ``pi`` ().
    """

    unfit_for_pictures = "its data are counts"

    def __init__(
        self,
        D: int,
        H: int,
        Hprime: int | None = None,
        gamma: int | None = None,
        missing: bool = False,
        background: float = 0.1,
    ):
        super().__init__(D, H, Hprime, gamma, missing, Poisson(background))
        self.background = self.of.floor
