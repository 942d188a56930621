"""Pickles are read without executing anything that they name."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from opt.checkpoint_files import (
    assert_loads,
    canonical_state,
    metaseq_state,
    open_at,
    parts_for,
    tiny_opt,
)
from pluribus.errors import CheckpointError
from pluribus_opt.checkpoint import resolve

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


class Reduced:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def by_system(marker: Path) -> Reduced:
    return Reduced(os.system, f"touch {marker}")


def by_eval(marker: Path) -> Reduced:
    return Reduced(eval, f"open({str(marker)!r}, 'w').close()")


def by_getattr(marker: Path) -> Reduced:
    return Reduced(marker.touch)  # a method is pickled as a call of getattr


PAYLOADS = pytest.mark.parametrize(
    "payload", [by_system, by_eval, by_getattr], ids=lambda p: p.__name__
)
CONTAINERS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


@PAYLOADS
def test_the_payloads_work_where_pickles_are_executed(
    tmp_path: Path, payload: Callable[[Path], Reduced]
) -> None:
    pickle.loads(pickle.dumps(payload(marker := tmp_path / "executed")))
    assert marker.exists()


@PAYLOADS
@CONTAINERS
def test_a_payload_beside_the_model_does_not_run(
    tmp_path: Path, payload: Callable[[Path], Reduced], is_zip: bool
) -> None:
    model, marker = tiny_opt(), tmp_path / "executed"
    content = {"cfg": payload(marker), "model": metaseq_state(model), "args": [payload(marker)]}
    torch.save(content, tmp_path / "restored.pt", _use_new_zipfile_serialization=is_zip)
    assert_loads(tmp_path, canonical_state(model))
    assert not marker.exists()


@PAYLOADS
@CONTAINERS
def test_a_payload_in_place_of_a_tensor_is_refused_and_does_not_run(
    tmp_path: Path, payload: Callable[[Path], Reduced], is_zip: bool
) -> None:
    name, marker = "model.decoder.layers.0.fc1.bias", tmp_path / "executed"
    state = {**tiny_opt().state_dict(), name: payload(marker)}
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"bin: model\.decoder\.layers\.0\.fc1\.bias is a"):
        open_at(tmp_path)
    assert not marker.exists()


@PAYLOADS
def test_a_payload_in_place_of_the_whole_file_does_not_run(
    tmp_path: Path, payload: Callable[[Path], Reduced]
) -> None:
    file, marker = tmp_path / "pytorch_model.bin", tmp_path / "executed"
    pickled = pickle.dumps(payload(marker))
    for content in (pickled, LEGACY_MAGIC + pickled, LEGACY_MAGIC + pickle.dumps(1001) + pickled):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            open_at(tmp_path)
    torch.save(payload(marker), file)
    with pytest.raises(CheckpointError, match=r"holds no OPT weights"):
        open_at(tmp_path)
    assert not marker.exists()


@CONTAINERS
def test_what_metaseq_puts_beside_the_model_is_passed_over(tmp_path: Path, is_zip: bool) -> None:
    model = tiny_opt()
    content = {
        "cfg": OmegaConf.create({"model": {"arch": "transformer_lm", "layers": [1, 2]}}),
        "args": argparse.Namespace(decoder_layers=2),
        "extra_state": OrderedDict(epoch=1, seen={1, 2}, where=Path("a")),
        "optimizer_history": [{"criterion": "x"}],
        "last_optimizer_state": {"exp_avg": torch.ones(7)},
        "model": metaseq_state(model),
    }
    torch.save(content, tmp_path / "restored.pt", _use_new_zipfile_serialization=is_zip)
    assert_loads(tmp_path, canonical_state(model))


@pytest.mark.parametrize("entry", [3.0, "0.0", [1], None], ids=repr)
def test_an_entry_that_is_no_tensor_is_named(tmp_path: Path, entry: object) -> None:
    state: dict[str, Any] = {**canonical_state(tiny_opt()), "decoder.layers.0.fc1.bias": entry}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"fc1\.bias is a builtins\.\w+, not a tensor"):
        open_at(tmp_path)
    del state["decoder.layers.0.fc1.bias"]
    torch.save({**state, "decoder.version": entry}, tmp_path / "pytorch_model.bin")
    open_at(tmp_path)


@pytest.mark.parametrize(
    ("offset", "shape"),
    [(0, (4096,)), (10, (8,)), (-4, (8,)), (0, (-1,)), (0, "ab")],
    ids=["too-long", "beyond-the-end", "before-the-start", "negative", "not-numbers"],
)
@CONTAINERS
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, offset: int, shape: Any, is_zip: bool
) -> None:
    storage = torch.ones(8)._typed_storage()  # type: ignore[no-untyped-call]
    rebuild = torch._utils._rebuild_tensor_v2
    liar = Reduced(rebuild, storage, offset, shape, (1,), False, OrderedDict())
    file = tmp_path / "pytorch_model.bin"
    torch.save({"decoder.a": liar}, file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged"):
        open_at(tmp_path)


def test_views_parameters_and_shared_storages_load(tmp_path: Path) -> None:
    table = torch.randn(6, 4)
    state = {
        "decoder.whole": table,
        "decoder.column": table[:, 1],
        "decoder.transposed": torch.nn.Parameter(table.T),
        "decoder.empty": table[:0],
        "decoder.scalar": torch.tensor(2.0),
    }
    for is_zip in (True, False):
        torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=is_zip)
        parts = parts_for(state)
        resolve(str(tmp_path / "w.pt")).open().read_into(parts, lambda done, total: None)
        assert all(torch.equal(part.target, state[part.name]) for part in parts)
