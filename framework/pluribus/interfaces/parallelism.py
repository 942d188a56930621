"""Which rank holds what, where ranks run, and how a step reaches them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pluribus.interfaces.kv_cache import KVShape
from pluribus.interfaces.model import ModelSpec
from pluribus.step import Step, StepResult

if TYPE_CHECKING:
    from pluribus.parallel.group import TensorParallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank's place among all.

    Attributes:
        rank: counted from 0.
        tensor: its tensor-parallel group: who shares its layers.
    """

    rank: int
    tensor: TensorParallel


class Parallelism(ABC):
    """How the network is split. Constructing it must not import torch."""

    Config: ClassVar[type[Any]]
    """Dataclass of the settings in the ``parallel`` section, less ``name``."""

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @property
    @abstractmethod
    def world_size(self) -> int:
        """Ranks in all."""

    @property
    @abstractmethod
    def tensor_size(self) -> int:
        """Ranks that share each layer."""

    @abstractmethod
    def check(self, spec: ModelSpec) -> None:
        """Raise ConfigError if ``spec`` cannot be split so, before any device is touched."""

    @abstractmethod
    def place(self, rank: int) -> Place:
        """Return this rank's place, having joined its groups; called in the rank's process."""


class Executor(ABC):
    """Runs steps on all ranks."""

    @property
    @abstractmethod
    def kv_shape(self) -> KVShape:
        """How large every rank's KV store is; where ranks differ, the smallest."""

    @abstractmethod
    def submit(self, step: Step) -> Callable[[], StepResult]:
        """Start a step and return a function that waits for its result.

        Steps run in the order submitted. Devices that run ahead return at once.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Stop every rank and give back its memory."""


class Launcher(ABC):
    """Where ranks run and who watches them. Constructing it must not import torch."""

    Config: ClassVar[type[Any]]
    """Dataclass of the settings in the ``launcher`` section, less ``name``."""

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def check(self, world_size: int) -> None:
        """Raise ConfigError if this many ranks cannot be launched."""

    @abstractmethod
    def launch(self, start_rank: Callable[[int], Executor], world_size: int) -> Executor:
        """Start all ranks with ``start_rank(rank)``; return the executor that drives them."""
