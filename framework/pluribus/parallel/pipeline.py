"""Layers spread over stages, a rank each."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.parallel.grid import Grid, check_size


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineParallelismConfig:
    """Settings of ``parallel=pipeline``.

    Attributes:
        size: stages.
    """

    size: int = 2

    def __post_init__(self) -> None:
        check_size("parallel.size", self.size)


class PipelineParallelism(Grid):
    """Whole layers on every rank; what leaves one rank's last layer enters the next one's first."""

    Config = PipelineParallelismConfig

    def __init__(self, config: PipelineParallelismConfig) -> None:
        self.config = config

    @property
    def tensor_size(self) -> int:
        return 1

    @property
    def num_stages(self) -> int:
        return self.config.size
