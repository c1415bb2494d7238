"""The same work by others: one EM iteration from the same parameters, its likelihood checked before its time counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

Prepared = Callable[[], dict[str, Any]]  # timed; gives the log likelihood per data point, parameters it tells
RELATIVE = 1e-4  # of the likelihood, beside which rounding is allowed for:
ABSOLUTE = {"float32": 1e-3, "float64": 1e-6}  # nats a data point; of parameters: of the largest


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


def sklearn_mixture(model: Any, params: dict[str, np.ndarray], Y: np.ndarray, reg_covar: float = 1e-6) -> Prepared:
    """E-step and M-step of GaussianMixture, which adds `reg_covar` to its new variances."""
    from sklearn.mixture import GaussianMixture

    fitted = estimator(params, model.covariance, Y.dtype)

    def run() -> dict[str, Any]:
        mean, log_resp = fitted._e_step(Y)
        new = GaussianMixture(model.K, covariance_type=model.covariance, reg_covar=reg_covar)
        new._m_step(Y, log_resp)
        return {"likelihood": float(mean), "pi": new.weights_, "mu": new.means_}

    return run


def sklearn_coding(model: Any, params: dict[str, np.ndarray], Y: np.ndarray) -> Prepared:
    """Codes by coordinate descent (ended at a duality gap like ours), and an update of the dictionary."""
    from sklearn.decomposition._dict_learning import _update_dict
    from sklearn.linear_model import Lasso

    W, sigma, b = params["W"].astype(Y.dtype), float(params["sigma"]), float(params["b"])
    # its objective is ‖y − Ws‖² / 2D + alpha ‖s‖₁; all data points are targets of one fit
    solver = Lasso(alpha=sigma**2 / b / model.D, fit_intercept=False, tol=model.tol, max_iter=1000)

    def run() -> dict[str, Any]:
        code = solver.fit(W, Y.T).coef_.astype(Y.dtype)
        residual = ((Y - code @ W.T) ** 2).sum(axis=1, dtype=np.float64)
        _update_dict(W.T.copy(), Y, code, random_state=0)
        log_prior = -np.abs(code).sum(axis=1, dtype=np.float64) / b - model.H * np.log(2 * b)
        each = log_prior - (residual / sigma**2 + model.D * np.log(2 * np.pi * sigma**2)) / 2
        return {"likelihood": float(np.mean(each))}

    return run


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

    def run() -> dict[str, Any]:
        likelihood = mixture.summarize(y)
        mixture.from_summaries()
        return {"likelihood": float(likelihood) / len(Y)}  # it is summed over the data points

    return run


def differs(ours: dict[str, Any], theirs: dict[str, Any], dtype: str) -> str | None:
    """What a peer found otherwise than the case: the likelihood per data point, or a parameter."""
    a, b = float(ours["likelihood"]), float(theirs["likelihood"])
    if not abs(a - b) <= RELATIVE * abs(b) + ABSOLUTE[dtype]:
        return f"other likelihood: {b:.8g} per data point, here {a:.8g}"
    for name in sorted(theirs.keys() - {"likelihood"}):
        error = np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()
        if not error <= ABSOLUTE[dtype]:
            return f"other {name} after the M-step: by {error:.2g} of its largest value"
    return None


SKLEARN = Peer("scikit-learn", "sklearn", sklearn_mixture)
POMEGRANATE = Peer("pomegranate (torch)", "pomegranate", pomegranate_mixture)
PEERS: dict[str, tuple[Peer, ...]] = {
    "mog-diag": (SKLEARN, POMEGRANATE),
    "mog-full": (SKLEARN, POMEGRANATE),
    "mog-spherical": (SKLEARN,),
    "mog-tied": (SKLEARN,),
    "sc": (Peer("scikit-learn Lasso + dictionary update", "sklearn", sklearn_coding),),
}
