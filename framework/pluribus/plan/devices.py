"""Devices by name, and those that are here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pluribus.errors import ConfigError
from pluribus.memory import free_host_memory
from pluribus.plan.cuda_driver import cuda_devices

GIB = 2**30
PAGEABLE_COPY = 8_000_000_000
"""Bytes a second from memory that is not pinned to a GPU: 7.7 to 8.1 GB/s to an H100, where the
bus could do many times that, so others are taken to be alike."""
HOST_COPY = 5_000_000_000
"""Bytes a second that a host reads, converts and writes, for all its ranks together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something that ranks run on: a GPU for each, or a host that all of them share.

    Attributes:
        name: as ``plan.device`` has it, or what the driver calls it.
        type: ``cpu`` or ``cuda``.
        memory: bytes that programs get of it.
        copy_speed: bytes a second at which weights reach it from the host's memory.
    """

    name: str
    type: str
    memory: int
    copy_speed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The devices that a plan is for; they are alike, or count as the smallest of them.

    Attributes:
        count: of them; 1 for a host.
        is_here: whether they are this machine's, rather than named.
    """

    device: Device
    count: int
    is_here: bool

    @property
    def one(self) -> str:
        """One of the devices, for people."""
        return f"this machine's {self.device.name}" if self.is_here else self.device.name

    def __str__(self) -> str:
        return self.one if self.count == 1 else f"{self.count} x {self.one}"

    def num_sharing(self, num_ranks: int) -> int:
        """Return how many of all replicas' ranks share a device's memory."""
        return num_ranks if self.device.type == "cpu" else 1


def _gpu(name: str, gib: float) -> Device:
    return Device(name=name, type="cuda", memory=int(gib * GIB), copy_speed=PAGEABLE_COPY)


# Memory as torch.cuda reports it, "total capacity" in its messages: less than on the label, for
# error correction and the driver take their part. The H100's was read from one; the others' are
# what issues on GitHub quote of such messages, and about the lowest where they differ.
GPUS = (
    _gpu("t4-16g", 14.56),
    _gpu("l4-24g", 22.03),
    _gpu("a10g-24g", 22.06),
    _gpu("rtx-4090-24g", 23.53),
    _gpu("a100-40g", 39.39),
    _gpu("l40s-48g", 44.39),
    _gpu("a100-80g", 79.10),
    _gpu("h100-80g", 79.18),
    _gpu("h200-141g", 139.80),
)
"""In order of their memory."""

_HOST = re.compile(r"cpu-([1-9][0-9]{0,4})g")
HOST_SYSTEM = GIB
"""What an operating system and its services take of a host."""


def named_device(name: str) -> Device:
    """Return the device that ``plan.device`` names.

    Raises:
        ConfigError: no device is called so; says which are.
    """
    if match := _HOST.fullmatch(name):
        return host_device(int(match[1]))
    for device in GPUS:
        if device.name == name:
            return device
    known = [device.name for device in GPUS]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ";"
    raise ConfigError(
        f"plan.device={name}: no device is called that{hint} known are {', '.join(known)}, and "
        "cpu-16g or any other number of GiB for a host; null is what is here"
    )


def host_device(gib: int) -> Device:
    """Return a host by the GiB of its memory."""
    memory = max(0, gib * GIB - HOST_SYSTEM)
    return Device(name=f"cpu-{gib}g", type="cpu", memory=memory, copy_speed=HOST_COPY)


def named_site(name: str, count: int) -> Site:
    """Return so many devices of a name.

    Raises:
        ConfigError: there is no such device, or several hosts are asked for.
    """
    device = named_device(name)
    if device.type == "cpu" and count != 1:
        raise ConfigError(
            f"plan.count={count}: plan.device={name} is a host, whose memory all ranks share; "
            "leave plan.count at null"
        )
    return Site(device=device, count=count, is_here=False)


def site_here(setting: str) -> Site:
    """Return this machine's devices for a ``device`` setting: auto, cpu or cuda.

    Raises:
        ConfigError: ``cuda`` is asked for and there is none.
    """
    gpus = () if setting == "cpu" else cuda_devices()
    if gpus:
        least = min(gpus, key=lambda gpu: gpu.memory)
        device = Device(name=least.name, type="cuda", memory=least.memory, copy_speed=PAGEABLE_COPY)
        return Site(device=device, count=len(gpus), is_here=True)
    if setting == "cuda":
        raise ConfigError(
            "device=cuda: there is no CUDA device here that torch can use; name one with "
            "plan.device=h100-80g or the like to plan for it, or choose device=cpu"
        )
    device = Device(name="cpu", type="cpu", memory=free_host_memory(), copy_speed=HOST_COPY)
    return Site(device=device, count=1, is_here=True)


def larger_devices(device: Device) -> Sequence[Device]:
    """Return the known devices of the same type that have more memory, the smallest first."""
    if device.type == "cuda":
        return [each for each in GPUS if each.memory > device.memory]
    hosts = [host_device(2**power) for power in range(2, 12)]
    return [host for host in hosts if host.memory > device.memory]
