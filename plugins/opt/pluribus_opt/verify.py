"""Read a checkpoint through and report what it holds and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from pluribus.errors import CheckpointError
from pluribus.interfaces.model import Progress
from pluribus_opt.checkpoint import Checkpoint, Source, TensorInfo
from pluribus_opt.checkpoint.dtypes import DTYPES
from pluribus_opt.checkpoint.manifest import NAME, Manifest
from pluribus_opt.checkpoint.numbering import in_short
from pluribus_opt.checkpoint.records import read_through
from pluribus_opt.checkpoint.safetensors_file import bytes_of
from pluribus_opt.checkpoint.shapes import Shape, tensor_shapes
from pluribus_opt.config import OPTConfig

_SHOWN_DIGITS = 16


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor, whole, however files hold it.

    Attributes:
        sha256: of its numbers as they are stored, row by row: alike in every layout.
        num_not_finite: numbers that are infinite or none; None where the dtype cannot be served,
            as torch cannot tell of each.
    """

    name: str
    shape: Shape
    dtype: str
    sha256: str
    num_not_finite: int | None
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file that holds weights."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What there is to say of a checkpoint; see pluribus.interfaces.CheckpointReport.

    Attributes:
        compared: whether names and shapes were compared with an architecture.
        problems: what is wrong, for people; nothing where all is well.
    """

    checkpoint: str
    layout: str
    fingerprint: str
    compared: bool
    tensors: tuple[TensorReport, ...] = ()
    files: tuple[FileReport, ...] = ()
    problems: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return everything, for programs."""
        return asdict(self)

    def as_text(self) -> str:
        """Return everything but the problems, for people; checksums are cut."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.checkpoint}: {self.layout}"
        yield f"fingerprint {self.fingerprint}"
        for tensor in self.tensors:
            shape = "x".join(map(str, tensor.shape))
            yield f"  {tensor.name}  {shape}  {tensor.dtype}  {tensor.sha256[:_SHOWN_DIGITS]}"
        for file in self.files:
            yield f"  {file.file}  {file.size} bytes  {file.sha256[:_SHOWN_DIGITS]}"
        count = sum(prod(tensor.shape) for tensor in self.tensors)
        yield f"{len(self.tensors)} tensors, {count} numbers"
        if not self.compared:
            yield "not compared with an architecture: set model.size or model.config to have that"


def verify(source: Source, architecture: OPTConfig | None, progress: Progress) -> Report:
    """Read all of a checkpoint, a piece of a tensor at a time, and report on it."""
    try:
        checkpoint = source.open(architecture)
    except CheckpointError as error:
        return Report(
            checkpoint=source.where,
            layout="not readable",
            fingerprint=source.fingerprint,
            compared=False,
            problems=(str(error),),
        )
    weights = sorted({file for info in checkpoint.tensors.values() for file in info.files})
    tensors = tuple(_tensors(checkpoint, progress))
    files, damaged = _read(weights)
    return Report(
        checkpoint=source.where,
        layout=checkpoint.layout,
        fingerprint=source.fingerprint,
        compared=architecture is not None,
        tensors=tensors,
        files=files,
        problems=(
            *_misfits(checkpoint, architecture),
            *_not_served(tensors),
            *_not_finite(tensors),
            *damaged,
            *_changed({file.parent for file in weights}),
        ),
    )


def _tensors(checkpoint: Checkpoint, progress: Progress) -> Iterator[TensorReport]:
    sizes = {
        name: prod(info.shape) * getattr(torch, info.dtype).itemsize
        for name, info in checkpoint.tensors.items()
    }
    done, total = 0, sum(sizes.values())
    for name, info in checkpoint.tensors.items():
        yield _tensor(checkpoint, name, info)
        done += sizes[name]
        progress(done, total)


def _tensor(checkpoint: Checkpoint, name: str, info: TensorInfo) -> TensorReport:
    digest, num_not_finite = hashlib.sha256(), 0
    is_served = info.dtype in DTYPES
    for chunk in checkpoint.chunks(name):
        digest.update(bytes_of(chunk))
        num_not_finite += int((~chunk.isfinite()).sum()) if is_served else 0
    return TensorReport(
        name,
        info.shape,
        info.dtype,
        digest.hexdigest(),
        num_not_finite if is_served else None,
        tuple(file.name for file in info.files),
    )


def _read(files: Iterable[Path]) -> tuple[tuple[FileReport, ...], list[str]]:
    """Return what there is to say of files, and what they tell of their own damage."""
    reports, damaged = [], []
    for file in files:
        known, problems = read_through(file)
        reports.append(FileReport(file.name, known.size, known.sha256))
        damaged += problems
    return tuple(reports), damaged


def _misfits(checkpoint: Checkpoint, architecture: OPTConfig | None) -> Iterator[str]:
    if architecture is not None:
        lines = checkpoint.problems(tensor_shapes(architecture))
        if lines:
            yield "\n".join(["it does not fit the architecture:", *lines])


def _not_served(tensors: Iterable[TensorReport]) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            names.setdefault(tensor.dtype, []).append(tensor.name)
    for dtype, some in names.items():
        yield f"{in_short(some)}: of {dtype}, but weights can be of {', '.join(DTYPES)} only"


def _not_finite(tensors: Iterable[TensorReport]) -> Iterator[str]:
    for tensor in tensors:
        if tensor.num_not_finite:
            of = prod(tensor.shape)
            yield f"{tensor.name} holds {tensor.num_not_finite} of {of} numbers that are not finite"


def _changed(folders: Iterable[Path]) -> Iterator[str]:
    """Compare the files of a conversion with the checksums that it noted."""
    for folder in folders:
        try:
            manifest = Manifest.read(folder)
        except CheckpointError as error:
            yield str(error)
            continue
        if manifest is not None:
            yield from filter(None, map(manifest.problem, manifest.files))
            if not manifest.is_finished:
                yield f"{folder / NAME}: the conversion is not finished; run it again to go on"
