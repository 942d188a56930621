"""Files of weights, told apart by content, each opened as tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.listing import NAMINGS, PICKLED, SAFETENSORS, Naming, read_index
from pluribus_opt.checkpoint.names import is_opt
from pluribus_opt.checkpoint.opened import Opened
from pluribus_opt.checkpoint.pickled import read_archive, read_legacy


class Content(Enum):
    """What the first bytes of a file say that it is."""

    SAFETENSORS = auto()
    ARCHIVE = auto()
    LEGACY = auto()
    EMPTY = auto()
    LFS_POINTER = auto()
    OTHER = auto()


_READABLE = {
    SAFETENSORS: {Content.SAFETENSORS},
    PICKLED: {Content.ARCHIVE, Content.LEGACY},
}
_PROMISED = {  # what its name promises to be weights, though it turns out not to be
    SAFETENSORS: {Content.EMPTY, Content.LFS_POINTER, Content.OTHER},
    PICKLED: {Content.EMPTY, Content.LFS_POINTER},  # .bin and .pt may be anything else
}
_MAX_HEADER = 100_000_000  # safetensors' own limit; bytes of text are a far higher number
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


def content_of(file: Path) -> Content:
    """Tell from its first bytes what a file is."""
    with file.open("rb") as stream:
        head = stream.read(64)
    if not head:
        return Content.EMPTY
    if head.startswith(b"version https://git-lfs"):
        return Content.LFS_POINTER
    if head.startswith(b"PK\x03\x04"):
        return Content.ARCHIVE
    if head.startswith(b"\x80") and _LEGACY_MAGIC in head:
        return Content.LEGACY
    header_length = int.from_bytes(head[:8], "little")
    is_safetensors = header_length <= _MAX_HEADER and head[8:9] == b"{"
    return Content.SAFETENSORS if is_safetensors else Content.OTHER


def open_file(file: Path) -> Opened:
    """Open one file of weights; CheckpointError says what it is when it is none."""
    match content_of(file):
        case Content.SAFETENSORS:
            return _read_safetensors(file)
        case Content.ARCHIVE:
            return read_archive(file)
        case Content.LEGACY:
            return read_legacy(file)
        case Content.EMPTY:
            raise CheckpointError(f"{file} is empty (0 bytes): download it again")
        case Content.LFS_POINTER:
            raise CheckpointError(
                f"{file} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder"
            )
        case Content.OTHER:
            raise CheckpointError(
                f"{file} is neither safetensors nor a file that torch.save wrote, or is damaged"
            )


def open_weights(path: Path) -> Mapping[Path, Opened]:
    """Open the file given, or those of a folder that hold the weights."""
    if path.is_file():
        opened = {path: open_file(path)}
    else:
        searches: tuple[Callable[[Path, Naming], Mapping[Path, Opened]], ...]
        searches = (_open_named, _open_found)
        attempts = (search(path, naming) for naming in NAMINGS for search in searches)
        opened = dict(next((found for found in attempts if found), {}))
    if not any(map(_holds_opt, opened.values())):
        raise CheckpointError(
            f"{path} holds no OPT weights: model.checkpoint may be a folder or file of "
            "safetensors, pytorch_model.bin, or metaseq's restored.pt, parts or shards, with "
            "tensors named model.decoder.… or decoder.…"
        )
    return opened


def _open_named(folder: Path, naming: Naming) -> Mapping[Path, Opened]:
    whole, index = folder / naming.whole, folder / naming.index
    if whole.is_file():
        return {whole: open_file(whole)}
    return _open_indexed(index) if index.is_file() else {}


def _open_indexed(index: Path) -> Mapping[Path, Opened]:
    listed = read_index(index)
    absent = sorted(name for name in {*listed.values()} if not (index.parent / name).is_file())
    if absent:
        raise CheckpointError(f"{index} names {absent[0]}, which is not in its folder")
    opened = {name: open_file(index.parent / name) for name in sorted({*listed.values()})}
    for tensor, name in listed.items():
        if tensor not in opened[name].entries:
            raise CheckpointError(
                f"{index} puts {tensor} in {name}, but {index.parent / name} does not hold it"
            )
    return {index.parent / name: content for name, content in opened.items()}


def _open_found(folder: Path, naming: Naming) -> Mapping[Path, Opened]:
    """Open what holds OPT tensors among all the files there: other files may lie beside."""
    opened = {file: open_file(file) for file in _candidates(folder, naming)}
    return {file: content for file, content in opened.items() if _holds_opt(content)}


def _holds_opt(content: Opened) -> bool:
    return any(is_opt(str(name)) for name in content.entries)


def _candidates(folder: Path, naming: Naming) -> Iterator[Path]:
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        content = content_of(file)
        promised = file.suffix in naming.suffixes and content in _PROMISED[naming]
        if content in _READABLE[naming] or promised:
            yield file


def _read_safetensors(file: Path) -> Opened:
    try:
        with safe_open(file, "pt") as opened:
            return Opened({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or damaged: {error}") from error
