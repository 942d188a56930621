"""What joins a pipeline's stages: each sends to the next, and the last one to the first."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pluribus.interfaces.parallelism import Share
from pluribus.parallel.group import new_group


class Inlet(Protocol):
    """Where tensors come from, in the order in which they were sent."""

    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Wait for the next tensor, which is so."""


class Outlet(Protocol):
    """Where tensors go to, in order."""

    def send(self, x: Tensor, step: int) -> None:
        """Send ``x``, which must not change any more, of this step; never wait for it to come."""

    def settle(self, num_steps: int) -> None:
        """Let go of what was sent in the first ``num_steps`` steps, and has arrived."""


@dataclass(frozen=True, slots=True)
class Ring:
    """The ends of the links to the stages before and after."""

    inlet: Inlet
    outlet: Outlet


@dataclass(frozen=True, slots=True)
class Link:
    """A process group of its own for one direction between two ranks.

    With one for both directions, NCCL would run a send and a receive in the order of the calls,
    and each side could wait for what the other has yet to call.
    """

    source: int
    target: int
    group: dist.ProcessGroup | None
    device: torch.device

    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Wait for the next tensor; see Inlet."""
        size = torch.Size(shape)
        x = torch.empty(max(1, size.numel()), dtype=dtype, device=self.device)
        dist.recv(x, self.source, group=self.group)
        return x[: size.numel()].view(size)

    def start_sending(self, x: Tensor) -> Sending:
        """Send ``x``, waiting for nothing."""
        # Nothing at all would not tell that it has come.
        x = x.contiguous() if x.numel() else x.new_zeros(1)
        work = dist.isend(x, self.target, group=self.group)
        assert work is not None, "only the source sends"
        return Sending(x, work)


@dataclass(frozen=True, slots=True)
class Sending:
    """A tensor on its way, kept until it has arrived."""

    x: Tensor
    work: dist.Work


class LinkOutlet:
    """Sends over a link and keeps what is under way.

    Gloo does not say that a send is done unless it is waited for, so what has arrived is known
    from the steps that are over.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._under_way: deque[tuple[int, Sending]] = deque()

    def send(self, x: Tensor, step: int) -> None:
        """Send without waiting; see Outlet."""
        self._under_way.append((step, self._link.start_sending(x)))

    def settle(self, num_steps: int) -> None:
        """Let go of what has arrived; see Outlet."""
        while self._under_way and self._under_way[0][0] < num_steps:
            _, sending = self._under_way.popleft()
            sending.work.wait()


def join_ring(share: Share, device: torch.device) -> Ring | None:
    """Link this rank to those with its tensor rank in the stages before and after.

    Every rank calls it at the same time. None where there is but one stage.
    """
    if share.num_stages == 1:
        return None
    world_size = share.num_stages * share.tensor_size
    ends = [(rank, (rank + share.tensor_size) % world_size) for rank in range(world_size)]
    links = [Link(*pair, new_group(pair), device) for pair in ends]
    for link in links:
        _try(link, share.rank)
    [inlet] = [link for link in links if link.target == share.rank]
    [outlet] = [link for link in links if link.source == share.rank]
    return Ring(inlet, LinkOutlet(outlet))


def _try(link: Link, rank: int) -> None:
    """Send something, so that both ends are connected before any of them is in a hurry."""
    if rank == link.source:
        link.start_sending(torch.ones(1, device=link.device)).work.wait()
    elif rank == link.target:
        link.receive([1], torch.float32)
