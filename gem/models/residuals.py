"""Sums about the old fields: the noise of linear models where the data's squares would take its digits."""

from __future__ import annotations

import numpy as np

from gem.models.base import Step
from gem.models.imputation import impute
from gem.statistics import Layout, Statistics

BLURRED = 0.01  # of σ²: what the rounding of y² may be, before residuals are taken
SURE = 8  # machine epsilons: a probability so near to 1 is 1


def loses_digits(square: float, variance: float, step: Step) -> bool:
    """Whether the rounding of `square`, the mean of y_d², is no longer small beside the noise's `variance`."""
    return bool(step.resolution * square > BLURRED * variance)


def residual_sums(
    W: np.ndarray,
    sigma2: float,
    Y: np.ndarray,
    observed: np.ndarray | None,
    mean: np.ndarray,
    squares: np.ndarray,
    candidates: np.ndarray,
    pairs: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Σ⟨(y − Ws)sᵀ⟩ and Σ⟨‖y − Ws‖²⟩, no term of which is larger than the residuals are, and Σ⟨ssᵀ⟩ (docs/math.md).

    A missing y_d is W_d s plus noise: it adds nothing to the first, and σ² to the second. All are of one posterior, in
    float64: it is that of a mean which may have been rounded.

    Parameters
    ----------
    W : (D, H) array
        The fields that the posterior was computed with.
    sigma2 : float
        σ², the variance of the noise, likewise.
    Y : (N, D) array
        0 where an entry is missing.
    observed : (N, D) array of 0 and 1, or None
        None: all are.
    mean : (N, H) array
        ⟨s⟩; of models with strengths, ⟨s∘z⟩, and likewise below.
    squares : (N, H) array
        The variances of the candidates, and ⟨s_h²⟩ of the other latents.
    candidates : (N, H') int array
    pairs : (N, H'(H'−1)/2) array
        Covariances of the candidates i < j, lexicographic; ⟨s_i s_j⟩ of all other pairs is 0.
    weights : (N,) array, optional
        Of the data points (default: 1).

    Returns
    -------
    rs : (D, H) float64 array
    rr : float
    ss : (H, H) float64 array
    """
    keep = np.ones((len(Y), 1)) if weights is None else np.asarray(weights, dtype=np.float64)[:, None]
    Y, mean = Y.astype(np.float64), mean.astype(np.float64)
    centre = np.zeros_like(mean)
    np.put_along_axis(centre, candidates, np.take_along_axis(mean, candidates, axis=1), axis=1)
    others = mean - centre
    rest = Y - centre @ W.T
    second = _summed(squares, candidates, pairs, keep)
    if observed is None:
        spread, missing = W @ second, 0.0
    else:
        rest *= observed
        spread, _ = impute(W, 0.0, 1 - observed, squares, candidates, pairs, keep[:, 0])
        missing = float(np.sum(keep * (1 - observed)))
    apart = (keep * Y).T @ others
    rs = (keep * rest).T @ centre + apart - spread
    rr = np.sum(keep * rest**2) - 2 * np.sum(W * apart) + np.sum(W * spread)
    return rs, float(rr + sigma2 * missing), (keep * centre).T @ centre + second


def squares_about_zero(moments: Statistics, ss: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Σ E‖y‖², of missing entries too, from sums about the fields W, with ss = Σ⟨ssᵀ⟩."""
    return np.asarray(moments["rr"] + np.sum(W * (2 * moments["ys"] + W @ ss)))


def blended(first: Statistics, second: Statistics, a: float, b: float, ss: str) -> Statistics:
    """`Model.combine` of a linear model's moments, of which `ss` is Σ⟨ssᵀ⟩: about fields if those of `second` are.

    These are the fields of that part about which all residuals are smaller: they cost the fewest digits.
    """
    if "about" not in second:
        return _weighted(_absolute(first, second.layout, ss), second, a, b)
    one = first if "about" in first else _about_nothing(first, second.layout)
    here = _weighted(_moved(one, second["about"], ss), second, a, b)
    there = _weighted(one, _moved(second, one["about"], ss), a, b)
    return there if there["rr"] < here["rr"] else here


def _weighted(first: Statistics, second: Statistics, a: float, b: float) -> Statistics:
    """The sum of moments about the same fields."""
    both = Statistics(second.layout, a * first.buffer + b * second.buffer)
    return both.but(both.layout, about=second["about"]) if "about" in second else both


def _absolute(moments: Statistics, layout: Layout, ss: str) -> Statistics:
    """The moments with sums of the data themselves."""
    if "about" not in moments:
        return moments
    ys = moments["ys"] + moments["about"] @ moments[ss]
    return moments.but(layout, ys=ys, rr=np.zeros(()))


def _about_nothing(moments: Statistics, layout: Layout) -> Statistics:
    """Sums of the data themselves as residuals of fields of zeros."""
    return moments.but(layout, rr=moments["yy"], about=np.zeros_like(moments["ys"]))


def _moved(moments: Statistics, about: np.ndarray, ss: str) -> Statistics:
    """Residuals of other fields: no term is larger than what the change of fields explains."""
    change = about - moments["about"]
    ys = moments["ys"] - change @ moments[ss]
    rr = moments["rr"] - np.sum(change * (moments["ys"] + ys))
    return moments.but(moments.layout, ys=ys, rr=np.asarray(rr), about=about)


def _summed(squares: np.ndarray, candidates: np.ndarray, pairs: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The sum of all data points' second moments, (H, H)."""
    H = squares.shape[1]
    i, j = np.triu_indices(candidates.shape[1], 1)
    place = candidates[:, i].astype(np.intp) * H + candidates[:, j]
    upper = np.bincount(place.ravel(), (keep * pairs).ravel(), H * H).reshape(H, H)
    return np.asarray(upper + upper.T + np.diag((keep * squares).sum(axis=0)))


def discrete_spread(
    mean: np.ndarray, squares: np.ndarray, candidates: np.ndarray, pairs: np.ndarray, resolution: float
) -> tuple[np.ndarray, np.ndarray]:
    """`squares` and `pairs` of `residual_sums`, from ⟨s_h²⟩ and ⟨s_i s_j⟩ that were rounded to `resolution`.

    A latent whose variance is but rounding has none.
    """
    m, second = (np.take_along_axis(rows.astype(np.float64), candidates, axis=1) for rows in (mean, squares))
    variance = second - m**2
    sure = variance <= SURE * resolution * second
    squares = squares.astype(np.float64)
    np.put_along_axis(squares, candidates, np.where(sure, 0, variance), axis=1)
    i, j = np.triu_indices(candidates.shape[1], 1)
    return squares, np.where(sure[:, i] | sure[:, j], 0, pairs - m[:, i] * m[:, j])


def strength_spread(gram: np.ndarray, scale: np.ndarray, sure: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The covariance of strengths s∘z, some of which are too large beside it to tell it by their moments.

    Of the latents that are `sure` to be active, given the strengths of all others, it is Λ = (G/σ² + Ψ⁻¹)⁻¹, and their
    mean falls by ΛG/σ² times those.

    Parameters
    ----------
    gram : (N, H', H') array
        G/σ² of each data point's candidates.
    scale : (N, H') array
        √ψ of the candidates.
    sure : (N, H') bool array
    covariance : (N, H', H') array
        From the moments: rows and columns of the others are right.

    Returns
    -------
    (N, H', H') array
    """
    both = sure[:, :, None] & sure[:, None, :]
    unit = np.eye(gram.shape[1])
    inner = np.where(both, gram * scale[:, :, None] * scale[:, None, :], 0)
    inner *= 1 + unit * 1e-12  # no rounding makes it singular
    inner = np.linalg.inv(inner + unit) * scale[:, :, None] * scale[:, None, :]
    inner = np.where(both, inner, 0)
    others = np.where(sure[:, :, None] | sure[:, None, :], 0, covariance)
    pull = inner @ np.where(sure[:, :, None] & ~sure[:, None, :], gram, 0)
    cross = pull @ others
    return others + inner - cross - cross.transpose(0, 2, 1) + cross @ pull.transpose(0, 2, 1)
