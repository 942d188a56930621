"""What the first rank and the others say to each other: typed, versioned, never pickled."""

from __future__ import annotations

import msgspec

from pluribus.engine.channel import Channel
from pluribus.interfaces import Seat
from pluribus.step import Step

RANK_PROTOCOL_VERSION = 2
SECONDS_BETWEEN_BEATS = 0.5
SILENCE = 4.0
"""Seconds without a beat after which a rank is taken to be dead."""
SILENCE_WHILE_IMPORTING = 60.0
"""The same until its first beat: on a busy machine, importing torch alone takes long."""


class RankMessage(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Anything that crosses between ranks, tensors excepted."""


class JoinRank(RankMessage, frozen=True):
    """Other rank, where it was not started by the first: the first message; this is my place.

    Attributes:
        protocol: the version of these messages.
        rank: among all.
        local_rank: among the ranks of its machine.
        host: the name of its machine, for people.
        past: how the last process ended that was this rank; empty if there was none.
    """

    protocol: int
    rank: int
    local_rank: int
    host: str
    past: str


class StartRank(RankMessage, frozen=True):
    """First rank: be this rank of the configuration, in YAML."""

    protocol: int
    config: str
    seat: Seat


class RunStep(RankMessage, frozen=True):
    """First rank: run this step."""

    step: Step


class EndRank(RankMessage, frozen=True):
    """First rank: end now, as the service does."""


class RankBeat(RankMessage, frozen=True):
    """Other rank: alive."""


class RankDied(RankMessage, frozen=True):
    """Other rank: the last message, if it can still be sent; with a traceback for a bug."""

    reason: str
    traceback: str


ToRank = StartRank | RunStep | EndRank
FromRank = RankBeat | RankDied
RankChannel = Channel[ToRank, FromRank]
