"""What is done to a checkpoint rather than with a model: converting it, verifying it."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pluribus import config as conf
from pluribus.errors import ConfigError
from pluribus.interfaces import Model
from pluribus.plugins import MODEL, Plugins
from pluribus.progress import report_progress
from pluribus.units import parse_bytes

DTYPES = ("auto", "float32", "float16", "bfloat16")
FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig:
    """What to write.

    Attributes:
        to: a new folder, or one that an earlier conversion did not finish.
        dtype: of what is written; ``auto`` for what each tensor has.
        max_shard_size: of a file, such as ``5GB``; a larger tensor has a file to itself.
    """

    to: str | None = None
    dtype: str = "auto"
    max_shard_size: str = "5GB"

    def __post_init__(self) -> None:
        _check_one_of("dtype", self.dtype, DTYPES)
        parse_bytes(self.max_shard_size, "max_shard_size")
        if not self.to:
            raise ConfigError(
                "to is not set: pluribus convert model.checkpoint=SOURCE to=FOLDER, "
                "the folder being new"
            )

    @property
    def folder(self) -> Path:
        """Where to write."""
        return Path(self.to or "").expanduser()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """How to report: ``text`` for people, ``json`` for programs."""

    format: str = "text"

    def __post_init__(self) -> None:
        _check_one_of("format", self.format, FORMATS)


def convert(config: DictConfig, plugins: Plugins) -> int:
    """Write the model's checkpoint as sharded safetensors; return the exit code."""
    settings = conf.pick(config, ConvertConfig)
    model, model_config = _model(config, plugins)
    to = settings.folder
    _log_progress()
    with report_progress(str(to)) as progress:
        model.convert(
            model_config,
            to=to,
            dtype=None if settings.dtype == "auto" else settings.dtype,
            max_shard_size=parse_bytes(settings.max_shard_size, "max_shard_size"),
            progress=progress,
        )
    print(f"Converted. To serve it: pluribus serve model.checkpoint={to}")
    return 0


def verify(config: DictConfig, plugins: Plugins) -> int:
    """Print a report on the model's checkpoint; return 1 if something is wrong with it."""
    settings = conf.pick(config, VerifyConfig)
    model, model_config = _model(config, plugins)
    _log_progress()
    with report_progress(str(config.model.get("checkpoint"))) as progress:
        report = model.verify(model_config, progress)
    if settings.format == "json":
        print(json.dumps(report.as_json(), indent=2))
    else:
        print(report.as_text())
        for problem in report.problems:
            print(f"problem: {problem}", file=sys.stderr)
        print(f"{len(report.problems)} problem(s)" if report.problems else "no problems")
    return 1 if report.problems else 0


def _log_progress() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pluribus").setLevel(logging.INFO)


def _model(config: DictConfig, plugins: Plugins) -> tuple[type[Model], Any]:
    cls = plugins.find(MODEL, conf.choice(config, MODEL.section))
    return cls, conf.section(config, MODEL.section, cls.Config)


def _check_one_of(setting: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{setting} must be one of {', '.join(allowed)}; got {value!r}")
