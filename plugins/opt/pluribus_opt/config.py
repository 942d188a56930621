"""The architecture of an OPT decoder, by size or from a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from pluribus.errors import CheckpointError, ConfigError

POSITION_OFFSET = 2
"""Rows of the position table that come before position 0."""

DTYPES = ("float32", "float16", "bfloat16")

WEIGHTS = ("int8", "fp8")
"""What the weights of layers can be kept in, beside a dtype."""

ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "relu": ("relu", {}),
        "gelu": ("gelu", {}),
        "gelu_python": ("gelu", {}),
        "gelu_new": ("gelu", {"approximate": "tanh"}),
        "gelu_fast": ("gelu", {"approximate": "tanh"}),
        "gelu_accurate": ("gelu", {"approximate": "tanh"}),
        "gelu_python_tanh": ("gelu", {"approximate": "tanh"}),
        "gelu_pytorch_tanh": ("gelu", {"approximate": "tanh"}),
        "hardswish": ("hardswish", {}),
        "leaky_relu": ("leaky_relu", {}),
        "mish": ("mish", {}),
        "relu6": ("relu6", {}),
        "sigmoid": ("sigmoid", {}),
        "silu": ("silu", {}),
        "swish": ("silu", {}),
        "tanh": ("tanh", {}),
    }
)
"""transformers' names: the function of ``torch.nn.functional`` that each is, and its settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OPTConfig:
    """The architecture of an OPT decoder.

    Attributes:
        word_embed_proj_dim: width of the embedding and of the head; where it is not
            ``hidden_size``, projections lead in and out.
        do_layer_norm_before: normalise what enters a block, rather than the sum it leaves.
        remove_final_layer_norm: as models fine-tuned with transformers before 4.20.1 need.
        eos_token_ids: ids that end a text.
        dtype: of the checkpoint's tensors.

    Raises:
        ConfigError: a value of a wrong type or out of its range; names the field.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    ffn_dim: int
    num_attention_heads: int
    max_position_embeddings: int
    word_embed_proj_dim: int
    do_layer_norm_before: bool = True
    remove_final_layer_norm: bool = False
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    activation_function: str = "relu"
    tie_word_embeddings: bool = True
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (2,)
    pad_token_id: int = 1
    dtype: str = "float16"

    def __post_init__(self) -> None:
        self._check_types()
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) does not divide over "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        _check_one_of("activation_function", self.activation_function, tuple(ACTIVATIONS))
        _check_one_of("dtype", self.dtype, DTYPES)
        self._check_id("bos_token_id", self.bos_token_id)
        self._check_id("pad_token_id", self.pad_token_id)
        for token_id in self.eos_token_ids:
            self._check_id("eos_token_id", token_id)

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any], where: str) -> OPTConfig:
        """Read what a Hugging Face config.json holds; absent keys mean what they do there.

        Args:
            mapping: the parsed file; keys that do not matter here are ignored.
            where: names the file in messages.

        Raises:
            CheckpointError: another kind of model, or a value that cannot be; names the key.
        """
        if mapping.get("model_type") != "opt":
            kind = mapping.get("model_type")
            raise CheckpointError(f"{where}: model_type must be 'opt', got {kind!r}")
        try:
            return cls(**_from_hugging_face(mapping))
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error}") from None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_projections(self) -> bool:
        """Whether the embedding and the head are of another width than the layers."""
        return self.word_embed_proj_dim != self.hidden_size

    @property
    def has_final_layer_norm(self) -> bool:
        """Whether a norm stands between the last layer and the head."""
        return self.do_layer_norm_before and not self.remove_final_layer_norm

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole network, a tied head counted once."""
        hidden, width = self.hidden_size, self.word_embed_proj_dim
        layers = self.num_hidden_layers * self.num_layer_parameters
        tokens = self.num_head_parameters * (1 if self.tie_word_embeddings else 2)
        positions = (self.max_position_embeddings + POSITION_OFFSET) * hidden
        projections = 2 * width * hidden * self.has_projections
        norm = self._num_norm_parameters * self.has_final_layer_norm
        return tokens + positions + projections + layers + norm

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of one layer."""
        hidden, ffn = self.hidden_size, self.ffn_dim
        attention = 4 * hidden * (hidden + self.enable_bias)
        feed_forward = 2 * hidden * ffn + (ffn + hidden) * self.enable_bias
        return attention + feed_forward + 2 * self._num_norm_parameters

    @property
    def num_head_parameters(self) -> int:
        """Parameters of the product with the vocabulary."""
        return self.vocab_size * self.word_embed_proj_dim

    @property
    def _num_norm_parameters(self) -> int:
        return 2 * self.hidden_size * self.layer_norm_elementwise_affine

    def _check_types(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" and type(value) is not bool:
                raise ConfigError(f"{_json_key(field.name)} must be true or false, got {value!r}")
            if field.type == "int" and type(value) is not int:
                raise ConfigError(f"{_json_key(field.name)} must be a whole number, got {value!r}")
            if field.type == "int" and not field.name.endswith("_token_id") and value < 1:
                raise ConfigError(f"{_json_key(field.name)} must be at least 1, got {value}")

    def _check_id(self, name: str, token_id: int) -> None:
        if type(token_id) is not int or not 0 <= token_id < self.vocab_size:
            raise ConfigError(
                f"{name} must be from 0 to vocab_size - 1 = {self.vocab_size - 1}, got {token_id!r}"
            )


def _check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def _json_key(name: str) -> str:
    return "_remove_final_layer_norm" if name == "remove_final_layer_norm" else name


# What transformers takes for a key that a config.json leaves out.
_ABSENT: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
    }
)


def _from_hugging_face(mapping: Mapping[str, Any]) -> dict[str, Any]:
    given = {**_ABSENT, **mapping}
    keys = {field.name: _json_key(field.name) for field in fields(OPTConfig)}
    values = {name: given[key] for name, key in keys.items() if key in given}
    for name in ("bos_token_id", "pad_token_id"):
        if values.get(name, 0) is None:
            del values[name]
    if values.get("word_embed_proj_dim") is None:
        values["word_embed_proj_dim"] = given["hidden_size"]
    if "eos_token_id" in given:
        values["eos_token_ids"] = _as_ids(given["eos_token_id"])
    dtype = given.get("dtype") or given.get("torch_dtype") or "float32"
    values["dtype"] = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    return values


def _as_ids(value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _released(num_hidden_layers: int, hidden_size: int, num_attention_heads: int) -> OPTConfig:
    return OPTConfig(
        vocab_size=50272,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        ffn_dim=4 * hidden_size,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=2048,
        word_embed_proj_dim=hidden_size,
    )


SIZES: Mapping[str, OPTConfig] = MappingProxyType(
    {
        "opt-125m": _released(12, 768, 12),
        "opt-350m": replace(
            _released(24, 1024, 16), word_embed_proj_dim=512, do_layer_norm_before=False
        ),
        "opt-1.3b": _released(24, 2048, 32),
        "opt-2.7b": _released(32, 2560, 32),
        "opt-6.7b": _released(32, 4096, 32),
        "opt-13b": _released(40, 5120, 40),
        "opt-30b": _released(48, 7168, 56),
        "opt-66b": _released(64, 9216, 72),
        "opt-175b": _released(96, 12288, 96),
    }
)
"""The sizes that Meta released."""
