"""The same run: whether the settings of a command are those of the run file that it is to continue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gem.annealing import Annealing
from gem.data import Source, place_of
from gem.errors import RunFileError
from gem.held_out import EVERY
from gem.holding import Hold
from gem.keeping import with_best
from gem.models import Model, make
from gem.parallel import Communicator
from gem.run_checks import place_on_disk
from gem.stepwise import rate_of
from gem.store import CHECKPOINT_SECONDS, Run, read_run

ABSENT = "nothing"


def check_same(
    path: str, model: Model, source: Source, anneal: Annealing, options: Mapping[str, Any], comm: Communicator
) -> None:
    """Refuse to continue a run with settings that are not its own.

    Parameters
    ----------
    path : of the run file
    model, source, anneal
        What the command describes.
    options : dict
        Arguments of `EM`, as far as they were given: backend, dtype, seed, batch, checkpoint, checkpoint_seconds,
        restarts, weights, params and start (paths), keep, keep_best, hold, held_out (a Source) and held_out_every.
    comm : Communicator
        Rank 0 reads the file.

    Raises
    ------
    RunFileError
        With the name of each setting that differs, its value here and there.
    """
    run = comm.bcast(read_run(path) if comm.rank == 0 else None)
    if run.model != model.name:
        raise RunFileError(f"{path} is a run of {run.model}, not of {model.name}: {_remedy(path)}")
    differing = [
        f"{name} = {_shown(here)} (there: {_shown(there)})"
        for name, (here, there) in _pairs(run, model, source, anneal, options).items()
        if here != there
    ]
    if differing:
        raise RunFileError(f"{path} is a run with other settings: {'; '.join(differing)}. {_remedy(path)}")


def _pairs(
    run: Run, model: Model, source: Source, anneal: Annealing, options: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Setting → its value here, and in the file; an old file's own defaults are what its gem took for them."""
    config = run.config
    parts = [
        (model.settings(), make(run.model, config["settings"]).settings()),
        anneal.compared(Annealing.from_dict(config["annealing"])),
        (_as_dict(source.spec), _as_dict(config["data"])),
        ({"weights": place_of(options.get("weights"))}, {"weights": config.get("weights", {"data": None})["data"]}),
        ({"seed": options.get("seed", 0)}, {"seed": config.get("restarts", {}).get("seeds", [run.seed])[0]}),
        ({"restarts": options.get("restarts")}, {"restarts": config.get("restarts", {}).get("n")}),
        ({"checkpoint": options.get("checkpoint", 10)}, {"checkpoint": config["checkpoint"]}),
    ]
    minibatch = options.get("minibatch")
    rate = None if minibatch is None else rate_of(minibatch, options.get("rate"), len(anneal)).plain()
    parts.append(
        ({"minibatch": minibatch, "rate": rate}, {"minibatch": config.get("minibatch"), "rate": config.get("rate")})
    )
    hold = Hold.of(model, options.get("hold"))
    parts.append(({"hold": None if hold is None else hold.record}, {"hold": config.get("hold")}))
    held_out = options.get("held_out")
    every = options.get("held_out_every", EVERY)
    here = {} if held_out is None else {"held_out": held_out.spec, "held_out_every": every}
    there = config.get("held_out")
    parts.append((here, {} if there is None else {"held_out": there["data"], "held_out_every": there["every"]}))
    seconds = config.get("checkpoint_seconds", CHECKPOINT_SECONDS)
    parts.append(
        ({"checkpoint_seconds": options.get("checkpoint_seconds", CHECKPOINT_SECONDS)}, {"checkpoint_seconds": seconds})
    )
    if "asked" in config:
        defaults = {"backend": None, "dtype": "auto", "batch": None, "keep": None, "params": None, "start": None}
        given = {name: options.get(name, value) for name, value in defaults.items()}
        given["keep"], best = with_best(given["keep"], options.get("keep_best", False))
        parts.append(({"keep_best": best}, {"keep_best": config.get("keep_best", False)}))
        for name in ("params", "start"):
            given[name] = place_on_disk(given[name])
        parts.append((given, {"keep": None, "params": None, "start": None, **config["asked"]}))
    pairs: dict[str, tuple[Any, Any]] = {}
    for here, there in ((json.loads(json.dumps(a)), json.loads(json.dumps(b))) for a, b in parts):
        pairs |= {name: (here.get(name, ABSENT), there.get(name, ABSENT)) for name in {**here, **there}}
    if "backend" in pairs:  # None asks for what the environment or the machine chooses, as "auto" did
        here, there = pairs["backend"]
        pairs["backend"] = ("auto" if here is None else here, "auto" if there is None else there)
    return pairs


def _as_dict(spec: Any) -> dict[str, Any]:
    return dict(spec) if isinstance(spec, Mapping) else {"data": spec}


def _shown(value: Any) -> str:
    return f"{value!r:.100}"


def _remedy(path: str) -> str:
    return (
        f"Give it the same settings, or `gem resume {path}`, which takes them from the file; or choose another output"
    )
