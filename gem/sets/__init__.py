"""Which states the truncated posterior of a data point has: preselected anew at each step, or kept and improved.

A model of many latents takes one of these as its ``sets``: ``BSC(D, H, sets=Evolve(states=64))``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from gem.checks import whole_number
from gem.errors import ConfigError

__all__ = ["SETS", "AnySets", "Evolve", "Kept", "Preselect", "Sample", "set_options", "sets_of"]

SELECTIONS = ("fit", "rand")
MUTATIONS = ("randflip", "sparseflip", "cross")


@dataclass(frozen=True)
class Preselect:
    """All states of at most gamma active latents among the H' that a data point's own scores choose, and singletons.

    Nothing is kept from step to step. Lücke & Eggert, *Expectation Truncation*, JMLR 11, 2010. A model's arguments
    `Hprime` and `gamma` are the shorthand.

    Parameters
    ----------
    Hprime : int, optional
        Latents preselected per data point (default: H, at most 8).
    gamma : int, optional
        Most active latents per state (default: H', at most 5).
    """

    Hprime: int | None = None
    gamma: int | None = None

    def plain(self) -> dict[str, Any]:
        """As the run file keeps it; `sets_of` gives it back."""
        return {"kind": "preselect", **{name: value for name, value in asdict(self).items() if value is not None}}


@dataclass(frozen=True)
class Kept:
    """What kinds of kept states have in common: `states` of them for each data point, which an E-step improves.

    An E-step takes their log joints, makes new states and keeps the best of all: with the same parameters F never
    falls. They begin as draws in which each latent is on with probability 1/H; all random numbers are keyed by the
    seed, the data point and the step, so they do not depend on ranks, batches or devices.
    """

    states: int = 64
    preselect: Preselect | None = None

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        whole_number("states", self.states, 1)
        if self.preselect is not None and not isinstance(self.preselect, Preselect):
            raise ConfigError(
                f"preselect = {self.preselect!r} must be a Preselect, such as Preselect(Hprime=8, gamma=4)"
            )

    def plain(self) -> dict[str, Any]:
        """As the run file keeps it; `sets_of` gives it back."""
        own = {about.name: getattr(self, about.name) for about in fields(self) if about.name != "preselect"}
        own = {name: value for name, value in own.items() if value is not None}
        proposed = {} if self.preselect is None else {"preselect": self.preselect.plain()}
        return {"kind": self.kind, **own, **proposed}

    @property
    def proposed(self) -> int:
        """The most new states that are looked at together."""
        raise NotImplementedError

    def check(self, H: int) -> None:
        """Refuse what H latents do not allow.

        Raises
        ------
        ConfigError
            If there are fewer states than are to be kept.
        """
        if H < 31 and self.states > 2**H:
            raise ConfigError(f"states = {self.states} of H = {H} latents: there are {2**H}, choose at most so many")
        if H >= 1 << 16:
            raise ConfigError(f"H = {H}: kept states have less than {1 << 16} latents")


@dataclass(frozen=True)
class Evolve(Kept):
    """Kept states whose mutants are the new ones (EVO).

    Drefs, Guiraud, Lücke, *Evolutionary variational optimization of generative models*, JMLR 23(21), 2022.

    Parameters
    ----------
    states : int
        How many are kept for each data point.
    parents, children, generations : int
        So many states are drawn, each has so many mutants, and from these the next parents are drawn. The children of
        "cross" are one with each other parent.
    selection : "fit" or "rand"
        Parents are drawn by weights linear in their log joint, E − 2 min(0, min E), or all alike.
    mutation : "randflip", "sparseflip" or "cross"
        Each child has another latent flipped; two on an average, on and off so that the expected number is on; or is
        the head of one parent and the tail of another, and one is flipped.
    preselect : Preselect, optional
        The preselected states of the step (without singletons of latents that were not chosen) are new ones, too.

    Raises
    ------
    ConfigError
        If a number is no whole one, or a word unknown.
    """

    parents: int = 10
    children: int | None = None
    generations: int = 4
    selection: str = "fit"
    mutation: str = "randflip"

    kind: ClassVar[str] = "evolve"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("parents", "generations"):
            whole_number(name, getattr(self, name))
        for name, known in (("selection", SELECTIONS), ("mutation", MUTATIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} = {getattr(self, name)!r} must be one of {', '.join(known)}")
        pairs = self.mutation == "cross"
        if self.children is not None:
            whole_number("children", self.children)
        if pairs and (self.parents < 2 or self.children not in (None, self.parents - 1)):
            raise ConfigError(
                f"children = {self.children} of {self.parents} parents: by cross each parent has one with each other: "
                "leave children out, and take 2 parents or more"
            )
        if self.parents > self.states:
            raise ConfigError(f"parents = {self.parents} of states = {self.states}: there cannot be more parents")

    @property
    def offspring(self) -> int:
        """Children of a parent."""
        alone = 9 if self.children is None else self.children
        return self.parents - 1 if self.mutation == "cross" else alone

    def check(self, H: int) -> None:
        super().check(H)
        if self.mutation == "randflip" and self.offspring > H:
            raise ConfigError(
                f"children = {self.offspring} of H = {H} latents: each has another one flipped, take fewer"
            )
        if self.mutation == "cross" and H < 2:
            raise ConfigError("cross needs two latents")

    @property
    def proposed(self) -> int:
        """The most new states that are looked at together."""
        return self.parents * self.offspring


@dataclass(frozen=True)
class Sample(Kept):
    """Kept states beside which new ones are drawn (TVS).

    Guiraud, Drefs, Lücke, *Truncated variational sampling*, 2018.

    Parameters
    ----------
    states : int
        How many are kept for each data point.
    prior : int
        New states in which each latent is on with its prior probability.
    marginal : int
        New states in which each latent is on with its probability under the posterior on the kept states.
    preselect : Preselect, optional
        As in `Evolve`.

    Raises
    ------
    ConfigError
        If a number is no whole one, or none is drawn.
    """

    prior: int = 32
    marginal: int = 32

    kind: ClassVar[str] = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if whole_number("prior", self.prior, 0) + whole_number("marginal", self.marginal, 0) == 0:
            raise ConfigError("prior = 0 and marginal = 0: no new state would be drawn")

    @property
    def proposed(self) -> int:
        """The most new states that are looked at together."""
        return self.prior + self.marginal


AnySets = Preselect | Evolve | Sample
SETS: dict[str, type[Preselect] | type[Evolve] | type[Sample]] = {
    "preselect": Preselect,
    "evolve": Evolve,
    "sample": Sample,
}


def set_options() -> dict[str, type]:
    """What a user can set of kept states of any kind, and of which type, but for `preselect`."""
    known = {about.name: about.default for kind in (Evolve, Sample) for about in fields(kind)}
    return {name: str if isinstance(default, str) else int for name, default in known.items() if name != "preselect"}


def sets_of(given: Any) -> AnySets | None:
    """One of `SETS`, from itself, its name, or a mapping with its `kind` and its arguments; None is None.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    if given is None or isinstance(given, Preselect | Evolve | Sample):
        return given
    about = {"kind": given} if isinstance(given, str) else given
    if not isinstance(about, Mapping) or str(about.get("kind", "")).lower() not in SETS:
        raise ConfigError(f"sets = {given!r} must be one of {', '.join(SETS)}, such as gem.sets.Evolve(states=64)")
    options: dict[str, Any] = {name: value for name, value in about.items() if name != "kind"}
    if options.get("preselect") is not None:
        options["preselect"] = sets_of(options["preselect"])
    try:
        return SETS[str(about["kind"]).lower()](**options)
    except TypeError as error:
        known = ", ".join(f.name for f in fields(SETS[str(about["kind"]).lower()]))
        raise ConfigError(f"sets {about['kind']}: {str(error).split('() ')[-1]}; there are {known}") from error
