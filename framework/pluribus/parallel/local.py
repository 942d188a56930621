"""Ranks on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pluribus.interfaces import Executor, Launcher


@dataclass(frozen=True, slots=True)
class LocalLauncherConfig:
    """Nothing to set."""


class LocalLauncher(Launcher):
    """Runs the first rank where the engine is, and every other as a process beside it."""

    Config = LocalLauncherConfig

    def __init__(self, config: LocalLauncherConfig) -> None:
        self.config = config

    def check(self, world_size: int) -> None:
        """Accept any number: whether there are devices for all shows when they start."""

    def launch(
        self,
        start_rank: Callable[[int, str], Executor],
        config: str,
        world_size: int,
        fail: Callable[[str], None],
    ) -> Executor:
        if world_size == 1:
            return start_rank(0, "")
        from pluribus.parallel.ranks import RankProcesses

        return RankProcesses(start_rank, config, world_size, fail)
