"""What a model plugin provides: a description, a tokenizer, and one rank's part of the network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pluribus.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from pluribus.interfaces.kv_cache import KVStore
    from pluribus.interfaces.parallelism import Place, Share


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
        num_layer_parameters: of one layer of the decoder.
        num_head_parameters: of the product with the vocabulary that gives the logits.
        notes: said with every answer, e.g. that the weights are random.
        weights: what matrices of layers are kept in, e.g. ``"int8"``; None for the dtype that is
            computed in.
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
    num_layer_parameters: int
    num_head_parameters: int
    notes: tuple[str, ...] = ()
    weights: str | None = None


class Blueprint(Protocol):
    """What a network takes, in plain numbers: no tensors, no checkpoint, no tokenizer.

    A dtype is its name: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    """

    @property
    def spec(self) -> ModelSpec:
        """What the rest of the system must know; without a tokenizer every id has text."""

    def weight_bytes(self, share: Share, dtype: str, device_type: str) -> int:
        """Return the bytes of a rank's weights on a device of the type ``cpu`` or ``cuda``."""

    def stored_bytes(self, share: Share) -> int:
        """Return how much of the checkpoint a rank reads; 0 where there is none to read."""

    def activation_bytes(self, share: Share, num_tokens: int, dtype: str) -> int:
        """Return the most that is alive at once in a step of so many tokens.

        Keys, values, attention's own work space and logits are not the network's to count.
        """


class TextStream(Protocol):
    """The text of tokens that come one after another, never cut inside a character."""

    def append(self, tokens: Sequence[int]) -> str:
        """Return the whole characters that ``tokens`` complete."""

    def finish(self) -> str:
        """Return what is left: a character that was never completed, as U+FFFD."""


class Tokenizer(Protocol):
    """Text to token ids and back. Called from several threads at once."""

    @property
    def num_token_ids(self) -> int:
        """One more than the highest id that has text."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, with what the model wants in front.

        Special tokens spelt out in ``text`` are ordinary text: a prompt cannot end itself.
        """

    def min_num_tokens(self, text: str) -> int:
        """Return a number of tokens that ``encode(text)`` surely has, much faster than it.

        It tells texts that are hopelessly long; 0 is always true.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """Return a stream for the text of the tokens that follow ``prompt``."""

    def token_bytes(self, id_: int) -> bytes:
        """Return what one token adds to the text, special tokens as they are spelt."""


class Network(Protocol):
    """One rank's part of the decoder, weights loaded.

    A step calls ``embed`` once, on the first stage of a pipeline; then the network itself, on
    every stage; then ``logits``, on the last stage, any number of times: logits are many more
    numbers than what they are made of, so whoever needs them at many tokens takes them in pieces.
    """

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return what the first layer takes.

        Args:
            tokens: ids, int64, shape [num_tokens]: the tokens of all rows, one after another.
            positions: of each token in its own text, counted from 0, int64, [num_tokens].

        Returns:
            [num_tokens, hidden_size].
        """

    def __call__(self, x: Tensor, kv: KVStore, wanted: Tensor | None = None) -> Tensor:
        """Run this rank's layers.

        Args:
            x: what ``embed`` or the stage before has returned, [num_tokens, hidden_size].
            kv: writes the step's keys and values and attends to what is stored; it counts
                this rank's layers from 0.
            wanted: tokens whose results are wanted, int64, [num_wanted]; None for all. Of the
                others, of a prompt most, the last layer has to compute no more than keys and
                values.

        Returns:
            What the next stage or ``logits`` takes, of the wanted tokens in their order,
            [num_wanted, hidden_size].
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of some rows of what the last layer has returned.

        With several ranks, all of the last stage ask for the same rows.

        Returns:
            [num_rows, vocab_size], whole on every rank.
        """


Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) as weights are read."""


class CheckpointReport(Protocol):
    """What ``pluribus verify`` found in a checkpoint."""

    @property
    def problems(self) -> Sequence[str]:
        """What is wrong, for people; empty where all is well."""

    def as_text(self) -> str:
        """Return the rest of the report, for people."""

    def as_json(self) -> dict[str, Any]:
        """Return all of the report, ``problems`` among it, for programs."""


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
    def blueprint(self) -> Blueprint:
        """What the network takes."""

    @classmethod
    def describe(cls, config: Any) -> Blueprint:
        """Say what the network takes, though checkpoint and tokenizer may be missing.

        The network is asked for nothing that the settings say themselves.

        Args:
            config: an instance of ``Config``.

        Raises:
            ConfigError: nothing says what the architecture is, or this model does not plan.
            CheckpointError: the checkpoint would have to say it, and is not there.
        """
        raise ConfigError(f"{cls.__name__} cannot be planned: choose another model")

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

    @classmethod
    def convert(
        cls, config: Any, *, to: Path, dtype: str | None, max_shard_size: int, progress: Progress
    ) -> None:
        """Write the checkpoint as sharded safetensors; a model need not be able to.

        One that was cut short goes on where it was; nothing else is ever overwritten.

        Args:
            config: an instance of ``Config``.
            to: a new folder, or one that an earlier call did not finish.
            dtype: of what is written; None for what each tensor has.
            max_shard_size: bytes of a file, as far as tensors allow.
            progress: called as files are written.

        Raises:
            ConfigError: ``to`` holds something else, or this model does not convert.
            CheckpointError: the checkpoint is damaged, or ``to`` cannot be written.
        """
        raise ConfigError(f"{cls.__name__} cannot convert checkpoints: choose another model")

    @classmethod
    def verify(cls, config: Any, progress: Progress) -> CheckpointReport:
        """Read a checkpoint through and report on it; a model need not be able to.

        Raises:
            ConfigError: there is no checkpoint to read, or this model does not verify.
        """
        raise ConfigError(f"{cls.__name__} cannot verify checkpoints: choose another model")
