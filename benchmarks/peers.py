"""The same work by others: one EM iteration from the same parameters, its likelihood checked before its time counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

Prepared = tuple[Callable[[], object], float]  # what is timed, and the log likelihood per data point that it finds


@dataclass(frozen=True)
class Peer:
    """Another implementation of a case."""

    name: str
    package: str
    prepare: Callable[[Any, dict[str, np.ndarray], np.ndarray], Prepared]

    def missing(self) -> str | None:
        """Why it cannot run here."""
        return None if find_spec(self.package) else f"{self.package} is not installed"


def estimator(params: dict[str, np.ndarray], covariance: str, dtype: Any) -> Any:
    """scikit-learn's mixture, set to `params` without its own initialisation."""
    from sklearn.mixture import GaussianMixture

    spread = params["var"] if "var" in params else params["cov"]
    made = GaussianMixture(len(params["pi"]), covariance_type=covariance, reg_covar=1e-6)
    made.weights_, made.means_, made.covariances_ = (a.astype(dtype) for a in (params["pi"], params["mu"], spread))
    if covariance in ("diag", "spherical"):
        root = 1 / np.sqrt(spread)
    else:  # upper triangular, so that (y − μ) R is white
        root = np.swapaxes(np.linalg.inv(np.linalg.cholesky(spread)), -1, -2)
    made.precisions_cholesky_ = root.astype(dtype)
    return made


def sklearn_mixture(model: Any, params: dict[str, np.ndarray], Y: np.ndarray) -> Prepared:
    """E-step and M-step of GaussianMixture."""
    from sklearn.mixture import GaussianMixture

    fitted = estimator(params, model.covariance, Y.dtype)

    def run() -> float:
        mean, log_resp = fitted._e_step(Y)
        GaussianMixture(model.K, covariance_type=model.covariance)._m_step(Y, log_resp)
        return float(mean)

    return run, run()


def sklearn_coding(model: Any, params: dict[str, np.ndarray], Y: np.ndarray) -> Prepared:
    """Codes by coordinate descent (ended at a duality gap like ours), and an update of the dictionary."""
    from sklearn.decomposition._dict_learning import _update_dict
    from sklearn.linear_model import Lasso

    W, sigma, b = params["W"].astype(Y.dtype), float(params["sigma"]), float(params["b"])
    # its objective is ‖y − Ws‖² / 2D + alpha ‖s‖₁; all data points are targets of one fit
    solver = Lasso(alpha=sigma**2 / b / model.D, fit_intercept=False, tol=model.tol, max_iter=1000)

    def run() -> float:
        code = solver.fit(W, Y.T).coef_.astype(Y.dtype)
        residual = ((Y - code @ W.T) ** 2).sum(axis=1, dtype=np.float64)
        _update_dict(W.T.copy(), Y, code, random_state=0)
        log_prior = -np.abs(code).sum(axis=1, dtype=np.float64) / b - model.H * np.log(2 * b)
        return float(np.mean(log_prior - (residual / sigma**2 + model.D * np.log(2 * np.pi * sigma**2)) / 2))

    return run, run()


def pomegranate_mixture(model: Any, params: dict[str, np.ndarray], Y: np.ndarray) -> Prepared:
    """E-step and M-step of pomegranate's mixture, in PyTorch on the CPU; its inertia keeps the parameters."""
    import torch
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    y = torch.from_numpy(Y)
    spread = params["var"] if "var" in params else params["cov"]
    components = [
        Normal(mu.astype(Y.dtype), of_one.astype(Y.dtype), covariance_type=model.covariance, inertia=1.0)
        for mu, of_one in zip(params["mu"], spread, strict=True)
    ]
    mixture = GeneralMixtureModel(components, priors=params["pi"].astype(Y.dtype), inertia=1.0)

    def run() -> float:
        likelihood = mixture.summarize(y)
        mixture.from_summaries()
        return float(likelihood) / len(Y)  # summed over the data points

    return run, run()


SKLEARN = Peer("scikit-learn", "sklearn", sklearn_mixture)
POMEGRANATE = Peer("pomegranate (torch)", "pomegranate", pomegranate_mixture)
PEERS: dict[str, tuple[Peer, ...]] = {
    "mog-diag": (SKLEARN, POMEGRANATE),
    "mog-full": (SKLEARN, POMEGRANATE),
    "mog-spherical": (SKLEARN,),
    "mog-tied": (SKLEARN,),
    "sc": (Peer("scikit-learn", "sklearn", sklearn_coding),),
}
