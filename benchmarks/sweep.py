"""The sweep: every case on every device in both precisions, beside its ceilings and peers, as plain records."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.cases import PROFILES, ROWS, Case, Profile, cases, fewest_bytes, without_a_line
from benchmarks.ceilings import copy_rate, devices, product_rate, products, shard_of
from benchmarks.peers import PEERS, Peer
from benchmarks.timing import BREATH, interleaved
from gem.backends import Backend, select
from gem.backends._traced import Traced
from gem.em import Info, local_shard, run_step
from gem.errors import GemError
from gem.models import MODELS, Model, Step
from gem.parallel import Serial
from gem.store import environment
from gem.trace import Recording, read_spans

Record = dict[str, Any]
DETAILS = ("E-step", "batch", "EM step")  # spans that hold others


@dataclass(frozen=True)
class Subject:
    """A case made ready on a device: what is timed, and what it needs on paper."""

    backend: Backend
    step: Callable[[], Info]
    products: Callable[[], None]
    first: float
    spent: dict[str, float]


def sweep(profile: str, pattern: str = "", backend: str | None = None) -> Iterator[Record]:
    """Records: the machine, its devices with their ceilings, each case, and each skip with its reason.

    Parameters
    ----------
    profile : a name in PROFILES
    pattern : part of the names of the cases to run ("bsc", "mog-", "medium/mca"); all, if empty
    backend : one backend or device alone
    """
    plan = PROFILES[profile]
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    yield {"kind": "machine", "profile": profile, "date": now, **environment()}
    names, absent = devices(backend)
    for name, reason in absent.items():
        yield _skip("all", name, "", reason)
    for name in without_a_line():
        yield _skip(name, "", "", "benchmarks/cases.py has no line for this model")
    for name in sorted({row.model for row in ROWS.values()} - set(MODELS)):
        yield _skip(name, "", "", "gem has no such model yet")
    ready: dict[str, list[tuple[Backend, Record]]] = defaultdict(list)
    for dtype in plan.dtypes:
        for name in names:
            try:
                chosen = select(name, dtype)
                about = ceilings(chosen, plan)
            except GemError as error:
                yield _skip("all", name, dtype, str(error))
                continue
            ready[dtype].append((chosen, about))
            yield about
    for case in cases(plan):
        if pattern in f"{case.size.name}/{case.name}":
            for dtype in plan.dtypes:
                yield from measure(case, dtype, ready[dtype], plan)


def ceilings(backend: Backend, plan: Profile) -> Record:
    """A device, and what it can do at most."""
    return {
        "kind": "device",
        "backend": backend.name,
        "dtype": str(backend.dtype),
        "about": backend.describe(),
        "product_rate": product_rate(backend, max(256, plan.copy_bytes >> 14), plan.repeats),
        "copy_rate": copy_rate(backend, plan.copy_bytes, plan.repeats),
    }


def measure(case: Case, dtype: str, on: list[tuple[Backend, Record]], plan: Profile) -> Iterator[Record]:
    """One case on all devices, and on its peer, in turn: one record for each device."""
    model = case.model()
    params, Y = case.problem(model)
    subjects: dict[str, Subject] = {}
    for backend, _ in on:
        try:
            subjects[backend.name] = prepare(model, params, Y, backend)
        except GemError as error:
            yield _skip(f"{case.size.name}/{case.name}", backend.name, dtype, str(error))
        except Exception:  # one broken case should not cost the others their results
            yield {
                **_skip(f"{case.size.name}/{case.name}", backend.name, dtype, traceback.format_exc()),
                "failed": True,
            }
    functions: dict[str, Callable[[], object]] = {}
    for name, subject in subjects.items():
        functions |= {f"{name} step": subject.step, f"{name} products": subject.products}
    peers = {peer.name: prepare_peer(peer, model, params, Y.astype(dtype)) for peer in PEERS.get(case.name, ())}
    theirs = {name: run for name, (run, _) in peers.items() if run is not None}
    pauses = dict.fromkeys(functions, BREATH) | dict.fromkeys(theirs, plan.pause)  # a step's BLAS has no thread to spin
    times = interleaved({**functions, **theirs} if functions else {}, plan.repeats, warmup=1, pauses=pauses)
    for backend, device in on:
        if backend.name in subjects:
            subject = subjects[backend.name]
            beside = [compare_with_peer(told, subject, times, case.N) for _, told in peers.values()]
            yield {**evaluate(case, model, device, subject, times), "peers": beside}


def prepare_peer(
    peer: Peer, model: Model, params: dict[str, np.ndarray], Y: np.ndarray
) -> tuple[Callable[[], object] | None, Record]:
    """What of a peer is timed, and what is to be told of it: its likelihood, or why it does not run."""
    if reason := peer.missing():
        return None, {"name": peer.name, "skipped": reason}
    try:
        run, likelihood = peer.prepare(model, params, Y)
    except Exception as error:  # its version may want other arguments: that should not cost us our results
        return None, {"name": peer.name, "skipped": f"{type(error).__name__}: {error}"}
    return run, {"name": peer.name, "likelihood": likelihood}


def prepare(model: Model, params: dict[str, np.ndarray], Y: np.ndarray, backend: Backend) -> Subject:
    """Data on the device, kernels compiled, and one step done with every call recorded."""
    comm = Serial()
    shard = local_shard(model, Y, backend, comm, None)
    step = Step(dtype=str(backend.dtype))
    checked = model.check(params)
    batches = backend.load(shard)

    def run() -> Info:
        info = run_step(model, checked, batches, backend, comm, step)[1]
        backend.synchronize()
        return info

    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    with TemporaryDirectory() as folder:
        trace = Recording(Path(folder) / "trace.json", comm)
        traced = Traced(backend, trace, wait=True)
        run_step(model, checked, traced.load(shard), traced, comm, step, trace=trace)
        trace.write()
        spent: dict[str, float] = defaultdict(float)
        for span in read_spans(trace.path):
            if span["name"] not in DETAILS:
                spent[span["name"]] += span["dur"] / 1e6
    W = np.random.default_rng(0).standard_normal((model.D, columns(model)))
    return Subject(backend, run, products(backend, shard_of(backend, Y, 2 * model.D), W), first, dict(spent))


def columns(model: Any) -> int:
    """H of a model of many causes, K of a mixture."""
    return int(getattr(model, "H", 0) or model.K)


def evaluate(case: Case, model: Model, device: Record, subject: Subject, times: dict[str, np.ndarray]) -> Record:
    """A case's times beside the floor that flops and bytes give on paper, at the device's measured rates."""
    name, dtype = device["backend"], device["dtype"]
    seconds, of_products = times[f"{name} step"], times[f"{name} products"]
    own_rate = 4 * case.N * model.D * columns(model) / of_products.min()
    rate = max(own_rate, device["product_rate"])
    flops, size = case.N * case.row.flops(model), case.N * fewest_bytes(model, subject.backend.dtype.itemsize)
    floors = {"flops": flops / rate, "bytes": size / device["copy_rate"]}
    bound = max(floors, key=lambda kind: floors[kind])
    return {
        "kind": "case",
        "case": case.name,
        "size": case.size.name,
        "backend": name,
        "dtype": dtype,
        "model": repr(model),
        "N": case.N,
        "seconds": seconds.tolist(),
        "products": of_products.tolist(),
        "first": subject.first,
        "flops": flops,
        "bytes": size,
        "rate": rate,
        "bandwidth": device["copy_rate"],
        "floor": floors[bound],
        "bound": bound,
        "share": floors[bound] / float(np.median(seconds)),
        "spent": subject.spent,
    }


def compare_with_peer(told: Record, subject: Subject, times: dict[str, np.ndarray], N: int) -> Record:
    """The peer's times, if it found the likelihood that the case found."""
    if "likelihood" not in told:
        return told
    ours, theirs = subject.step().free_energy / N, told["likelihood"]
    if abs(ours - theirs) > 1e-3 * max(1.0, abs(theirs)):
        return {**told, "skipped": f"other likelihood: {theirs:.6g} per data point, here {ours:.6g}"}
    return {**told, "seconds": times[told["name"]].tolist()}


def _skip(case: str, backend: str, dtype: str, reason: str) -> Record:
    return {"kind": "skip", "case": case, "backend": backend, "dtype": dtype, "reason": reason}
