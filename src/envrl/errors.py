"""One exception class per border of the package; every message names the value and the remedy."""


class EnvrlError(Exception):
    """Base of every error this package raises on purpose; the command line prints it without a traceback."""


class ConfigFault(EnvrlError):
    """A configuration is impossible or names something that does not exist."""


class DataFault(EnvrlError):
    """A file a person or another program wrote (game, panel, results) is missing, broken or not supported."""


class EnvFault(EnvrlError):
    """An environment failed or hung; it ends the episode it happened in, never the run."""


class PolicyFault(EnvrlError):
    """A model, tokenizer or adapter can't be loaded or used as asked."""
