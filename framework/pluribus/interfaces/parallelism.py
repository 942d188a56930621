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
    import torch

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
    def place(self, rank: int, device: torch.device, rendezvous: str) -> Place:
        """Return this rank's place, having met the other ranks; called in the rank's process.

        Args:
            rank: counted from 0.
            device: where this rank's tensors are, which decides how ranks talk.
            rendezvous: where they meet, as torch.distributed's ``init_method``; empty for a
                single rank.
        """


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
    def launch(
        self,
        start_rank: Callable[[int, str], Executor],
        config: str,
        world_size: int,
        fail: Callable[[str], None],
    ) -> Executor:
        """Start all ranks; return the executor that drives them.

        Args:
            start_rank: builds a rank in this process, given its number and the rendezvous.
            config: the whole configuration, in YAML, for ranks elsewhere.
            world_size: ranks in all.
            fail: to be called, from any thread, with what is wrong once a rank is lost; the
                engine cannot go on.
        """
