"""OPT as a plugin: which checkpoint, which architecture, which tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluribus import ConfigError, Model, ModelSpec
from pluribus.tokenizer import FileTokenizer
from pluribus_opt import checkpoint
from pluribus_opt.blueprint import OPTBlueprint
from pluribus_opt.config import SIZES, WEIGHTS, OPTConfig
from pluribus_opt.random_weights import RandomSource

if TYPE_CHECKING:
    import torch

    from pluribus import Blueprint, Network, Place, Progress
    from pluribus.interfaces import CheckpointReport
    from pluribus_opt.checkpoint import Source

logger = logging.getLogger(__name__)

RANDOM = "random"
DEFAULT_TOKENIZER = "facebook/opt-125m"

_FIXED_BY_SIZE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "ffn_dim",
    "num_attention_heads",
    "max_position_embeddings",
    "word_embed_proj_dim",
    "do_layer_norm_before",
)


@dataclass(frozen=True, kw_only=True)
class OPTModelConfig:
    """The ``model`` section.

    Attributes:
        checkpoint: a folder, a file, a Hugging Face repo id, a bundled model's name, or
            ``random``.
        size: the architecture of a checkpoint that does not say, such as ``opt-30b``.
        config: path of a config.json that does so instead.
        tokenizer: a folder or repo id, instead of the checkpoint's own.
        revision: branch, tag or commit of a repo.
        weights: ``int8`` or ``fp8`` for the layers' weights in eight bits; None for ``dtype``'s.
    """

    checkpoint: str | None = None
    size: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size not in SIZES:
            raise ConfigError(
                f"model.size must be null or one of {', '.join(SIZES)}; got {self.size!r}"
            )
        if self.weights not in (None, *WEIGHTS):
            raise ConfigError(
                f"model.weights must be null or one of {', '.join(WEIGHTS)}; got {self.weights!r}"
            )


class OPTModel(Model):
    """Meta's OPT, of any size, and whatever shares its architecture."""

    Config = OPTModelConfig

    def __init__(self, config: OPTModelConfig) -> None:
        self._weights = config.weights
        self._source = _find(config)
        self._architecture = _architecture(config, self._source)
        self._tokenizer = _tokenizer(config, self._source, self._architecture)
        self._blueprint = _blueprint(config, self._architecture, self._tokenizer.num_token_ids)

    @property
    def spec(self) -> ModelSpec:
        return self._blueprint.spec

    @property
    def blueprint(self) -> Blueprint:
        return self._blueprint

    @classmethod
    def describe(cls, config: OPTModelConfig) -> Blueprint:
        architecture = _architecture(config, _find_at_hand(config))
        return _blueprint(config, architecture, architecture.vocab_size)

    @property
    def fingerprint(self) -> str:
        parts = (
            repr(self._architecture),
            self._source.fingerprint,
            self._tokenizer.digest,
            repr(self._weights),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def tokenizer(self) -> FileTokenizer:
        return self._tokenizer

    def load(
        self, place: Place, device: torch.device, dtype: torch.dtype, progress: Progress
    ) -> Network:
        from pluribus_opt.decoder import OPTDecoder
        from pluribus_opt.quantizing import Quantizer

        quantizer = Quantizer(self._weights, dtype) if self._weights else None
        decoder = OPTDecoder.empty(self._architecture, place, device, dtype, quantizer)
        self._source.open(self._architecture).read_into(list(decoder.parts()), progress)
        decoder.pack()
        if quantizer is not None:
            logger.info("rank %d: %s", place.share.rank, quantizer.report())
        return decoder

    @classmethod
    def convert(
        cls,
        config: OPTModelConfig,
        *,
        to: Path,
        dtype: str | None,
        max_shard_size: int,
        progress: Progress,
    ) -> None:
        if config.weights is not None:
            raise ConfigError(
                f"model.weights={config.weights} is how a model is served, not how it is written: "
                "leave it at null"
            )
        source = _find_files(config)
        architecture = _architecture(config, source)
        tokenizer = checkpoint.fetch_tokenizer(config.tokenizer) if config.tokenizer else None

        from pluribus_opt.convert import Conversion, convert

        conversion = Conversion(
            source=source,
            architecture=architecture,
            tokenizer_folder=tokenizer,
            to=to,
            dtype=dtype,
            max_shard_size=max_shard_size,
        )
        convert(conversion, progress)

    @classmethod
    def verify(cls, config: OPTModelConfig, progress: Progress) -> CheckpointReport:
        source = _find_files(config)
        is_known = config.size is not None or config.config is not None or source.config is not None
        architecture = _architecture(config, source) if is_known else None

        from pluribus_opt.verify import verify

        return verify(source, architecture, progress)


def _find(config: OPTModelConfig) -> Source | RandomSource:
    if config.checkpoint is None:
        raise ConfigError(
            "model.checkpoint is not set: give a folder, a file or a Hugging Face repo id, "
            f"or model.checkpoint={RANDOM} to try speed and memory on random weights"
        )
    if config.checkpoint == RANDOM:
        return RandomSource()
    return checkpoint.resolve(config.checkpoint, config.revision)


def _find_at_hand(config: OPTModelConfig) -> Source | RandomSource:
    """As ``_find``, but where settings say what the architecture is, nothing has to be there."""
    is_named = config.size is not None or config.config is not None
    if is_named and (config.checkpoint is None or not checkpoint.is_local(config.checkpoint)):
        return RandomSource()
    return _find(config)


def _blueprint(config: OPTModelConfig, architecture: OPTConfig, num_token_ids: int) -> OPTBlueprint:
    return OPTBlueprint(
        name=config.size or Path(str(config.checkpoint or config.config)).resolve().name,
        architecture=architecture,
        num_token_ids=num_token_ids,
        weights=config.weights,
        is_random=config.checkpoint == RANDOM,
    )


def _find_files(config: OPTModelConfig) -> Source:
    source = _find(config)
    if isinstance(source, RandomSource):
        raise ConfigError(f"model.checkpoint={RANDOM} is no files: there is nothing to read")
    return source


def _architecture(config: OPTModelConfig, source: Source | RandomSource) -> OPTConfig:
    described = _described(config, source)
    if config.size is None:
        if described is None:
            raise ConfigError(
                f"{source.where}: nothing here says what the architecture is; set model.size to "
                f"one of {', '.join(SIZES)}, or model.config to the path of a config.json"
            )
        return described
    if described is None:
        return SIZES[config.size]
    _check_size(config.size, described, config.config or str(source.config_where))
    return described


def _described(config: OPTModelConfig, source: Source | RandomSource) -> OPTConfig | None:
    if config.config is None:
        if source.config is None:
            return None
        return OPTConfig.from_json(source.config, str(source.config_where))
    if source.config is not None:
        raise ConfigError(
            f"model.config={config.config} is for checkpoints that have no config.json, "
            f"but there is {source.config_where}; set model.config=null"
        )
    return OPTConfig.from_json(_read_json(config.config), config.config)


def _read_json(path: str) -> dict[str, Any]:
    try:
        file = Path(path).expanduser()
        if not file.is_file():  # reading a pipe or a device may never end
            raise FileNotFoundError("there is no such file")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"model.config={path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"model.config={path}: must hold a JSON object")
    return content


def _check_size(size: str, described: OPTConfig, where: str) -> None:
    differences = [
        f"{name} is {theirs} there and {ours} in {size}"
        for name in _FIXED_BY_SIZE
        if (theirs := getattr(described, name)) != (ours := getattr(SIZES[size], name))
    ]
    if differences:
        raise ConfigError(
            f"model.size={size} contradicts {where}: {', '.join(differences)}; "
            "set model.size=null to take the architecture from there"
        )


def _tokenizer(
    config: OPTModelConfig, source: Source | RandomSource, architecture: OPTConfig
) -> FileTokenizer:
    folder = None if config.tokenizer else source.tokenizer_folder
    if folder is None:
        folder = checkpoint.fetch_tokenizer(config.tokenizer or DEFAULT_TOKENIZER, None)
    tokenizer = FileTokenizer.from_folder(folder, architecture.bos_token_id)
    if tokenizer.num_token_ids > architecture.vocab_size:
        raise ConfigError(
            f"{folder}: this tokenizer has {tokenizer.num_token_ids} ids, but the model has "
            f"vocab_size={architecture.vocab_size}; set model.tokenizer to the one that the "
            "model was trained with"
        )
    return tokenizer
