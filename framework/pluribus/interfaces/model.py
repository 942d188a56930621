"""What a model plugin provides: a description, a tokenizer, and one rank's part of the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pluribus.interfaces.kv_cache import KVStore
    from pluribus.interfaces.parallelism import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What the rest of the system must know of a model; no tensors, cheap to make.

    Attributes:
        name: what ``/v1/models`` and logs call it.
        num_layers, hidden_size, num_heads, head_dim: of the decoder.
        vocab_size: rows of the output head.
        num_token_ids: ids below this have text; those from here to ``vocab_size`` pad the
            head and are never sampled.
        max_length: positions, so tokens of prompt and answer together, at most.
        eos_token_ids: ids that end a generation.
        pad_token_id: fills the rows of a left-padded batch.
        dtype: the checkpoint's, e.g. ``"float16"``.
        num_parameters: of the whole network.
        notes: said with every answer, e.g. that the weights are random.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int
    vocab_size: int
    num_token_ids: int
    max_length: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    dtype: str
    num_parameters: int
    notes: tuple[str, ...] = ()


class Tokenizer(Protocol):
    """Text to token ids and back. Called from several threads at once."""

    @property
    def num_token_ids(self) -> int:
        """One more than the highest id that has text."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with what the model wants in front.

        Special tokens spelt out in ``text`` are ordinary text: a prompt cannot end itself.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""


class Network(Protocol):
    """One rank's part of the decoder, weights loaded."""

    def __call__(self, tokens: Tensor, positions: Tensor, kv: KVStore, last: Tensor) -> Tensor:
        """Run one step.

        Args:
            tokens: ids, int64, shape [num_tokens]: the tokens of all rows, one after another.
            positions: of each token in its own text, counted from 0, int64, [num_tokens].
            kv: writes the step's keys and values and attends to what is stored.
            last: where to compute logits: indices into ``tokens``, int64, [num_rows].

        Returns:
            Logits, [num_rows, vocab_size], whole on every rank.
        """


Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) as weights are read."""


class Model(ABC):
    """A model that can be served.

    The class and its constructor must not import torch: ``--help``, ``plan`` and a wrong
    setting have to answer at once. Heavy imports belong in ``load``.
    """

    Config: ClassVar[type[Any]]
    """Dataclass of the settings in the ``model`` section, less ``name``."""

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Find the checkpoint and read what describes it, not the weights.

        Raises:
            ConfigError: settings that contradict each other or the checkpoint.
            CheckpointError: no checkpoint there, or none of this model.
        """

    @property
    @abstractmethod
    def spec(self) -> ModelSpec:
        """What the rest of the system must know."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Differs whenever the weights, architecture or tokenizer may differ."""

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Return the checkpoint's tokenizer."""

    @abstractmethod
    def load(
        self, place: Place, device: torch.device, dtype: torch.dtype, progress: Progress
    ) -> Network:
        """Build this rank's part of the network and fill it from the checkpoint.

        Host memory stays below the rank's own weights plus one tensor.

        Raises:
            CheckpointError: a tensor or file is missing, unexpected, misshapen or damaged;
                names the file and the tensor.
        """
