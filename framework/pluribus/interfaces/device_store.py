"""A KV store that a device can drive by itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pluribus.interfaces.kv_cache import KVStore

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tokens of rows, one row after another, cut so that no tile reaches over a row's end.

    Attributes:
        rows: index of its row's first token, for each tile, int64, [num_tiles].
        starts: index of each tile's first token, int64, [num_tiles].
        ends: index after its row's last token, int64, [num_tiles]; a tile that starts there
            is empty.
        alone: indices of tokens that are all of their row, in no tile, int64, [num_alone]; -1
            from the end of them on.
    """

    rows: Tensor
    starts: Tensor
    ends: Tensor
    alone: Tensor


class DeviceKVStore(KVStore):
    """A store whose launches depend on numbers alone, so that they can be captured.

    It has one slot more than generations can have, ``num_slots``: tokens that pad a batch are of
    that slot, and may write where nobody reads. All tensors are read when a pass runs, not when
    it begins.
    """

    @property
    @abstractmethod
    def tile_size(self) -> int:
        """Tokens of a tile, at most."""

    @abstractmethod
    def flush(self) -> None:
        """Tell the device what has been admitted, before the step that needs it."""

    @abstractmethod
    def begin_decode(self, slots: Tensor, positions: Tensor) -> None:
        """Start a pass in which each row computes one token.

        Args:
            slots: of each row, int64, [num_rows].
            positions: of its token, likewise.
        """

    @abstractmethod
    def begin_prefill(self, slots: Tensor, positions: Tensor, tiles: Tiles) -> None:
        """Start a pass in which rows compute any number of tokens.

        Args:
            slots: of each token, int64, [num_tokens].
            positions: of each token, likewise.
            tiles: of the tokens.
        """
