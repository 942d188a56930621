"""What can go wrong, for a program to catch and for a person to read.

PluribusError
├── ConfigError          a setting, or a combination of settings, that cannot work
├── PluginError          a plugin that cannot be loaded, or that breaks the plugin contract
├── CheckpointError      weights that are missing, damaged, or not the ones asked for
├── RequestError         one request that cannot be served as it was put
├── QueueFullError       more requests waiting than allowed; the same request may succeed later
└── EngineError          the engine is not there: still loading, shutting down, or dead

Messages say what was given, what is allowed, and which setting to change.
"""

from __future__ import annotations


class PluribusError(Exception):
    """Anything Pluribus refuses to do, with a message for the person who asked."""


class ConfigError(PluribusError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class PluginError(PluribusError):
    """A plugin that cannot be loaded, or that breaks the plugin contract."""


class CheckpointError(PluribusError):
    """Weights that are missing, damaged, or not the ones asked for."""


class RequestError(PluribusError, ValueError):
    """One request that cannot be served as it was put.

    Attributes:
        param: the field at fault, as the caller named it, or None for the whole request.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class QueueFullError(PluribusError):
    """More requests waiting than allowed; the same request may succeed later.

    Attributes:
        is_tenant: whether it is the tenant's own limit, rather than everybody's.
        retry_after: seconds after which it makes sense to try again.
    """

    def __init__(self, message: str, *, is_tenant: bool = False, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.is_tenant = is_tenant
        self.retry_after = retry_after


class EngineError(PluribusError):
    """The engine is not there: still loading, shutting down, or dead."""


OUT_OF_MEMORY = "lower cache.kv.memory, batcher.max_batch_tokens or batcher.max_batch_size"


def describe(error: BaseException) -> str:
    """Return one line that says what went wrong, and what to change where memory is out."""
    text = " ".join(str(error).split())
    if isinstance(error, PluribusError):
        return text
    kind = type(error).__name__
    is_out = isinstance(error, MemoryError) or kind == "OutOfMemoryError"  # torch's own
    return f"{kind}: {text}; {OUT_OF_MEMORY}" if is_out else f"{kind}: {text}"
