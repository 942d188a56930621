"""What a plan depends on, of all that a configuration chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pluribus.interfaces import Batcher, Blueprint, KVCache, Parallelism


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """The parts that decide how much memory a rank takes; ``dtype`` may be ``auto``.

    ``num_replicas`` engines share the devices, each with all ranks.
    """

    blueprint: Blueprint
    parallelism: Parallelism
    batcher_class: type[Batcher]
    batcher_config: Any
    kv_cache: KVCache
    dtype: str
    num_replicas: int

    @property
    def num_ranks(self) -> int:
        """Ranks of all replicas together."""
        return self.parallelism.world_size * self.num_replicas

    @property
    def num_slots(self) -> int:
        """Generations that run at once, at most."""
        num_slots: int = self.batcher_config.max_batch_size
        return num_slots

    def dtype_on(self, device_type: str) -> str:
        """Return the name of the dtype that ranks compute in on ``cpu`` or ``cuda``."""
        return dtype_on(device_type, self.dtype, self.blueprint.spec.dtype)


def dtype_on(device_type: str, setting: str, stored: str) -> str:
    """Return what the ``dtype`` setting means on a device for a checkpoint of some dtype."""
    if setting != "auto":
        return setting
    return "float32" if device_type == "cpu" else stored
