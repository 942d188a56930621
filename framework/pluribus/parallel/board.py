"""What the first process tells the others through torchrun's store: where to come, when to end."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pluribus.parallel.meeting import Address

ADDRESS = "pluribus/address"
END = "pluribus/end"
TIMEOUT = 5.0
"""Seconds for each question: the machine may be gone."""


@dataclass(frozen=True, slots=True)
class Board:
    """torchrun's store, which lives as long as torchrun does on the first machine."""

    host: str
    port: int

    def tell_address(self, address: Address) -> None:
        """Say where the first rank waits for the others."""
        self._store().set(ADDRESS, f"{address.host} {address.port}")

    def tell_the_end(self) -> None:
        """Say that the service has ended, as it was told to."""
        with contextlib.suppress(dist.DistError):  # torchrun has ended: everybody sees that
            self._store().set(END, "")

    def read(self) -> Address | None:
        """Return where to come, or None if the first rank has not said yet.

        Raises:
            EndOfService: the service has ended, as it was told to.
            ConnectionRefusedError: torchrun has ended there.
            OSError: the machine cannot be reached.
        """
        # torch would try on and on, and log all of it.
        socket.create_connection((self.host, self.port), TIMEOUT).close()
        try:
            store = self._store()
            if store.check([END]):
                raise EndOfService
            if not store.check([ADDRESS]):
                return None
            host, port = store.get(ADDRESS).decode().split()
        except dist.DistError as error:
            raise OSError(str(error)) from error
        return Address(host, int(port))

    def _store(self) -> Any:
        return dist.TCPStore(  # type: ignore[attr-defined]
            self.host,
            self.port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=TIMEOUT),
        )


class EndOfService(Exception):
    """The service has ended in good order."""
