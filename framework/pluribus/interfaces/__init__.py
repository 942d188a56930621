"""The contracts between the framework and its plugins, one file for each kind."""

from pluribus.interfaces.batcher import Batcher
from pluribus.interfaces.kv_cache import (
    Capability,
    KVCache,
    KVLedger,
    KVShape,
    KVStore,
    TokenLayout,
)
from pluribus.interfaces.model import (
    Blueprint,
    CheckpointReport,
    Model,
    ModelSpec,
    Network,
    Progress,
    TextStream,
    Tokenizer,
)
from pluribus.interfaces.parallelism import Executor, Launcher, Parallelism, Place, Seat, Share
from pluribus.interfaces.response_cache import Answer, Query, ResponseCache

__all__ = [
    "Answer",
    "Batcher",
    "Blueprint",
    "Capability",
    "CheckpointReport",
    "Executor",
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
    "Progress",
    "Query",
    "ResponseCache",
    "Seat",
    "Share",
    "TextStream",
    "TokenLayout",
    "Tokenizer",
]
