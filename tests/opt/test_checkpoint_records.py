"""An archive of torch.save says of its own records whether they are as they were written."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from opt.checkpoint_files import metaseq_state, tiny_opt
from opt.metaseq_files import LAYOUTS
from pluribus_opt.checkpoint import resolve, writing
from pluribus_opt.config import OPTConfig
from pluribus_opt.verify import verify

MODEL = tiny_opt(num_attention_heads=8)
CONFIG = OPTConfig.from_json(MODEL.config.to_dict(), "transformers")
CENTRAL = b"PK\x01\x02"


def problems(path: Path) -> tuple[str, ...]:
    return verify(resolve(str(path)), CONFIG, lambda done, total: None).problems


def write_singleton(folder: Path) -> Path:
    torch.save({"model": metaseq_state(MODEL)}, file := folder / "restored.pt")
    return file


def start_of(file: Path, record: str) -> tuple[str, int]:
    """Return a record's whole name, and where in the file its bytes begin."""
    with zipfile.ZipFile(file) as archive:
        [info] = [info for info in archive.infolist() if info.filename.endswith(record)]
    content = file.read_bytes()
    lengths = struct.unpack_from("<HH", content, info.header_offset + 26)
    return info.filename, info.header_offset + 30 + sum(lengths)


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "layout", ["bins", "singleton", "parts-2", "energonai-66b", "shards-2x3", "bare-shards-2x3"]
)
@pytest.mark.parametrize("record", ["/data/0", "/version"])
def test_a_flipped_byte_is_found_in_its_record(tmp_path: Path, layout: str, record: str) -> None:
    LAYOUTS[layout](MODEL, tmp_path)
    assert problems(tmp_path) == ()
    file = sorted(f for f in tmp_path.iterdir() if zipfile.is_zipfile(f))[-1]
    name, start = start_of(file, record)
    flip(file, start)
    [problem] = problems(tmp_path)
    assert problem.startswith(f"{file}: damaged in {name}: ")
    assert "CRC-32" in problem


def test_a_record_may_be_longer_than_what_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_BLOCK", 1000)
    file = write_singleton(tmp_path)
    assert problems(file) == ()
    name, start = start_of(file, "/data/1")
    flip(file, start + 12_287)  # the last of [96, 32] numbers
    [problem] = problems(file)
    assert f"damaged in {name}: " in problem


def test_all_damaged_records_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    file = write_singleton(tmp_path)
    names = []
    for record in ("/data/1", "/data/2"):
        name, start = start_of(file, record)
        names.append(name)
        flip(file, start)
    [problem] = problems(file)
    assert f"damaged in {', '.join(names)}: " in problem


@contextmanager
def without_checksums() -> Iterator[None]:
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(True)


def test_records_without_checksums_are_not_called_damaged(tmp_path: Path) -> None:
    with without_checksums():
        file = write_singleton(tmp_path)
    with zipfile.ZipFile(file) as archive:
        assert not any(info.CRC for info in archive.infolist())
    assert problems(file) == ()


def test_a_file_of_before_archives_has_none(tmp_path: Path) -> None:
    content, file = {"model": metaseq_state(MODEL)}, tmp_path / "restored.pt"
    torch.save(content, file, _use_new_zipfile_serialization=False)
    assert problems(file) == ()


@pytest.mark.parametrize("offset", [0, 2**32 - 2], ids=["elsewhere", "beyond-the-end"])
def test_a_record_that_is_not_where_it_should_be_is_a_problem(tmp_path: Path, offset: int) -> None:
    file = write_singleton(tmp_path)
    content = bytearray(file.read_bytes())
    name, _ = start_of(file, "/version")  # which nothing reads
    entry = content.index(name.encode(), content.index(CENTRAL)) - 46
    assert content[entry : entry + 4] == CENTRAL
    struct.pack_into("<I", content, entry + 42, offset)
    file.write_bytes(content)
    [problem] = problems(file)
    assert problem.startswith(f"{file}")
    assert "damaged" in problem
