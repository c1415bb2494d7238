"""The exceptions of gem: each says what was wrong, where, and what to do about it."""


class GemError(Exception):
    """Base of every error that gem raises on purpose."""


class ConfigError(GemError, ValueError):
    """A setting that cannot work: an unknown option, H' > H, a parameter of the wrong shape."""


class DataError(GemError, ValueError):
    """Data that cannot be learned from: NaN or Inf, a wrong shape or dtype, a missing dataset."""


class BackendError(GemError, RuntimeError):
    """A backend, device or compiler that is not there or does not do its work."""


class RunFileError(GemError, OSError):
    """A run file that is missing, torn, foreign, of another model, or cannot be written."""
