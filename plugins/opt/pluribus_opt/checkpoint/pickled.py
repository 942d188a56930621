"""Files written by ``torch.save``, read without executing anything.

A pickle is a program that may name any function and call it. Here the few names that describe
tensors are answered by our own methods; every other becomes an inert placeholder, and nothing
is imported on the file's behalf.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint.mapped import MappedFile
from pluribus_opt.checkpoint.opened import Opened

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_OF_BYTES = (  # no storage is named after these: a tensor of one names it, over a storage of bytes
    torch.complex32,
    torch.float4_e2m1fn_x2,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


class Inert:
    """Stands for whatever a pickle names that is no tensor: accepts everything, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        return self

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def add(self, item: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers that tensors are views of, by the name that the file gives them."""

    key: str
    dtype: torch.dtype
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor as a pickle describes it: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def over(self, memory: torch.UntypedStorage) -> Tensor:
        """Return the tensor, ``memory`` being its storage."""
        empty = torch.empty(0, dtype=self.storage.dtype)
        return empty.set_(memory, self.offset, self.shape, self.stride)


class InertUnpickler(pickle.Unpickler):
    """Reads descriptions of tensors, and notes the storages they are views of."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}
        # Bound methods, because a pickle may set attributes on a plain function.
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): self._size,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of,
            ("torch.storage", "UntypedStorage"): torch.uint8,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            **{("torch", name): dtype for name, dtype in _STORAGES.items()},
            **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _OF_BYTES},
        }

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get((module, name))
        return type(name, (Inert,), {"__module__": module}) if known is None else known

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, num_elements, *view = pid
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"it refers to a {kind} outside the pickle")
        storage = Storage(key, dtype, num_elements * dtype.itemsize)
        return self.storages.setdefault(key, storage)

    def _tensor(
        self,
        storage: Storage,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        *_: object,
    ) -> PickledTensor:
        return PickledTensor(storage, offset, shape, stride)

    def _tensor_of(
        self,
        storage: Storage,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: bool,
        hooks: object,
        dtype: torch.dtype,
        *_: object,
    ) -> PickledTensor:
        return PickledTensor(replace(storage, dtype=dtype), offset, shape, stride)

    def _size(self, sizes: tuple[int, ...] = ()) -> tuple[int, ...]:
        return tuple(sizes)

    def _parameter(self, data: PickledTensor, *_: object) -> PickledTensor:
        return data


def read_archive(file: Path) -> Opened:
    """Return what a file holds that ``torch.save`` wrote, tensors mapped."""
    try:
        with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
            return _read_archive(archive, stream, MappedFile(file))
    except Exception as error:  # a damaged pickle raises almost anything
        raise unreadable(file, error) from error


def read_legacy(file: Path) -> Opened:
    """Return what a file holds that ``torch.save`` wrote before torch 1.6, tensors mapped."""
    try:
        with file.open("rb") as stream:
            return _read_legacy(stream, MappedFile(file))
    except Exception as error:  # a damaged pickle raises almost anything
        raise unreadable(file, error) from error


def _read_archive(archive: zipfile.ZipFile, stream: IO[bytes], memory: MappedFile) -> Opened:
    """Read a zip of one pickle, ``NAME/data.pkl``, and the storages, ``NAME/data/KEY``."""
    root = next((n.removesuffix("data.pkl") for n in archive.namelist() if _is_data(n)), None)
    if root is None:
        return Opened({}, is_pickle=True)
    start, size = extent(archive.getinfo(f"{root}data.pkl"), stream)
    stream.seek(start)
    described = _described(InertUnpickler(BytesIO(stream.read(size))).load())
    keys = _keys(described.entries)
    starts = {key: extent(archive.getinfo(f"{root}data/{key}"), stream)[0] for key in keys}
    return _map(described, memory, starts)


def _is_data(member: str) -> bool:
    return member.endswith("/data.pkl") and member.count("/") == 1


def extent(info: zipfile.ZipInfo, stream: IO[bytes]) -> tuple[int, int]:
    """Return where a member's bytes start in the file, and how many they are."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    stream.seek(info.header_offset)
    header = stream.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:])
    return info.header_offset + len(header) + name_length + extra_length, info.file_size


def _read_legacy(stream: IO[bytes], memory: MappedFile) -> Opened:
    """Read pickles one after another, then the storages, each after its number of elements."""
    for _ in ("magic number", "protocol", "system"):
        InertUnpickler(stream).load()
    unpickler = InertUnpickler(stream)
    described = _described(unpickler.load())
    keys: list[str] = InertUnpickler(stream).load()
    starts: dict[str, int] = {}
    start = stream.tell()
    for key in keys:
        starts[key] = start + 8
        start += 8 + unpickler.storages[key].num_bytes
    return _map(described, memory, starts)


def _described(content: object) -> Opened:
    """Return the named tensors: all that there is, or what a trainer put under ``model``."""
    if not isinstance(content, dict):
        return Opened({}, is_pickle=True)
    model, metadata = content.get("model"), content.get("shard_metadata")
    if isinstance(model, dict):
        return Opened(model, is_pickle=True, is_wrapped=True, shard_metadata=metadata)
    return Opened(content, is_pickle=True)


def _keys(entries: Mapping[str, object]) -> set[str]:
    return {e.storage.key for e in entries.values() if isinstance(e, PickledTensor)}


def _map(described: Opened, memory: MappedFile, starts: Mapping[str, int]) -> Opened:
    mapped = dict(described.entries)
    for name, entry in described.entries.items():
        if isinstance(entry, PickledTensor):
            storage = entry.storage
            mapped[name] = entry.over(memory.part(starts[storage.key], storage.num_bytes))
    return replace(described, entries=mapped)


def unreadable(file: Path, error: Exception) -> CheckpointError:
    """Return what to raise for a file that is not what it seemed to be."""
    return CheckpointError(f"{file} is damaged or not what torch.save writes: {error}")
