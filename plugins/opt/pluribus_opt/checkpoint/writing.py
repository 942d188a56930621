"""Files written so that they are there whole or not at all, their checksums kept along."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_BLOCK = 2**24


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What to know a file by."""

    size: int
    sha256: str


@dataclass(slots=True)
class HashedFile:
    """A file that is being written."""

    stream: IO[bytes]
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``."""
        self.stream.write(data)
        self.digest.update(data)
        self.size += len(data)

    @property
    def record(self) -> FileRecord:
        """What is known of what was written so far."""
        return FileRecord(self.size, self.digest.hexdigest())


def partial_of(file: Path) -> Path:
    """Return what ``file`` is called until it is whole; left behind only where we are killed."""
    return file.with_name(f".{file.name}.partial")


@contextmanager
def replacing(file: Path) -> Iterator[HashedFile]:
    """Open what becomes ``file`` once it is on disk whole; an exception leaves nothing."""
    partial = partial_of(file)
    try:
        with partial.open("wb") as stream:
            yield HashedFile(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def record_of(
    file: Path, seen: Callable[[memoryview, int], None] = lambda block, position: None
) -> FileRecord:
    """Read a file through and return what to know it by.

    Args:
        seen: called with each block of it, and where in the file it begins.
    """
    with file.open("rb") as stream:
        digest, size = hashlib.sha256(), 0
        while block := stream.read(_BLOCK):
            seen(memoryview(block), size)
            digest.update(block)
            size += len(block)
    return FileRecord(size, digest.hexdigest())
