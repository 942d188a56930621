"""Which rank holds what, where ranks run, and how a step reaches them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from pluribus.interfaces.kv_cache import KVShape
from pluribus.interfaces.model import ModelSpec
from pluribus.spans import even_span
from pluribus.step import Step, StepResult

if TYPE_CHECKING:
    import torch

    from pluribus.parallel.group import TensorParallel
    from pluribus.parallel.ring import Ring


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one rank holds of the network, in plain numbers.

    Attributes:
        rank: among all, counted from 0.
        layers: the decoder layers it has a part of, side by side.
        stage, num_stages: its place in the pipeline; the first stage embeds, the last has the head.
        tensor_rank, tensor_size: its place among the ranks that share each of its layers.
    """

    rank: int
    layers: range
    stage: int = 0
    num_stages: int = 1
    tensor_rank: int = 0
    tensor_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it turns tokens into what the first layer takes."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether it turns what the last layer returns into logits."""
        return self.stage == self.num_stages - 1

    def span(self, total: int) -> tuple[int, int]:
        """Return where its part begins and ends of what its tensor-parallel group splits."""
        return even_span(total, self.tensor_rank, self.tensor_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank's share, and the ranks that it works with.

    Attributes:
        share: what it holds.
        tensor: its tensor-parallel group: who shares its layers.
        ring: the stages before and after its own; None where one stage has all layers.
    """

    share: Share
    tensor: TensorParallel
    ring: Ring | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where one rank runs, and where it meets the others.

    Attributes:
        rank: among all, counted from 0.
        local_rank: among the ranks that see the same devices; it takes the one of this number.
        num_local: ranks on its machine, which share the memory of the host.
        rendezvous: where they meet, as torch.distributed's ``init_method``; empty for a single
            rank.
    """

    rank: int = 0
    local_rank: int = 0
    num_local: int = 1
    rendezvous: str = ""


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

    @abstractmethod
    def check(self, spec: ModelSpec) -> None:
        """Raise ConfigError if ``spec`` cannot be split so, before any device is touched."""

    @abstractmethod
    def share(self, rank: int, spec: ModelSpec) -> Share:
        """Return what a rank holds, touching no device."""

    @abstractmethod
    def place(self, share: Share, device: torch.device, rendezvous: str) -> Place:
        """Return a rank's place, having met the other ranks; called in the rank's process.

        Args:
            share: what it holds.
            device: where this rank's tensors are, which decides how ranks talk.
            rendezvous: where they meet, as torch.distributed's ``init_method``; empty for a
                single rank.
        """


class Executor(ABC):
    """Runs steps on all ranks.

    Attributes:
        phases: seconds that each part of its start has taken, as far as it is known.
    """

    phases: Mapping[str, float] = MappingProxyType({})

    @property
    @abstractmethod
    def kv_shape(self) -> KVShape:
        """How large every rank's KV store is; where ranks differ, the smallest."""

    @property
    def lookahead(self) -> int:
        """How many steps are best under way before the result of the first is read."""
        return 0

    @property
    def max_passes(self) -> int:
        """How many passes a step may have at this moment; see Step."""
        return 1

    @property
    def seconds_waited(self) -> float:
        """Seconds that the host has waited for results so far, where that can be told."""
        return 0.0

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
    is_local: ClassVar[bool] = False
    """Whether all ranks run on this machine: only then can its devices be counted before they
    start, and shared out among replicas."""

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @property
    def is_first(self) -> bool:
        """Whether ``run`` runs the service in this process."""
        return True

    @abstractmethod
    def check(self, world_size: int) -> None:
        """Raise ConfigError if this many ranks cannot be launched."""

    def run(self, service: Callable[[], int]) -> int:
        """Run ``service`` and return its exit code, in a process that a person has started.

        A launcher for which the same command is started several times runs it in one of these
        processes, and in each of the others a rank, until the service ends.
        """
        return service()

    @abstractmethod
    def launch(
        self,
        start_rank: Callable[[Seat], Executor],
        config: str,
        world_size: int,
        fail: Callable[[str], None],
    ) -> Executor:
        """Start all ranks, in the engine's process; return the executor that drives them.

        Args:
            start_rank: builds a rank in this process.
            config: the whole configuration, in YAML, for ranks elsewhere.
            world_size: ranks in all.
            fail: to be called, from any thread, with what is wrong once a rank is lost; the
                engine cannot go on.
        """
