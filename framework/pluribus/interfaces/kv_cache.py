"""Where keys and values live, in two halves because two sides need it.

The *ledger* counts: it sits beside the batcher, holds integers only, and decides whether a
generation fits. The *store* holds tensors: it sits on every rank, writes what a step computes
and attends to what is there. What the ledger promised a generation reaches the store as
``Admission.placement``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pluribus.generation import Generation

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pluribus.step import Admission, Row


class Capability(StrEnum):
    """What a batcher may need of a KV cache; compared before any device is touched."""

    JOIN = "join"
    """Generations may start while others are running."""
    CHUNK = "chunk"
    """A prompt may be computed over several steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """How large one rank's store is.

    Attributes:
        num_layers, num_heads, head_dim: what this rank computes.
        num_slots: generations that run at once, at most.
        max_length: tokens of one generation, at most.
        num_tokens: tokens the store holds in all.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    num_slots: int
    max_length: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Where each token of a step sits, in the order the network computes them.

    A row's tokens lie side by side, in the order of their positions.

    Attributes:
        slots: the slot each token belongs to, int64, [num_tokens].
        positions: its position in that slot's text, or -1 for padding, int64, [num_tokens].
        last: index of each row's last token, int64, [num_rows], in row order.
    """

    slots: Tensor
    positions: Tensor
    last: Tensor


_NO_LIMITS: Mapping[Generation, int] = MappingProxyType({})


class KVLedger(ABC):
    """Who holds how much of the cache. Used by the engine's thread alone."""

    @abstractmethod
    def fits(self, num_tokens: int) -> bool:
        """Whether a generation of this many tokens could run if it were alone."""

    @abstractmethod
    def try_reserve(self, generation: Generation) -> bool:
        """Reserve ``generation.max_length`` tokens, or change nothing and return False.

        A ledger that finds leading tokens of the prompt stored already sets
        ``generation.num_scheduled`` and ``num_cached`` to their number: less than the whole
        prompt, and none where ``params.prompt_logprobs`` wants every token computed.
        """

    def try_promise(self, generation: Generation) -> bool:
        """Reserve as ``try_reserve`` does, but perhaps room that others hold for now.

        Room for the prompt and one token more is there at once. What comes later may be promised
        where others will have given it back in time, if everybody who runs gets a token in each
        step; until they have, ``limits`` says how far the generation may go. Whoever waits so
        waits for somebody who can go on, so that all come to their end, however unevenly they
        get tokens. This may lower the limits of others who were promised room, but whoever could
        have a token before can have one afterwards.

        Whoever calls this heeds ``limits``; ``try_reserve`` promises nothing that is not there.
        """
        return self.try_reserve(generation)

    @property
    def limits(self) -> Mapping[Generation, int]:
        """How many leading tokens of a text may be scheduled for now.

        Of those generations alone that wait for promised room: all others have their whole
        length. Cheap, for it is read at every step; valid until the ledger is used again.
        """
        return _NO_LIMITS

    @abstractmethod
    def placement(self, generation: Generation) -> tuple[int, ...]:
        """Return what the store must know of a reservation."""

    def advance(self, generation: Generation) -> None:  # noqa: B027 - most have nothing to do
        """Note that more of the prompt, up to ``num_scheduled``, is computed by a planned step."""

    @abstractmethod
    def release(self, generation: Generation) -> None:
        """Give back what ``try_reserve`` or ``try_promise`` took."""

    @property
    @abstractmethod
    def num_used_tokens(self) -> int:
        """Tokens of room that generations hold, whether filled yet or not."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Raise AssertionError unless every token is either free or held as recorded."""


class KVStore(ABC):
    """One rank's keys and values. A step is ``begin`` once, then ``attend`` for each layer."""

    @abstractmethod
    def admit(self, admission: Admission) -> None:
        """Take a generation into a slot, before its first row."""

    @abstractmethod
    def evict(self, slot: int) -> None:
        """Forget the generation in ``slot``."""

    @abstractmethod
    def begin(self, rows: Sequence[Row]) -> TokenLayout:
        """Start a step and decide where its tokens sit."""

    @abstractmethod
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the step's keys and values, then attend causally to each row's own text.

        Args:
            layer: index of the layer on this rank.
            query: [num_tokens, num_heads, head_dim], in the layout's order; not scaled yet:
                that is done here, by ``1 / sqrt(head_dim)``.
            key, value: shaped as ``query``.

        Returns:
            [num_tokens, num_heads, head_dim]; whatever at padding.
        """


class KVCache(ABC):
    """Makes both halves. Constructing it must not import torch."""

    Config: ClassVar[type[Any]]
    """Dataclass of the settings in the ``cache.kv`` section, less ``name``."""
    provides: ClassVar[frozenset[Capability]] = frozenset()

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @property
    @abstractmethod
    def memory(self) -> str:
        """The ``cache.kv.memory`` setting: ``auto``, or a size such as ``4GiB``, per rank."""

    def capacity(self, shape: KVShape) -> int:
        """Return how many tokens the store of this shape allocates room for."""
        return shape.num_tokens

    @property
    def prefix_block_size(self) -> int:
        """Tokens of the blocks in which known beginnings of prompts are reused; 0: none are."""
        return 0

    @abstractmethod
    def ledger(self, shape: KVShape) -> KVLedger:
        """Return the counting half."""

    @abstractmethod
    def store(self, shape: KVShape, device: torch.device, dtype: torch.dtype) -> KVStore:
        """Return one rank's tensors, allocated."""
