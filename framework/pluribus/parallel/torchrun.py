"""Ranks that torchrun starts: the same command on every machine.

The process of rank 0 is the service, whose engine holds rank 0 of the network; every other
process follows it. Where the engine waits for them is told through torchrun's own store.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pluribus.errors import ConfigError
from pluribus.interfaces import Executor, Launcher, Seat
from pluribus.parallel.secret import secret_from_environment

if TYPE_CHECKING:
    from pluribus.parallel.board import Board

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchrunLauncherConfig:
    """Settings of ``launcher=torchrun``.

    Attributes:
        host: the address on which the first rank waits for the others; None for the one by which
            its machine sees MASTER_ADDR.
        port: 0 for one that is free.
        timeout: seconds that ranks look for each other before they give up.
    """

    host: str | None = None
    port: int = 0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"launcher.port must be from 0 to 65535, got {self.port}")


def check_timeout(timeout: float) -> None:
    """Raise ConfigError if this is no time to wait."""
    if not 1 <= timeout < float("inf"):
        raise ConfigError(f"launcher.timeout must be at least 1 second, got {timeout}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What torchrun tells a process that it starts.

    Attributes:
        rank, world_size: among all processes.
        local_rank: among those of its machine.
        node: number of its machine.
        host, port: of torchrun's store.
    """

    rank: int
    world_size: int
    local_rank: int
    node: int
    host: str
    port: int

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Environment:
        """Return what the environment variables say.

        Raises:
            ConfigError: torchrun has not set them.
        """
        if missing := [name for name in VARIABLES if name not in variables]:
            raise ConfigError(
                f"launcher=torchrun: {', '.join(missing)} not set, as torchrun does; start it on "
                "every machine as: torchrun --nnodes=N --node-rank=I --master-addr=ADDRESS "
                "--nproc-per-node=M -m pluribus serve launcher=torchrun ..."
            )
        return cls(
            rank=int(variables["RANK"]),
            world_size=int(variables["WORLD_SIZE"]),
            local_rank=int(variables["LOCAL_RANK"]),
            node=int(variables["GROUP_RANK"]),
            host=variables["MASTER_ADDR"],
            port=int(variables["MASTER_PORT"]),
        )


class TorchrunLauncher(Launcher):
    """Runs the service in the first of torchrun's processes and a rank in every other."""

    Config = TorchrunLauncherConfig

    def __init__(self, config: TorchrunLauncherConfig) -> None:
        self.config = config

    @property
    def is_first(self) -> bool:
        return Environment.read(os.environ).rank == 0

    def check(self, world_size: int) -> None:
        started = Environment.read(os.environ).world_size
        if started != world_size:
            raise ConfigError(
                f"launcher=torchrun: torchrun has started {started} processes (nnodes times "
                f"nproc-per-node), and this parallelism has {world_size} ranks: change either"
            )
        if world_size > 1:
            secret_from_environment()

    def run(self, service: Callable[[], int]) -> int:
        from pluribus.engine.process import signal_at_the_end_of_the_parent

        environment = Environment.read(os.environ)
        if not self.is_first:
            from pluribus.parallel.follower import Follower

            signal_at_the_end_of_the_parent(signal.SIGKILL)
            return Follower(environment, secret_from_environment(), self.config.timeout).run()
        signal_at_the_end_of_the_parent(signal.SIGTERM)
        code = service()
        if code == 0 and environment.world_size > 1:
            _board(environment).tell_the_end()
        return code

    def launch(
        self,
        start_rank: Callable[[Seat], Executor],
        config: str,
        world_size: int,
        fail: Callable[[str], None],
    ) -> Executor:
        environment = Environment.read(os.environ)
        if environment.rank > 0:
            raise ConfigError(
                f"launcher=torchrun: process {environment.rank} of torchrun's is a rank of the "
                "first one's service, and cannot start an engine; use pluribus serve"
            )
        if world_size == 1:
            return start_rank(Seat())
        from pluribus.parallel.addresses import address_towards
        from pluribus.parallel.meeting import Meeting
        from pluribus.parallel.network import NetworkCrew
        from pluribus.parallel.ranks import RankProcesses

        host = self.config.host or address_towards(environment.host)
        meeting = Meeting(host, self.config.port, secret_from_environment())
        _board(environment).tell_address(meeting.address)
        crew = NetworkCrew(meeting, world_size, self.config.timeout, environment.local_rank)
        return RankProcesses(start_rank, config, crew, fail)


def _board(environment: Environment) -> Board:
    from pluribus.parallel.board import Board

    return Board(environment.host, environment.port)
