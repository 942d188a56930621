"""Serve large language models from many devices as if they were one.

In a script: ``Engine`` and ``SamplingParams``. In a plugin: ``hookimpl``, the interfaces, and
the data that crosses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluribus.errors import (
    CheckpointError,
    ConfigError,
    EngineError,
    PluginError,
    PluribusError,
    QueueFullError,
    RequestError,
)
from pluribus.generation import Batch, FinishReason, Generation, SamplingParams, TokenLogprobs
from pluribus.hookspecs import API_VERSION, hookimpl
from pluribus.interfaces import (
    Answer,
    Batcher,
    Blueprint,
    Capability,
    Executor,
    KVCache,
    KVLedger,
    KVShape,
    KVStore,
    Launcher,
    Model,
    ModelSpec,
    Network,
    Parallelism,
    Place,
    Progress,
    Query,
    ResponseCache,
    Seat,
    Share,
    TextStream,
    Tokenizer,
    TokenLayout,
)
from pluribus.step import Admission, Row, Step, StepResult

if TYPE_CHECKING:
    from pluribus.offline import Completion, Engine

__all__ = [
    "API_VERSION",
    "Admission",
    "Answer",
    "Batch",
    "Batcher",
    "Blueprint",
    "Capability",
    "CheckpointError",
    "Completion",
    "ConfigError",
    "Engine",
    "EngineError",
    "Executor",
    "FinishReason",
    "Generation",
    "KVCache",
    "KVLedger",
    "KVShape",
    "KVStore",
    "Launcher",
    "Model",
    "ModelSpec",
    "Network",
    "Parallelism",
    "Place",
    "PluginError",
    "PluribusError",
    "Progress",
    "Query",
    "QueueFullError",
    "RequestError",
    "ResponseCache",
    "Row",
    "SamplingParams",
    "Seat",
    "Share",
    "Step",
    "StepResult",
    "TextStream",
    "TokenLayout",
    "TokenLogprobs",
    "Tokenizer",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    # The engine's side imports much more than a plugin needs.
    if name in {"Engine", "Completion"}:
        from pluribus import offline

        return getattr(offline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
