"""Pictures restored: patches and back, noise taken off, gaps filled, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gem
from gem.cli import main
from gem.images import load_picture, save_picture
from gem.models import BSC, MoG
from gem.restore import Cover, clean_patches, psnr, restore

QUICK = {"backend": "numpy", "steps": 10, "patch": 4}


def stripes(side: int = 32) -> np.ndarray:
    """A picture of rank 2: its patches have few causes."""
    x = np.arange(side)
    wave = 40 * np.where((x // 4) % 2, 1, -1)
    return 128 + wave[None, :] + 0.5 * wave[:, None]


def noisy(clean: np.ndarray, sigma: float = 20.0) -> np.ndarray:
    return clean + sigma * np.random.default_rng(0).standard_normal(clean.shape)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("shape", [(1, 9, 11), (3, 6, 6), (1, 4, 4)])
def test_patches_and_back_is_the_picture(shape, stride):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(float)
    cover = Cover(shape, 4, stride)
    total, times = np.zeros(shape), np.zeros(shape)
    cover.add(total, cover.cut(picture))
    cover.add(times, np.ones((len(cover.places), 16)))
    assert times.min() >= 1
    np.testing.assert_array_equal(total / times, picture)
    again = np.zeros(shape)
    for part in (slice(0, 2), slice(2, None)):
        cover.add(again, cover.cut(picture, part), part)
    np.testing.assert_array_equal(again, total)


@pytest.mark.parametrize(("model", "gain"), [("bsc", 4), ("gsc", 6), ("mog", 5), ("sc", 3), ("mca", 2), ("dsc", 3)])
def test_denoising_gains(model, gain):
    clean = stripes()
    before = noisy(clean)
    given = before.copy()
    sizes = {"K": 4} if model == "mog" else {"H": 16}
    done = restore(before, model, sigma=20.0, clean=clean, **QUICK, **sizes)
    np.testing.assert_array_equal(before, given)
    assert done.psnr_before == pytest.approx(psnr(before, clean))
    assert done.psnr_after == pytest.approx(psnr(done.picture, clean))
    assert done.psnr_after - done.psnr_before > gain


def test_fields_that_must_not_be_negative_on_a_dark_picture():
    dark = stripes() - 60  # its noise goes below 0, and so does the noisy picture
    done = restore(noisy(dark), "mca", sigma=20.0, H=16, **QUICK)
    assert np.all(done.params["W"] >= 0)


def test_no_two_fields_begin_as_the_same_patch():
    from gem.restore import _start

    model = BSC(D=16, H=40)
    Y = np.random.default_rng(0).standard_normal((50, 16)) * np.geomspace(1, 100, 50)[:, None]
    W = _start(model, Y, 1.0, seed=0)["W"]
    assert len(np.unique(W, axis=1).T) == 40


def test_denoising_on_every_backend(backend):
    clean = stripes(16)
    settings = {"sigma": 20.0, "steps": 3, "patch": 4, "H": 8, "dtype": "float64"}
    expected = restore(noisy(clean), "gsc", backend="numpy", **settings).picture
    np.testing.assert_allclose(restore(noisy(clean), "gsc", backend=backend, **settings).picture, expected, rtol=1e-6)


def test_colour_is_restored_channel_by_channel():
    clean = np.stack([stripes(), 255 - stripes(), np.full((32, 32), 90.0)], axis=-1)
    done = restore(noisy(clean), "gsc", sigma=20.0, clean=clean, H=16, **QUICK)
    assert done.picture.shape == clean.shape
    assert done.psnr_after - done.psnr_before > 5


def test_a_gaussian_is_denoised_by_its_posterior_mean():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((3, 3))
    signal, sigma = factor @ factor.T, 0.7
    params = {"pi": [1.0], "mu": [[1.0, -2.0, 0.5]], "cov": (signal + sigma**2 * np.eye(3))[None]}
    y = rng.standard_normal((5, 3))
    precision = np.linalg.inv(signal) + np.eye(3) / sigma**2
    expected = np.linalg.solve(precision, (np.linalg.solve(signal, params["mu"][0]) + y / sigma**2).T).T
    model = MoG(D=3, K=1, covariance="full")
    found = clean_patches(model, model.check(params), y, sigma, "numpy", "float64")
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("model", ["bsc", "gsc", "mog"])
def test_inpainting_fills_gaps_and_keeps_the_rest(model):
    clean = stripes() + np.random.default_rng(3).random((32, 32)) / 3
    lost = np.random.default_rng(1).random(clean.shape) < 0.3
    sizes = {"K": 4} if model == "mog" else {"H": 16}
    done = restore(np.where(lost, np.nan, clean), model, sigma=0.0, clean=clean, **QUICK, **sizes)
    np.testing.assert_array_equal(done.picture[~lost], clean[~lost])
    assert done.psnr_after - done.psnr_before > 2


def test_noise_and_gaps_at_once():
    clean = stripes()
    lost = np.random.default_rng(1).random(clean.shape) < 0.2
    done = restore(np.where(lost, np.nan, noisy(clean)), "gsc", sigma=20.0, clean=clean, H=16, **QUICK)
    assert done.psnr_after - done.psnr_before > 3


def test_a_picture_that_is_the_clean_one_has_no_error():
    clean = stripes()
    assert psnr(clean, clean) == np.inf
    assert psnr(clean + 1, clean) == pytest.approx(48.13, abs=0.01)


GAP = np.where(np.eye(12, dtype=bool), np.nan, 9.0)
HOLE = np.pad(np.full((20, 20), np.nan), 4, constant_values=5.0)


@pytest.mark.parametrize(
    ("picture", "model", "settings", "match"),
    [
        (np.ones((12, 12)), "gsc", {"sigma": -1.0}, "must not be negative"),
        (np.ones((12, 12)), "gsc", {"sigma": np.nan}, "must not be negative"),
        (np.ones((12, 12)), "gsc", {"sigma": 0.0}, "nothing to restore"),
        (np.ones((5, 12)), "gsc", {"sigma": 1.0, "patch": 6}, "12 x 5 pixels"),
        (np.ones(12), "gsc", {"sigma": 1.0}, "a picture is an array"),
        (np.full((12, 12), np.inf), "gsc", {"sigma": 1.0}, "Inf"),
        (np.ones((12, 12)), "gcs", {"sigma": 1.0}, "unknown model"),
        (np.ones((12, 12)), "mop", {"sigma": 1.0}, "counts"),
        (np.ones((12, 12)), "noisyor", {"sigma": 1.0}, "0 or 1"),
        (np.ones((12, 12)), "gsc", {"sigma": 1.0, "stride": 9}, "stride = 9"),
        (np.ones((12, 12)), "gsc", {"sigma": 1.0, "clean": np.ones((3, 3))}, "clean picture has shape"),
        (GAP, "sc", {"sigma": 0.0}, "gaps"),
        (HOLE, "gsc", {"sigma": 0.0, "patch": 4}, "wider than the patch"),
        (np.ones((12, 12)), "mog", {"sigma": 1.0, "H": 8}, "mog has no option 'H': there are K, covariance, reg"),
    ],
)
def test_refused(picture, model, settings, match):
    with pytest.raises(gem.errors.GemError, match=match):
        restore(picture, model, backend="numpy", **settings)


@pytest.fixture
def picture(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_picture("a.png", stripes(16))
    return Path("a.png")


FAST = ["--H", "8", "--patch", "4", "--steps", "3", "--backend", "numpy", "-q"]


@pytest.mark.serial
def test_denoise_command(picture, capsys):
    assert main(["denoise", "a.png", "--add-noise", "--sigma", "20", "-o", "b.npy", *FAST]) == 0
    said = capsys.readouterr().out
    assert "PSNR" in said
    assert "dB →" in said
    assert psnr(load_picture("b.npy"), load_picture("a.png")) > 23
    assert main(["denoise", "b.npy", "--sigma", "5", "--clean", "a.png", *FAST]) == 0
    assert load_picture("b-restored.png").shape == (16, 16)


@pytest.mark.serial
def test_inpaint_command(picture, capsys):
    assert main(["inpaint", "a.png", "--missing", "0.3", *FAST]) == 0
    assert "PSNR" in capsys.readouterr().out
    assert load_picture("a-restored.png").shape == (16, 16)
    save_picture("mask.png", 255 * np.eye(16))
    assert main(["inpaint", "a.png", "--mask", "mask.png", "-o", "c.npy", *FAST]) == 0
    known = ~np.eye(16, dtype=bool)
    np.testing.assert_array_equal(load_picture("c.npy")[known], load_picture("a.png")[known])


@pytest.mark.serial
@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("denoise none.png", "cannot read none.png"),
        ("denoise text.png", "cannot read text.png as an image"),
        ("denoise a.png --sigma 0", "nothing to restore"),
        ("denoise a.png --sigma -3 --add-noise", "--sigma -3"),
        ("denoise a.png --model mop", "counts"),
        ("denoise a.png --patch 17", "too few for a patch"),
        ("denoise a.png -o a.png", "choose another name"),
        ("denoise a.png -o b.xyz", "name a .png"),
        ("inpaint a.png --missing 1.5", "between 0 and 1"),
        ("inpaint a.png --missing 0.5 --model sc", "gaps"),
        ("inpaint a.png --mask small.png", "must agree"),
        ("inpaint a.png", "nothing to restore"),
    ],
)
def test_commands_refuse(picture, capsys, command, match):
    Path("text.png").write_text("no picture")
    save_picture("small.png", np.zeros((3, 3)))
    assert main([*command.split(), "--backend", "numpy", "--steps", "1", "-q"]) == 1
    assert match in capsys.readouterr().err
