"""Where a checkpoint comes from: bundled, on disk, or on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.listing import read_json

if TYPE_CHECKING:
    from pluribus_opt.checkpoint.reader import Checkpoint
    from pluribus_opt.config import OPTConfig

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
"""Small files that say how text is read."""

DESCRIPTION = ("config.json", "generation_config.json", *TOKENIZER)
"""Small files that say what a checkpoint is and how it reads text."""

_BUNDLED = Path(__file__).parents[1] / "bundled"
_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint that was found, its description read, its weights not.

    Attributes:
        where: for people: the name, path or repo id.
        config: what config.json holds, or None where there is none.
        config_where: that file.
        description: the small files beside the weights, those that are there.
        tokenizer_folder: has tokenizer.json, or vocab.json and merges.txt; None where neither.
        fingerprint: differs whenever a file may differ.
    """

    where: str
    config: dict[str, Any] | None
    config_where: str | None
    description: tuple[Path, ...]
    tokenizer_folder: Path | None
    fingerprint: str
    _weights: Callable[[], Path] = field(repr=False)

    def open(self, architecture: OPTConfig | None = None) -> Checkpoint:
        """Map the weights, downloading them first if they are on the hub.

        Args:
            architecture: what the checkpoint is of, if that is known; it is then compared with
                the whole of it, and may have a layout that does not describe itself.

        Raises:
            CheckpointError: no weights there, or files that are missing or damaged.
        """
        from pluribus_opt.checkpoint.layouts import open_checkpoint

        try:
            return open_checkpoint(self._weights(), self.where, architecture)
        except OSError as error:
            raise CheckpointError(f"{self.where} cannot be read: {error}") from error


def resolve(checkpoint: str, revision: str | None = None) -> Source:
    """Find a checkpoint by bundled name, path or Hugging Face repo id.

    Raises:
        CheckpointError: nothing there, or the hub does not hand it out.
    """
    return _resolve("model.checkpoint", checkpoint, revision)


def is_local(checkpoint: str) -> bool:
    """Return whether it is bundled or on disk, so that ``resolve`` needs no network.

    Raises:
        CheckpointError: it is a path that cannot be used.
    """
    return _local_path("model.checkpoint", checkpoint) is not None


def fetch_tokenizer(name_or_folder: str, revision: str | None = None) -> Path:
    """Return a folder with the tokenizer's files, downloaded if they are on the hub.

    Raises:
        CheckpointError: nothing there, or no tokenizer in it.
    """
    source = _resolve("model.tokenizer", name_or_folder, revision)
    if source.tokenizer_folder is None:
        raise CheckpointError(
            f"model.tokenizer={name_or_folder} has no tokenizer: "
            "it needs a tokenizer.json, or a vocab.json and a merges.txt"
        )
    return source.tokenizer_folder


def _resolve(setting: str, value: str, revision: str | None) -> Source:
    local = _local_path(setting, value)
    if local is not None:
        if revision is not None:
            raise CheckpointError(
                f"model.revision={revision} is of use with a Hugging Face repo id only, "
                f"and {setting}={value} is {local}"
            )
        try:
            return _local_source(value, local)
        except OSError as error:
            raise CheckpointError(f"{setting}={value} cannot be read: {error}") from error
    if _REPO_ID.fullmatch(value):
        return _hub_source(setting, value, revision)
    raise CheckpointError(
        f"{setting}={value}: there is no such folder or file; it may be a path, a Hugging Face "
        f"repo id (ORGANISATION/NAME), or bundled with Pluribus: {', '.join(_bundled_names())}"
    )


def _bundled_names() -> list[str]:
    return sorted(folder.name for folder in _BUNDLED.iterdir() if folder.is_dir())


def _local_path(setting: str, value: str) -> Path | None:
    if value in _bundled_names():
        return _BUNDLED / value
    try:
        path = Path(value).expanduser()
        if not value or not path.exists():
            return None
        is_usable = path.is_dir() or path.is_file()
    except (OSError, RuntimeError) as error:  # too long, not ours to see, no such ~user
        raise CheckpointError(f"{setting}={value} cannot be used as a path: {error}") from error
    if not is_usable:
        raise CheckpointError(f"{setting}={value} is neither a folder nor a file with contents")
    return path


def _local_source(where: str, path: Path) -> Source:
    """Describe a folder, or one file of weights by the small files beside it."""
    folder = path if path.is_dir() else path.parent
    beside = [path, *(folder / name for name in DESCRIPTION)]
    files = folder.iterdir() if path.is_dir() else beside
    stats = ((file.name, file.stat()) for file in sorted(files) if file.is_file())
    identity = [f"{name}\t{stat.st_size}\t{stat.st_mtime_ns}" for name, stat in stats]
    return _source(where, folder, identity, lambda: path)


def _hub_source(setting: str, repo: str, revision: str | None) -> Source:
    from pluribus_opt.checkpoint.hub import Repo, find_repo

    found = find_repo(setting, repo, revision)
    if not isinstance(found, Repo):
        return _local_source(repo, found)
    folder = found.download([name for name in DESCRIPTION if name in found.files])
    return _source(found.where, folder, found.identity, found.download_weights)


def _source(
    where: str, folder: Path, identity: Iterable[str], weights: Callable[[], Path]
) -> Source:
    config = folder / "config.json"
    has_config = config.is_file()
    return Source(
        where=where,
        config=read_json(config) if has_config else None,
        config_where=str(config) if has_config else None,
        description=tuple(file for name in DESCRIPTION if (file := folder / name).is_file()),
        tokenizer_folder=folder if _has_tokenizer(folder) else None,
        fingerprint=hashlib.sha256("\n".join(identity).encode()).hexdigest(),
        _weights=weights,
    )


def _has_tokenizer(folder: Path) -> bool:
    vocabulary_and_merges = (folder / "vocab.json", folder / "merges.txt")
    return (folder / "tokenizer.json").is_file() or all(f.is_file() for f in vocabulary_and_merges)
