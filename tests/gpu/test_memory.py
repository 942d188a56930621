"""What a rank says of its device's memory."""

from __future__ import annotations

import re

import pytest
import torch

from kernels.device import DEVICE
from pluribus.plan.measure import Meter

MIB = 2**20
CUDA = torch.device("cuda", 0)


class Memory:
    """A device's memory, as torch tells of it: nobody else takes or leaves any meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated, self.taken = 0, 500 * MIB
        monkeypatch.setattr(torch.cuda, "memory_allocated", self._memory_allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", self._memory_allocated)
        monkeypatch.setattr(torch.cuda, "mem_get_info", self._mem_get_info)

    def allocate(self, num_bytes: int) -> None:
        self.allocated += num_bytes
        self.taken += num_bytes

    def _memory_allocated(self, device: torch.device) -> int:
        assert device == CUDA
        return self.allocated

    def _mem_get_info(self, device: torch.device) -> tuple[int, int]:
        assert device == CUDA
        return 4096 * MIB - self.taken, 4096 * MIB


def test_tensors_and_what_else_a_device_holds_are_noted_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = Memory(monkeypatch)
    meter = Meter(CUDA)
    meter.note_taken("context", 400 * MIB)
    memory.allocate(64 * MIB)
    memory.taken += 3 * MIB  # no tensor has it
    meter.note("weights", 60 * MIB)
    memory.allocate(96 * MIB)
    memory.taken += 2 * MIB
    meter.note_taken("graphs", 1)
    memory.taken -= 7 * MIB  # somebody else leaves
    meter.note_taken("rest", 0)
    assert meter.report(8 * MIB) == (
        "context planned 400MiB, measured 500MiB; weights planned 60MiB, measured 64MiB; "
        "graphs planned 1B, measured 98MiB; rest planned 0B, measured 0B; "
        "work space planned 8MiB; peak so far 160MiB"
    )


@pytest.mark.gpu
def test_a_device_tells_what_tensors_and_all_else_take() -> None:
    meter = Meter(DEVICE)
    meter.note_taken("context", 500 * MIB)
    weights = torch.empty(64 * MIB, dtype=torch.uint8, device=DEVICE)
    meter.note("weights", weights.nbytes)
    said = meter.report(0)
    assert re.search(r"context planned 500MiB, measured [\d.]+[MG]iB; ", said)
    assert "weights planned 64MiB, measured 64MiB; " in said


def test_a_host_has_nothing_but_its_process() -> None:
    meter = Meter(torch.device("cpu"))
    meter.note_taken("context", 1)
    meter.note("weights", 1)
    assert meter.report(0).startswith("weights planned 1B, measured ")
