"""Connections are shared out evenly, wait where nobody can take them, and none is lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pluribus.server.workers.door import Door

Sockets = list[socket.socket]


class ByHand:
    """Takes connections as a test wants."""

    def __init__(self) -> None:
        self.num_connections = 0
        self.is_full = False
        self.taken: Sockets = []
        self.marks: list[bool] = []

    def take(self, sock: socket.socket, *, is_excess: bool) -> bool:
        if self.is_full:
            return False
        self.taken.append(sock.dup())
        self.marks.append(is_excess)
        self.num_connections += 1
        return True


class Street:
    """A door, those behind it, and clients in front of it."""

    def __init__(self, num_takers: int, max_connections: int) -> None:
        self.takers = [ByHand() for _ in range(num_takers)]
        self.present = list(self.takers)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.door = Door(self.listener, lambda: self.present, max_connections)
        self.clients: Sockets = []
        self._address = self.listener.getsockname()

    async def come(self, number: int) -> None:
        for _ in range(number):
            self.clients.append(socket.create_connection(self._address))
            await asyncio.sleep(0.005)

    @property
    def loads(self) -> list[int]:
        return [taker.num_connections for taker in self.takers]

    def close(self) -> None:
        self.door.close()
        for sock in (*self.clients, *(sock for taker in self.takers for sock in taker.taken)):
            sock.close()


def on_street(
    test: Callable[[Street], Coroutine[Any, Any, None]], num_takers: int = 3, most: int = 100
) -> None:
    async def life() -> None:
        street = Street(num_takers, most)
        try:
            await asyncio.wait_for(test(street), 10)
        finally:
            street.close()

    asyncio.run(life())


def test_each_goes_to_whoever_has_fewest() -> None:
    async def test(street: Street) -> None:
        street.door.open()
        await street.come(6)
        assert street.loads == [2, 2, 2]
        street.takers[1].num_connections = 0
        await street.come(2)
        assert street.loads == [2, 2, 2]

    on_street(test)


def test_connections_that_end_at_once_reach_everybody() -> None:
    async def test(street: Street) -> None:
        street.door.open()
        for _ in range(9):
            await street.come(1)
            for taker in street.takers:
                taker.num_connections = 0
        assert [len(taker.taken) for taker in street.takers] == [3, 3, 3]

    on_street(test)


def test_those_over_the_limit_of_all_together_are_marked() -> None:
    async def test(street: Street) -> None:
        street.door.open()
        await street.come(5)
        marks = [mark for taker in street.takers for mark in taker.marks]
        assert sorted(marks) == [False, False, False, True, True]

    on_street(test, most=3)


def test_a_taker_that_is_full_is_passed_by() -> None:
    async def test(street: Street) -> None:
        street.takers[0].is_full = True
        street.door.open()
        await street.come(4)
        assert street.loads == [0, 2, 2]

    on_street(test)


@pytest.mark.parametrize("number", [1, 3])
def test_who_comes_while_all_are_full_is_taken_as_soon_as_there_is_room(number: int) -> None:
    async def test(street: Street) -> None:
        street.takers[0].is_full = True
        street.door.open()
        await street.come(number)
        assert street.loads == [0]
        street.takers[0].is_full = False
        await asyncio.sleep(0.1)
        assert street.loads == [number]
        street.clients[0].sendall(b"hello")
        assert street.takers[0].taken[0].recv(5) == b"hello"

    on_street(test, num_takers=1)


def test_who_comes_while_nobody_is_there_waits() -> None:
    async def test(street: Street) -> None:
        street.present = []
        street.door.open()
        await street.come(2)
        assert street.loads == [0]
        street.present = street.takers
        street.door.open()
        await asyncio.sleep(0.05)
        assert street.loads == [2]

    on_street(test, num_takers=1)


def test_a_closed_door_stays_closed() -> None:
    async def test(street: Street) -> None:
        street.takers[0].is_full = True
        street.door.open()
        await street.come(1)
        street.door.close()
        street.takers[0].is_full = False
        street.door.open()
        await asyncio.sleep(0.05)
        assert street.loads == [0]
        assert street.clients[0].recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            await street.come(1)

    on_street(test, num_takers=1)
