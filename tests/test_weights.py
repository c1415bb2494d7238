"""Weights: those too small to matter are 0 before a product meets them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import backends

import gem
from gem.kernels import winners
from gem.kernels.weights import LEAST, settled_exp
from gem.models import make
from gem.states import state_table


@pytest.mark.serial
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_are_right_or_zero(dtype):
    energies = -np.geomspace(1e-3, 1e4, 1000).astype(dtype)
    found = energies.copy()
    settled_exp(found)
    least = LEAST[dtype]
    exact = np.exp(energies.astype(np.float64))
    assert np.all(found[exact < least] == 0)
    large = exact > 1e16 * least  # what is taken off does not show
    np.testing.assert_allclose(found[large], exact[large], rtol=4e-6 if dtype == "float32" else 1e-13)
    assert np.all((found == 0) | (found >= np.finfo(dtype).tiny))


@pytest.mark.parametrize("backend", list(backends(cuda=())), indirect=True)
@pytest.mark.parametrize("name", ["bsc", "tsc", "gsc", "mca"])
def test_no_code_is_below_the_normal_range(name, backend):
    """Products with such numbers take a CPU a hundred times as long; a GPU does not mind."""
    model = make(name, {"D": 30, "H": 40, "Hprime": 6, "gamma": 3})
    rng = np.random.default_rng(0)
    params = {**model.init_params(rng.standard_normal((100, 30)), seed=0), "sigma": np.array(0.4)}
    params["W"] = np.abs(rng.standard_normal((30, 40)))
    Y, _ = model.generate_data({**params, "sigma": np.array(0.8)}, N=300, seed=1)
    found = gem.posterior(model, params, Y, backend=backend, dtype="float32")
    code = found.mean if found.product is None else found.product  # what meets the data in a product
    assert np.all((code == 0) | (np.abs(code) >= np.finfo("float32").tiny))


@pytest.mark.serial
def test_what_each_state_sees_of_its_causes_is_that_of_an_enumeration():
    rng = np.random.default_rng(2)
    states, n, D = state_table(5, 4), 7, 6
    weights = rng.random((n, states.S)) * (rng.random((n, states.S)) < 0.5)
    sizes = np.round(rng.random((5, n, D)), 1)  # many are equal
    terms = rng.standard_normal((5, n, D))
    wins, sees = np.zeros((5, n, D)), np.zeros((n, states.S))
    for s, active in enumerate(states.active):
        members = np.flatnonzero(active)
        largest = members[np.argmax(sizes[members], axis=0)]  # the first of equals
        sees[:, s] = np.take_along_axis(terms, largest[None], axis=0)[0].sum(axis=1)
        for i in members:
            wins[i] += np.where(largest == i, weights[:, s, None], 0)
    before, by_set = winners.larger(list(sizes)), winners.Winners(weights, states)
    some = np.array([0, 2, 3, 6])
    for i, mask in enumerate(before):
        np.testing.assert_allclose(by_set.won(i, some, mask[some]), wins[i, some], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(winners.seen(terms, states, before), sees, rtol=1e-12, atol=1e-13)
