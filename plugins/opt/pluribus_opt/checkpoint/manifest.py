"""What a conversion leaves in its folder: of what it is, how far it came, every file's checksum."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pluribus.errors import CheckpointError, ConfigError
from pluribus_opt.checkpoint.listing import read_json
from pluribus_opt.checkpoint.writing import FileRecord, partial_of, record_of, replacing

NAME = "pluribus-convert.json"


@dataclass(slots=True)
class Manifest:
    """The files of a conversion, as far as it came.

    Attributes:
        made_of: what decides the content: the source's fingerprint and the settings.
        files: those that are finished, by name.
        is_finished: nothing is left to write.
    """

    folder: Path
    made_of: Mapping[str, Any]
    files: dict[str, FileRecord] = field(default_factory=dict)
    is_finished: bool = False

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return a folder's manifest, or None where there is none.

        Raises:
            CheckpointError: there is one that makes no sense.
        """
        if not (folder / NAME).is_file():
            return None
        content = read_json(folder / NAME)
        try:
            files = {name: FileRecord(**record) for name, record in content["files"].items()}
            return cls(folder, content["made_of"], files, content["finished"])
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / NAME} makes no sense: {error!r}") from error

    def save(self) -> None:
        """Write the manifest to its folder."""
        content = {
            "made_of": self.made_of,
            "finished": self.is_finished,
            "files": {name: asdict(record) for name, record in self.files.items()},
        }
        with replacing(self.folder / NAME) as out:
            out.write(json.dumps(content, indent=2).encode() + b"\n")

    def finish(self) -> None:
        """Note that nothing is left to write."""
        self.is_finished = True
        self.save()

    def add(self, name: str, record: FileRecord) -> None:
        """Note that a file is finished."""
        self.files[name] = record
        self.save()

    def holds(self, name: str) -> bool:
        """Whether a file was finished, and is on disk as it was then."""
        return name in self.files and self.problem(name) is None

    def problem(self, name: str) -> str | None:
        """Read a finished file through; return what is wrong with it."""
        file, expected = self.folder / name, self.files[name]
        if not file.is_file():
            return f"{file} is missing"
        found = record_of(file)
        if found.size != expected.size:
            return f"{file} has {found.size} bytes, not {expected.size} as when it was written"
        if found.sha256 != expected.sha256:
            return f"{file} is not as it was written: its checksum differs from {NAME}'s"
        return None


def find(folder: Path, made_of: Mapping[str, Any]) -> Manifest | None:
    """Return the manifest of an unfinished conversion, or None for a folder that is new.

    Raises:
        ConfigError: there is anything else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ConfigError(f"to={folder} is a file: choose a new folder")
    manifest = Manifest.read(folder)
    if manifest is None:
        begun = partial_of(folder / NAME)  # all that a conversion killed at once leaves
        if present := next((file for file in folder.iterdir() if file != begun), None):
            raise ConfigError(
                f"to={folder} is not empty (there is {present.name}), and no conversion was begun "
                "there: choose a new folder"
            )
        return None
    if manifest.is_finished:
        raise ConfigError(f"to={folder} holds a finished conversion: choose a new folder")
    if changed := [key for key, value in made_of.items() if manifest.made_of.get(key) != value]:
        raise ConfigError(
            f"to={folder} holds an unfinished conversion of another {' and '.join(changed)}: "
            "remove it, or choose a new folder"
        )
    return manifest


@contextmanager
def claimed(folder: Path, made_of: Mapping[str, Any]) -> Iterator[Manifest]:
    """Make a folder ours, or go on in it; nobody else can meanwhile.

    Raises:
        ConfigError: the folder holds anything else, or somebody is writing there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        manifest = find(folder, made_of)
        if manifest is None:
            manifest = Manifest(folder, made_of)
            manifest.save()
        yield manifest
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"to={folder}: another conversion is writing there") from error
