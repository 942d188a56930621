"""The engine as a process: it lives as long as the socket that it was given."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

import pytest

from pluribus.engine.channel import Channel, ChannelClosed
from pluribus.engine.client import ProcessHost
from pluribus.engine.messages import PROTOCOL_VERSION, Died, FromEngine, FromFront, Start
from pluribus.terminal import companions

STARTER = """
import subprocess, sys
command = [sys.executable, "-m", "pluribus.engine.process", sys.argv[1]]
subprocess.Popen(command, pass_fds=[int(sys.argv[1])])
"""


def test_an_engine_runs_whoever_is_its_parent() -> None:
    """Its parent may be process 1, as in a container; here that adopts it."""
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        command = [sys.executable, "-c", STARTER, str(number)]
        subprocess.run(command, pass_fds=[number], check=True)
    channel: Channel[FromFront, FromEngine] = Channel(ours, FromEngine)
    channel.send(Start(PROTOCOL_VERSION, "batcher: nonsense"))
    [message] = channel.receive(block=True)
    assert isinstance(message, Died)
    assert message.is_final
    with pytest.raises(ChannelClosed):
        channel.receive(block=True)
    channel.close()


def test_last_words_are_heard() -> None:
    ours, theirs = socket.socketpair()
    front: Channel[FromFront, FromEngine] = Channel(ours, FromEngine)
    engine: Channel[FromEngine, FromFront] = Channel(theirs, FromFront)
    engine.send(Died("on fire", is_final=True))
    engine.close()
    assert front.receive(block=True) == [Died("on fire", is_final=True)]
    with pytest.raises(ChannelClosed):
        front.receive(block=False)
    front.close()


def test_an_engine_is_ended_once_by_however_many() -> None:
    """By whoever found it silent, and by whoever found its socket closed."""

    async def life() -> None:
        host = ProcessHost("")
        client = await host.start()
        assert host.pid in companions
        await asyncio.gather(host.kill(), host.kill())
        assert host.pid is None
        client.close()

    asyncio.run(life())
    assert not companions
