"""Ranks that Ray places on the machines of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from omegaconf import OmegaConf

from pluribus.errors import ConfigError
from pluribus.interfaces import Executor, Launcher, Seat
from pluribus.parallel.torchrun import check_timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class RayLauncherConfig:
    """Settings of ``launcher=ray``.

    Attributes:
        address: of the cluster's head, as ``ray start`` prints it; ``auto`` for the cluster that
            this machine belongs to.
        cpus_per_rank: that Ray sets aside for each.
        timeout: seconds for Ray to find room for all ranks, and then for them to come.
    """

    address: str = "auto"
    cpus_per_rank: float = 1.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        if not 0 < self.cpus_per_rank < float("inf"):
            raise ConfigError(f"launcher.cpus_per_rank must be above 0, got {self.cpus_per_rank}")


class RayLauncher(Launcher):
    """Runs the first rank where the engine is; Ray finds places for the others, and watches them.

    Steps do not go through Ray: each rank has a connection to the first.
    """

    Config = RayLauncherConfig

    def __init__(self, config: RayLauncherConfig) -> None:
        self.config = config

    def check(self, world_size: int) -> None:
        if find_spec("ray") is None:
            raise ConfigError(
                "launcher=ray needs Ray, which is not installed: pip install 'pluribus[ray]'"
            )

    def launch(
        self,
        start_rank: Callable[[Seat], Executor],
        config: str,
        world_size: int,
        fail: Callable[[str], None],
    ) -> Executor:
        if world_size == 1:
            return start_rank(Seat())
        from pluribus.parallel.ranks import RankProcesses
        from pluribus.parallel.ray_crew import RayCrew

        device = OmegaConf.select(OmegaConf.create(config), "device")
        crew = RayCrew(self.config, world_size, device)
        return RankProcesses(start_rank, config, crew, fail)
