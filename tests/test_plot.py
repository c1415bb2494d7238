"""Gabor fits against a Gabor function written out here; pictures against the numbers they show."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import gem
from gem import plot
from gem.errors import ConfigError, DataError
from gem.gabor import Gabor, _Wave, fit_all, fit_gabor, summary
from gem.models import BSC, MoG
from gem.store import Run, read_run

P = 16


def gabor(amplitude, x, y, theta, frequency, phase, sigma_x, sigma_y, side=P):
    """Ringach (2002), equation 1, with the sigma of Jones & Palmer (1987)."""
    Y, X = np.mgrid[:side, :side]
    u = (X - x) * np.cos(theta) + (Y - y) * np.sin(theta)
    v = -(X - x) * np.sin(theta) + (Y - y) * np.cos(theta)
    envelope = np.exp(-(u**2) / (2 * sigma_x**2) - v**2 / (2 * sigma_y**2))
    return amplitude * envelope * np.cos(2 * np.pi * frequency * u + phase)


def random_gabors(count: int, seed: int = 0) -> list[tuple[float, ...]]:
    rng = np.random.default_rng(seed)
    low = [0.1, 3, 3, 0, 0.05, -np.pi, 1, 1]
    high = [9, 12, 12, np.pi, 0.35, np.pi, 4, 4]
    return [tuple(rng.uniform(low, high)) for _ in range(count)]


def r_squared(field, fitted):
    return 1 - np.sum((field - fitted) ** 2) / np.sum((field - field.mean()) ** 2)


# -- Gabor functions ---------------------------------------------------------------------------------------


def test_a_gabor_function_is_found_again_to_the_last_parameter():
    for truth in random_gabors(25):
        amplitude, x, y, theta, frequency, phase, sigma_x, sigma_y = truth
        if frequency * sigma_x < 0.2:
            continue  # less than half a cycle: other parameters give nearly the same field
        fit = fit_gabor(gabor(*truth))
        same = [fit.amplitude, fit.x, fit.y, fit.frequency, fit.sigma_x, fit.sigma_y, 1 / fit.wavelength]
        expected = [amplitude, x, y, frequency, sigma_x, sigma_y, frequency]
        np.testing.assert_allclose(same, expected, rtol=1e-3)
        turn = np.angle(np.exp(2j * (fit.theta - theta))) / 2  # theta and theta + π are one direction ...
        mirrored = abs(fit.theta - theta) > np.pi / 2  # ... from the other end of which the phase is −phase
        assert abs(turn) < 1e-3
        assert abs(np.angle(np.exp(1j * (fit.phase - (-phase if mirrored else phase))))) < 1e-2
        assert fit.r2 > 1 - 1e-6


def test_blobs_and_slow_waves_are_fitted_as_well_as_gratings():
    blobs = [(2.0, 6.0, 8.5, t, 0.05, p, 1.2, 2.8) for t in (0.0, 1.0, 2.5) for p in (0.0, 1.5)]
    along_the_wave = (1.33, 10.27, 5.99, 1.757, 0.0544, -2.793, 2.652, 1.083)
    grating = (1.0, 8.0, 8.0, 0.6, 0.3, 1.0, 14.0, 14.0)
    for truth in [*blobs, along_the_wave, grating]:
        assert fit_gabor(gabor(*truth)).r2 > 0.999


def test_noise_does_not_lead_the_fit_astray():
    rng = np.random.default_rng(1)
    for truth in random_gabors(20, seed=2):
        clean = gabor(*truth)
        noisy = clean + 0.3 * clean.std() * rng.standard_normal(clean.shape)
        fit = fit_gabor(noisy)
        assert r_squared(clean, fit.field()) > 0.98
        assert fit.r2 >= r_squared(noisy, clean)  # the least squares fit beats even the truth


def test_field_is_the_function_on_the_pixels():
    for truth in random_gabors(5, seed=3):
        record = Gabor(*truth, P=11, r2=1.0)
        np.testing.assert_allclose(record.field(), gabor(*truth, side=11), atol=1e-12)


def test_r2_is_about_the_mean_of_the_field():
    noise = np.random.default_rng(4).normal(0.2, 0.5, (P, P))
    field = gabor(1, 7, 8, 0.4, 0.15, 0.3, 2.5, 3) + noise
    fit = fit_gabor(field)
    assert fit.r2 == pytest.approx(r_squared(field, fit.field()), abs=1e-9)
    assert fit_gabor(np.full((P, P), 3.0)).r2 == 0
    nothing = fit_gabor(np.zeros((P, P)))
    assert (nothing.amplitude, nothing.r2) == (0, 0)
    assert not nothing.field().any()


def test_units_and_sign_of_the_field_change_only_amplitude_and_phase():
    field = gabor(1, 7, 8, 0.4, 0.2, 0.3, 2.5, 3)
    one, other = fit_gabor(field), fit_gabor(-1e-8 * field)
    assert other.amplitude == pytest.approx(1e-8 * one.amplitude, rel=1e-5)
    assert abs(abs(other.phase - one.phase) - np.pi) < 1e-4
    expected = replace(one, amplitude=other.amplitude, phase=other.phase)
    for name, value in vars(expected).items():
        assert getattr(other, name) == pytest.approx(value, abs=1e-5), name


def test_fits_stay_within_their_bounds_whatever_the_field():
    rng = np.random.default_rng(5)
    Y, X = np.mgrid[:P, :P]
    spike = np.zeros((P, P))
    spike[3, 9] = 1
    noise = [rng.standard_normal((P, P)) for _ in range(10)]
    waves = [(-1.0) ** X, (-1.0) ** (X + Y)]
    for field in [X - 7.5, X * Y, 1e6 + X, np.ones((P, P)), spike, *waves, *noise]:
        fit = fit_gabor(field)
        assert -0.5 <= fit.x <= P - 0.5
        assert -0.5 <= fit.y <= P - 0.5
        assert 0 <= fit.theta <= np.pi
        assert 1 / (4 * P) <= fit.frequency <= 0.5
        assert -np.pi <= fit.phase <= np.pi
        assert 0.5 <= fit.sigma_x <= P
        assert 0.5 <= fit.sigma_y <= P
        assert fit.amplitude <= 6 * np.abs(field).max()
        assert np.isfinite(fit.r2)


def test_amplitude_stays_near_the_field_where_a_slope_would_let_it_grow():
    Y, X = np.mgrid[:P, :P]
    slope = (X - 7) * np.exp(-((X - 7) ** 2 + (Y - 8) ** 2) / 8)  # what odd Gabors of few cycles tend to
    fit = fit_gabor(slope)
    assert fit.r2 > 0.999
    assert fit.amplitude < 4.5 * slope.max()


def test_jacobian_equals_finite_differences():
    p, h = np.array([5.3, 7.1, 0.7, 0.15, 2.0, 3.0, 0.8, -0.4]), 1e-6
    numeric = [(_Wave(p + h * e, 9).value - _Wave(p - h * e, 9).value) / (2 * h) for e in np.eye(8)]
    np.testing.assert_allclose(_Wave(p, 9).jacobian(), np.transpose(numeric), atol=1e-8)


def test_all_fields_are_fitted_in_order_and_fast():
    truths = random_gabors(40, seed=6)
    W = np.stack([gabor(*t).ravel() for t in truths], axis=1)
    began = time.process_time()
    fits = fit_all(W)
    assert time.process_time() - began < 8  # 200 fields in 20 s would allow 4 s on one idle core
    for fit, field in zip(fits, W.T, strict=True):
        assert r_squared(field, fit.field().ravel()) > 0.99
    assert summary(fits) == {"fields": 40, "r2_above_half": 40, "localised": 40}


def test_summary_counts_good_fits_and_those_within_the_patch():
    fit = Gabor(1, 8, 8, 0, 0.1, 0, 3, 3, P=15, r2=0.9)
    fits = [fit, replace(fit, r2=0.5), replace(fit, r2=0.51)]
    fits += [replace(fit, sigma_x=5), replace(fit, sigma_y=6)]
    fits += [replace(fit, sigma_x=1, sigma_y=1, r2=0.2)]  # a narrow envelope, but no Gabor
    assert summary(fits) == {"fields": 6, "r2_above_half": 4, "localised": 2}


def test_fields_that_cannot_be_fitted_are_refused():
    with pytest.raises(DataError, match=r"\(4, 5\)"):
        fit_gabor(np.ones((4, 5)))
    with pytest.raises(DataError, match="3 × 3"):
        fit_gabor(np.ones((2, 2)))
    broken = np.ones((5, 5))
    broken[2, 3] = np.nan
    with pytest.raises(DataError, match="nan at row 2, column 3"):
        fit_gabor(broken)
    with pytest.raises(DataError, match=r"\(17, 3\)"):
        fit_all(np.ones((17, 3)))
    with pytest.raises(DataError, match="square"):
        fit_all(np.ones(16))


# -- fields and free energy --------------------------------------------------------------------------------


def cells(image: np.ndarray, side: int) -> list[np.ndarray]:
    """The squares of a mosaic, row by row, frames left out."""
    rows, columns = (n // (side + 1) for n in image.shape)
    framed = image[:-1, :-1].reshape(rows, side + 1, columns, side + 1).swapaxes(1, 2)
    return list(framed.reshape(-1, side + 1, side + 1)[:, 1:, 1:])


def test_mosaic_shows_each_field_on_its_own_scale_in_the_order_asked_for():
    W = np.random.default_rng(0).standard_normal((256, 5)) * [1, 10, 100, 0, 1e-3]
    axes = plot.fields(Figure(), W, order=[4, 2, 0, 3], columns=3)
    image = axes.images[0]
    assert image.get_clim() == (-1, 1)  # 0 in the middle of the map
    shown = image.get_array().filled(np.nan)
    assert shown.shape == (2 * 17 + 1, 3 * 17 + 1)
    found = cells(shown, 16)
    for cell, h in zip(found, [4, 2, 0], strict=False):
        np.testing.assert_allclose(cell, W[:, h].reshape(16, 16) / np.abs(W[:, h]).max())
    assert not found[3].any()  # a field of zeros has no scale
    assert np.all(found[4] == plot.BLANK)
    assert np.all(found[5] == plot.BLANK)
    assert np.isnan(shown[0]).all()
    assert np.isnan(shown[17, :18]).all()


def test_small_fields_are_enlarged_pixel_by_pixel():
    W = np.arange(1.0, 10.0)[:, None] / 9
    (cell,) = cells(plot.mosaic(W), 18)
    np.testing.assert_array_equal(cell, np.repeat(np.repeat(W.reshape(3, 3), 6, axis=0), 6, axis=1))


def test_fields_that_are_no_squares_become_one_image():
    W = np.random.default_rng(1).standard_normal((7, 3)) + 1
    figure = Figure()
    axes = figure.add_subplot()
    assert plot.fields(axes, W, order=np.array([2, 0, 1])) is axes
    image = axes.images[0]
    np.testing.assert_array_equal(image.get_array(), W[:, [2, 0, 1]])
    assert image.get_clim() == (-np.abs(W).max(), np.abs(W).max())
    figure.savefig("/dev/null", format="png")


def test_impossible_mosaics_are_refused():
    with pytest.raises(ConfigError, match=r"\(9,\)"):
        plot.fields(Figure(), np.ones(9))
    with pytest.raises(ConfigError, match="columns = 0"):
        plot.fields(Figure(), np.ones((9, 2)), columns=0)


def history(steps: int, **other) -> dict[str, np.ndarray]:
    constant = {name: np.full(steps, value) for name, value in {"N": 50.0, "N_use": 50.0, "T": 1.0}.items()}
    return {"free_energy": -100.0 + np.arange(steps)} | constant | other


def test_free_energy_is_drawn_per_data_point_against_the_step():
    axes = Figure().add_subplot()
    plot.free_energy(axes, history(4))
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1, -2], [2, -1.98], [3, -1.96], [4, -1.94]])
    assert axes.figure.axes == [axes]  # nothing else changed: nothing else is shown


def test_temperature_and_selection_are_drawn_only_if_they_change():
    T, N_use = np.array([3.0, 2.0, 1.0]), np.array([50.0, 45.0, 40.0])
    for changing, labels in [
        ({"T": T}, ["temperature T"]),
        ({"N_use": N_use}, ["share of the data used, N_use/N"]),
        ({"T": T, "N_use": N_use}, ["temperature T", "share of the data used, N_use/N"]),
    ]:
        axes = Figure().add_subplot()
        plot.free_energy(axes, history(3, **changing))
        beside = axes.figure.axes[1:]
        assert [twin.get_ylabel() for twin in beside] == labels
        expected = [{"temperature T": T}.get(label, N_use / 50) for label in labels]
        for twin, values in zip(beside, expected, strict=True):
            np.testing.assert_allclose(twin.lines[0].get_ydata(), values)
            assert twin.get_zorder() < axes.get_zorder()


# -- whole runs --------------------------------------------------------------------------------------------

BARS = BSC(D=16, H=4, Hprime=3, gamma=2)


@pytest.fixture
def bsc_run(tmp_path) -> Run:
    """A run on a .npy file whose latents are used unequally: 0 least, 3 most."""
    rng = np.random.default_rng(0)
    W = np.kron(np.eye(4), np.full((4, 1), 5.0))
    s = rng.random((400, 4)) < [0.05, 0.1, 0.2, 0.4]
    np.save(tmp_path / "bars.npy", s @ W.T + rng.standard_normal((400, 16)))
    em = gem.EM(
        BARS,
        tmp_path / "bars.npy",
        gem.Annealing(5, T=[(0, 2.0), (1.0, 1.0)]),
        params={"W": W, "pi": 0.2, "sigma": 1.0},
        output=tmp_path / "run.h5",
    )
    em.run()
    return read_run(tmp_path / "run.h5")


@pytest.fixture
def mog_run(tmp_path) -> Run:
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((200, 7)) + 8 * (rng.random((200, 1)) < 0.3)
    gem.EM(MoG(D=7, K=2), Y, gem.Annealing(3), output=tmp_path / "mog.h5").run()
    return read_run(tmp_path / "mog.h5")


def drawn(monkeypatch, run: Run, path: Path, use=None) -> tuple[np.ndarray, np.ndarray, str]:
    """What `picture` hands to `fields`, and the title it gives them."""
    seen, original = [], plot.fields

    def spy(where, W, order=None, columns=None):
        axes = original(where, W, order, columns)
        seen.append((W, order, axes))
        return axes

    monkeypatch.setattr(plot, "fields", spy)
    plot.picture(run, path, use)
    W, order, axes = seen[-1]
    return W, order, axes.get_title(loc="left")


def test_usage_is_the_mean_activity_on_the_runs_data(bsc_run, tmp_path, monkeypatch):
    use = plot.usage(bsc_run)
    Y = np.load(tmp_path / "bars.npy")
    exact = gem.posterior(BARS, bsc_run.params, Y, dtype="float64").mean.mean(axis=0)
    np.testing.assert_allclose(use, exact, atol=1e-4)
    assert np.all(np.argsort(use) == [0, 1, 2, 3])
    monkeypatch.setattr(plot, "USAGE_POINTS", 30)
    first = gem.posterior(BARS, bsc_run.params, Y[:30], dtype="float64").mean.mean(axis=0)
    np.testing.assert_allclose(plot.usage(bsc_run), first, atol=1e-4)


def test_usage_is_none_where_the_data_are_not_at_hand(bsc_run, tmp_path):
    in_memory = replace(bsc_run, config=bsc_run.config | {"data": None})
    assert plot.usage(in_memory) is None
    np.save(tmp_path / "bars.npy", np.ones((30, 4)))  # other data have taken their place
    assert plot.usage(bsc_run) is None
    (tmp_path / "bars.npy").unlink()
    assert plot.usage(bsc_run) is None


def test_usage_of_a_mixture_is_pi(mog_run):
    np.testing.assert_array_equal(plot.usage(mog_run), mog_run.params["pi"])


def test_picture_sorts_fields_by_use_or_says_that_it_did_not(bsc_run, tmp_path, monkeypatch):
    path = tmp_path / "run.png"
    W, order, title = drawn(monkeypatch, bsc_run, path, plot.usage(bsc_run))
    np.testing.assert_array_equal(W, bsc_run.params["W"])
    assert (list(order), title) == ([3, 2, 1, 0], "fields, most used first")
    with Image.open(path) as image:
        assert image.size == (1650, 840)
        assert round(image.info["dpi"][0]) == 150
    _, order, title = drawn(monkeypatch, bsc_run, path)
    assert list(order) == list(np.argsort(-np.linalg.norm(W, axis=0)))
    assert "norm" in title


def test_picture_of_a_mixture_shows_its_means_by_pi(mog_run, tmp_path, monkeypatch):
    W, order, title = drawn(monkeypatch, mog_run, tmp_path / "mog.pdf")
    np.testing.assert_array_equal(W, mog_run.params["mu"].T)
    assert list(order) == list(np.argsort(-mog_run.params["pi"]))
    assert title == "means, most used first"
    assert (tmp_path / "mog.pdf").read_bytes().startswith(b"%PDF")


def test_a_run_without_a_step_has_a_picture(tmp_path):
    Y = np.random.default_rng(0).standard_normal((50, 3))
    gem.EM(BSC(D=3, H=2), Y, gem.Annealing(5), output=tmp_path / "run.h5")
    run = read_run(tmp_path / "run.h5")
    plot.picture(run, tmp_path / "run.png", plot.usage(run))
    assert plot._title(run).endswith(" on N = 50 data points, 0 of 5 EM steps")


def test_pictures_that_cannot_be_made_are_refused(bsc_run, tmp_path):
    with pytest.raises(ConfigError, match=r"\(3,\).*4 fields"):
        plot.picture(bsc_run, tmp_path / "run.png", np.ones(3))
    with pytest.raises(ConfigError, match=r"run\.docx"):
        plot.picture(bsc_run, tmp_path / "run.docx")
    with pytest.raises(ConfigError, match=r"nowhere.*No such file"):
        plot.picture(bsc_run, tmp_path / "nowhere" / "run.png")


def test_nothing_global_is_touched():
    script = """
import sys
import gem.gabor, gem.plot
assert not {"matplotlib", "scipy"} & set(sys.modules), "imported where they are not yet used"
import matplotlib, numpy
before = matplotlib.rcParams.copy()
from matplotlib.figure import Figure
figure = Figure()
gem.plot.fields(figure, numpy.eye(9))
gem.plot.free_energy(figure.add_subplot(), {"free_energy": numpy.arange(3.0), "N": numpy.ones(3)})
figure.savefig("/dev/null", format="png")
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
