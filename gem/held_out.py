"""Held-out data: how well parameters explain data that they were not learned from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gem.backends import Backend
from gem.checks import whole_number
from gem.data import Reading, fingerprint
from gem.data.shard import telling_gaps
from gem.em import Info, Work, closing, local_shard, open_for
from gem.errors import ConfigError, DataError
from gem.models import Model
from gem.parallel import Communicator

EVERY = 10  # steps


class HeldOut:
    """Data whose F per point is told every so many steps, each point once, whatever the weights of the others are.

    Attributes
    ----------
    record : dict
        Where the data are, their shape and fingerprint, and how often they are asked, for the run file.

    Raises
    ------
    ConfigError, DataError
        If they do not fit the model; the message names the held-out data.
    """

    def __init__(self, model: Model, data: Any, every: int):
        self._every = whole_number("held_out_every", every)
        self._model = model
        with _named():
            self._source = open_for(model, data)
            self.record = {
                "data": self._source.spec,
                "shape": list(self._source.shape),
                "fingerprint": fingerprint(self._source),
                "every": self._every,
            }

    def load(self, backend: Backend, comm: Communicator, reading: Reading) -> None:
        """Read the data as those of the run are read, each rank its own slab."""
        with _named(), telling_gaps(self._source):
            shard = local_shard(self._model, self._source, backend, comm, None, reading)
            for start, Y in shard.batches():
                self._model.check_data(Y, start)
            self._work = Work(self._model, backend.load(shard), backend, comm)

    def due(self, step: int) -> bool:
        """Whether F is told of this step, counted from 1, even if it is not the last one."""
        return step % self._every == 0

    def per_point(self, params: dict[str, Any]) -> float:
        """F / N of these parameters, of the data as they are read; at T = 1."""
        nothing = Info(free_energy=0.0, N=self._source.shape[0], N_use=0, T=1.0, Ncut=0.0, seconds=0.0)
        told = closing(self._work, nothing, params)
        return told.free_energy / told.N


@contextmanager
def _named() -> Iterator[None]:
    """Errors tell that they are about the held-out data."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"held_out: {error}") from error
