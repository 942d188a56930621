"""A process of torchrun's that is a rank for whichever engine its first process runs.

The rank itself is a process of its own, a new one for each engine: after a lost rank they all
begin anew, without torchrun having to start anything.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from pluribus.parallel.board import Board, EndOfService
from pluribus.parallel.local import epitaph, spawn_rank
from pluribus.parallel.meeting import Address, join
from pluribus.parallel.messages import RANK_PROTOCOL_VERSION, JoinRank
from pluribus.parallel.rank import ENDED, LEFT_ALONE
from pluribus.parallel.secret import WrongSecretError

if TYPE_CHECKING:
    from types import FrameType

    from pluribus.parallel.torchrun import Environment

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_END = 2.0
"""That a rank may take once its first rank has left it."""
FIRST_MACHINE = 0

logger = logging.getLogger(__name__)


class Follower:
    """Comes to every engine of the service and is the same rank for each.

    Args:
        environment: which rank this is, and where torchrun's store is.
        secret: what all ranks know.
        timeout: seconds after which a machine that cannot be reached is given up.
    """

    def __init__(self, environment: Environment, secret: bytes, timeout: float) -> None:
        self._environment = environment
        self._secret = secret
        self._timeout = timeout
        self._board = Board(environment.host, environment.port)
        self._is_leaving = False
        self._past = ""

    def run(self) -> int:
        """Be a rank until the service ends; return the exit code: 0 if it ended in good order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        try:
            return self._follow()
        except EndOfService:
            return 0
        except ConnectionRefusedError:
            self._give_up("the service has ended")
        except OSError as error:
            self._give_up(f"it has not been reached for {self._timeout:g} s: {error}")
        except WrongSecretError as error:
            self._give_up(str(error))
        return 1

    def _follow(self) -> int:
        while not self._is_leaving:
            address = self._await_address()
            if address is not None and (sock := self._join(address)) is not None:
                with sock:
                    code = self._be_a_rank(sock)
                if code == ENDED:
                    return 0
                self._past = "lost the first rank" if code == LEFT_ALONE else epitaph(code)
                logger.warning("rank %d %s; it comes again", self._environment.rank, self._past)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return 1

    def _be_a_rank(self, sock: socket.socket) -> int:
        """Run a rank's process to its end; return its exit code."""
        process = spawn_rank(sock)
        line, end = select.poll(), os.pidfd_open(process.pid)
        line.register(end, select.POLLIN)
        line.register(sock, select.POLLRDHUP)
        has_ended = end in dict(line.poll())
        os.close(end)
        if has_ended:
            return process.wait()
        # The first rank is gone, or has given this one up; one that is stopped cannot see that.
        try:
            return process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return LEFT_ALONE

    def _await_address(self) -> Address | None:
        """Return where the first rank waits, if it has said so.

        Raises:
            EndOfService: the service has ended.
            OSError: the first machine does not answer any more.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return self._board.read()
            except ConnectionRefusedError:
                raise
            except OSError:
                if time.monotonic() > deadline or self._is_leaving:
                    raise
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def _join(self, address: Address) -> socket.socket | None:
        """Return the connection to the first rank, or None where it is not there now."""
        place = JoinRank(
            RANK_PROTOCOL_VERSION,
            self._environment.rank,
            self._environment.local_rank,
            socket.gethostname(),
            self._past,
        )
        try:
            return join(address, self._secret, place, self._timeout)
        except OSError:
            return None  # an engine that has died; the next one says where it is

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """Take a signal: the service decides when its own machine's ranks may end."""
        self._is_leaving = True
        if self._environment.node != FIRST_MACHINE:
            logger.warning("rank %d was told to end", self._environment.rank)
            sys.exit(128 + number)  # the rank's process ends with this one

    def _give_up(self, reason: str) -> None:
        where = f"{self._environment.host}:{self._environment.port}"
        rank = self._environment.rank
        logger.error("rank %d ends: the first machine, %s: %s", rank, where, reason)
