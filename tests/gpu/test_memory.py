"""What a rank says of its device's memory."""

from __future__ import annotations

import re

import pytest
import torch

from kernels.device import DEVICE
from pluribus.plan.measure import Meter

MIB = 2**20


@pytest.mark.gpu
def test_tensors_and_what_else_a_device_holds_are_noted_apart() -> None:
    torch.cuda.empty_cache()  # what is left of others would be taken first
    meter = Meter(DEVICE)
    meter.note_taken("context", 500 * MIB)
    weights = torch.empty(64 * MIB, dtype=torch.uint8, device=DEVICE)
    meter.note("weights", weights.nbytes)
    more = torch.empty(96 * MIB, dtype=torch.uint8, device=DEVICE)
    meter.note_taken("graphs", 1)
    said = meter.report(0)
    assert re.search(r"context planned 500MiB, measured [\d.]+[MG]iB; ", said)
    assert "weights planned 64MiB, measured 64MiB; " in said
    graphs = re.search(r"graphs planned 1B, measured ([\d.]+)([MG])iB; ", said)
    assert graphs
    # What others take of the device meanwhile counts as well.
    assert float(graphs[1]) * (1024 if graphs[2] == "G" else 1) >= more.nbytes / MIB


def test_a_host_has_nothing_but_its_process() -> None:
    meter = Meter(torch.device("cpu"))
    meter.note_taken("context", 1)
    meter.note("weights", 1)
    assert meter.report(0).startswith("weights planned 1B, measured ")
