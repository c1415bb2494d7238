"""How accurate each backend is, beside what is asked: reference numbers, float32 far from zero, batches and ranks.

    python -m benchmarks.accuracy [--only golden|float32|ranks] [--backend opencl]

golden: one EM step and the posterior of every case of tests/golden; cuda, where there is no GPU, on the CuPy that
tests/cupy_on_cpu/build.py has built for the CPU. float32: mixtures on data of mean 1e4 and variance 1; the variance of
the data about their mean must be that within the components and between them, exactly, after any M-step; and log
densities under covariances of condition 5e7, beside those of a float32 Cholesky factor. ranks: the
parameters after 20 steps, beside those of one rank and one batch. Exit status 1 where more deviates than is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gem
from benchmarks import golden
from benchmarks.ceilings import devices
from benchmarks.results import print_table
from benchmarks.scaling import mpiexec, unlaunched
from gem.errors import ConfigError, GemError
from gem.models import BSC, MoG
from gem.parallel import communicator

Record = dict[str, Any]
FOLDER = Path(__file__).parent.parent
HARNESS = "tests/cupy_on_cpu/build.py"
NOT_BUILT = f"no CuPy, neither a GPU's nor one on the CPU, which `python {HARNESS}` builds"
CONDITION = 5e7  # of covariances that are nearly singular
SINGULAR_DIMENSIONS = (7, 70, 130)
DENSITY_ASKED = 4.0  # times the error of a Cholesky factor in float32
COVARIANCES = ("diag", "spherical", "tied", "full")
FAR = 1e4  # the mean of data of variance 1
VARIANCE_ASKED = 0.01  # relative
SAME_ASKED = 1e-9  # relative to a parameter's largest entry, in float64
N_RUN = 500  # data points of the runs in batches and on ranks
BATCHES = (1, 7, 100, N_RUN)
RANKS = (1, 2, 3)


# -- reference numbers ----------------------------------------------------------------------------------------


def golden_records(backends: Sequence[str]) -> Iterator[Record]:
    """For each model, backend and type the largest deviations over its cases."""
    for kind in sorted({golden.kind_of(name) for name in golden.NAMES}):
        names = [name for name in golden.NAMES if golden.kind_of(name) == kind]
        for backend in backends:
            for dtype in golden.DTYPES:
                found = [golden.deviations(name, dtype, backend) for name in names]
                yield {
                    "model": kind, "backend": backend, "dtype": dtype, "cases": len(names),
                    "evidence": _largest(found, "log evidence", "free energy"),
                    "mean": _largest(found, "mean", "product"),
                    "parameters": _largest(found, "new "), "candidates": _largest(found, "candidates"),
                    "asked": golden.asked(kind, dtype),
                }  # fmt: skip


def _largest(found: list[dict[str, float]], *parts: str) -> float | None:
    """Of the deviations whose names begin so; None if there are none."""
    values = [value for each in found for key, value in each.items() if key.startswith(parts)]
    return float(np.max(values)) if values else None  # of NaN: NaN


def golden_good(record: Record) -> bool:
    """Whether nothing deviates by more than is asked, and no candidate differs."""
    worst = np.max([record[part] for part in ("evidence", "mean", "parameters")])
    return bool(worst <= record["asked"]) and not record["candidates"]


def cuda_on_cpu() -> tuple[list[Record], str]:
    """The same of cuda, run by the CuPy that was built for the CPU; or why not."""
    cache = Path(os.environ.get("GEM_CUPY_CACHE") or FOLDER / ".cache" / "cupy-on-cpu")
    if not any(cache.glob("*/complete")):
        return [], NOT_BUILT
    command = [sys.executable, HARNESS, "-m", "benchmarks.accuracy", "--worker", "golden"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    if done.returncode:
        return [], f"`python {' '.join(command[1:])}` failed: {done.stderr.strip()[-300:]}"
    return json.loads(done.stdout.splitlines()[-1]), ""


# -- float32 --------------------------------------------------------------------------------------------------


def variances(params: dict[str, np.ndarray], D: int) -> np.ndarray:
    """The variances of a mixture's components, (K, D), or (1, D) where they share them."""
    if "cov" in params:
        return np.diagonal(np.atleast_3d(params["cov"].T).T, axis1=-2, axis2=-1)
    return np.broadcast_to(params["var"].reshape(len(params["var"]), -1), (len(params["var"]), D))


def pooled(params: dict[str, np.ndarray]) -> np.ndarray:
    """The variance of data about their mean, (D,), from within the components and between them."""
    pi, mu = params["pi"] / params["pi"].sum(), params["mu"]
    each = np.broadcast_to(variances(params, mu.shape[1]), mu.shape)
    return pi @ (each + (mu - pi @ mu) ** 2)


def far_data(mean: float = FAR) -> np.ndarray:
    """(20,000, 3) float32 numbers of variance 1 about a mean that float32 has four digits left beside."""
    return (mean + np.random.default_rng(0).standard_normal((20_000, 3))).astype(np.float32)


def far_steps(covariance: str, Y: np.ndarray, backend: Any, steps: int = 30) -> Iterator[dict[str, np.ndarray]]:
    """The parameters of two components after each step in float32."""
    model = MoG(D=Y.shape[1], K=2, covariance=covariance)
    params = model.init_params(Y, seed=0)
    for _ in range(steps):
        params, _ = gem.em_step(model, params, Y, backend=backend, dtype="float32")
        yield params


def sklearn_steps(covariance: str, Y: np.ndarray, steps: int = 30) -> Iterator[dict[str, np.ndarray]]:
    """The same by scikit-learn's E- and M-step, from the same start."""
    from benchmarks.peers import estimator

    model = MoG(D=Y.shape[1], K=2, covariance=covariance)
    fitted = estimator(model.init_params(Y, seed=0), covariance, Y.dtype)
    for _ in range(steps):
        _, log_resp = fitted._e_step(Y)
        fitted._m_step(Y, log_resp)
        spread = {"var" if covariance == "diag" else "cov": fitted.covariances_}
        params = {"pi": fitted.weights_, "mu": fitted.means_, **spread}
        yield {name: value.astype(np.float64) for name, value in params.items()}


def near_singular(D: int, condition: float = CONDITION) -> tuple[np.ndarray, np.ndarray]:
    """A covariance of that condition, and 300 points of its Gaussian that float32 holds exactly."""
    rng = np.random.default_rng(D)
    axes = np.linalg.qr(rng.standard_normal((D, D)))[0]
    cov = (axes * np.geomspace(1, 1 / condition, D)) @ axes.T
    Y = rng.standard_normal((300, D)) @ np.linalg.cholesky(cov).T
    return cov, Y.astype(np.float32).astype(np.float64)


def density_errors(covariance: str, D: int, backend: Any) -> tuple[float, float]:
    """The largest error of a log density of `near_singular`, in nats; and that of a float32 Cholesky factor."""
    from scipy.linalg import solve_triangular

    cov, Y = near_singular(D)
    factor = np.linalg.cholesky(cov)
    constant = -np.log(np.diag(factor)).sum() - D / 2 * np.log(2 * np.pi)
    right = constant - (solve_triangular(factor, Y.T, lower=True) ** 2).sum(axis=0) / 2
    z = solve_triangular(factor.astype(np.float32), Y.T.astype(np.float32), lower=True)
    possible = constant - (z.astype(np.float64) ** 2).sum(axis=0) / 2
    params = {"pi": [1.0], "mu": np.zeros((1, D)), "cov": cov if covariance == "tied" else cov[None]}
    got = gem.posterior(MoG(D, 1, covariance), params, Y, backend=backend, dtype="float32").log_evidence
    return float(np.abs(got - right).max()), float(np.abs(possible - right).max())


def float32_records(backends: Sequence[str]) -> Iterator[Record]:
    """For each covariance and backend, and for scikit-learn, the worst that 30 steps showed."""
    Y = far_data()
    for covariance in COVARIANCES:
        for backend in backends:
            yield _far_record(covariance, backend, far_steps(covariance, Y, backend), Y)
        if covariance in ("diag", "full"):
            yield _far_record(covariance, "scikit-learn", sklearn_steps(covariance, Y), Y)


def far_error(covariance: str, params: dict[str, np.ndarray], Y: np.ndarray) -> float:
    """The largest relative error of the variances; if spherical, which has one for all dimensions, of their mean."""
    found, true = pooled(params), Y.astype(np.float64).var(axis=0)
    if covariance == "spherical":
        found, true = found.mean(), true.mean()
    return float(np.abs(found / true - 1).max())


def _far_record(covariance: str, by: str, steps: Iterator[dict[str, np.ndarray]], Y: np.ndarray) -> Record:
    errors, smallest, reason = [], [], ""
    try:
        for params in steps:
            errors.append(far_error(covariance, params, Y))
            smallest.append(variances(params, Y.shape[1]).min())
    except ValueError as error:  # scikit-learn's, of a covariance that is not positive
        reason = str(error).split(".", maxsplit=1)[0]
    return {
        "covariance": covariance, "by": by, "steps": len(errors), "reason": reason,
        "error": float(np.max(errors, initial=0)), "smallest": float(np.min(smallest, initial=np.inf)),
    }  # fmt: skip


# -- batches and ranks ----------------------------------------------------------------------------------------


def learned(comm: Any = None, batch: int | None = None, backend: str = "numpy") -> dict[str, dict[str, np.ndarray]]:
    """Parameters, and free energies, of a BSC with data selection and a MoG after 20 annealed steps in float64."""
    Y = np.random.default_rng(0).standard_normal((N_RUN, 10))
    Y += 3 * (np.random.default_rng(1).random((N_RUN, 10)) < 0.3)
    found = {}
    for model, Ncut in ((BSC(D=10, H=7, Hprime=5, gamma=3), 1.0), (MoG(D=10, K=3, covariance="full"), 0.0)):
        schedules = {"T": [(0, 2.0), (0.5, 1.0)], "Ncut": [(0, 0.0), (0.5, Ncut)], "pi_noise": [(0, 0.1), (0.8, 0.0)]}
        anneal = gem.Annealing(steps=20, **schedules)
        run = gem.EM(model, Y, anneal, backend=backend, dtype="float64", comm=comm, batch=batch, seed=3).run()
        found[model.name] = {**run.params, "free energy": run.history["free_energy"]}
    return found


def on_ranks(ranks: int, backend: str = "numpy") -> dict[str, dict[str, np.ndarray]]:
    """What `learned` gives on so many ranks.

    Raises
    ------
    ConfigError
        There is no mpiexec, or the run failed.
    """
    worker = [sys.executable, "-m", "benchmarks.accuracy", "--worker", "ranks", "--backend", backend]
    command = [mpiexec(), "-n", str(ranks), *worker]
    done = subprocess.run(command, cwd=FOLDER, env=unlaunched(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"mpiexec -n {ranks} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return {model: {key: np.array(value) for key, value in params.items()} for model, params in told.items()}


def apart(found: dict[str, dict[str, np.ndarray]], wanted: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """Each model's largest deviation, relative to the largest entry of the parameter that deviates."""
    return {
        model: float(np.max([golden.deviation(found[model][key], value) for key, value in params.items()]))
        for model, params in wanted.items()
    }


def same_records(backends: Sequence[str]) -> Iterator[Record]:
    """For each backend, batch size and number of ranks each model's deviation from one batch on one rank."""
    for backend in backends:
        one = learned(batch=N_RUN, backend=backend)
        for batch in BATCHES:
            yield {"backend": backend, "over": f"batches of {batch}", **apart(learned(None, batch, backend), one)}
        for ranks in RANKS:
            over = f"{ranks} rank{'s' * (ranks > 1)}"
            try:
                yield {"backend": backend, "over": over, **apart(on_ranks(ranks, backend), one)}
            except ConfigError as error:
                yield {"backend": backend, "over": over, "reason": str(error)}


# -- the command ----------------------------------------------------------------------------------------------

GOLDEN_COLUMNS = (
    "model", "backend", "dtype", "cases", "log evidence", "⟨s⟩", "new parameters", "candidates", "asked", "",
)  # fmt: skip
FLOAT32_COLUMNS = ("covariance", "by", "steps", "error of the variances", "smallest variance", "asked", "")


def number(value: float | None) -> str:
    """A deviation as a cell."""
    return "" if value is None else f"{value:.1e}"


def verdict(good: bool) -> str:
    """What the last column says."""
    return "" if good else "MORE THAN ASKED"


def golden_row(record: Record) -> list[str]:
    """A record of `golden_records` as cells under GOLDEN_COLUMNS."""
    share = record["candidates"]
    candidates = "" if share is None else "agree" if share == 0 else f"{share:.2%} differ"
    deviations = [number(record[part]) for part in ("evidence", "mean", "parameters")]
    named = [record["model"], record["backend"], record["dtype"], str(record["cases"])]
    return [*named, *deviations, candidates, number(record["asked"]), verdict(golden_good(record))]


def show_golden(backends: Sequence[str], here: bool) -> bool:
    """Print the deviations from the reference numbers; whether all are good. `here`: only what runs in this process."""
    records, reason = list(golden_records(backends)), ""
    if not here and not any(name.startswith("cuda") for name in backends):
        more, reason = cuda_on_cpu()
        records += [{**record, "backend": "cuda, on the CPU"} for record in more]
    print_table("one EM step and the posterior against tests/golden", GOLDEN_COLUMNS, [golden_row(r) for r in records])
    if reason:
        print(f"cuda is left out: {reason}")
    return all(map(golden_good, records)) and reason in ("", NOT_BUILT)  # what is there has to run


def show_float32(backends: Sequence[str]) -> bool:
    """Print the variances found far from zero; whether ours are good."""
    good, rows = True, []
    for record in float32_records(backends):
        theirs = record["by"] == "scikit-learn"
        fine = not record["reason"] and record["error"] <= VARIANCE_ASKED
        good &= fine or theirs
        told = [number(record["error"]), f"{record['smallest']:.3g}"] if record["steps"] else ["", ""]
        last = ["", record["reason"]] if theirs else [number(VARIANCE_ASKED), record["reason"] or verdict(fine)]
        rows.append([record["covariance"], record["by"], str(record["steps"]), *told, *last])
    print_table(f"mixtures in float32, data of mean {FAR:g} and variance 1", FLOAT32_COLUMNS, rows)
    rows = []
    for covariance in ("full", "tied"):
        for D in SINGULAR_DIMENSIONS:
            for backend in backends:
                error, possible = density_errors(covariance, D, backend)
                good &= error <= DENSITY_ASKED * possible
                told = [number(error), number(possible), f"{DENSITY_ASKED:g} times that"]
                rows.append([covariance, str(D), backend, *told, verdict(error <= DENSITY_ASKED * possible)])
    columns = ("covariance", "D", "backend", "error, nats", "float32 Cholesky", "asked", "")
    print_table(f"log density in float32, condition {CONDITION:g}", columns, rows)
    return good


def show_ranks(backends: Sequence[str]) -> bool:
    """Print the deviations that batches and ranks make; whether all are good."""
    records = list(same_records(backends))
    models = ("BSC", "MoG")
    good, rows = True, []
    for record in records:
        if "reason" not in record:
            fine = all(record[model] <= SAME_ASKED for model in models)
            good &= fine
            found = [number(record[model]) for model in models]
            rows.append([record["backend"], record["over"], *found, number(SAME_ASKED), verdict(fine)])
    columns = ("backend", "over", *models, "asked", "")
    print_table("parameters after 20 steps against one batch on one rank, float64", columns, rows)
    for record in records:
        if "reason" in record:
            print(f"{record['over']}: left out: {record['reason']}")
    return good


def work(what: str, backend: str) -> None:
    """What a process of another interpreter, or each rank, does: the last line it prints is its result."""
    if what == "golden":
        print(json.dumps(list(golden_records(["cuda"]))))
        return
    comm = communicator("world")
    found = learned(comm, backend=backend)
    if comm.rank == 0:
        print(json.dumps({name: {k: v.tolist() for k, v in params.items()} for name, params in found.items()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 0, or 1 where something deviates by more than is asked, or was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("golden", "float32", "ranks"), help="one of the three (default: all)")
    parser.add_argument("--backend", help='only one: "numpy", "opencl", "opencl:1" (default: all that are here)')
    parser.add_argument("--worker", choices=("golden", "ranks"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        work(args.worker, args.backend)
        return 0
    shows: dict[str, Callable[[list[str]], bool]] = {
        "golden": lambda names: show_golden(names, here=args.backend is not None),
        "float32": show_float32,
        "ranks": show_ranks,
    }
    try:
        names, absent = devices(args.backend)
        for name, reason in absent.items():
            print(f"{name} is not here: {reason}")
        good = [show(names) for name, show in shows.items() if args.only in (None, name)]
    except GemError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
