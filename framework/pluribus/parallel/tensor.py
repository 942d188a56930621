"""Every layer split over all ranks."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.parallel.grid import Grid, check_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallelismConfig:
    """Settings of ``parallel=tensor``.

    Attributes:
        size: ranks that share each layer.
    """

    size: int = 2

    def __post_init__(self) -> None:
        check_size("parallel.size", self.size)


class TensorParallelism(Grid):
    """One stage that all ranks share."""

    Config = TensorParallelismConfig

    def __init__(self, config: TensorParallelismConfig) -> None:
        self.config = config

    @property
    def tensor_size(self) -> int:
        return self.config.size

    @property
    def num_stages(self) -> int:
        return 1
