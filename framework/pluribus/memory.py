"""How much memory a rank may use, and how many tokens of keys and values fit into it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from pluribus.errors import ConfigError
from pluribus.units import format_bytes, parse_bytes

CPU_SHARE = 0.5
"""Part of the free host memory that ``cache.kv.memory=auto`` may take."""
CUDA_SHARE = 0.9
"""Part of the free device memory that ``cache.kv.memory=auto`` may take."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USAGE = Path("/sys/fs/cgroup/memory.current")


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, within a container's limit on a host."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    try:
        return min(available, int(CGROUP_LIMIT.read_text()) - int(CGROUP_USAGE.read_text()))
    except (OSError, ValueError):
        return available  # no limit: the file is absent, or says "max"


def num_kv_tokens(
    setting: str,
    *,
    device: torch.device,
    bytes_per_token: int,
    wanted: int,
    needed: int,
    num_sharing: int,
) -> int:
    """Return how many tokens of keys and values a rank's store should hold.

    Args:
        setting: ``cache.kv.memory``: a size, or ``auto`` for as much as is useful and free.
        device: where the store will be.
        bytes_per_token: keys and values of one token in all layers of the rank.
        wanted: tokens beyond which more is of no use.
        num_sharing: ranks that share a host's memory; each has its own CUDA device.
        needed: tokens below which not even one generation of full length fits.

    Raises:
        ConfigError: ``needed`` tokens do not fit.
    """
    if setting == "auto":
        share = CUDA_SHARE if device.type == "cuda" else CPU_SHARE / num_sharing
        budget = int(free_memory(device) * share)
    else:
        budget = parse_bytes(setting, "cache.kv.memory")
    tokens = min(wanted, budget // bytes_per_token)
    if tokens < needed:
        raise ConfigError(
            f"cache.kv.memory={setting} gives {format_bytes(budget)} on {device}, room for "
            f"{budget // bytes_per_token} tokens; one generation of full length takes {needed} "
            f"({format_bytes(needed * bytes_per_token)}): raise cache.kv.memory or choose a "
            "smaller model"
        )
    return tokens
