"""What can be watched of a service, for metrics."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pluribus.engine.messages import Stats
    from pluribus.flight import Flight


class Refusal(StrEnum):
    """Why a service took a request not in."""

    NOT_READY = "not_ready"
    QUEUE_FULL = "queue_full"
    TENANT_LIMIT = "tenant_limit"


class ServiceObserver:
    """Told of what a service does, in its event loop. Override what is of interest; be brief."""

    def generation_began(self, flight: Flight) -> None:
        """Observe that a generation was taken in."""

    def tokens_came(self, flight: Flight, num_tokens: int) -> None:
        """Observe new tokens of a generation, before they are added to it."""

    def generation_ended(self, flight: Flight) -> None:
        """Observe an end: ``flight.finish_reason`` or ``flight.error`` says which."""

    def generation_cancelled(self, flight: Flight) -> None:
        """Observe that everybody left a generation before its end."""

    def response_cache_hit(self) -> None:
        """Observe an answer that the response cache had."""

    def generation_shared(self) -> None:
        """Observe a request that joined a generation under way."""

    def request_refused(self, reason: Refusal) -> None:
        """Observe a request that was not taken in."""

    def engine_spoke(self, replica: int, stats: Stats) -> None:
        """Observe a replica's engine, after each step and whenever its work ends otherwise."""
