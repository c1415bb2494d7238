"""gem: expectation maximization for latent-variable models on data too large for one core."""

from gem import backends, models
from gem._version import __version__
from gem.annealing import Annealing
from gem.em import Info, em_step, posterior
from gem.errors import BackendError, ConfigError, DataError, GemError, RunFileError
from gem.run import EM

__all__ = [
    "EM",
    "Annealing",
    "BackendError",
    "ConfigError",
    "DataError",
    "GemError",
    "Info",
    "RunFileError",
    "__version__",
    "backends",
    "em_step",
    "models",
    "posterior",
]
