"""A KV store that a device can drive by itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pluribus.interfaces.kv_cache import KVStore

if TYPE_CHECKING:
    from torch import Tensor


class DeviceKVStore(KVStore):
    """A store whose decoding waits for nothing the host knows, so that it can be captured.

    It has one slot more than generations can have, ``num_slots``: rows that pad a batch are of
    that slot, and may write where nobody reads.
    """

    @abstractmethod
    def flush(self) -> None:
        """Tell the device what has been admitted, before the step that needs it."""

    @abstractmethod
    def begin_decode(self, slots: Tensor, positions: Tensor) -> None:
        """Start a pass in which each row computes one token; every launch it makes is fixed.

        Args:
            slots: of each row, int64, [num_rows]; read when the pass runs, not now.
            positions: of its token, likewise.
        """
