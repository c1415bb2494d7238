"""Many lassos at once, here by matrix products: FISTA, where lasso.c moves one latent after the other.

Beck & Teboulle, SIAM J. Imaging Sci. 2, 2009; the restarts of O'Donoghue & Candès, Found. Comput. Math. 15, 2015.
"""

import numpy as np

LANES = 32
LOOK = 5  # steps from one look at the gap to the next


def lasso(
    N: int,
    b: np.ndarray,
    squares: np.ndarray,
    gram: np.ndarray,
    inverse: np.ndarray,
    sought: float,
    told: float,
    tol: float,
    sweeps: int,
    s: np.ndarray,
    objective: np.ndarray,
    unfound: np.ndarray,
) -> None:
    """The s of the smallest ½‖y − Ws‖² + sought ‖s‖₁ of each data point: lasso.c says more.

    Parameters
    ----------
    b : (N, H) array
        y W.
    squares : (N,) array
        ‖y‖².
    gram : (H, ≥ H) array
        WᵀW.
    inverse : (H,) array
        1 / diag(WᵀW), which is not needed here.
    sought, told : float
        The penalty, and that of the objective that is told.
    tol, sweeps : float, int
        A search ends at a duality gap of tol ‖y‖², or after so many steps along the gradient, of all latents at once.
    s : (N, H) array, out
    objective, unfound : (N,) arrays, out
        ½‖y − Ws‖² + told ‖s‖₁, and 1 where the steps were too few, else 0.
    """
    H, real, at = b.shape[1], b.dtype.type, np.arange(N)  # of the data points that are not done
    G = np.ascontiguousarray(gram[:, :H])
    largest = np.linalg.eigvalsh(G)[-1] * (1 + H * np.finfo(real).eps) if np.all(np.isfinite(G)) else np.inf
    step = real(1 / max(largest, np.finfo(real).tiny))
    x, z, goal, t = np.zeros_like(b), np.zeros_like(b), b, np.ones(N, real)
    for sweep in range(1, sweeps + 1):
        u = z - step * (z @ G - goal)
        new = u - np.clip(u, -step * real(sought), step * real(sought))
        change = new - x
        t = np.where(np.einsum("nh,nh->n", z - new, change) > 0, real(1), t)  # z led uphill: the momentum begins again
        following = (1 + np.sqrt(1 + 4 * t * t)) / 2
        x, z, t = new, new + ((t - 1) / following)[:, None] * change, following
        if sweep % LOOK and sweep < sweeps:
            continue
        yy, along, c = squares[at].astype(np.float64), np.einsum("nh,nh->n", x, goal), goal - x @ G
        rr = np.maximum(yy - along - np.einsum("nh,nh->n", x, c), 0)
        l1, far = np.abs(x).sum(axis=1), np.abs(c).max(axis=1)
        scale = np.divide(sought, far, out=np.ones_like(far), where=far > sought)
        distance = rr / 2 + sought * l1 - scale * (yy - along) + scale**2 * rr / 2
        short_of = ~(distance <= tol * yy)
        s[at], objective[at], unfound[at] = x, rr / 2 + told * l1, short_of
        at, x, z, goal, t = at[short_of], x[short_of], z[short_of], goal[short_of], t[short_of]
        if not at.size:
            break
