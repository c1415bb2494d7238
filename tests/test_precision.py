"""What float32 would lose, and does not: covariances that are nearly singular."""

from __future__ import annotations

import numpy as np
import pytest

import gem
from benchmarks.accuracy import DENSITY_ASKED, density_errors, near_singular
from gem.models import MoG


@pytest.mark.parametrize("D", [7, 70])
@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_float32_loses_the_root_of_the_condition(covariance, D, backend):
    """By products with the inverse covariance the log density would be off by several nats."""
    error, possible = density_errors(covariance, D, backend)
    assert error <= DENSITY_ASKED * possible


def test_moments_of_a_tied_covariance_that_is_nearly_singular():
    """On numpy they are taken of whitened data: the M-step's covariance is as good as the factor, too."""
    cov, Y = near_singular(7)
    params = {"pi": [1.0], "mu": np.zeros((1, 7)), "cov": cov}
    new, _ = gem.em_step(MoG(7, 1, "tied", reg=0), params, Y, dtype="float32", backend="numpy")
    exact = np.cov(Y.T, bias=True)
    ratio = np.linalg.eigvals(np.linalg.solve(exact, new["cov"]))
    np.testing.assert_allclose(ratio, 1, rtol=0.01)
