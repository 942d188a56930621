"""Layers spread over stages, each stage's layers split over several ranks."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.parallel.grid import Grid, check_size


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridParallelismConfig:
    """Settings of ``parallel=hybrid``.

    Attributes:
        tensor_size: ranks that share each layer.
        pipeline_size: stages.
    """

    tensor_size: int = 2
    pipeline_size: int = 2

    def __post_init__(self) -> None:
        check_size("parallel.tensor_size", self.tensor_size)
        check_size("parallel.pipeline_size", self.pipeline_size)


class HybridParallelism(Grid):
    """Stages of several ranks; each rank sends to the one with its tensor rank in the next."""

    Config = HybridParallelismConfig
    tensor_setting = "parallel.tensor_size"
    pipeline_setting = "parallel.pipeline_size"

    def __init__(self, config: HybridParallelismConfig) -> None:
        self.config = config

    @property
    def tensor_size(self) -> int:
        return self.config.tensor_size

    @property
    def num_stages(self) -> int:
        return self.config.pipeline_size
