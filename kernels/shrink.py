"""FISTA for many lassos at once: gradient step, soft threshold and momentum in one pass, and how far there is to go.

Beck & Teboulle, SIAM J. Imaging Sci. 2, 2009; the restarts of O'Donoghue & Candès, Found. Comput. Math. 15, 2015.
"""

import numpy as np


def shrink(
    N: int,
    zG: np.ndarray,
    b: np.ndarray,
    squares: np.ndarray,
    step: float,
    penalty: float,
    tol: float,
    s: np.ndarray,
    z: np.ndarray,
    inertia: np.ndarray,
    objective: np.ndarray,
    gap: np.ndarray,
    *,
    MOVE: int,
) -> None:
    """One iteration for ½‖y − Ws‖² + penalty ‖s‖₁ of each data point, as shrink.c writes it down.

    Parameters
    ----------
    zG, b : (N, H) arrays
        z WᵀW and y W.
    squares : (N,) array
        ‖y‖².
    step, penalty, tol : float
        Of the gradient, at most 1 / ‖WᵀW‖; of ‖s‖₁; and of the gap, in units of ‖y‖².
    s, z : (N, H) arrays, in place
        The iterate and the extrapolated point, which is judged; they stay if not MOVE.
    inertia : (N,) array, in place
        Nesterov's t, 1 at the start.
    objective, gap : (N,) arrays, out
        At z. A data point whose gap was at most tol ‖y‖² already stays as it is.
    """
    rows = np.flatnonzero(~(gap <= tol * squares)) if MOVE else np.arange(N)
    at = slice(None) if len(rows) == N else rows
    x, g, yy = z[at], zG[at] - b[at], squares[at].astype(np.float64)
    along, curved = np.einsum("nh,nh->n", x, b[at]), np.einsum("nh,nh->n", x, zG[at])
    rr = np.maximum(yy - 2.0 * along + curved, 0)
    steepest = np.abs(g).max(axis=1)
    scale = np.divide(penalty, steepest, out=np.ones_like(steepest), where=steepest > penalty)
    primal = rr / 2 + penalty * np.abs(x).sum(axis=1)
    objective[at] = primal
    gap[at] = primal - scale * (yy - along) + scale**2 * rr / 2
    if not MOVE:
        return
    real = s.dtype.type
    u = x - real(step) * g
    new = u - np.clip(u, -real(step * penalty), real(step * penalty))
    change = new - s[at]
    t = np.where(np.einsum("nh,nh->n", x - new, change) > 0, real(1), inertia[at])
    following = (1 + np.sqrt(1 + 4 * t * t)) / 2
    inertia[at] = following
    z[at] = new + ((t - 1) / following)[:, None] * change
    s[at] = new
