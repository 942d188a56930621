"""What ``torch.save``'s archives know of their own records: a CRC-32 of each."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.files import Content, content_of
from pluribus_opt.checkpoint.numbering import in_short
from pluribus_opt.checkpoint.pickled import extent, unreadable
from pluribus_opt.checkpoint.writing import FileRecord, record_of


@dataclass(slots=True)
class _Record:
    """A record of an archive.

    Attributes:
        start: where in the file its bytes begin.
        expected: its checksum, as the archive has it.
        found: the checksum of what was read of it so far.
    """

    name: str
    start: int
    end: int
    expected: int
    found: int = 0

    def update(self, block: memoryview, position: int) -> None:
        """Take what is the record's of a block that begins at ``position`` of the file."""
        piece = block[max(0, self.start - position) : max(0, self.end - position)]
        self.found = zlib.crc32(piece, self.found)


def read_through(file: Path) -> tuple[FileRecord, list[str]]:
    """Read a file once; return what to know it by, and what it tells of its own damage."""
    try:
        records = list(_records(file)) if content_of(file) is Content.ARCHIVE else []
    except CheckpointError as error:
        return record_of(file), [str(error)]

    def compare(block: memoryview, position: int) -> None:
        for record in records:
            record.update(block, position)

    known = record_of(file, compare)
    if damaged := [record.name for record in records if record.found != record.expected]:
        return known, [
            f"{file}: damaged in {in_short(damaged)}: what is there does not have the CRC-32 that "
            "the file noted when it was written"
        ]
    return known, []


def _records(file: Path) -> Iterator[_Record]:
    """Find the records with a checksum; torch writes 0 where it was told to compute none."""
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
            for info in archive.infolist():
                if info.CRC and info.compress_type == zipfile.ZIP_STORED:
                    start, size = extent(info, stream)
                    yield _Record(info.filename, start, start + size, info.CRC)
    except Exception as error:  # a damaged archive raises almost anything
        raise unreadable(file, error) from error
