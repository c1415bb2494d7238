"""The rules of the house: floors, no global work at import, twins, errors that are refused."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tracemalloc
from configparser import ConfigParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import gem
from gem import Annealing, ConfigError, DataError
from gem.annealing import WINDOW
from gem.extras import PACKAGES, install_hint
from gem.models import BSC, MODELS, make
from gem.states import state_table
from gem.statistics import Statistics

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"gem.kernels"},
    {"gem.errors", "gem.extras", "gem.checks", "gem._version", "gem.states", "gem.annealing", "gem.parallel",
     "gem.philox", "gem.statistics", "gem.data", "gem.images", "gem.picture_files", "gem.png16",
     "gem.store", "gem.replacing", "gem.keeping", "gem.progress", "gem.notes", "gem.batch", "gem.memory",
     "gem.memory_files", "gem.sets", "gem.summary",
     "gem.trace", "gem.launch", "gem.cores", "gem.leaving", "gem.termination"},
    {"gem.backends"},
    {"gem.models"},
    {"gem.em", "gem.run", "gem.same_run", "gem.run_checks", "gem.taking_up", "gem.held_out", "gem.falling",
     "gem.holding", "gem.best", "gem.starts", "gem.restarts", "gem.stepwise"},
    {"gem.gabor", "gem.plot", "gem.report", "gem.restore", "gem.cli", "gem.kernels.__main__",
     "gem.kernels.counts"},
]  # fmt: skip


def floor(module):
    for number, members in reversed(list(enumerate(FLOORS))):  # from the top: a tool may live in a lower folder
        if any(module == m or module.startswith(m + ".") for m in members):
            return number
    raise AssertionError(f"{module} is on no floor: give it one in FLOORS and in CONTRIBUTING.md")


def modules():
    for path in sorted((ROOT / "gem").rglob("*.py")) + sorted((ROOT / "kernels").glob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(("gem", *parts) if parts[0] == "kernels" else parts).removesuffix(".__init__")
        if name != "gem":
            yield name, path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "gem":
            yield from (f"gem.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_imports_run_downwards(module, path):
    for name in imported(path):
        if name.startswith("gem.") and name not in ("gem.errors", "gem.extras", "gem.__version__"):
            assert floor(name) <= floor(module), f"{module} (floor {floor(module)}) imports {name}"


def test_backends_are_named_in_backends_alone():
    for module, path in modules():
        if not module.startswith("gem.backends"):
            assert "backend.name ==" not in path.read_text(), module


@pytest.mark.serial
def test_import_needs_numpy_alone():
    heavy = ["h5py", "mpi4py", "scipy", "matplotlib", "rich", "PIL", "sklearn", "cupy", "pyopencl", "threadpoolctl"]
    heavy += ["tifffile", "astropy", "zarr", "pyarrow", "pandas", "polars", "dask", "xarray"]
    script = f"import gem, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_install_hints_name_the_packages_of_the_extras():
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    asked = {name: settings["options.extras_require"][name] for name in PACKAGES if name != "hdf5"}
    for name, lines in asked.items():
        named = [line.partition(";")[0].strip() for line in lines.splitlines() if line and not line.startswith("#")]
        assert list(PACKAGES[name]) == named, f"gem/extras.py and setup.cfg differ in {name}"
    assert set(PACKAGES["hdf5"]) <= set(settings["options"]["install_requires"].splitlines())
    assert install_hint("mpi", "hdf5", "mpi") == 'pip install "mpi4py>=4" "mpich>=4" "h5py>=3.8"'
    assert install_hint("cuda-check") == "pip install nvidia-cuda-nvrtc"


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda x: x if isinstance(x, str) else "")
def test_no_hint_names_gem_itself(module, path):
    """It is not on PyPI, where others have the name: such a hint would install what it does not mean."""
    hint = re.search(r"pip install[^\n]{0,9}\b(gem|gem-em)\b", path.read_text())
    assert hint is None, f"{module}: {hint[0]}"


def test_annealing_interpolates_and_holds():
    anneal = Annealing(steps=11, T=[(0, 5.0), (0.5, 1.0)], Ncut=[(2, 0.0), (4, 1.0)], W_noise=0.3)
    assert [anneal[t]["T"] for t in (0, 2, 5, 10, 99)] == pytest.approx([5.0, 3.4, 1.0, 1.0, 1.0])
    assert [anneal[t]["Ncut"] for t in (0, 2, 3, 4, 10)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert anneal[7]["W_noise"] == 0.3
    again = Annealing.from_dict(anneal.to_dict())
    assert [again[t] for t in range(11)] == [anneal[t] for t in range(11)]
    assert not again.anneal_prior
    assert Annealing.from_dict({"steps": 11}).anneal_prior  # as it was where an old run file does not say
    assert not Annealing.from_dict({"steps": 11, "anneal_prior": False}).anneal_prior
    assert Annealing(steps=11, T=[(0, 3.0), (1, 1.0)])[5]["T"] == 1.0  # an int is a step
    assert Annealing(steps=11, T=[(0, 3.0), (1.0, 1.0)])[5]["T"] == 2.0  # a float is a fraction


@pytest.mark.parametrize(
    ("schedules", "rest"),
    [
        ({}, 0),
        ({"T": [(0, 4.0), (8, 1.0)], "Ncut": [(3, 0.5), (9, 0.2)]}, 9),
        ({"T": [(0, 4.0), (0.5, 1.0)], "W_noise": 0.3}, 20),  # 19.5: noise that stays is at rest
        ({"W_noise": [(0, 0.3), (12, 0.0), (50, 0.0), (60, 1.0)]}, 12),  # the run is over before it comes back
        ({"T": [(0, 4.0), (5, 1.0), (20, 1.0), (22, 2.0), (24, 1.0)]}, 24),
        ({"T": 2.0}, None),
        ({"T": [(0, 1.0), (1.0, 1.1)]}, None),
        ({"Ncut": [(0, 0.0), (1.0, 0.5)]}, None),
    ],
)
def test_a_run_settles_only_once_all_is_at_rest(schedules, rest):
    """`rest`: the first step, counted from 0, from which on nothing moves; F stands still all along."""
    anneal = Annealing(steps=40, until=1e-6, **schedules)
    settled = [done for done in range(1, 41) if anneal.settled([-3.0] * done, done)]
    assert settled == ([] if rest is None else list(range(rest + WINDOW + 1, 41)))
    assert not any(Annealing(steps=40, **schedules).settled([-3.0] * done, done) for done in range(1, 41))
    again = Annealing.from_dict(anneal.to_dict())
    assert again.until == anneal.until
    assert "until" not in Annealing(steps=40, **schedules).to_dict()  # nothing that an older gem does not know


@pytest.mark.parametrize(("size", "unit"), [(-500.0, 500.0), (0.0, 1.0), (0.3, 1.0), (1e6, 1e6)])
def test_settled_is_a_change_over_the_window_relative_to_f(size, unit):
    anneal = Annealing(steps=100, until=1e-3)
    for change, settles in ((0.9e-3, True), (1.1e-3, False)):
        for still in (2, WINDOW - 1):  # wherever in the window it changes, up or down
            for sign in (1, -1):
                F = [size] * 20 + [size - sign * change * unit] * (WINDOW + 1 - still) + [size] * still
                assert anneal.settled(F, len(F)) == settles, (change, still)
                assert anneal.settled(F[-WINDOW - 1 :], len(F)) == settles
    assert not anneal.settled([0.0] * WINDOW, WINDOW)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 5, "temperature": 2.0}, "unknown annealing parameter"),
        ({"steps": 5, "T": 0.5}, "between 1"),
        ({"steps": 5, "Ncut": 2.0}, "between 0 and 1"),
        ({"steps": 5, "T": [(0.5, 2.0), (0.1, 1.0)]}, "ascend"),
        ({"steps": 5, "T": [(1.5, 2.0)]}, "fraction"),
        ({"steps": 5, "T": "hot"}, "number or a list"),
        ({"steps": 5, "T": []}, "ascend"),
        *(
            ({"steps": 5, "until": bad}, "until = .*must be a number above 0")
            for bad in (0, -1e-6, np.nan, True, "1e-6")
        ),
    ],
)
def test_annealing_refuses(bad, match):
    with pytest.raises(gem.ConfigError, match=match):
        Annealing(**bad)


@pytest.mark.parametrize(("Hprime", "gamma"), [(1, 1), (5, 2), (8, 5), (12, 4), (6, 6)])
def test_state_table(Hprime, gamma):
    table = state_table(Hprime, gamma)
    masks = {m for m in range(2**Hprime) if 2 <= bin(m).count("1") <= gamma}
    assert set(table.masks.tolist()) == masks
    assert len(masks) == table.S
    for n in range(table.S):
        last, parent = int(table.last[n]), int(table.parent[n])
        above = int(table.masks[parent]) if parent >= 0 else 1 << (-1 - parent)
        assert parent < n
        assert int(table.masks[n]) == above | 1 << last
        assert above < 1 << last
    sets = [c for g in range(2, gamma + 1) for c in combinations(range(Hprime), g)]  # by size, then lexicographic
    assert [tuple(np.flatnonzero(row)) for row in table.active] == sets
    assert table.masks.tolist() == [sum(1 << i for i in c) for c in sets]
    assert table.indicators("float32").shape == (Hprime + Hprime * (Hprime - 1) // 2, len(masks))


def test_state_table_serves_32_candidates_and_refuses_more():
    assert state_table(32, 2).masks[-1] == 0b11 << 30
    refused = (
        (33, 2, "more than 32"),
        (4, 5, "gamma = 5"),
        (32, 5, r"242,792 states per data point, whose tables take 1\.0 GB; the limit is 0\.5 GB: lower gamma or H'"),
        (32, 16, "states per data point"),
    )
    tracemalloc.start()
    for Hprime, gamma, match in refused:
        with pytest.raises(gem.ConfigError, match=match):
            state_table(Hprime, gamma)
    assert tracemalloc.get_traced_memory()[1] < 1e6  # before anything is made
    state_table(32, 4)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


def test_32_candidates_go_through_a_step():
    model = BSC(D=4, H=32, Hprime=32, gamma=3)
    Y = np.random.default_rng(0).standard_normal((4, 4))
    assert model.states.S == 5456
    assert np.isfinite(gem.em_step(model, model.init_params(Y), Y)[1].free_energy)


def test_statistics_are_one_buffer():
    a = Statistics({"x": (2, 3), "n": ()})
    a.add("x", np.ones((2, 3), np.float32))
    a.add("n", np.full((8, 1), 1), scale=0.5)
    b = a + a
    assert b.buffer.tolist() == [2.0] * 6 + [8.0]
    assert np.shares_memory(b["x"], b.buffer)
    assert a.buffer.tolist() == [1.0] * 6 + [4.0]
    a.add(("x", "n"), np.arange(14.0).reshape(2, 7))
    assert a.buffer.tolist() == [8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 23.0]
    with pytest.raises(ValueError, match="different layouts"):
        a + Statistics({"n": (), "x": (2, 3)})
    with pytest.raises(ValueError, match="n, x do not follow each other in the layout x, n"):
        a.add(("n", "x"), np.zeros(7))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [({"Hprime": 9}, "Hprime = 9 > H = 5"), ({"Hprime": 4, "gamma": 5}, "gamma = 5"), ({"H": 0}, "H = 0")],
)
def test_bsc_refuses(kwargs, match):
    with pytest.raises(gem.ConfigError, match=match):
        BSC(**{"D": 4, "H": 5, **kwargs})


def test_models_are_made_by_name():
    assert repr(make("BSC", {"D": 4, "H": 5})) == "BSC(D=4, H=5, Hprime=5, gamma=5)"
    for model in MODELS.values():
        assert model.__doc__ is not None
    with pytest.raises(gem.ConfigError, match="unknown model"):
        make("bcs", {})
    with pytest.raises(gem.ConfigError, match="unexpected keyword"):
        make("bsc", {"D": 4, "H": 5, "K": 3})


def test_unknown_backends_and_types_are_refused():
    with pytest.raises(gem.BackendError, match="unknown backend 'abacus'"):
        gem.backends.select("abacus")
    with pytest.raises(gem.ConfigError, match="float32"):
        gem.backends.select("numpy", "float16")


def test_backend_comes_from_the_environment_only_when_not_named(monkeypatch):
    monkeypatch.setenv("GEM_BACKEND", "abacus")
    assert gem.backends.select("numpy").name == "numpy"
    with pytest.raises(gem.BackendError, match="abacus"):
        gem.backends.select(None)


def test_data_that_do_not_fit_the_model_are_refused():
    model = BSC(D=4, H=3)
    params = {"W": np.ones((4, 3)), "pi": 0.2, "sigma": 1.0}
    with pytest.raises(gem.ConfigError, match="5 dimensions"):
        gem.em_step(model, params, np.zeros((10, 5)))
    Y = np.random.default_rng(0).standard_normal((100, 4))
    for bad in (np.nan, np.inf, -np.inf):
        Y[37, 2] = bad
        with pytest.raises(gem.DataError, match="row 37"):
            gem.em_step(model, params, Y, batch=10)
        with pytest.raises(gem.DataError, match="column 2"):
            gem.posterior(model, params, Y)
        with pytest.raises(gem.DataError, match="row 37"):
            model.init_params(Y)
    with pytest.raises(gem.DataError, match="all data points are equal"):
        model.init_params(np.ones((10, 4)))
    with pytest.raises(gem.ConfigError, match=r"T = 0\.5"):
        gem.em_step(model, params, np.ones((10, 4)), T=0.5)


SIZES = {"D": 6, "H": 4}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda m, p, Y: gem.posterior(m, p, Y, top=-1), "top = -1 must be a whole number, at least 0"),
        (lambda m, p, Y: gem.posterior(m, p, Y, top=1.5), r"top = 1\.5"),
        (lambda m, p, Y: gem.em_step(m, p, Y, T="2"), "T = '2' must be a number"),
        (lambda m, p, Y: gem.em_step(m, p, Y, Ncut=None), "Ncut = None"),
        (lambda m, p, Y: gem.em_step(m, p, Y, batch="3"), "batch = '3' must be a whole number"),
        (lambda m, p, Y: gem.em_step("bsc", p, Y), "model = 'bsc' must be a model of gem.models"),
        (lambda m, p, Y: gem.em_step(m, {**p, "W": "a"}, Y), "parameter W must be an array of real numbers"),
        (lambda m, p, Y: gem.em_step(m, {**p, "W": [[1.0], [1, 2]]}, Y), "parameter W must be an array of real"),
        (lambda m, p, Y: gem.em_step(m, {**p, "W": p["W"] + 1j}, Y), "W must be .* real numbers: they are complex128"),
        (lambda m, p, Y: gem.em_step(m, {**p, "sigma": 1e-200}, Y), "sigma must lie in"),
        (lambda m, p, Y: m.generate_data(p, -1), "N = -1"),
        (lambda m, p, Y: m.generate_data(p, 3, start=-1), "start = -1"),
        (lambda m, p, Y: m.generate_data(p, 3, seed=None), "seed = None"),
        (lambda m, p, Y: BSC(**SIZES, missing="no"), "missing = 'no' must be True or False"),
        (lambda m, p, Y: gem.Annealing(steps=3, reseed="false"), "reseed = 'false' must be True or False"),
        (lambda m, p, Y: gem.models.MoG(D=6, K=2, reg="a"), "reg = 'a' must be a number"),
        (lambda m, p, Y: gem.models.PMCA(**SIZES, background=np.inf), "background = inf must be a positive mean"),
        (lambda m, p, Y: gem.models.MoP(D=6, K=2, reg="1"), "reg = '1' must be a positive number"),
        (lambda m, p, Y: gem.models.MoG(D=6, K=2, reg=10**400), "must be a number, finite"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(asked, words):
    model = BSC(**SIZES)
    Y = np.random.default_rng(0).standard_normal((20, 6))
    with pytest.raises(ConfigError, match=words):
        asked(model, model.init_params(Y), Y)


def test_numbers_as_files_of_arrays_give_them_will_do():
    Y = np.random.default_rng(0).standard_normal((20, 6))
    model = BSC(D=np.array(6), H=np.int64(4), missing=np.array(False))
    params = {name: value.astype(object) for name, value in model.init_params(Y).items()}
    _, plain = gem.em_step(model, params, Y, T=2.0, batch=7)
    _, info = gem.em_step(model, params, Y, T=np.array(2.0), batch=np.array(7))
    assert info.free_energy == plain.free_energy
    assert gem.models.MoG(D=6, K=2, reg=np.float32(0.5)).settings()["reg"] == 0.5
    assert gem.models.SC(**SIZES, tol=np.array(0.5)).settings()["tol"] == 0.5


def test_data_whose_squares_are_no_numbers_are_refused():
    Y = np.random.default_rng(0).standard_normal((20, 6))
    Y[7, 3] = 1e160
    for model in (BSC(**SIZES), gem.models.MoG(D=6, K=2), gem.models.SC(**SIZES)):
        with pytest.raises(DataError, match="squares of the data in column 3 exceed the range"):
            gem.EM(model, Y, gem.Annealing(steps=1))
