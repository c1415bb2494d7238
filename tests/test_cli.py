"""The command line: what it accepts, what it prints and draws, and how it refuses what cannot work."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import gem
from benchmarks.scaling import unlaunched
from gem.cli import main
from gem.errors import DataError
from gem.models import BSC, make
from gem.store import RunFile, load_params, read_run

pytestmark = pytest.mark.serial  # under mpiexec, `main` takes part in the job and a refusal ends it

N, D = 60, 9
BSC_FIT = "--H 6 --Hprime 4 --gamma 3 --steps 5 --backend numpy -q"


def table() -> np.ndarray:
    W = 3 * np.random.default_rng(0).normal(size=(D, 6))
    return BSC(D=D, H=6).generate_data({"W": W, "pi": 0.3, "sigma": 0.8}, N, seed=1)[0]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder, with x.npy in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEM_BACKEND", raising=False)
    np.save("x.npy", table())
    return tmp_path


@pytest.fixture
def gem_(capsys):
    """Run a command line (no spaces in names): exit status, what it printed, its messages."""

    def run(command: str) -> tuple[int, str, str]:
        try:
            status = main(command.split())
        except SystemExit as end:  # argparse: usage, --help, --version
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def fitted(gem_) -> Path:
    """A finished run."""
    assert gem_(f"fit bsc x.npy -o run.h5 {BSC_FIT}")[0] == 0
    return Path("run.h5")


def assert_fitted(path: str | Path, steps: int = 5) -> None:
    run = read_run(path)
    assert (run.model, run.step, run.finished) == ("BSC", steps, True)


# fit and resume


def save_hdf5(**tables: np.ndarray) -> None:
    with h5py.File("x.h5", "w") as file:
        for name, values in tables.items():
            file[name] = values


def save_images() -> None:
    from PIL import Image

    Path("photos").mkdir()
    for i in range(2):
        grey = np.random.default_rng(i).integers(0, 256, size=(30, 40), dtype=np.uint8)
        Image.fromarray(grey).save(f"photos/{i}.png")


def test_fit_is_a_run_with_these_settings(gem_):
    status, out, err = gem_(f"fit bsc x.npy {BSC_FIT.removesuffix(' -q')}")
    assert status == 0
    run = gem.EM(BSC(D=D, H=6, Hprime=4, gamma=3), "x.npy", gem.Annealing.auto(5), backend="numpy").run()
    assert_fitted("run.h5")  # the default output
    for name, value in run.params.items():
        np.testing.assert_array_equal(read_run("run.h5").params[name], value)
    *notes, last = out.splitlines()
    assert all(line.startswith("run.h5: note of step") for line in notes)
    assert last == last_line(Path("run.h5"), run.history)
    assert "BSC(D=9, H=6, Hprime=4, gamma=3) on 60 data points, 1 rank(s), backend numpy" in err
    assert "step 1/5" in err
    assert "step 5/5" in err


def test_quiet(gem_):
    assert gem_(f"fit bsc x.npy {BSC_FIT}")[2] == ""


def test_the_log_is_shown_unless_quiet(gem_, monkeypatch):
    log = logging.getLogger("gem")
    before = log.level, list(log.handlers)
    flags = BSC_FIT.replace("--backend numpy -q", "--backend auto --overwrite")
    assert re.search(r"^gem: backend auto: (?!not)", gem_(f"fit bsc x.npy {flags}")[2], re.MULTILINE)
    assert "backend auto" not in gem_(f"fit bsc x.npy {flags} -q")[2]
    monkeypatch.setattr("gem.cli.make", lambda *arguments: log.warning("a warning") or make(*arguments))
    assert gem_(f"fit bsc x.npy {flags} -q")[2] == "gem: a warning\n"
    assert (log.level, log.handlers) == before  # nothing stays configured


def save_npz() -> None:
    np.savez("x.npz", Y=table(), other=table() + 1)


@pytest.mark.parametrize(
    ("save", "data"),
    [
        (lambda: None, "x.npy"),
        (save_npz, "x.npz:Y"),
        (lambda: save_hdf5(Y=table()), "x.h5"),
        (lambda: save_hdf5(Y=table(), Z=table()), "x.h5:/Z"),
    ],
)
def test_fit_table_and_resume(gem_, fitted, save, data):
    save()
    gem_(f"fit bsc {data} -o other.h5 {BSC_FIT} --checkpoint 2")
    assert_fitted("other.h5")
    np.testing.assert_array_equal(read_run("other.h5").params["W"], read_run(fitted).params["W"])
    status, out, err = gem_("resume other.h5")
    assert (status, out.splitlines()[-1]) == (0, last_line(Path("other.h5"), read_run(fitted).history))
    assert "BSC(D=9, H=6, Hprime=4, gamma=3): resuming after step 5 of 5, backend numpy" in err


def last_line(path: Path, history) -> str:
    """What `gem fit` and `gem resume` end with."""
    share = f"{history['share_at_gamma'][-1]:.1%} of the points at gamma = 3"
    return f"{path}: 5 steps, F/N = {history['free_energy'][-1] / history['N'][-1]:.6f}, {share}"


@pytest.mark.parametrize("data", ["photos", "photos/0.png photos/1.png"])
def test_fit_images_and_resume(gem_, data):
    save_images()
    assert gem_(f"fit bsc {data} --patch 4 --count 50 --no-whitening --seed 7 {BSC_FIT}")[0] == 0
    assert_fitted("run.h5")
    about = read_run("run.h5").config
    assert about["shape"] == [50, 16]
    files = [os.path.abspath(f"photos/{i}.png") for i in range(2)]
    assert about["data"] == {"data": files, "patch": 4, "count": 50, "whitening": False, "seed": 7}
    assert gem_("resume run.h5 -q")[0] == 0


@pytest.mark.parametrize("flags", ["--seed 5", "--config c.toml", "--seed 5 --patch 4"])
def test_the_seed_draws_the_patches_whatever_else_is_given(gem_, monkeypatch, flags):
    def note(_, **options):
        seen.append(options)
        raise DataError("enough seen")

    seen = []
    monkeypatch.setattr("gem.cli.open_data", note)
    Path("c.toml").write_text("[run]\nseed = 5\n")
    for images in ("photos", "0.png 1.png"):
        assert gem_(f"fit bsc {images} --H 6 {flags}")[0] == 1
        assert seen.pop()["seed"] == 5


def test_fit_mixture(gem_):
    assert gem_("fit MoG x.npy --K 3 --covariance full --reg 1e-3 --steps 3 --backend numpy")[0] == 0
    found = read_run("run.h5")
    assert found.config["settings"] == {"D": D, "K": 3, "covariance": "full", "reg": 1e-3}
    assert found.params["cov"].shape == (3, D, D)


CAUSES = "--H 4 --Hprime 3 --gamma 2 --Ncut 0.5 --reseed"
EVERY_MODEL = {  # the data, and flags of whatever a model has
    "bsc": ("x", f"{CAUSES} --missing"),
    "tsc": ("x", f"{CAUSES} --missing"),
    "dsc": ("x", f"{CAUSES} --values 0,1,2"),
    "mog": ("x", "--K 2 --covariance tied --reg 1e-4 --missing"),
    "mop": ("counts", "--K 2 --reg 1e-4 --missing"),
    "gsc": ("x", f"{CAUSES} --missing"),
    "sc": ("x", "--H 4 --penalty 0.5 --iterations 20 --tol 0.01 --reseed"),
    "mca": ("counts", f"{CAUSES} --noise exponential --background 0.2 --missing"),
    "mmca": ("x", f"{CAUSES} --rho anneal --missing"),
    "noisyor": ("binary", f"{CAUSES} --missing"),
    "pmca": ("counts", f"{CAUSES} --background 0.2 --missing"),
}


def test_every_model_is_fitted_somewhere():
    assert set(EVERY_MODEL) == set(gem.models.MODELS)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_every_model_is_fitted_with_its_own_options(gem_, name):
    kind, flags = EVERY_MODEL[name]
    rng = np.random.default_rng(0)
    Y = {"x": table(), "counts": rng.poisson(3, (N, D)), "binary": rng.random((N, D)) < 0.3}[kind].astype(float)
    if "--missing" in flags:
        Y[rng.random(Y.shape) < 0.1] = np.nan
    np.save("data.npy", Y)
    status, _, err = gem_(f"fit {name} data.npy {flags} --T 2 --steps 2 --backend numpy -q")
    assert (status, err) == (0, "")
    run = read_run("run.h5")
    assert (run.model.lower(), run.step, run.finished) == (name, 2, True)
    assert all(np.all(np.isfinite(value)) for value in run.params.values())
    assert run.config["annealing"].get("reseed", False) == ("--reseed" in flags)
    for word, value in re.findall(r"--(\w+) ([^- ]\S*)", flags):
        if word != "Ncut":
            plain = [float(v) for v in value.split(",")] if re.match(r"\d", value) else [value]
            assert np.atleast_1d(run.config["settings"][word]).tolist() == plain


def test_an_unfinished_run_is_continued(gem_, fitted):
    model = make("bsc", read_run(fitted).config["settings"])
    run = gem.EM(model, "x.npy", gem.Annealing.auto(5), backend="numpy", output="part.h5")
    for _ in run:
        if run.step == 2:
            break
    assert "2 of 5, not finished: gem resume part.h5" in plain(gem_("info part.h5")[1])
    status, _, err = gem_("resume part.h5 --backend numpy")
    assert status == 0
    assert "resuming after step 2 of 5" in err
    np.testing.assert_array_equal(load_params("part.h5", "W"), load_params(fitted, "W"))


SAME = "fit bsc x.npy --H 4 --steps 6 --T 0=2,1.0=1 --seed 3 --backend numpy -o run.h5"


def test_a_command_without_options_takes_its_run_up(gem_, monkeypatch):
    monkeypatch.setenv("GEM_BACKEND", "numpy")
    for _ in range(2):
        status, out, err = gem_("fit mog x.npy --K 2 --steps 2 -q -o plain.h5 --resume")
        assert (status, "plain.h5: " in out) == (0, True), err
    refused = gem_("fit mog x.npy --K 2 --steps 2 -o plain.h5 --resume --backend opencl")[2]
    assert "backend = 'opencl' (there: 'auto')" in refused


def test_one_command_begins_a_run_and_takes_it_up(gem_, monkeypatch):
    assert gem_(f"{SAME} --resume -q".replace("run.h5", "whole.h5"))[0] == 0
    step = BSC.maximize

    def dies(model, *arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return step(model, *arguments)

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(BSC, "maximize", dies)
        assert gem_(f"{SAME} --resume -q")[0] == 130
    assert read_run("run.h5").step == 3
    second = gem_(f"{SAME} --resume")
    assert second[0] == 0
    assert "resuming after step 3 of 6" in second[2]
    for name in ("W", "pi", "sigma"):
        np.testing.assert_array_equal(load_params("run.h5", name), load_params("whole.h5", name))
    third = gem_(f"{SAME} --resume")
    assert third[0] == 0
    assert "run.h5 is finished" in third[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--H 5", r"H = 5 \(there: 4\)"),
        ("--steps 7", r"steps = 7 \(there: 6\)"),
        ("--T 3", "T = 3.0"),
        ("--seed 4", r"seed = 4 \(there: 3\)"),
        ("--dtype float64", "dtype = 'float64'"),
        ("--batch 10", r"batch = 10 \(there: None\)"),
        ("--checkpoint 3", "checkpoint = 3"),
        ("--checkpoint-seconds 30", "checkpoint_seconds = 30.0"),
        ("--H 5 --seed 4", "H = 5.*seed = 4"),
    ],
)
def test_a_run_is_not_taken_up_with_other_settings(gem_, change, words):
    assert gem_(f"{SAME} -q")[0] == 0
    before = Path("run.h5").read_bytes()
    refused = gem_(f"{SAME} --resume {change}")
    assert refused[0] == 1
    assert re.search(words, refused[2]), refused[2]
    assert Path("run.h5").read_bytes() == before


def test_a_run_is_not_taken_up_on_other_data_or_by_another_model(gem_):
    np.save("y.npy", table() + 1)
    assert gem_(f"{SAME} -q")[0] == 0
    assert "y.npy" in gem_(f"{SAME} --resume".replace("x.npy", "y.npy"))[2]
    assert "a run of BSC, not of TSC" in gem_(f"{SAME} --resume".replace("bsc", "tsc"))[2]
    Path("run.h5").write_text("no run")
    assert gem_(f"{SAME} --resume")[0] == 1
    assert gem_(f"{SAME} --resume --overwrite")[0] == 2


@pytest.mark.serial
def test_info_and_show_never_start_mpi(gem_, fitted, tmp_path):
    task = {"PMI_SIZE": "3", "PMI_RANK": "2", "PMI_FD": "99"}  # a start would end the process: nobody is at 99
    for line in (["info", str(fitted)], ["info"], ["show", str(fitted), "-o", "x.png"]):
        done = subprocess.run(
            [sys.executable, "-m", "gem.cli", *line],
            env={**unlaunched(), **task},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_overwrite(gem_, fitted):
    assert gem_(f"fit bsc x.npy -o {fitted} {BSC_FIT} --steps 2 --overwrite")[0] == 0
    assert_fitted(fitted, steps=2)


# Settings


def test_run_options(gem_):
    options = "--backend numpy --dtype float64 --seed 11 --batch 7 --checkpoint 3"
    assert gem_(f"fit bsc x.npy {BSC_FIT} {options}")[0] == 0
    run = read_run("run.h5")
    assert run.seed == 11
    expected = {"dtype": "float64", "checkpoint": 3, "ranks": [{"backend": "numpy", "batch": 7}]}
    assert {name: run.config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "schedule", "values"),
    [
        ("4", 4.0, [4, 4, 4, 4, 4]),
        ("0=4,0.5=1", [[0, 4.0], [0.5, 1.0]], [4, 2.5, 1, 1, 1]),
        ("1=4,2=1", [[1, 4.0], [2, 1.0]], [4, 4, 1, 1, 1]),
        ("0=5,1=1", [[0, 5.0], [1, 1.0]], [5, 1, 1, 1, 1]),  # 1 is a step
        ("0=5,1.0=1", [[0, 5.0], [1.0, 1.0]], [5, 4, 3, 2, 1]),  # 1.0 is the end
    ],
)
def test_schedules(gem_, text, schedule, values):
    assert gem_(f"fit bsc x.npy {BSC_FIT} --T {text}")[0] == 0
    run = read_run("run.h5")
    assert run.config["annealing"]["T"] == schedule
    if isinstance(schedule, list):
        assert [type(p) for p, _ in run.config["annealing"]["T"]] == [type(p) for p, _ in schedule]
    np.testing.assert_allclose(run.history["T"], values)


@pytest.mark.parametrize("prior", ["", "--anneal-prior", "--no-anneal-prior"])
def test_every_annealed_parameter_has_a_flag(gem_, prior):
    flags = f"--Ncut 0.5=0,1.0=0.5 --W-noise 0.1 --pi-noise 0.2 --sigma-noise 0.3 {prior}"
    assert gem_(f"fit bsc x.npy {BSC_FIT} {flags}")[0] == 0
    found = read_run("run.h5").config["annealing"]
    assert found == {
        "steps": 5,
        "anneal_prior": "--anneal-prior" in prior,
        "T": 1.0,
        "Ncut": [[0.5, 0.0], [1.0, 0.5]],
        "W_noise": 0.1,
        "pi_noise": 0.2,
        "sigma_noise": 0.3,
    }


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("mog --K 3", "--pi-noise 0.1 --mu-noise 0.2 --var-noise 0=0.3,1.0=0"),
        ("gsc --H 4", "--W-noise 0.1 --mu-noise 0.2 --psi-noise 0.3 --sigma-noise 0.1 --pi-noise 0.1"),
        ("sc --H 4", "--b-noise 0.1"),
    ],
)
def test_every_parameter_of_a_model_may_have_noise(gem_, model, flags):
    status, _, err = gem_(f"fit {model.replace(' ', ' x.npy ', 1)} --steps 2 --backend numpy --dtype float64 {flags}")
    assert status == 0, err
    noisy = read_run("run.h5")
    gem_(f"fit {model.replace(' ', ' x.npy ', 1)} --steps 2 --backend numpy --dtype float64 -o plain.h5")
    assert {n for n in noisy.config["annealing"] if n.endswith("_noise")} == {
        word[2:].replace("-", "_") for word in flags.split() if word.startswith("--")
    }
    assert any(not np.array_equal(noisy.params[n], value) for n, value in read_run("plain.h5").params.items())


CONFIG = """
[model]
H = 6
Hprime = 3
gamma = 2
[annealing]
steps = 4
T = [[0, 3.0], [0.5, 1.0]]
W_noise = 1
anneal_prior = false
[run]
backend = "numpy"
seed = 9
checkpoint = 2
dtype = "float64"
"""


def test_config(gem_):
    Path("c.toml").write_text(CONFIG)
    assert gem_("fit bsc x.npy --config c.toml")[0] == 0
    run = read_run("run.h5")
    assert run.config["settings"] == {"D": D, "H": 6, "Hprime": 3, "gamma": 2}
    annealing = {"steps": 4, "anneal_prior": False, "T": [[0, 3.0], [0.5, 1.0]], "W_noise": 1, "Ncut": 0.0}
    assert run.config["annealing"] == annealing
    assert (run.seed, run.config["checkpoint"], run.config["dtype"]) == (9, 2, "float64")


def test_a_whole_number_will_do_for_a_number(gem_):
    Path("c.toml").write_text("[model]\nK = 2\nreg = 1\n[annealing]\nT = 2")
    assert gem_("fit mog x.npy --config c.toml --steps 1 --backend numpy")[0] == 0
    assert read_run("run.h5").config["settings"]["reg"] == 1


def test_flags_win_over_config(gem_):
    Path("c.toml").write_text(CONFIG + "[data]\npatch = 4\ncount = 40\nwhitening = true\n")
    save_images()
    flags = "--Hprime 4 --steps 3 --T 2 --seed 1 --dtype float32 --count 30 --no-whitening --W-noise 0.5"
    assert gem_(f"fit bsc photos --config c.toml {flags}")[0] == 0
    run = read_run("run.h5")
    assert run.config["settings"] == {"D": 16, "H": 6, "Hprime": 4, "gamma": 2}
    annealing = {"steps": 3, "anneal_prior": False, "T": 2.0, "W_noise": 0.5, "Ncut": 0.0}
    assert run.config["annealing"] == annealing
    assert (run.seed, run.config["checkpoint"], run.config["dtype"]) == (1, 2, "float32")
    data = {name: run.config["data"][name] for name in ("patch", "count", "whitening", "seed")}
    assert data == {"patch": 4, "count": 30, "whitening": False, "seed": 1}


def test_a_run_that_has_settled_says_so(gem_):
    """On the last line, in `gem info`, to `gem resume`; the flag is the option of the table."""
    flags = "--K 2 --steps 300 --until 1e-4 --backend numpy -q"
    status, out, _ = gem_(f"fit mog x.npy {flags}")
    run = read_run("run.h5")
    assert (status, run.finished, run.reason) == (0, True, "settled")
    assert run.step < 300
    assert run.config["annealing"]["until"] == 1e-4
    said = f"settled after {run.step} of 300 steps"
    assert out.startswith(f"run.h5: {said}, F/N = {run.history['free_energy'][-1] / N:.6f}")
    shown = plain(gem_("info run.h5")[1])
    assert f"{run.step} of 300, finished" in shown
    assert f"ended {said}" in shown
    for again in ("resume run.h5", f"fit mog x.npy {flags} --resume"):
        status, _, err = gem_(again)
        assert (status, f"run.h5 is finished: {said}" in err) == (0, True)
    assert read_run("run.h5").step == run.step
    Path("c.toml").write_text("[annealing]\nsteps = 300\nuntil = 1e-4\n")
    assert gem_("fit mog x.npy --K 2 --config c.toml --backend numpy -q -o toml.h5")[1].startswith(f"toml.h5: {said}")
    out = gem_("fit mog x.npy --K 2 --steps 7 --until 1e-12 --backend numpy -q --overwrite")[1]
    assert out.startswith("run.h5: steps used up: 7 of 7, F/N = ")
    assert "ended steps used up: 7 of 7" in plain(gem_("info run.h5")[1])


# info and show


def plain(shown: str) -> str:
    """The text of a table: without its lines and line breaks."""
    return re.sub(r"\s+", " ", re.sub("[─-╿]", "", shown))


def test_info_of_a_run(gem_, fitted):
    status, out, err = gem_(f"info {fitted}")
    assert (status, err) == (0, "")
    shown = plain(out)
    for text in (
        "run.h5",
        "model BSC(D=9, H=6, Hprime=4, gamma=3)",
        "shape (60, 9)",
        "by_model True, T [[0, 1.5], [0.8, 1.0]]",
        "5 of 5, finished",
        "seed 0",
        "backend numpy",
        "parameter W shape (9, 6)",
        f"parameter sigma {read_run(fitted).params['sigma']:.6g}",
        f"last free_energy {read_run(fitted).history['free_energy'][-1]:.6g}",
    ):
        assert text in shown


CONFIG_OF_A_RUN = {
    "settings": {"D": D, "H": 6},
    "annealing": {"steps": 2},
    "data": None,
    "shape": [N, D],
    "dtype": "float32",
    "checkpoint": 10,
    "ranks": [{"backend": "numpy", "batch": N}],
}


def test_notes_reach_who_looks(gem_):
    """Once per kind, with a count: where a run ends, in `gem info`, and beside the picture."""
    status, out, _ = gem_("fit sc x.npy --H 6 --steps 3 --iterations 2 --backend numpy -q")
    assert (status, out.count("\n")) == (0, 2)
    said = r"note of steps 1 to 3: 3 × the codes of .* were not found to tol = 0.0001 within iterations = 2"
    assert re.match(f"run.h5: {said}.*\nrun.h5: 3 steps, F/N = ", out)
    for command in ("info", "show"):
        assert re.search(said.replace(": ", ":? "), plain(gem_(f"{command} run.h5")[1])), command


def test_info_lists_notes(gem_):
    run = RunFile.create("run.h5", model="BSC", config=CONFIG_OF_A_RUN, machine={}, seed=0, params={"pi": 0.5})
    run.record(1, {"pi": 0.5}, {"free_energy": -3.0, "N": 2.0})
    run.record(2, {"pi": 0.5}, {"free_energy": -2.0, "N": 2.0}, ["latent 5 was never active: its field was kept"])
    run.finish()
    assert "note of step 2 latent 5 was never active" in plain(gem_("info run.h5")[1])


def test_info_shows_names_as_they_are(gem_):
    """Brackets mean something to rich."""
    Path("a[").mkdir()
    np.save("a[/b].npy", table())
    gem_(f"fit bsc a[/b].npy -o run[bold].h5 {BSC_FIT}")
    shown = re.sub(r"\s", "", plain(gem_("info run[bold].h5")[1]))
    assert "a[/b].npy" in shown
    assert "run[bold].h5" in shown


def test_info_of_the_machine(gem_):
    status, out, _ = gem_("info")
    assert status == 0
    for text in (f"gem {gem.__version__}", "backend numpy", f"numpy {np.__version__}", "MPI"):
        assert text in plain(out)


@pytest.mark.parametrize(("flags", "picture"), [("", "run.png"), ("-o other.pdf", "other.pdf")])
def test_show(gem_, fitted, flags, picture):
    status, out, err = gem_(f"show {fitted} {flags}")
    assert (status, err) == (0, "")
    assert picture in out
    assert Path(picture).read_bytes().startswith({".png": b"\x89PNG", ".pdf": b"%PDF"}[Path(picture).suffix])


def test_show_gabor(gem_, fitted):
    status, out, _ = gem_(f"show {fitted} --gabor")
    assert status == 0
    assert re.search(r"fits \d of 6 fields \(R² > 0\.5\), \d of them localised", out)


def test_show_says_what_is_not_installed(gem_, fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = 'gem: matplotlib.figure is missing: pip install "matplotlib>=3.7" "scipy>=1.10"\n'
    assert gem_(f"show {fitted}") == (1, "", said)


def test_version_and_help(gem_):
    assert gem_("--version")[:2] == (0, f"gem {gem.__version__}\n")
    status, out, _ = gem_("fit --help")
    assert status == 0
    assert "--Ncut" in out


# Refused: with the reason on stderr, no traceback, and no file touched


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(gem_, command: str, words: str, status: int = 1) -> None:
    before = contents(Path())
    found, out, err = gem_(command)
    assert found == status, err
    assert out == ""
    assert re.search(words, err.replace("\n", " ")), err
    assert "Traceback" not in err
    if status == 1:
        assert err.startswith("gem: ")
    assert contents(Path()) == before


def spoil(row: int, column: int, value: float) -> None:
    Y = table()
    Y[row, column] = value
    np.save("bad.npy", Y)


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda: spoil(17, 3, np.nan), "nan at row 17, column 3.*drop these rows"),
        (lambda: spoil(0, 0, np.nan), "nan at row 0, column 0"),
        (lambda: spoil(N - 1, 8, -np.inf), "-inf at row 59, column 8"),
        (lambda: np.save("bad.npy", np.ones(D)), r"bad\.npy has shape \(9,\).*Y\[:, None\]"),
        (lambda: np.save("bad.npy", np.ones((3, 3, 3))), r"bad\.npy has shape \(3, 3, 3\).*reshape"),
        (lambda: np.save("bad.npy", np.ones((0, D))), r"bad\.npy has shape \(0, 9\).*at least one row"),
        (lambda: np.save("bad.npy", table().astype(str)), r"bad\.npy has .*dtype <U\d+.*astype"),
        (lambda: np.save("bad.npy", table() + 1j), r"bad\.npy has .*complex128.*not supported"),
        (lambda: np.save("bad.npy", np.ones((N, D))), "all data points are equal"),
        (lambda: Path("bad.npy").write_bytes(b"\x93NUMPY"), r"cannot read .*bad\.npy"),
        (lambda: Path("bad.npy").write_bytes(Path("x.npy").read_bytes()[:-9]), r"bad\.npy is cut short"),
        (lambda: None, r"cannot read .*bad\.npy.*No such file"),
    ],
)
@pytest.mark.parametrize("output", ["-o new.h5", "-o old.h5 --overwrite"])
def test_bad_data(gem_, save, words, output):
    save()
    Path("old.h5").write_bytes(b"something dear")
    assert_refused(gem_, f"fit bsc bad.npy {output} {BSC_FIT}", words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("x.npy --H 6 --Hprime 7", "Hprime = 7 > H = 6"),
        ("x.npy --H 6 --Hprime 4 --gamma 5", "gamma = 5 must lie between 1 and H' = 4"),
        ("x.npy --H 0", "H = 0.*at least 1"),
        ("x.npy", "bsc needs the option H: give --H"),
        ("x.npy --H 6 --K 3", "bsc has no option 'K': there are H, Hprime, gamma"),
        ("x.npy --H 6 --backend warp", "unknown backend 'warp': choose among auto"),
        ("x.npy --H 6 --T 0.5", r"T = 0\.5: values must lie between 1"),
        ("x.npy --H 6 --T 0.5=2,0.2=1", "T = .*must ascend"),
        ("x.npy --H 6 --T 0=2,1.5=1", "a float position is a fraction"),
        ("x.npy --H 6 --Ncut 2", "Ncut = .*between 0 and 1"),
        ("x.npy --H 6 --steps 0", "steps = 0"),
        ("x.npy --H 6 --batch 0", "batch = 0"),
        ("x.npy --H 6 --checkpoint 0", "checkpoint = 0"),
        ("x.npy --H 6 --patch 4", r"patch: such options apply when images are opened, not to x\.npy"),
        ("x.npy --H 6 -o nowhere/run.h5", "nowhere/run.h5 cannot be written"),
        ("x.npy --H 6 -o x.npy", "x.npy is the data file itself: choose another name"),
        ("x.h5:/nothing --H 6", r"x\.h5 has no dataset /nothing; name one .*/Y \(60, 9\)"),
        ("x.h5 --H 6", "2 datasets to choose from"),
        ("gone.h5 --H 6", r"cannot read .*gone\.h5"),
        ("gone.png --H 6", r"gone\.png does not exist"),
        ("empty --H 6", "no image in .*empty"),
        ("x.npy --H 6 --config gone.toml", r"gone\.toml \(No such file"),
        ("x.npy --H 6 --config x.npy", r"x\.npy is not TOML"),
    ],
)
def test_refused_fit(gem_, arguments, words):
    save_hdf5(Y=table(), Z=table())
    Path("empty").mkdir()
    assert_refused(gem_, f"fit bsc {arguments}", words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("fit mog x.npy --H 6", "mog has no option 'H': there are K, covariance, reg"),
        ("fit mog x.npy --K 3 --covariance round", "covariance = 'round': choose among diag"),
        ("fit mog x.npy --K 61", "60 data points cannot start K = 61"),
        ("fit mog x.npy --K 2 --W-noise 1", "W_noise has nothing to act on: MoG has the parameters pi, mu, var"),
        ("fit bsc x.npy --H 2 --lam-noise 1", "lam_noise has nothing to act on: BSC has the parameters W, pi, sigma"),
        ("fit mog x.npy --K 2 --Ncut 0.5", "MoG truncates nothing, so all points count: leave Ncut at 0"),
        ("fit sc x.npy --H 2 --Ncut 0=0,1.0=1", "SC truncates nothing"),
        ("fit mog x.npy --K 2 --reseed", "reseed: MoG re-seeds its empty components by itself"),
    ],
)
def test_refused_mixture(gem_, arguments, words):
    assert_refused(gem_, arguments, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "required: COMMAND"),
        ("fit", "required: model, data"),
        ("fit pca x.npy", r"argument model: invalid choice: 'pca' \(choose from .*bsc.*mog"),
        ("fit bsc x.npy --dtype float16", "argument --dtype.*float16"),
        ("fit bsc x.npy --H six", "argument --H.*six"),
        ("fit bsc x.npy --T hot", "argument --T: 'hot' is neither a number nor POSITION=VALUE"),
        ("fit bsc x.npy --T 0=4,", "argument --T"),
        ("fit bsc x.npy --colour red", "unrecognized arguments: --colour red"),
        ("resume", "required: run"),
    ],
)
def test_usage(gem_, arguments, words):
    assert_refused(gem_, arguments, words, status=2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[run]\nspeed = 3", r"c\.toml: \[run\] has no option 'speed': there are backend, dtype, seed"),
        ("[annealing]\nt = 3", r"c\.toml: \[annealing\] has no option 't': there are steps"),
        ("[data]\nseed = 3", r"c\.toml: \[data\] has no option 'seed': there are patch, count, whitening"),
        ("[model]\nK = 3", "bsc has no option 'K': there are H, Hprime, gamma"),
        ("[model]\nD = 3", "bsc has no option 'D'"),
        ("[output]\nfile = 3", r"c\.toml: output is no table .*\[model\], \[sets\], \[annealing\], \[data\], \[run\]"),
        ("run = 3", r"c\.toml: run is no table"),
        ("[run\nseed = 3", r"c\.toml is not TOML .*line 1"),
        ('[run]\nseed = "a"', r"c\.toml: \[run\] seed = 'a' must be a whole number"),
        ("[run]\nbatch = 1.5", r"c\.toml: \[run\] batch = 1\.5 must be a whole number"),
        ("[run]\nseed = true", r"\[run\] seed = True must be a whole number"),
        ("[run]\nbackend = 3", r"\[run\] backend = 3 must be a string"),
        ("[model]\nHprime = '4'", r"\[model\] Hprime = '4' must be a whole number"),
        ("[annealing]\nanneal_prior = 'no'", r"\[annealing\] anneal_prior = 'no' must be true or false"),
        ("[annealing]\nT = 'hot'", "T = 'hot' must be a number or a list"),
        ("[annealing]\nT = [1, 2]", r"T = \[1, 2\] must be a number or a list"),
    ],
)
def test_refused_config(gem_, config, words):
    Path("c.toml").write_text(config)
    assert_refused(gem_, "fit bsc x.npy --H 6 --config c.toml", words)


def torn() -> None:
    os.truncate("run.h5", Path("run.h5").stat().st_size // 2)


def foreign_hdf5() -> None:
    Path("run.h5").unlink()
    with h5py.File("run.h5", "w") as file:
        file["Y"] = table()


def newer() -> None:
    with h5py.File("run.h5", "r+") as file:
        file.attrs["format_version"] = 99


@pytest.mark.parametrize("command", ["resume", "info", "show"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda: Path("run.h5").unlink(), r"run\.h5 cannot be read \(No such file.*check the path"),
        (torn, r"run\.h5 is torn or damaged.*copy it again"),
        (lambda: Path("run.h5").write_text("D,H\n"), r"run\.h5 is no HDF5 file.*check the path"),
        (foreign_hdf5, r"run\.h5 is HDF5, but no run of gem"),
        (newer, r"run\.h5 has format 99.*upgrade gem"),
    ],
)
def test_bad_run_file(gem_, fitted, command, spoil, words):
    spoil()
    assert_refused(gem_, f"{command} {fitted}", words)


def test_run_of_a_model_that_is_not_here(gem_, fitted):
    with h5py.File(fitted, "r+") as file:
        file.attrs["model"] = "Unheard"
    assert_refused(gem_, f"resume {fitted}", "unknown model 'Unheard': choose among bsc")
    assert "Unheard(D=9" in plain(gem_(f"info {fitted}")[1])  # what it holds can be told all the same


def test_refused_resume(gem_, fitted):
    gem.EM(BSC(D=D, H=6), table(), gem.Annealing(steps=2), backend="numpy", output="array.h5")
    assert_refused(gem_, "resume array.h5", r"array\.h5: the run was on an array in memory")
    assert_refused(gem_, f"resume {fitted} --backend warp", "unknown backend 'warp'")
    np.save("x.npy", table()[:, :8])
    assert_refused(gem_, f"resume {fitted}", r"shape \[60, 9\], these are \[60, 8\]")


def test_refused_show(gem_, fitted):
    for folder in (".", "..", "photos"):
        assert_refused(gem_, f"show {folder}", "cannot be read")
    assert_refused(gem_, f"show {fitted} -o run.xyz", r"cannot write the picture run\.xyz")
    assert_refused(gem_, f"show {fitted} -o nowhere/run.png", r"cannot write the picture nowhere/run\.png")
    assert_refused(gem_, f"show {fitted.rename('run.png')}", r"run\.png is the run file itself.*--output")


def test_show_gabor_wants_square_fields(gem_):
    gem_("fit mog x.npy --K 2 --steps 1 --backend numpy -q")
    status, _, err = gem_("show run.h5 --gabor")
    assert (status, err) == (1, "gem: run.h5: MoG has no fields to fit Gabor functions to\n")
    np.save("x.npy", table()[:, :8])
    gem_(f"fit bsc x.npy {BSC_FIT} --overwrite")
    status, _, err = gem_("show run.h5 --gabor")
    assert status == 1
    assert "square fields" in err


def test_interrupted(gem_, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gem.run.run_step", interrupt)
    assert gem_(f"fit bsc x.npy {BSC_FIT}") == (130, "", "gem: interrupted\n")


# Processes


def python(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A Python process that does not take itself for a rank of the test's own MPI job."""
    line = [*launcher, sys.executable, *arguments]
    return subprocess.run(line, env=unlaunched(), text=True, capture_output=True, timeout=30, check=False)


def gem_process(command: str, *launcher: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "gem.cli", *command.split(), launcher=launcher)


def test_import_needs_numpy_alone():
    heavy = ["h5py", "mpi4py", "matplotlib", "scipy", "rich", "cupy", "pyopencl", "PIL", "threadpoolctl"]
    done = python("-c", f"import gem, gem.cli, sys; print([name for name in {heavy} if name in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_exit_status_of_the_process():
    done = gem_process("fit bsc gone.npy --H 6")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"gem: cannot read .*gone\.npy.*\n", done.stderr)


def test_fit_under_mpi(mpiexec, gem_, fitted):
    done = gem_process(f"fit bsc x.npy -o two.h5 {BSC_FIT}", mpiexec, "-n", "2")
    assert done.returncode == 0, done.stderr
    number, line = r"-?\d+\.\d+", last_line(Path("two.h5"), read_run(fitted).history)
    told = done.stdout.splitlines()[-1]
    assert re.sub(number, "x", told) == re.sub(number, "x", line)
    assert [float(x) for x in re.findall(number, told)] == pytest.approx(
        [float(x) for x in re.findall(number, line)], rel=1e-6
    )  # sums of float32 products, cut elsewhere
    assert len(read_run("two.h5").config["ranks"]) == 2
    np.testing.assert_allclose(read_run("two.h5").params["W"], read_run(fitted).params["W"], rtol=1e-3, atol=1e-3)
    done = gem_process("info two.h5", mpiexec, "-n", "2")
    assert done.stdout.count("finished") == 2  # no MPI is started: each process tells


@pytest.mark.parametrize(
    ("ranks", "data", "words"),
    [
        ("2", lambda: spoil(N - 1, 4, np.nan), "gem: rank 1: .*nan at row 59, column 4.*drop these rows"),
        ("3", lambda: np.save("bad.npy", table()[:2]), "gem: rank 0: 2 data points .* 3 ranks: start at most 2"),
    ],
)
def test_failing_rank_ends_the_job(mpiexec, ranks, data, words):
    data()
    Path("old.h5").write_bytes(b"something dear")
    began = time.monotonic()
    done = gem_process(f"fit bsc bad.npy -o old.h5 --overwrite {BSC_FIT}", mpiexec, "-n", ranks)
    assert time.monotonic() - began < 10
    assert done.returncode != 0
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert Path("old.h5").read_bytes() == b"something dear"
