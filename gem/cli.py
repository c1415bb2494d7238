"""The command line: gem fit, resume, info, show; in one process or under mpiexec."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter
from math import isnan, nan
from pathlib import Path
from typing import Any

from gem._version import __version__
from gem.annealing import DEFAULTS, NOISE, Annealing
from gem.data import are_pictures, open_data
from gem.errors import ConfigError, GemError
from gem.models import MODELS, known_options, make, option_kinds
from gem.models.parameters import noise_names
from gem.notes import counted, ending
from gem.parallel import Communicator, communicator, launched
from gem.restarts import best_of
from gem.run import EM
from gem.same_run import check_same
from gem.sets import set_options
from gem.store import USED_UP, is_decided

TERMINATED = 128 + 15  # the shell's exit status for a process that SIGTERM ended
ANNEALED = [  # every parameter of a model may get noise, but a covariance, which would not stay one
    *DEFAULTS,
    *(f"{name}{NOISE}" for name in noise_names(cls.example() for cls in MODELS.values())),
]
# Tables of the configuration file: option → type. Flags set the same options; [model] has those of the model.
OPTIONS: dict[str, dict[str, type]] = {
    "model": option_kinds(),
    "sets": {**set_options(), "preselect": list},
    "annealing": {
        "steps": int,
        "until": float,
        "anneal_prior": bool,
        "reseed": bool,
        **dict.fromkeys(ANNEALED, object),
    },
    "data": {"patch": int, "count": int, "whitening": bool, "onoff": bool},
    "run": {
        "backend": str,
        "dtype": str,
        "seed": int,
        "batch": int,
        "checkpoint": int,
        "checkpoint_seconds": float,
        "weights": str,
        "keep": object,
        "minibatch": int,
        "rate": object,
        "keep_best": bool,
        "hold": object,
        "params": str,
        "start": str,
        "restarts": int,
        "held_out": str,
        "held_out_every": int,
    },
}
KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", list: "a list of numbers"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 (refused, with the reason), 2 (usage), 143 (SIGTERM)."""
    args = _parser().parse_args(arguments)
    try:
        together = args.command in (_fit, _resume) and launched()
        comm = communicator("world" if together else None)  # the others never start MPI: they work inside a task
        with comm.guard(), _log_shown(comm, getattr(args, "quiet", True)):
            return args.command(args, comm)
    except GemError as error:
        print(f"gem: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gem: interrupted", file=sys.stderr)
        return 130


@contextmanager
def _log_shown(comm: Communicator, quiet: bool) -> Iterator[None]:
    """What the library logs, on stderr while a command runs: all of it on rank 0, of other ranks and if `quiet`
    warnings."""
    log, shown = logging.getLogger("gem"), logging.StreamHandler(sys.stderr)
    shown.setFormatter(logging.Formatter(f"gem: rank {comm.rank}: %(message)s" if comm.rank else "gem: %(message)s"))
    shown.setLevel(logging.WARNING if quiet or comm.rank else logging.INFO)
    before = log.level
    log.addHandler(shown)
    log.setLevel(min(before or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        log.removeHandler(shown)
        log.setLevel(before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gem", description="Expectation maximization for latent-variable models.")
    parser.add_argument("--version", action="version", version=f"gem {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="learn a model's parameters from data")
    fit.add_argument("model", type=str.lower, choices=MODELS, metavar="model", help=f"one of {', '.join(MODELS)}")
    fit.add_argument("data", nargs="+", help="a table or pictures: files, FILE:NAME, folders (docs/data.md)")
    fit.add_argument("-o", "--output", default="run.h5", help="run file (default: %(default)s)")
    there = fit.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace an existing run file")
    there.add_argument(
        "--resume",
        action="store_true",
        help="continue the run if its file is there, else begin it: one command for a job that may be started again",
    )
    fit.add_argument("--config", type=Path, help="TOML file with tables [model], [annealing], [data], [run]; flags win")
    fit.set_defaults(command=_fit)

    of_model = fit.add_argument_group("model")
    for name, kind in OPTIONS["model"].items():
        if kind is bool:
            of_model.add_argument(f"--{name}", action="store_true", default=None)
        else:
            form = f"numbers, as --{name}=-1,0,1" if kind is list else None
            of_model.add_argument(f"--{name}", type=PARSERS.get(kind, kind), metavar=name, help=form)
    _add_sets(fit)
    _add_annealing(fit)
    images = fit.add_argument_group("image data")
    images.add_argument("--patch", type=int, help="side of the patches in pixels (default: 16)")
    images.add_argument("--count", type=int, help="number of patches (default: 50000)")
    images.add_argument("--no-whitening", dest="whitening", action="store_false", default=None)
    images.add_argument(
        "--onoff",
        action=argparse.BooleanOptionalAction,
        help="split values into channels max(x, 0) and max(-x, 0) (default: for models with W >= 0)",
    )
    _add_run(fit)

    resume = commands.add_parser("resume", help="take up a run at its last checkpoint")
    resume.add_argument("run", help="run file")
    resume.add_argument("--backend", help="default: the run's own")
    resume.add_argument("--steps", type=int, help="do so many more steps, also of a run that is finished, and end")
    resume.set_defaults(command=_resume)
    for command in (fit, resume):
        command.add_argument(
            "-q", "--quiet", action="store_true", help="no progress line, and only warnings of the log"
        )
        command.add_argument("--trace", metavar="FILE.json", help="record the time line of all ranks (for Perfetto)")

    info = commands.add_parser("info", help="what a run file holds; without one, what this machine has")
    info.add_argument("run", nargs="?", help="run file")
    info.set_defaults(command=_info)

    show = commands.add_parser("show", help="draw the fields and the free energy of a run, or the time line of a trace")
    show.add_argument("run", help="run file, or trace (.json)")
    show.add_argument("-o", "--output", type=Path, help="picture (default: the file's name with .png)")
    show.add_argument("--gabor", action="store_true", help="fit a Gabor function to each field and print how many fit")
    show.set_defaults(command=_show)
    _add_restoring(commands)
    return parser


def _add_sets(fit: argparse.ArgumentParser) -> None:
    group = fit.add_argument_group("states that --sets evolve or --sets sample keep (gem.sets)")
    for name, kind in OPTIONS["sets"].items():
        form = "states of at most gamma of H' candidates are new ones, too: --preselect 8,4" if kind is list else None
        group.add_argument(f"--{name}", type=PARSERS.get(kind, kind), metavar=name, help=form)


def _add_annealing(fit: argparse.ArgumentParser) -> None:
    """The flags of the table [annealing]."""
    schedule = fit.add_argument_group(
        "annealing",
        "a number, or breakpoints POSITION=VALUE,...: whole positions are steps, others fractions of the run. Where "
        "none but --steps and --until is given, nor --params or --start, the model chooses (Annealing.auto); --T 1 is "
        "EM without annealing",
    )
    schedule.add_argument("--steps", type=int, help="EM steps (default: 100)")
    schedule.add_argument(
        "--until",
        type=float,
        metavar="CHANGE",
        help="end earlier, once F/N changes by less than this share of itself, such as 1e-6, over 5 steps at T = 1",
    )
    for name in ANNEALED:
        schedule.add_argument(f"--{name.replace('_', '-')}", dest=name, type=_schedule, metavar="SCHEDULE")
    schedule.add_argument(
        "--anneal-prior",
        action=argparse.BooleanOptionalAction,
        help="whether T acts on the prior, too (default: on the likelihood only)",
    )
    schedule.add_argument("--reseed", action="store_true", default=None, help="dead latents begin anew")


def _add_restoring(commands: Any) -> None:
    """gem denoise and gem inpaint."""
    denoise = commands.add_parser("denoise", help="take the noise from a picture")
    denoise.add_argument("--add-noise", action="store_true", help="IMAGE is clean: add noise first (default: 25)")
    inpaint = commands.add_parser("inpaint", help="fill the gaps of a picture")
    for command, usual, instead in ((denoise, "auto", "estimated"), (inpaint, 0.0, "none")):
        command.add_argument(
            "--sigma",
            type=_word_or_number,
            default=usual,
            help="the noise: auto, or a number in grey levels of 255 (white of an image of 8 or 16 bits is 255), "
            f"in its own units of .npy and of floats (default: {instead})",
        )
        command.add_argument("--sigma-unit", choices=("grey", "own"), default="grey", help="own: in the file's units")
    gaps = inpaint.add_mutually_exclusive_group()
    gaps.add_argument("--mask", metavar="PATH", help="picture whose pixels are not black where IMAGE has gaps")
    gaps.add_argument("--missing", type=float, metavar="FRACTION", help="IMAGE is whole: lose so much of it, at random")
    for command in (denoise, inpaint):
        command.add_argument("image", metavar="IMAGE", help="an image, or .npy in any units, NaN in gaps")
        command.add_argument("--model", default="auto", help="bsc, mog, gsc, ... (default: mog; gsc to fill gaps)")
        command.add_argument("--clean", metavar="PATH", help="the true picture, for the PSNR")
        command.add_argument(
            "-o", "--output", help="picture or .npy (default: IMAGE's name with -restored, .png if that holds it)"
        )
        for name in ("H", "Hprime", "gamma", "K"):
            command.add_argument(f"--{name}", type=int, metavar=name)
        command.add_argument(
            "--values", type=_numbers, metavar="V,V,...", help="of dsc, as --values=-1,0,1 (default: -2,-1,0,1,2)"
        )
        command.add_argument("--patch", type=int, help="side of the patches (default: 6, for much noise 8)")
        command.add_argument("--stride", type=int, default=1, help="pixels between patches (default: %(default)s)")
        command.add_argument("--steps", type=int, default=20, help="EM steps (default: %(default)s)")
        command.add_argument("--backend", help='"numpy", "auto", ... (default: $GEM_BACKEND, else auto)')
        command.add_argument("--seed", type=int, default=0)
        command.add_argument(
            "-q", "--quiet", action="store_true", help="no progress line, and only warnings of the log"
        )
    denoise.set_defaults(command=_restore, mask=None, missing=None)
    inpaint.set_defaults(command=_restore, add_noise=False)


def _add_run(fit: argparse.ArgumentParser) -> None:
    """Options of the run itself."""
    run = fit.add_argument_group("run")
    run.add_argument("--backend", help='"numpy", "auto", ... (default: $GEM_BACKEND, else auto)')
    run.add_argument("--dtype", choices=("auto", "float32", "float64"), help="default: auto, what the data need")
    run.add_argument("--seed", type=int)
    run.add_argument("--batch", type=int, help="data points at a time (default: the backend's choice)")
    run.add_argument("--checkpoint", type=int, help="steps between checkpoints (default: 10)")
    run.add_argument(
        "--checkpoint-seconds", type=float, metavar="S", help="seconds between checkpoints at most (default: 300)"
    )
    run.add_argument(
        "--weights", metavar="FILE", help="how often each data point counts: FILE or FILE:NAME of (N,) numbers ≥ 0"
    )
    run.add_argument(
        "--keep-best", action="store_true", default=None, help="end with the parameters of the largest F, where it fell"
    )
    run.add_argument("--hold", metavar="NAMES", help="parameters that keep their first values, as sigma,mu")
    run.add_argument(
        "--start", metavar="FILE", help="begin with labels (N,), responsibilities (N, K), or a smaller run"
    )
    run.add_argument("--restarts", type=int, metavar="N", help="the best of N seeds: short runs first, the best go on")
    run.add_argument("--params", metavar="RUN.h5", help="begin with the last parameters of another run")
    run.add_argument("--held-out", metavar="FILE", help="data that nothing is learned from: their F/N is told")
    run.add_argument(
        "--held-out-every", type=int, metavar="K", help="steps from one look at them to the next (default: 10)"
    )
    run.add_argument(
        "--minibatch",
        type=int,
        metavar="ROWS",
        help="stepwise EM: an M-step after so many data points; a step is a pass",
    )
    run.add_argument(
        "--rate",
        type=_rate,
        metavar="SCHEDULE",
        help="how much of the running moments a minibatch takes the place of: t^-0.6 (default), or as --T, from 0 to 1",
    )
    run.add_argument(
        "--keep",
        metavar="STEPS",
        help="whose parameters the run file holds: all, last, or K, every K-th (default: all while they take 8 MB)",
    )


def _numbers(text: str) -> list[float]:
    """'-1,0,1' → [-1.0, 0.0, 1.0]."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers V,V,...") from error


def _word_or_number(text: str) -> str | float:
    """'anneal' → 'anneal', '21' → 21.0."""
    try:
        return float(text)
    except ValueError:
        return text


def _schedule(text: str) -> Any:
    """'4' → 4.0; '0=4,0.8=1' → [(0, 4.0), (0.8, 1.0)]."""
    try:
        if "=" not in text:
            return float(text)
        points = [point.split("=") for point in text.split(",")]
        return [(int(p) if p.strip().lstrip("+-").isdigit() else float(p), float(v)) for p, v in points]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor POSITION=VALUE,...") from error


def _rate(text: str) -> Any:
    """'t^-0.6' → 't^-0.6'; else as a schedule."""
    return text if text.startswith("t") else _schedule(text)


PARSERS: dict[type, Any] = {list: _numbers, object: _word_or_number}  # of flags; other types are their own


def _settings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The run's settings by table: the configuration file's, overruled by flags that were given."""
    tables: dict[str, dict[str, Any]] = {name: {} for name in OPTIONS}
    if args.config is not None:
        tables |= _read_config(args.config)
    for name, options in OPTIONS.items():
        tables[name].update({o: getattr(args, o) for o in options if getattr(args, o) is not None})
    return tables


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    tables = _read_toml(path)
    for name, table in tables.items():
        if name not in OPTIONS or not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} is no table that gem knows: there are [{'], ['.join(OPTIONS)}]")
        for option, value in table.items():
            kind = OPTIONS[name].get(option, object)
            if option not in OPTIONS[name] and name != "model":
                raise ConfigError(f"{path}: [{name}] has no option {option!r}: there are {', '.join(OPTIONS[name])}")
            if kind is not object and type(value) is not kind and (kind, type(value)) != (float, int):
                raise ConfigError(f"{path}: [{name}] {option} = {value!r} must be {KINDS[kind]}")
    return tables


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path} ({error.strerror}): check the path") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path} is not TOML ({error}): correct it there") from error


def _add_to_model(settings: dict[str, dict[str, Any]]) -> None:
    """The options of kept states as part of the model's own `sets`."""
    given, model = settings["sets"], settings["model"]
    if "preselect" in given:
        numbers = [int(x) if float(x).is_integer() else x for x in given["preselect"]]
        given["preselect"] = {"kind": "preselect", **dict(zip(("Hprime", "gamma"), numbers, strict=False))}
    if given and not isinstance(model.get("sets"), str):
        raise ConfigError(f"{', '.join(given)}: of which sets? give --sets, or sets in [model] of --config")
    if given:
        model["sets"] = {"kind": model["sets"], **given}


def _check_model_options(model: str, given: dict[str, Any]) -> None:
    """Known to the constructor, and none that it needs missing; before any data is read."""
    for option, parameter in known_options(model, given).items():
        if parameter.default is Parameter.empty and option not in given:
            raise ConfigError(f"{model} needs the option {option}: give --{option}, or {option} in [model] of --config")


def _fit(args: argparse.Namespace, comm: Communicator) -> int:
    settings = _settings(args)
    _add_to_model(settings)
    _check_model_options(args.model, settings["model"])
    annealing = {"steps": 100, **settings["annealing"]}
    learned = {"params", "start"} & set(settings["run"])  # from where noise would lead away
    auto = set(annealing) <= {"steps", "until"} and not learned
    anneal = Annealing.auto(**annealing) if auto else Annealing(**annealing)
    run = settings["run"]
    drawn = are_pictures(args.data, **settings["data"])  # patches, at random
    of_images: dict[str, Any] = {"seed": run.get("seed", 0)} if drawn else {}
    if drawn and MODELS[args.model].example().fields_are_nonnegative:
        of_images["onoff"] = True
    source = open_data(args.data, **{**of_images, **settings["data"]})
    if "held_out" in run:
        run["held_out"] = open_data([run["held_out"]], **{**of_images, **settings["data"]})
    model = make(args.model, {"D": source.shape[1], **settings["model"]})
    if args.resume and comm.bcast(Path(args.output).exists()):
        check_same(args.output, model, source, anneal, run, comm)
        if comm.bcast(is_decided(args.output)):
            return _take_up(args, args.output, comm, None, None)
        args.overwrite = True
    shared: dict[str, Any] = {"comm": comm, "output": args.output, "overwrite": args.overwrite, "trace": args.trace}
    if "restarts" in run:
        em = best_of(run.pop("restarts"), model, source, anneal, progress=not args.quiet, **shared, **run)
        return _run(em, args, args.output, comm)
    em = EM(model, source, anneal, **shared, **run)
    if comm.rank == 0 and not args.quiet:
        print(f"{model!r} on {source.shape[0]:,} data points, {comm.size} rank(s), {_on(em)}", file=sys.stderr)
    return _run(em, args, args.output, comm)


def _resume(args: argparse.Namespace, comm: Communicator) -> int:
    return _take_up(args, args.run, comm, args.backend, args.steps)


def _take_up(args: argparse.Namespace, path: str, comm: Communicator, backend: str | None, steps: int | None) -> int:
    em = EM.resume(path, backend=backend, comm=comm, trace=args.trace, steps=steps)
    if comm.rank == 0 and em.reason is not None:
        all_done = f"all its {em.step} steps are done"
        said = all_done if em.reason == USED_UP else ending(em.reason, em.step, em.planned)
        print(f"gem: {path} is finished: {said}", file=sys.stderr)
    if comm.rank == 0 and not args.quiet:
        print(f"{em.model!r}: resuming after step {em.step} of {em.planned}, {_on(em)}", file=sys.stderr)
    return _run(em, args, path, comm)


def _run(em: EM, args: argparse.Namespace, path: str, comm: Communicator) -> int:
    if not em.restarts:
        em.run(progress=not args.quiet)
    if comm.rank == 0:
        for each in em.restarts:
            F, kept = each.free_energy / em.history["N"][-1], "" if each.seed != em.seed else ": the best one"
            print(f"{path}: seed {each.seed}: F/N = {F:.6f} after {each.steps} steps{kept}")
        if em.stopped and em.restarts:
            print("gem: stopped by SIGTERM before one seed was left: begin again with --overwrite", file=sys.stderr)
        elif em.stopped:
            print(f"gem: stopped by SIGTERM after step {em.step}: continue with gem resume {path}", file=sys.stderr)
        for told in counted(em.notes):
            print(f"{path}: note of {told.when}: {told.what}")
        if em.step:
            last = {name: values[-1] for name, values in em.history.items()}
            share = last.get("share_at_gamma", nan)
            whole = em.reason == USED_UP and (em.anneal.until is None or em.planned != len(em.anneal))
            said = f"{em.step} steps" if whole else ending(str(em.reason), em.step, em.planned)
            print(
                f"{path}: {said}, F/N = {last['free_energy'] / last['N']:.6f}"
                + (" before the last of them" if em.stopped else "")
                + ("" if isnan(held_out := last.get("held_out", nan)) else f", held out {held_out:.6f}")
                + ("" if isnan(new := last.get("replaced", nan)) else f", {new:.2f} states of a point replaced")
                + ("" if isnan(share) else f", {share:.1%} of the points at gamma = {em.model.settings()['gamma']}")
            )
    return TERMINATED if em.stopped else 0


def _on(em: EM) -> str:
    about = em.backend.describe()
    return f"backend {em.backend.name} ({about['device']}, {about['dtype']})"


def _info(args: argparse.Namespace, comm: Communicator) -> int:
    from gem.report import describe_machine, describe_run

    describe_machine() if args.run is None else describe_run(args.run)
    return 0


def _show(args: argparse.Namespace, comm: Communicator) -> int:
    from gem.report import show_run, show_trace

    if args.run.endswith(".json"):
        show_trace(args.run, args.output)
    else:
        show_run(args.run, args.output, args.gabor)
    return 0


def _restore(args: argparse.Namespace, comm: Communicator) -> int:
    if launched():
        raise ConfigError("pictures are restored by one process: start it without mpiexec, or with GEM_MPI=0")
    from gem.restore.command import restore_file

    restore_file(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
