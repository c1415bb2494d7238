"""The sweep: every case on every device in both precisions, beside its ceilings and peers, as plain records."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.cases import PROFILES, ROWS, Case, Profile, chosen_cases, fewest_bytes, without_a_line
from benchmarks.ceilings import copy_rate, devices, product_rate, products, shard_of
from benchmarks.machine import machine
from benchmarks.peers import PEERS, Peer, differs
from benchmarks.timing import BREATH, interleaved
from gem.backends import Backend, select
from gem.backends._traced import Traced
from gem.em import Info, Work, local_shard, run_step
from gem.errors import GemError
from gem.models import MODELS, Model, Step
from gem.models.parameters import Params
from gem.parallel import Serial
from gem.store import environment
from gem.trace import Recording, account, read_spans

Record = dict[str, Any]
HOLDERS = ("EM step", "E-step", "batch")  # spans that hold others: what is left of them is the code between
REST = "host code and waiting"


@dataclass(frozen=True)
class Subject:
    """A case made ready on a device: what is timed, and what it needs on paper."""

    backend: Backend
    step: Callable[[], tuple[Params, Info]]
    products: Callable[[], None]
    first: float
    spent: dict[str, float]


def sweep(profile: str, pattern: str = "", backend: str | None = None) -> Iterator[Record]:
    """Records: the machine, its devices with their ceilings, each case, each skip with its reason, the end.

    Devices come twice, before the cases and after them: `results.settled` puts a case beside the best of both.

    Parameters
    ----------
    profile : a name in PROFILES
    pattern : part of the names of the cases to run ("bsc", "mog-", "medium/mca"); all, if empty
    backend : only one backend or device
    """
    plan, began = PROFILES[profile], time.perf_counter()
    yield {**machine(profile), "pattern": pattern, "only": backend or ""}
    names, absent = devices(backend)
    for name, reason in absent.items():
        yield _skip("all", name, "", reason)
    for name in without_a_line():
        yield _skip(name, "", "", "benchmarks/cases.py has no line for this model")
    for name in sorted({row.model for row in ROWS.values()} - set(MODELS)):
        yield _skip(name, "", "", "gem has no such model yet")
    ready: dict[str, list[Backend]] = defaultdict(list)
    for dtype in plan.dtypes:
        for name in names:
            try:
                chosen = select(name, dtype)
                yield ceilings(chosen, plan)
                ready[dtype].append(chosen)
            except Exception as error:
                yield _broken("all", name, dtype, error)
    for case in chosen_cases(plan, pattern):
        for dtype in plan.dtypes:
            yield from measure(case, dtype, ready[dtype], plan)
    for backends in ready.values():
        yield from (ceilings(backend, plan) for backend in backends)
    yield {"kind": "end", "seconds": time.perf_counter() - began}


def ceilings(backend: Backend, plan: Profile) -> Record:
    """A device, and what it can do at most."""
    return {
        "kind": "device",
        "backend": backend.name,
        "dtype": str(backend.dtype),
        "about": backend.describe(),
        "product_rate": product_rate(backend, max(256, plan.copy_bytes >> 14), plan.repeats),
        "copy_rate": copy_rate(backend, plan.copy_bytes),
        "copy_bytes": plan.copy_bytes,
    }


def measure(case: Case, dtype: str, on: list[Backend], plan: Profile) -> Iterator[Record]:
    """One case on all devices, and on its peers, in turn: one record for each device.

    What breaks, wherever it does, costs no other its result.
    """
    name = f"{case.size.name}/{case.name}"
    try:
        model = case.model()
        params, Y = case.problem(model)
        peers = {peer.name: prepare_peer(peer, model, params, Y.astype(dtype)) for peer in PEERS.get(case.name, ())}
    except Exception as error:
        yield from (_broken(name, backend.name, dtype, error) for backend in on)
        return
    subjects: dict[str, Subject] = {}
    for backend in on:
        try:
            subjects[backend.name] = prepare(model, params, Y, backend)
        except Exception as error:
            yield _broken(name, backend.name, dtype, error)
    functions: dict[str, Callable[[], object]] = {}
    for device, subject in subjects.items():
        functions |= {f"{device} step": subject.step, f"{device} products": subject.products}
    theirs = {peer: run for peer, (run, _) in peers.items() if run is not None}
    pauses = dict.fromkeys(functions, BREATH) | dict.fromkeys(theirs, plan.pause)  # a step's BLAS has no thread to spin
    errors: dict[str, Exception] = {}
    competing = {what: _kept(what, run, errors) for what, run in {**functions, **theirs}.items()} if functions else {}
    times = interleaved(competing, plan.repeats, warmup=1, pauses=pauses)
    for device, subject in subjects.items():
        try:
            for what in (f"{device} step", f"{device} products"):
                if what in errors:
                    raise errors[what]
            found = subject.step()
            beside = [compare_with_peer(told, found, case.N, dtype, times, errors) for _, told in peers.values()]
            yield {**evaluate(case, model, subject, times), "peers": beside}
        except Exception as error:
            yield _broken(name, device, dtype, error)


def _kept(name: str, function: Callable[[], object], errors: dict[str, Exception]) -> Callable[[], None]:
    """The function, its first error kept and not raised; after that it does nothing."""

    def run() -> None:
        if name not in errors:
            try:
                function()
            except Exception as error:
                errors[name] = error

    return run


def prepare_peer(peer: Peer, model: Model, params: Params, Y: np.ndarray) -> tuple[Callable[[], object] | None, Record]:
    """What of a peer is timed, and what is to be told of it: what it finds, or why it does not run."""
    told: Record = {"name": peer.name}
    reason = peer.missing()
    if reason is None:
        try:
            run = peer.prepare(model, params, Y)
            return run, {**told, "found": run()}
        except Exception:  # others' code: whatever it says
            reason = traceback.format_exc()
    return None, {**told, "skipped": reason}


def prepare(model: Model, params: Params, Y: np.ndarray, backend: Backend) -> Subject:
    """Data on the device, a first step (it compiles), and one that is traced."""
    comm, step = Serial(), Step(dtype=str(backend.dtype))
    checked = model.check(params)
    shard = local_shard(model, Y, backend, comm, None)
    work = Work(model, backend.load(shard), backend, comm)

    def run() -> tuple[Params, Info]:
        new, info, _ = run_step(work, checked, step)
        backend.synchronize()
        return new, info

    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    with TemporaryDirectory() as folder:
        trace = Recording(Path(folder) / "trace.json", comm)
        traced = Traced(backend, trace, wait=True)
        recorded = Work(model, traced.load(shard), traced, comm, trace=trace)
        with trace.span("EM step"):
            run_step(recorded, checked, step)
        trace.write()
        spent = parts(read_spans(trace.path))
    W = np.random.default_rng(0).standard_normal((model.D, columns(model)))
    return Subject(backend, run, products(backend, shard_of(backend, Y, 2 * model.D), W), first, spent)


def parts(spans: Sequence[Record]) -> dict[str, float]:
    """Seconds of a traced step's wall time by what was done: pool threads that work side by side count as one."""
    told = account(spans)
    spent: dict[str, float] = defaultdict(float)
    for of_threads, threads in ((told.within, 1), (told.pool, max(1, told.threads))):
        for name, seconds in of_threads.items():
            if name not in HOLDERS:
                spent[name] += seconds / threads
    spent[REST] = max(0.0, told.steps - sum(spent.values()))
    return dict(spent)


def columns(model: Any) -> int:
    """H of a model of many causes, K of a mixture."""
    return int(getattr(model, "H", 0) or model.K)


def evaluate(case: Case, model: Model, subject: Subject, times: dict[str, np.ndarray]) -> Record:
    """A case's times and what it needs on paper; `results.settled` adds the floor at the device's measured rates."""
    name = subject.backend.name
    seconds, of_products = times[f"{name} step"], times[f"{name} products"]
    about, here = subject.backend.describe(), environment()
    return {
        "kind": "case",
        "case": case.name,
        "size": case.size.name,
        "backend": name,
        "dtype": str(subject.backend.dtype),
        "machine": f"{here['processor']}, {here['cores']} cores",
        "device": " ".join(str(about[key]) for key in ("device", "platform") if key in about),
        "model": repr(model),
        "N": case.N,
        "seconds": seconds.tolist(),
        "products": of_products.tolist(),
        "first": subject.first,
        "flops": case.N * case.row.flops(model),
        "bytes": case.N * fewest_bytes(model, subject.backend.dtype.itemsize),
        "own_rate": 4 * case.N * model.D * columns(model) / float(of_products.min()),
        "spent": subject.spent,
    }


def compare_with_peer(
    told: Record,
    ours: tuple[Params, Info],
    N: int,
    dtype: str,
    times: dict[str, np.ndarray],
    errors: dict[str, Exception],
) -> Record:
    """The peer's times, if it found what the case found: the likelihood, and the parameters that it tells."""
    if "found" not in told:
        return told
    name, theirs = told["name"], told["found"]
    kept = {"name": name, "likelihood": theirs["likelihood"]}
    if name in errors:
        return {**kept, "skipped": f"{type(errors[name]).__name__}: {errors[name]}"}
    if reason := differs({**ours[0], "likelihood": ours[1].free_energy / N}, theirs, dtype):
        return {**kept, "skipped": reason}
    return {**kept, "seconds": times[name].tolist()}


def _broken(case: str, backend: str, dtype: str, error: Exception) -> Record:
    """A skip: with the reason where gem refuses, as a failure with the traceback where something broke."""
    if isinstance(error, GemError):
        return _skip(case, backend, dtype, str(error))
    reason = "".join(traceback.format_exception(error))
    return {**_skip(case, backend, dtype, reason), "failed": True}


def _skip(case: str, backend: str, dtype: str, reason: str) -> Record:
    return {"kind": "skip", "case": case, "backend": backend, "dtype": dtype, "reason": reason}
