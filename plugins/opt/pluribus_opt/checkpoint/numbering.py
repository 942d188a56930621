"""Files that their names number: model-parallel parts, and FSDP's shards of a part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from pluribus.errors import CheckpointError

PART = re.compile(r"model_part-(\d+)")
SHARD = re.compile(r"(?<!re)shard(\d+)")

_MAX_NAMED = 8


def number_of(file: Path, pattern: re.Pattern[str]) -> int | None:
    """Return which part or shard a file is, if its name says."""
    found = pattern.search(file.name)
    return int(found[1]) if found else None


def in_order(files: Iterable[Path], pattern: re.Pattern[str]) -> list[Path]:
    """Return files by their numbers, not by their names: 10 comes after 9.

    Raises:
        CheckpointError: a number is there twice.
    """
    numbered: dict[int, Path] = {}
    for file in files:
        number = number_of(file, pattern) or 0
        if number in numbered:
            raise CheckpointError(
                f"{numbered[number]} and {file} are the same one by their names: remove either"
            )
        numbered[number] = file
    return [numbered[number] for number in sorted(numbered)]


def missing(files: Sequence[Path], pattern: re.Pattern[str], count: int) -> str:
    """Return, for people, which of ``count`` parts or shards are not there; empty if none."""
    found = pattern.search(files[0].name)
    if found is None:
        return f"{count - len(files)} more like {files[0].name}" if count > len(files) else ""
    present = {n for file in files if (n := number_of(file, pattern)) is not None and n < count}
    before, after = files[0].name[: found.start(1)], files[0].name[found.end(1) :]
    absent = (f"{before}{number}{after}" for number in range(count) if number not in present)
    return in_short(list(islice(absent, _MAX_NAMED)), count - len(present))


def in_short(names: Sequence[str], total: int | None = None) -> str:
    """Return names as a list for people, cut where it gets long."""
    shown = names[:_MAX_NAMED]
    num_more = (len(names) if total is None else total) - len(shown)
    return ", ".join([*shown, *([f"and {num_more} more"] if num_more else [])])
