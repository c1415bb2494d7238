"""Pictures restored: patches and back, noise taken off, gaps filled, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from astropy.io import fits

import gem
from gem.cli import main
from gem.images import load_picture, save_picture
from gem.models import BSC, MoG
from gem.picture_files import Picture, read_picture, write_picture
from gem.restore import Cover, clean_patches, estimate_sigma, psnr, restore

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
    from gem.restore.recipe import start as _start

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
        (np.ones((5, 9, 11)), "gsc", {"sigma": 1.0}, r"of a stack give one picture, Y\[i\]"),
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


# Pictures in the depth and with the transparency they came in


RNG = np.random.default_rng(5)
GREY = np.clip(np.rint(stripes(20) + 5 * RNG.standard_normal((20, 20))), 0, 255).astype(np.uint8)
COLOUR = np.clip(np.rint(GREY[..., None] * [0.5, 0.8, 1.0] + 20 * RNG.random((20, 20, 3))), 0, 255).astype(np.uint8)
ALPHA = np.where(np.arange(20)[:, None] < 6, 0, np.arange(20) * 12).astype(np.uint8)


def _as(kind: str) -> tuple[np.ndarray, str]:
    """Samples as a file has them, and its suffix."""
    deep = COLOUR.astype(np.uint16) * 257
    return {
        "grey": (GREY, ".png"),
        "colour": (COLOUR, ".png"),
        "grey and opacity": (np.dstack([GREY, ALPHA]), ".png"),
        "colour and opacity": (np.dstack([COLOUR, ALPHA]), ".png"),
        "12 bits in 16": (GREY.astype(np.uint16) * 16, ".png"),
        "deep colour": (deep, ".png"),
        "deep colour and opacity": (np.dstack([deep, ALPHA.astype(np.uint16) * 257]), ".tif"),
        "deep grey and opacity": (np.dstack([GREY, ALPHA]).astype(np.uint16) * 257, ".png"),
        "deep colour TIFF": (deep, ".tif"),
        "grey TIFF of 16 bits": (GREY.astype(np.uint16) * 257, ".tif"),
        "float TIFF": ((300 + GREY / 100).astype(np.float32), ".tif"),
        "double colour TIFF": (COLOUR * 1e-6, ".tif"),
        "signed TIFF": (GREY.astype(np.int16) - 100, ".tif"),
    }[kind]


def _write(path: Path, samples: np.ndarray) -> None:
    """By a library, not by gem."""
    if path.suffix == ".tif":
        pytest.importorskip("tifffile").imwrite(
            path,
            samples,
            photometric="rgb" if samples.ndim == 3 else "minisblack",
            extrasamples=("unassalpha",) if samples.ndim == 3 and samples.shape[2] == 4 else None,
        )
    elif samples.dtype == np.uint16 and samples.ndim == 3:
        pytest.importorskip("imagecodecs")
        import imagecodecs

        path.write_bytes(imagecodecs.png_encode(samples))
    else:
        from PIL import Image

        Image.fromarray(samples).save(path)


def _read(path: Path) -> np.ndarray:
    if path.suffix == ".tif":
        import tifffile

        return tifffile.imread(path)
    import imagecodecs

    return imagecodecs.png_decode(path.read_bytes())


KINDS = [
    *("grey", "colour", "grey and opacity", "colour and opacity", "12 bits in 16", "deep colour"),
    *("deep colour and opacity", "deep grey and opacity", "deep colour TIFF", "grey TIFF of 16 bits", "float TIFF"),
    *("double colour TIFF", "signed TIFF"),
]


@pytest.mark.serial
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_comes_back_in_its_depth_and_with_its_opacity(tmp_path, kind):
    samples, suffix = _as(kind)
    given, found = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    _write(given, samples)
    write_picture(found, read_picture(given))
    np.testing.assert_array_equal(_read(found), samples)
    assert main(["denoise", str(given), "-o", str(found), "--steps", "1", "--backend", "numpy", "-q", "--K", "2"]) == 0
    restored = _read(found)
    assert (restored.dtype, restored.shape) == (samples.dtype, samples.shape)
    assert np.any(restored != samples)
    spread = float(np.ptp(samples))
    assert np.abs(restored.astype(float) - samples).max() < 0.6 * spread
    if "opacity" in kind:
        np.testing.assert_array_equal(restored[..., -1], samples[..., -1])
        np.testing.assert_array_equal(restored[:6], samples[:6])  # nobody sees it: it stays


@pytest.mark.serial
def test_palettes_bits_turned_pictures_and_arrays(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(COLOUR).quantize(32).save("palette.png")
    picture = read_picture("palette.png")
    assert (picture.values.shape, picture.dtype) == ((20, 20, 3), np.uint8)
    Image.fromarray(GREY > 128).save("bits.png")
    assert main(["denoise", "bits.png", "--steps", "1", "--backend", "numpy", "-q", "--K", "1"]) == 0
    with Image.open("bits-restored.png") as restored:
        assert restored.mode == "1"
    image = Image.fromarray(GREY[:12])
    exif = image.getexif()
    exif[274] = 6
    image.save("turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture("turned.png").values, np.rot90(GREY[:12], -1))
    for array in (GREY.astype(np.float32) * 1e-3 + 7, GREY.astype(np.int64) + 1000, GREY / 255):
        np.save("array.npy", array)
        picture = read_picture("array.npy")
        assert picture.unit == 1
        write_picture("again.npy", picture)
        again = np.load("again.npy")
        np.testing.assert_array_equal(again, array)
        assert again.dtype == array.dtype


@pytest.mark.serial
def test_pictures_of_fits_are_what_astropy_reads(tmp_path):
    """Scaled, unsigned, with gaps, and in an extension; Pillow reads other numbers there."""
    samples = np.random.default_rng(0).integers(0, 60000, (9, 11)).astype("u2")
    scaled = fits.PrimaryHDU((samples * 0.5 + 10).astype("f4"))
    scaled.scale("int16", bscale=0.5, bzero=16000)
    gaps = fits.PrimaryHDU((samples // 2).astype("i2"))
    gaps.header["BLANK"] = int(samples[3, 4] // 2)
    below = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(samples.astype("f8"))])
    for name, unit in {"u2": fits.PrimaryHDU(samples), "scaled": scaled, "gaps": gaps, "below": below}.items():
        unit.writeto(tmp_path / f"{name}.fits")
        meant = fits.getdata(tmp_path / f"{name}.fits")
        np.testing.assert_array_equal(read_picture(tmp_path / f"{name}.fits").values, meant)
    assert np.isnan(read_picture(tmp_path / "gaps.fits").values[3, 4])
    given = read_picture(tmp_path / "u2.fits")
    assert (given.dtype, given.white) == (np.uint16, 65535)
    write_picture(tmp_path / "u2.png", given)
    np.testing.assert_array_equal(read_picture(tmp_path / "u2.png").values, samples)
    fits.writeto(tmp_path / "cube.fits", np.zeros((3, 9, 11)))
    with pytest.raises(gem.DataError, match=r"shape \(3, 9, 11\), not \(height, width\).*getdata"):
        read_picture(tmp_path / "cube.fits")


def test_tiffs_that_count_from_white(tmp_path):
    samples = np.random.default_rng(0).integers(0, 60000, (9, 11)).astype("u2")
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="miniswhite")
    given = read_picture(tmp_path / "x.tif")
    np.testing.assert_array_equal(given.values, 65535.0 - samples)
    write_picture(tmp_path / "again.tif", given)
    with tifffile.TiffFile(tmp_path / "again.tif") as file:
        assert file.pages[0].photometric == 1
    np.testing.assert_array_equal(read_picture(tmp_path / "again.tif").values, given.values)
    tifffile.imwrite(tmp_path / "x.tif", np.stack([samples] * 4, -1), photometric="separated")
    with pytest.raises(gem.DataError, match="16 bits of CMYK: convert it"):
        read_picture(tmp_path / "x.tif")


def test_what_a_file_cannot_hold_is_told_or_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write_picture("a.jpg", Picture(COLOUR.astype(float), np.dtype(np.uint16), 65535.0, ALPHA.astype(np.uint16)))
    assert "no transparency" in caplog.text
    assert "8 bits" in caplog.text
    with pytest.raises(gem.ConfigError, match="without a white"):
        write_picture("a.png", Picture(np.ones((3, 3)), np.dtype(np.float32), None))
    write_picture("a.png", Picture(COLOUR.astype(float), np.dtype(np.uint16), 65535.0))
    whole = Path("a.png").read_bytes()
    Path("torn.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(gem.DataError, match="damaged"):
        read_picture("torn.png")


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4])
def test_filters_of_png(kind):
    """What a row filter does, byte by byte as the standard has it, is undone."""
    from gem.png16 import _unfiltered

    plain = np.random.default_rng(0).integers(0, 256, (5, 7, 6)).astype(int)
    coded = np.zeros_like(plain)
    for r, c, b in np.ndindex(*plain.shape):
        left = plain[r, c - 1, b] if c else 0
        above = plain[r - 1, c, b] if r else 0
        corner = plain[r - 1, c - 1, b] if r and c else 0
        guess = left + above - corner
        paeth = min((left, above, corner), key=lambda v: abs(guess - v))
        coded[r, c, b] = (plain[r, c, b] - [0, left, above, (left + above) // 2, paeth][kind]) % 256
    np.testing.assert_array_equal(_unfiltered(np.full(5, kind), coded.astype(np.uint8)), plain)


# The noise, and what has none


@pytest.mark.parametrize("sigma", [3.0, 20.0])
def test_the_noise_is_estimated(sigma):
    x = np.linspace(0, 200, 96)
    smooth = x[:, None] * 0.5 + x[None, :] * 0.5
    seen = noisy(smooth, sigma)
    assert estimate_sigma(seen) == pytest.approx(sigma, rel=0.06)
    assert estimate_sigma(seen) == pytest.approx(_by_scikit_image(seen), rel=0.06)
    assert estimate_sigma(300 + 1e-3 * seen) == pytest.approx(1e-3 * estimate_sigma(seen), rel=1e-6)
    holed = np.where(np.random.default_rng(2).random(seen.shape) < 0.03, np.nan, seen)
    assert estimate_sigma(holed) == pytest.approx(sigma, rel=0.12)
    flat = np.full((96, 96, 1), 7.0)
    assert estimate_sigma(np.concatenate([seen[..., None], flat], axis=2)) == pytest.approx(estimate_sigma(seen))
    assert estimate_sigma(flat) == 0
    clipped = np.clip(noisy(np.where(x[:, None] > 150, 128.0, 0.0) * np.ones(96), sigma), 0, 255)
    assert estimate_sigma(clipped) == pytest.approx(sigma, rel=0.1)


def _by_scikit_image(picture):
    restoration = pytest.importorskip("skimage.restoration")
    return restoration.estimate_sigma(picture)


def test_clipping_is_undone():
    from gem.restore.noise import Limits, find_limits, unclip

    rng = np.random.default_rng(0)
    for truth in (0.0, 10.0, 30.0, 255.0):
        mean = np.clip(truth + 20 * rng.standard_normal(200_000), 0, 255).mean()
        assert unclip(np.array([mean]), 20.0, Limits(0.0, 255.0))[0] == pytest.approx(truth, abs=0.3)
    assert unclip(np.array([10.0]), 20.0, Limits())[0] == 10
    assert find_limits(np.clip(noisy(np.zeros((30, 30))), 0, 255)) == Limits(0.0)
    assert find_limits(noisy(np.zeros((30, 30)))) == Limits()


@pytest.mark.parametrize("model", ["auto", "gsc", "mog"])
@pytest.mark.parametrize("sigma", [10.0, "auto"])
def test_a_flat_picture_returns_itself(model, sigma):
    sizes = {"K": 2} if model == "mog" else {}
    for flat in (np.full((12, 12), 3e5), np.full((9, 12, 3), [1.0, 2.0, 3.0]), np.zeros((1, 1))):
        done = restore(flat, model, sigma=sigma, steps=1, backend="numpy", **sizes)
        np.testing.assert_array_equal(done.picture, flat)
    star = np.full((16, 16), 20.0)
    star[8, 8] = 250
    done = restore(star, model, sigma=sigma, steps=1, backend="numpy", **sizes)
    away = np.hypot(*np.indices(star.shape) - 8) > 1
    np.testing.assert_array_equal(done.picture[away], 20)
    if sigma == "auto":
        np.testing.assert_array_equal(done.picture, star)


@pytest.mark.parametrize("clipped", [False, True])
def test_empty_areas_are_at_least_as_good_as_wavelets(clipped):
    restoration = pytest.importorskip("skimage.restoration")
    black = np.zeros((64, 64))
    black[20:36, 12:40] = 180
    card = np.full((64, 64), 128.0)
    card[10:30, 20:50] = 200
    for clean in (black, card):
        seen = noisy(clean, 25.0)
        seen = np.clip(np.rint(seen), 0, 255) if clipped else seen
        wavelets = [
            psnr(restoration.denoise_wavelet(seen, 25.0, method=method, rescale_sigma=False), clean)
            for method in ("BayesShrink", "VisuShrink")
        ]
        done = restore(seen, steps=8, clean=clean, backend="numpy")
        assert done.psnr_after > max(wavelets)


@pytest.mark.parametrize("shape", [(1, 20), (20, 1), (2, 2), (5, 9), (1, 2), (3, 4, 3)])
def test_pictures_smaller_than_a_patch(shape):
    picture = 100 + 10 * np.random.default_rng(0).standard_normal(shape)
    done = restore(picture, steps=2, backend="numpy", sigma=10.0)
    assert done.picture.shape == shape
    assert np.abs(done.picture - 100).mean() < np.abs(picture - 100).mean() + 3


@pytest.mark.parametrize("factor", [1e-4, 257.0])
def test_the_unit_of_a_picture_does_not_matter(factor):
    seen = noisy(stripes(24))
    expected = restore(seen, sigma=20.0, steps=3, K=2, backend="numpy", dtype="float64").picture
    done = restore(factor * seen + 5, sigma=20.0 * factor, steps=3, K=2, backend="numpy", dtype="float64")
    np.testing.assert_allclose(done.picture, factor * expected + 5, rtol=1e-6)


def test_colour_is_restored_jointly():
    clean = stripes(32)[..., None] * [0.6, 1.0, 0.8] + [0, 10, 30]
    seen = noisy(clean)
    done = restore(seen, sigma=20.0, steps=5, K=4, clean=clean, backend="numpy")
    alone = [restore(seen[..., c], sigma=20.0, steps=5, K=4, backend="numpy").picture for c in range(3)]
    assert done.psnr_after > psnr(np.stack(alone, axis=-1), clean) + 1
    with_double = restore(np.dstack([seen[..., 0], 2 * seen[..., 0]]), sigma=20.0, steps=2, K=2, backend="numpy")
    assert np.all(np.isfinite(with_double.picture))
    same = np.repeat(seen[..., :1], 3, axis=2)
    found = restore(same, sigma=20.0, steps=2, K=2, backend="numpy").picture
    expected = restore(seen[..., 0], sigma=20.0, steps=2, K=2, backend="numpy").picture
    np.testing.assert_allclose(found, np.repeat(expected[..., None], 3, axis=2), rtol=1e-4)  # the mean of three
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


@pytest.mark.serial
def test_the_unit_of_sigma_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _write(Path("a.tif"), GREY.astype(np.uint16) * 257)
    fast = ["--steps", "1", "--K", "1", "--backend", "numpy", "-q"]
    assert main(["denoise", "a.tif", "--sigma", "5", *fast]) == 0
    assert "5 grey levels of 255, 1285 in its own units (given)" in capsys.readouterr().out
    assert main(["denoise", "a.tif", "--sigma", "1285", "--sigma-unit", "own", *fast]) == 0
    assert "1285 in the picture's own units (given)" in capsys.readouterr().out
    assert main(["denoise", "a.tif", "--sigma", "1285", *fast]) == 1
    assert "--sigma-unit own" in capsys.readouterr().err
    assert main(["denoise", "a.tif", "--sigma", "200", *fast]) == 0
    assert "try --sigma auto" in capsys.readouterr().err


def test_the_posterior_smooths_or_only_fills():
    Y = np.random.default_rng(0).standard_normal((30, 4))
    Y[::3, 1] = np.nan
    model = BSC(D=4, H=3, missing=True)
    params = model.init_params(Y, 0)
    smooth = gem.posterior(model, params, Y, backend="numpy", dtype="float64", reconstruct=True).reconstruction
    filled = gem.posterior(model, params, Y, backend="numpy", dtype="float64", impute=True).reconstruction
    lost = np.isnan(Y)
    np.testing.assert_array_equal(filled[~lost], Y[~lost])
    np.testing.assert_array_equal(filled[lost], smooth[lost])
    assert np.abs(smooth - Y)[~lost].max() > 0.1


def test_notes_are_told_where_a_picture_is_restored(tmp_path, capsys, monkeypatch):
    def noted(*args, **options):
        params, info = gem.em_step(*args, **options)
        return params, replace(info, notes=["component 3 is empty"])

    monkeypatch.setattr(gem.restore, "em_step", noted)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(12, 12)))
    line = ["denoise", str(tmp_path / "x.npy"), "--steps", "2", "--patch", "4", "--K", "2", "--sigma", "0.5", "--quiet"]
    assert main([*line, "--sigma-unit", "own", "-o", str(tmp_path / "y.npy")]) == 0
    assert "y.npy: note of steps 1 to 2: 2 × component 3 is empty" in capsys.readouterr().out
