"""What fits where: each rank's memory, and how many generations run at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pluribus.generation import Generation, SamplingParams
from pluribus.interfaces import KVShape
from pluribus.memory import Room, kv_share
from pluribus.plan.demand import Demand, demand, num_heads
from pluribus.plan.devices import Site
from pluribus.plan.outline import Outline
from pluribus.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's memory.

    Attributes:
        demand: what it needs.
        room: what is left for keys and values.
        kv: bytes that their store allocates; 0 where the plan does not fit.
        memory: bytes of the device that are this rank's to use.
    """

    demand: Demand
    room: Room
    kv: int
    memory: int

    @property
    def total(self) -> int:
        """Bytes that the rank takes."""
        return self.demand.weights + self.demand.work + self.demand.runtime + self.kv


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A configuration on devices.

    Attributes:
        ranks: of one replica; the others' take as much.
        shape: of the first rank's KV store, None where the plan does not fit.
        problem: why it does not fit, None where it does.
    """

    outline: Outline
    site: Site
    ranks: tuple[RankPlan, ...]
    shape: KVShape | None
    problem: str | None

    @property
    def fits(self) -> bool:
        """Whether at least one generation of full length can run."""
        return self.problem is None

    @property
    def num_devices(self) -> int:
        """Devices that all replicas take together."""
        return 1 if self.site.device.type == "cpu" else self.outline.num_ranks

    @property
    def total(self) -> int:
        """Bytes that all replicas take together."""
        return self.outline.num_replicas * sum(rank.total for rank in self.ranks)

    @property
    def num_tokens(self) -> int:
        """Tokens of keys and values that every rank has room for."""
        return self.outline.kv_cache.capacity(self.shape) if self.shape else 0

    def num_generations(self, length: int) -> int:
        """Return how many generations of so many tokens run at once in a replica."""
        if self.shape is None:
            return 0
        # Who counts in service counts here: no rule of a cache is told twice.
        ledger = self.outline.kv_cache.ledger(self.shape)
        for number in range(self.outline.num_slots):
            prompt, answer = max(1, length // 2), max(1, length - length // 2)
            generation = Generation(
                id=number, prompt=(number,) * prompt, params=SamplingParams(max_tokens=answer)
            )
            if not ledger.try_reserve(generation):
                return number
        return self.outline.num_slots

    def seconds_to_load(self, disk: int) -> float:
        """Return how long loading takes, about, from a disk that reads so many bytes a second.

        Ranks read together and then copy together; a host's copies share its memory. What one
        replica has read is in the host's memory for the others.
        """
        blueprint, device = self.outline.blueprint, self.site.device
        stored = sum(blueprint.stored_bytes(rank.demand.share) for rank in self.ranks)
        weights = [rank.demand.weights for rank in self.ranks]
        on_host = self.outline.num_replicas * sum(weights)
        copied = on_host if device.type == "cpu" else max(weights)
        return stored / disk + copied / device.copy_speed


def make_plan(outline: Outline, site: Site) -> Plan:
    """Return what the outline takes on the site, and whether it fits.

    Raises:
        ConfigError: the network cannot be split so.
    """
    spec = outline.blueprint.spec
    outline.parallelism.check(spec)
    world_size = outline.parallelism.world_size
    demands = [demand(outline, rank, site.device.type) for rank in range(world_size)]
    memory = site.device.memory // site.num_sharing(outline.num_ranks)
    rooms = [_room(outline, site, each, memory) for each in demands]
    problem = _problem(outline, site, demands, rooms, memory)
    num_tokens = min(room.num_tokens for room in rooms)
    shapes = [kv_shape(outline, each, num_tokens) for each in demands]
    ranks = [
        RankPlan(
            demand=each,
            room=room,
            kv=0 if problem else outline.kv_cache.capacity(shape) * each.kv_bytes_per_token,
            memory=memory,
        )
        for each, room, shape in zip(demands, rooms, shapes, strict=True)
    ]
    return Plan(
        outline=outline,
        site=site,
        ranks=tuple(ranks),
        shape=None if problem else shapes[0],
        problem=problem,
    )


def shortage(outline: Outline, free: Sequence[int], device_type: str) -> str | None:
    """Say which rank's device is too small for its part; None where each has room.

    Args:
        free: bytes of each rank's device that are its to use before it loads.
        device_type: of all of them.
    """
    for rank, there_is in enumerate(free):
        needs = demand(outline, rank, device_type)
        if needs.weights + needs.work > there_is:
            return (
                f"rank {rank} needs {format_bytes(needs.weights)} for weights and "
                f"{format_bytes(needs.work)} of work space, and its device has "
                f"{format_bytes(there_is)} free"
            )
        left, where = there_is - needs.weights, f"rank {rank}'s device"
        room = find_room(outline, needs, device_type=device_type, where=where, free=left)
        if room.problem:
            return room.problem
    return None


def find_room(outline: Outline, needs: Demand, *, device_type: str, where: str, free: int) -> Room:
    """Return the room for a rank's keys and values.

    Args:
        free: bytes that are its to use once its weights are there.
        where: the device, for messages.
    """
    max_length = outline.blueprint.spec.max_length
    return Room(
        setting=outline.kv_cache.memory,
        where=where,
        free=free,
        work=needs.work,
        share=kv_share(device_type),
        bytes_per_token=needs.kv_bytes_per_token,
        wanted=outline.num_slots * max_length,
        needed=max_length,
    )


def kv_shape(outline: Outline, needs: Demand, num_tokens: int) -> KVShape:
    """Return the shape of a rank's KV store that is to hold so many tokens."""
    spec = outline.blueprint.spec
    return KVShape(
        num_layers=len(needs.share.layers),
        num_heads=num_heads(spec, needs.share),
        head_dim=spec.head_dim,
        num_slots=outline.num_slots,
        max_length=spec.max_length,
        num_tokens=num_tokens,
    )


def _room(outline: Outline, site: Site, needs: Demand, memory: int) -> Room:
    device = site.device
    free = memory - needs.runtime - needs.weights
    return find_room(outline, needs, device_type=device.type, where=site.one, free=free)


def _problem(
    outline: Outline, site: Site, demands: list[Demand], rooms: list[Room], memory: int
) -> str | None:
    num_ranks = outline.num_ranks
    if site.device.type == "cuda" and num_ranks > site.count:
        there = "is one" if site.count == 1 else f"are {site.count}"
        of = f" of {outline.num_replicas} replicas" if outline.num_replicas > 1 else ""
        return f"{num_ranks} ranks{of} need a device each, and there {there}"
    largest = max(demands, key=lambda each: each.weights + each.work + each.runtime)
    if largest.weights + largest.work + largest.runtime > memory:
        of = f"a rank's part of {site.one}" if site.num_sharing(num_ranks) > 1 else site.one
        return (
            f"{format_bytes(largest.weights)} of weights and "
            f"{format_bytes(largest.work + largest.runtime)} of work space and runtime are more "
            f"than {of} has, {format_bytes(memory)}"
        )
    return next((room.problem for room in rooms if room.problem), None)
