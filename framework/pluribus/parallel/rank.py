"""A rank that is a process of its own: ``python -m pluribus.parallel.rank FD``.

What it is to be comes as the first message on the socket that it inherits. It ends with the
process that started it, also in the middle of a collective.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import traceback

from omegaconf import DictConfig, OmegaConf

from pluribus import config as conf
from pluribus import runtime
from pluribus.engine.channel import Channel, ChannelClosed
from pluribus.engine.process import die_with_the_parent
from pluribus.errors import PluribusError
from pluribus.logs import configure_logging
from pluribus.parallel.messages import (
    RANK_PROTOCOL_VERSION,
    SECONDS_BETWEEN_BEATS,
    EndRank,
    FromRank,
    RankBeat,
    RankDied,
    RunStep,
    StartRank,
    ToRank,
)
from pluribus.plugins import discover
from pluribus.server.config import ServerConfig
from pluribus.step import Step

ENDED = 0
"""Exit code of a rank that was told to end."""
LEFT_ALONE = 3
"""Exit code of a rank whose first rank is gone."""


def main() -> None:
    """Run steps until the first rank ends this one."""
    die_with_the_parent()
    channel: Channel[FromRank, ToRank] = Channel(socket.socket(fileno=int(sys.argv[1])), ToRank)
    try:
        [start, *others] = channel.receive(block=True)
    except ChannelClosed:
        sys.exit(LEFT_ALONE)
    if isinstance(start, EndRank) or others:
        sys.exit(ENDED)
    assert isinstance(start, StartRank)
    assert start.protocol == RANK_PROTOCOL_VERSION, f"protocol {start.protocol}"
    steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
    receiver = threading.Thread(target=_receive, args=(channel, steps), daemon=True)
    receiver.start()
    threading.Thread(target=_beat, args=(channel,), daemon=True).start()
    try:
        _run(start, steps)
    except BaseException as error:
        # A collective fails here too when another rank ends. Whether that is worth a word is for
        # the first rank to say, which ends this one; if it is gone itself, _receive does.
        with contextlib.suppress(ChannelClosed):
            channel.send(_last_words(error))
        receiver.join()


def _last_words(error: BaseException) -> RankDied:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    is_bug = not isinstance(error, PluribusError)
    return RankDied(reason, "".join(traceback.format_exception(error)) if is_bug else "")


def _run(start: StartRank, steps: queue.SimpleQueue[Step]) -> None:
    config = OmegaConf.create(start.config)
    assert isinstance(config, DictConfig)
    server = conf.section(config, "server", ServerConfig)
    configure_logging(server.log_format, server.log_level)
    plugins = discover()
    parts = runtime.assemble(config, plugins)
    worker = runtime.start_rank(parts, lambda done, total: None, start.seat)
    while True:
        worker.submit(steps.get())()


def _receive(channel: Channel[FromRank, ToRank], steps: queue.SimpleQueue[Step]) -> None:
    """Take steps, and end at once when whoever sends them says so or is gone."""
    with contextlib.suppress(ChannelClosed):
        while True:
            for message in channel.receive(block=True):
                if isinstance(message, EndRank):
                    os._exit(ENDED)
                assert isinstance(message, RunStep)
                steps.put(message.step)
    os._exit(LEFT_ALONE)


def _beat(channel: Channel[FromRank, ToRank]) -> None:
    pause = threading.Event()
    with contextlib.suppress(ChannelClosed):
        while not pause.wait(SECONDS_BETWEEN_BEATS):
            channel.send(RankBeat())


if __name__ == "__main__":
    main()
