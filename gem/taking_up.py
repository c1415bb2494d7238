"""A run that is taken up: what belongs to it, found again from its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gem.annealing import Annealing
from gem.data import Reading, SampleWeights, Source, fingerprint, from_spec, load_weights, open_data, same_data
from gem.errors import RunFileError
from gem.models import Model, make
from gem.models.parameters import shifting
from gem.parallel import Communicator
from gem.store import Run, read_run


def arguments(
    path: Any, run: Run, data: Any, weights: Any, held_out: Any, backend: Any, comm: Communicator
) -> dict[str, Any]:
    """What `EM` was given when the run began, but with its last parameters, and on its own devices.

    Raises
    ------
    RunFileError
        If it cannot be taken up, or does not fit what is given.
    """
    config = run.config
    if not config.get("restarts", {}).get("decided", True):
        raise RunFileError(
            f"{path}: its restarts ended before one seed was left: begin again, --overwrite (overwrite=True)"
        )
    model, source = make(run.model, config["settings"]), data_of(path, config, data)
    own = config["ranks"][comm.rank % len(config["ranks"])]
    return {
        "model": model,
        "data": source,
        "anneal": Annealing.from_dict(config["annealing"]),
        "params": run.params,
        "backend": backend or own["backend"],
        "dtype": Reading.stored(path, config, shifting(model.parameters) is not None),
        "comm": comm,
        "batch": None if backend else own["batch"],
        "seed": run.seed,
        "weights": weights_of(path, config.get("weights"), weights, source.shape[0], comm),
        "minibatch": config.get("minibatch"),
        "rate": config.get("rate"),
        "keep_best": config.get("keep_best", False),
        "hold": masks_of(config.get("hold")),
        **held_out_of(path, config.get("held_out"), held_out),
    }


def data_of(path: Any, config: Mapping[str, Any], data: Any) -> Source:
    """The data of a run: those given, or read again from where they were.

    Raises
    ------
    RunFileError
        If they were an array and are not given, or they are others.
    """
    if data is None and config["data"] is None:
        raise RunFileError(f"{path}: the run was on an array in memory: give the data again, resume(path, data)")
    source = from_spec(config["data"]) if data is None else open_data(data)
    if list(source.shape) != config["shape"]:
        raise RunFileError(f"{path}: the run was on data of shape {config['shape']}, these are {list(source.shape)}")
    if not same_data(fingerprint(source), config["fingerprint"]):
        raise RunFileError(f"{path}: the data have changed since the run began: it would not be the same run")
    return source


def weights_of(
    path: Any, record: Mapping[str, Any] | None, given: Any, N: int, comm: Communicator
) -> SampleWeights | None:
    """The weights of a run that is taken up: those `given`, or read again from where its `record` says.

    Raises
    ------
    RunFileError
        If the run had none, or others, or they were an array and are not given.
    """
    if not _had("weights", "resume(path, data, weights)", path, record, given) or record is None:
        return None
    counts = load_weights(record["data"]["data"] if given is None else given, N, comm)
    if not np.allclose(counts.record["fingerprint"], record["fingerprint"], rtol=1e-9, atol=0):
        raise RunFileError(f"{path}: the weights have changed since the run began: it would not be the same run")
    return counts


def held_out_of(path: Any, record: Mapping[str, Any] | None, given: Any) -> dict[str, Any]:
    """The held-out data of a run, as arguments of `EM`: those `given`, or read again from where its `record` says.

    Raises
    ------
    RunFileError
        If the run had none, or others, or they were an array and are not given.
    """
    if not _had("held-out data", "resume(path, data, held_out=...)", path, record, given) or record is None:
        return {}
    source = from_spec(record["data"]) if given is None else open_data(given)
    if list(source.shape) != record["shape"] or not same_data(fingerprint(source), record["fingerprint"]):
        raise RunFileError(f"{path}: the held-out data have changed since the run began: give those it began with")
    return {"held_out": source, "held_out_every": record["every"]}


def _had(what: str, how: str, path: Any, record: Mapping[str, Any] | None, given: Any) -> bool:
    """Whether the run had such data, which are `given` or can be read again.

    Raises
    ------
    RunFileError
        If it had none, and these are given; or if they were an array in memory, and are not.
    """
    if record is None and given is not None:
        raise RunFileError(f"{path}: the run had no {what}: leave them out, or begin another run")
    if record is not None and record["data"] is None and given is None:
        raise RunFileError(f"{path}: the {what} of the run were an array in memory: give them again, {how}")
    return record is not None


def masks_of(record: Mapping[str, Any] | None) -> dict[str, np.ndarray] | None:
    """The held entries of a run, as an argument of `EM`."""
    return None if record is None else {name: np.asarray(mask) for name, mask in record.items()}


def params_of(model: Model, path: Any, comm: Communicator) -> dict[str, np.ndarray]:
    """The last parameters of another run of the same model.

    Raises
    ------
    RunFileError
        If the file is none, or of another model, or of other sizes.
    """
    run = comm.bcast(read_run(path) if comm.rank == 0 else None)
    if run.model != model.name:
        raise RunFileError(f"params = {path}: that is a run of {run.model}, not of {model.name}")
    for name, shape in model.shapes.items():
        if name not in run.params or run.params[name].shape != shape:
            raise RunFileError(
                f"params = {path}: its model is {run.model}({_listed(run.config['settings'])}), not {model!r}: begin "
                "with the same settings"
            )
    return dict(run.params)


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
