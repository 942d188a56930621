"""What a kernel reads or writes beyond its tensors does not go unseen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("stray.py")


@pytest.mark.parametrize(
    ("num_read", "num_written", "status"),
    [(13, 13, 0), (14, 13, -signal.SIGSEGV), (13, 14, -signal.SIGSEGV)],
)
def test_a_number_too_many_kills_the_process(num_read: int, num_written: int, status: int) -> None:
    paths = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), str(num_read), str(num_written)]
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, check=False)
    assert done.returncode == status, done.stderr
