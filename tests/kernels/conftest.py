"""What the tests of kernels share."""

from __future__ import annotations

import pytest

from pluribus.kernels import linear, linear_config


@pytest.fixture(params=[9, 8], ids=["copied", "loaded"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as devices do that copy tiles by themselves, and as others."""
    processor = linear_config.Multiprocessor(request.param, linear_config.H100.shared_memory)
    monkeypatch.setattr(linear, "_processor", lambda device: processor)
