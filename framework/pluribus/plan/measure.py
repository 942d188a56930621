"""What a rank's memory turns out to be, beside what was planned."""

from __future__ import annotations

import resource

import psutil
import torch

from pluribus.units import format_bytes


class Meter:
    """Notes how much memory a rank takes as its parts arrive."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._used = self._in_use()
        self._taken = 0
        self._notes: list[str] = []

    def note(self, name: str, planned: int) -> None:
        """Note what tensors have taken since the last note, under a name."""
        before = self._used
        self._look()
        self._notes.append(_compare(name, planned, self._used - before))

    def note_taken(self, name: str, planned: int) -> None:
        """Note what a CUDA device has less since the last note: not only tensors take it.

        The first note is of all that is in use, whoever takes it.
        """
        if self._device.type == "cuda":
            before = self._taken
            self._look()
            self._notes.append(_compare(name, planned, self._taken - before))

    def report(self, work: int) -> str:
        """Return every note, what is planned for steps, and the most that was in use so far."""
        planned_work = f"work space planned {format_bytes(work)}"
        return "; ".join([*self._notes, planned_work, f"peak so far {format_bytes(self._peak())}"])

    def _look(self) -> None:
        self._used = self._in_use()
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            self._taken = total - free

    def _in_use(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        memory = psutil.Process().memory_info()
        # What is mapped from files is the system's to take back.
        return int(memory.rss - getattr(memory, "shared", 0))

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_reserved(self._device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _compare(name: str, planned: int, measured: int) -> str:
    return f"{name} planned {format_bytes(planned)}, measured {format_bytes(max(0, measured))}"
