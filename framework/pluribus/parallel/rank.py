"""A rank that is a process of its own: ``python -m pluribus.parallel.rank FD PARENT``.

What it is to be comes as the first message on the socket that it inherits. It ends with the
process that started it, PARENT, also in the middle of a collective.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf

from pluribus import assembly, rank_worker
from pluribus import config as conf
from pluribus.engine.channel import Channel, ChannelClosed
from pluribus.engine.process import die_with_the_parent, preload
from pluribus.errors import PluribusError, describe
from pluribus.interfaces import Executor
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
from pluribus.step import Step, StepResult

SECONDS_TO_IDLE = 1.0

ENDED = 0
"""Exit code of a rank that was told to end."""
LEFT_ALONE = 3
"""Exit code of a rank whose first rank is gone."""


def main() -> None:
    """Run steps until the first rank ends this one."""
    number, parent = map(int, sys.argv[1:])
    die_with_the_parent(parent)
    preload()  # before the first beat: for so long it may keep all threads waiting
    channel: Channel[FromRank, ToRank] = Channel(socket.socket(fileno=number), ToRank)
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
    threading.Thread(target=beat, args=(channel,), daemon=True).start()
    try:
        _run(start, steps)
    except BaseException as error:
        # A collective fails here too when another rank ends. Whether that is worth a word is for
        # the first rank to say, which ends this one; if it is gone itself, _receive does.
        with contextlib.suppress(ChannelClosed):
            channel.send(_last_words(error))
        receiver.join()


def _last_words(error: BaseException) -> RankDied:
    if isinstance(error, PluribusError):
        return RankDied(f"{type(error).__name__}: {describe(error)}", "")
    return RankDied(describe(error), "".join(traceback.format_exception(error)))


def _run(start: StartRank, steps: queue.SimpleQueue[Step]) -> None:
    config = OmegaConf.create(start.config)
    assert isinstance(config, DictConfig)
    server = conf.section(config, "server", ServerConfig)
    configure_logging(server.log_format, server.log_level)
    plugins = discover()
    parts = assembly.assemble(config, plugins)
    worker = rank_worker.start_rank(parts, lambda done, total: None, start.seat)
    run_steps(worker, steps)


def run_steps(worker: Executor, steps: queue.SimpleQueue[Step]) -> NoReturn:
    """Run steps as they come. Their results are for the first rank: nobody waits for them here.

    Once there is nothing to do, the last one is waited for, which takes in what other ranks have
    sent: else they would be left with it, and give up in the end.
    """
    read: Callable[[], StepResult] | None = None
    while True:
        try:
            step = steps.get(timeout=SECONDS_TO_IDLE if read else None)
        except queue.Empty:
            assert read is not None, "without a timeout there is a step"
            read()
            read = None
        else:
            read = worker.submit(step)


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


def beat(channel: Channel[FromRank, ToRank]) -> None:
    """Say at once, and from then on, that this process runs: until then it is given long."""
    pause = threading.Event()
    with contextlib.suppress(ChannelClosed):
        channel.send(RankBeat())
        while not pause.wait(SECONDS_BETWEEN_BEATS):
            channel.send(RankBeat())


if __name__ == "__main__":
    main()
