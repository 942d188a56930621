"""All ranks but the first: where their processes come from, apart from what they do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pluribus.interfaces import Seat
from pluribus.parallel.messages import RankChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One rank, in a process of its own that waits for its first message.

    Attributes:
        seat: its place.
        channel: to its process.
        host: its machine, for people; empty for this one.
    """

    seat: Seat
    channel: RankChannel
    host: str = ""

    @property
    def title(self) -> str:
        """What to call it when something is wrong with it."""
        return f"rank {self.seat.rank}" + (f" on {self.host}" if self.host else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """Everybody's place: the first rank's, and those of the others in their order."""

    first: Seat
    others: Sequence[Member]


class Crew(ABC):
    """The processes of all ranks but the first, for one life of the engine."""

    @abstractmethod
    def gather(self, lose: Callable[[str], None]) -> Roster:
        """Return once there is a process for every rank.

        Args:
            lose: may be called at any later time, from any thread, with what is wrong with
                whom, where that is known before their channel tells.

        Raises:
            TimeoutError: some have not come; it says which.
        """

    @abstractmethod
    def epitaph(self, member: Member) -> str:
        """Say how a rank whose channel has closed came to its end."""

    @abstractmethod
    def dismiss(self) -> None:
        """End every rank, as the service ends, and wait until each has."""

    @abstractmethod
    def abandon(self) -> None:
        """End every rank at once, without waiting: one of them is lost."""
