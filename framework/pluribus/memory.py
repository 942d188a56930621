"""How much memory a rank may use, and how many tokens of keys and values fit into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pluribus.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    import torch

CPU_SHARE = 0.5
"""Part of the free host memory that ``cache.kv.memory=auto`` may take."""
CUDA_SHARE = 0.95
"""Part of the free device memory, less work space, that ``cache.kv.memory=auto`` may take."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USAGE = Path("/sys/fs/cgroup/memory.current")


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, within a container's limit on a host."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()  # what it keeps of tensors that are gone is free as well
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory()


def free_host_memory() -> int:
    """Return the bytes that are free on this machine, within a container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        return min(available, int(CGROUP_LIMIT.read_text()) - int(CGROUP_USAGE.read_text()))
    except (OSError, ValueError):
        return available  # no limit: the file is absent, or says "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where one rank's keys and values are to be, and whether they can.

    Attributes:
        setting: ``cache.kv.memory``: a size, or ``auto`` for as much as is useful and free.
        where: the device, for messages.
        free: bytes of the device that are this rank's to use, its weights being there already.
        work: bytes of them that steps need.
        share: part of the rest that ``auto`` may take.
        bytes_per_token: keys and values of one token in all layers of the rank.
        wanted: tokens beyond which more is of no use.
        needed: tokens below which not even one generation of full length fits.
    """

    setting: str
    where: str
    free: int
    work: int
    share: float
    bytes_per_token: int
    wanted: int
    needed: int

    @property
    def budget(self) -> int:
        """Bytes that keys and values may take."""
        if self.setting == "auto":
            return max(0, int((self.free - self.work) * self.share))
        return parse_bytes(self.setting, "cache.kv.memory")

    @property
    def num_tokens(self) -> int:
        """Tokens that the rank's store should hold."""
        return min(self.wanted, self.budget // self.bytes_per_token)

    @property
    def problem(self) -> str | None:
        """Why a generation of full length cannot run, and what to change; None where it can."""
        if self.num_tokens < self.needed:
            return (
                f"cache.kv.memory={self.setting} gives {format_bytes(self.budget)} on "
                f"{self.where}, room for {self.budget // self.bytes_per_token} tokens; one "
                f"generation of full length takes {self.needed} "
                f"({format_bytes(self.needed * self.bytes_per_token)}): raise cache.kv.memory or "
                "choose a smaller model"
            )
        left = self.free - self.work
        if self.num_tokens * self.bytes_per_token > left:
            return (
                f"cache.kv.memory={self.setting} is more than {self.where} has left beside weights "
                f"and work space, {format_bytes(max(0, left))}: lower it, or leave it at auto"
            )
        return None


def kv_share(device_type: str) -> float:
    """Return the part of what is free that ``cache.kv.memory=auto`` may take on a device."""
    return CUDA_SHARE if device_type == "cuda" else CPU_SHARE
