"""Ranks on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pluribus.errors import ConfigError
from pluribus.interfaces import Executor, Launcher


@dataclass(frozen=True, slots=True)
class LocalLauncherConfig:
    """Nothing to set."""


class LocalLauncher(Launcher):
    """Runs the only rank where the engine is."""

    Config = LocalLauncherConfig

    def __init__(self, config: LocalLauncherConfig) -> None:
        self.config = config

    def check(self, world_size: int) -> None:
        if world_size != 1:
            raise ConfigError(
                f"launcher=local runs one rank and this configuration has {world_size}; "
                "choose parallel=single, or another launcher"
            )

    def launch(self, start_rank: Callable[[int], Executor], world_size: int) -> Executor:
        self.check(world_size)
        return start_rank(0)
