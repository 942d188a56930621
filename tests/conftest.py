"""What all tests share."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

# Tests run many small models and several processes side by side: threads only get in the way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

# A shell that starts a job in the background has it ignore Ctrl-C, and all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Before anything imports triton: kernels are what this says when they are defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")
if find_spec("triton") is None:  # there is none but for Linux
    collect_ignore = ["gpu", "kernels", "caches/test_attention_kernels.py"]
    collect_ignore += ["caches/test_cuda_store.py"]
elif os.environ.get("TRITON_INTERPRET"):
    from kernels import guard

    guard.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; all else runs on it where there is one."""
    if not HAS_GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
