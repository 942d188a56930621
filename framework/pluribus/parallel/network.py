"""A crew that comes over the network, from wherever its processes were started."""

from __future__ import annotations

import contextlib
import logging
import select
import time
from collections import Counter
from collections.abc import Callable

from pluribus.engine.channel import Channel, ChannelClosed
from pluribus.interfaces import Seat
from pluribus.parallel.crew import Crew, Member, Roster
from pluribus.parallel.meeting import Address, Meeting, listen
from pluribus.parallel.messages import EndRank, FromRank

SECONDS_TO_END = 5.0

logger = logging.getLogger(__name__)


class NetworkCrew(Crew):
    """Ranks that connect to the first one.

    Args:
        meeting: where they come to.
        world_size: ranks in all.
        timeout: seconds for all of them to come.
        local_rank: the first rank's.
    """

    def __init__(
        self, meeting: Meeting, world_size: int, timeout: float, local_rank: int = 0
    ) -> None:
        self._meeting = meeting
        self._world_size = world_size
        self._timeout = timeout
        self._local_rank = local_rank
        self._members: list[Member] = []
        self._store: object = None

    def gather(self, lose: Callable[[str], None]) -> Roster:
        address = self._meeting.address
        logger.info("waiting for %d other ranks on %s", self._world_size - 1, address)
        came = self._meeting.gather(self._world_size, self._timeout)
        rendezvous = self._open_rendezvous(address.host)
        num_local = Counter([address.host, *(each.address for each in came.values())])
        first = Seat(
            local_rank=self._local_rank, num_local=num_local[address.host], rendezvous=rendezvous
        )
        for rank, arrival in sorted(came.items()):
            self._members.append(
                Member(
                    seat=Seat(
                        rank=rank,
                        local_rank=arrival.join.local_rank,
                        num_local=num_local[arrival.address],
                        rendezvous=rendezvous,
                    ),
                    channel=Channel(arrival.sock, FromRank),
                    host=f"{arrival.join.host} ({arrival.address})",
                )
            )
        return Roster(first=first, others=self._members)

    def epitaph(self, member: Member) -> str:
        return "ended without a word, or cannot be reached"

    def dismiss(self) -> None:
        for member in self._members:
            with contextlib.suppress(ChannelClosed):
                member.channel.send(EndRank())
        deadline = time.monotonic() + SECONDS_TO_END
        for member in self._members:
            _await_end(member, deadline)

    def abandon(self) -> None:
        """Leave it to the end of this process, which follows: it closes every channel."""

    def _open_rendezvous(self, host: str) -> str:
        """Return where torch's groups meet: a store of this process, on the same address."""
        from datetime import timedelta

        import torch.distributed as dist

        listener = listen(host, 0)
        address = Address(*listener.getsockname()[:2])
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            address.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=self._timeout),
            multi_tenant=True,  # joining it, the first rank gets this very store
            master_listen_fd=listener.detach(),
        )
        return f"tcp://{address}"


def _await_end(member: Member, deadline: float) -> None:
    """Wait until the rank's end of the channel is closed, reading nothing: the watcher does."""
    poll = select.poll()
    poll.register(member.channel.fileno(), select.POLLRDHUP)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        logger.warning("%s has not ended within %g s", member.title, SECONDS_TO_END)
