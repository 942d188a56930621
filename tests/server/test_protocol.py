"""What is written in one turn of the event loop is sent in one piece."""

from __future__ import annotations

import asyncio

from pluribus.server.protocol import MAX_GATHERED, GatheringTransport


class FakeTransport(asyncio.Transport):
    """Keeps the pieces that are sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


def test_a_turns_pieces_are_sent_together_and_in_order() -> None:
    async def run() -> None:
        transport = FakeTransport()
        gathering = GatheringTransport(transport, asyncio.get_running_loop())
        for piece in (b"head", b"", b"body"):
            gathering.write(piece)
        assert transport.sent == []
        await asyncio.sleep(0)
        assert transport.sent == [b"headbody"]
        gathering.write(b"next")
        await asyncio.sleep(0)
        assert transport.sent == [b"headbody", b"next"]

    asyncio.run(run())


def test_what_was_written_is_sent_before_the_connection_closes() -> None:
    async def run() -> None:
        transport = FakeTransport()
        gathering = GatheringTransport(transport, asyncio.get_running_loop())
        gathering.write(b"last")
        gathering.close()
        await asyncio.sleep(0)
        assert transport.sent == [b"last"]
        assert gathering.is_closing()

    asyncio.run(run())


def test_much_is_not_held_back() -> None:
    async def run() -> None:
        transport = FakeTransport()
        gathering = GatheringTransport(transport, asyncio.get_running_loop())
        gathering.write(bytes(MAX_GATHERED))
        assert transport.sent == []
        gathering.write(b"x")
        assert list(map(len, transport.sent)) == [MAX_GATHERED + 1]
        await asyncio.sleep(0)
        assert len(transport.sent) == 1

    asyncio.run(run())


def test_what_is_flushed_is_sent_once() -> None:
    async def run() -> None:
        transport = FakeTransport()
        gathering = GatheringTransport(transport, asyncio.get_running_loop())
        gathering.write(b"head")
        gathering.write(b"body")
        gathering.flush()
        assert transport.sent == [b"headbody"]
        await asyncio.sleep(0)
        assert transport.sent == [b"headbody"]

    asyncio.run(run())
