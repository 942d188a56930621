"""Which files hold the weights, as far as names and indexes tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluribus.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Naming:
    """What a format calls its files in a Hugging Face folder.

    Attributes:
        whole: the one file of a small model.
        index: names the file of each tensor of a large one.
        suffixes: what any file of the format is likely to end in.
    """

    whole: str
    index: str
    suffixes: tuple[str, ...]


SAFETENSORS = Naming("model.safetensors", "model.safetensors.index.json", (".safetensors",))
PICKLED = Naming("pytorch_model.bin", "pytorch_model.bin.index.json", (".bin", ".pt", ".pth"))
NAMINGS = (SAFETENSORS, PICKLED)
"""The preferred format first."""


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError names the file that holds none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a JSON {type(content).__name__}, not an object")
    return content


def read_index(file: Path) -> Mapping[str, str]:
    """Return the name of each tensor's file, all of them in the index's own folder."""
    files = read_json(file).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{file} has no weight_map that names the file of each tensor")
    for tensor, name in files.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{file} puts {tensor} in {name!r}, not in a file beside it")
    return files
