"""The processes of ranks on a Ray cluster: a placement group, and an actor for each rank.

An actor only holds its rank's place: it starts the rank's process, which connects to the first
rank, and waits for its end. Whoever ends the actor, the machine included, ends the rank.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pluribus.errors import ConfigError
from pluribus.parallel.crew import Member, Roster
from pluribus.parallel.local import epitaph, spawn_rank
from pluribus.parallel.meeting import Address, Meeting, join
from pluribus.parallel.messages import RANK_PROTOCOL_VERSION, JoinRank
from pluribus.parallel.network import NetworkCrew
from pluribus.parallel.ray_launcher import RayLauncherConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
SECONDS_TO_CONNECT = 5.0
SECONDS_TO_TELL = 1.0
"""After its channel has closed, an actor has that long to say why."""


class RankActor:
    """Holds the place of one rank; runs in a process of Ray's."""

    def visible_devices(self) -> str | None:
        """Return the devices that Ray has set aside for this place."""
        return os.environ.get(VISIBLE)

    def run(self, address: Address, secret: bytes, rank: int, timeout: float) -> str:
        """Be the rank until its end, and say what end it was."""
        place = JoinRank(RANK_PROTOCOL_VERSION, rank, 0, socket.gethostname(), "")
        with join(address, secret, place, timeout) as sock:
            process = spawn_rank(sock)
        return epitaph(process.wait())


class RayCrew(NetworkCrew):
    """Ranks that Ray starts, on whichever machines have room.

    Args:
        config: the launcher's.
        world_size: ranks in all.
        device: ``cpu``, ``cuda`` or ``auto``; cuda where the cluster has any.

    Raises:
        ConfigError: there is no such cluster.
    """

    def __init__(self, config: RayLauncherConfig, world_size: int, device: str) -> None:
        _connect(config.address)
        # A secret for one life: Ray hands it to the actors, nobody else sees it.
        self._secret = secrets.token_bytes()
        meeting = Meeting(ray.util.get_node_ip_address(), 0, self._secret)
        super().__init__(meeting, world_size, config.timeout)
        self._config = config
        has_gpus = device == "cuda" or (device == "auto" and "GPU" in ray.cluster_resources())
        self._gpus_per_rank = 1 if has_gpus else 0
        self._runs: dict[int, Any] = {}

    def gather(self, lose: Callable[[str], None]) -> Roster:
        group = self._reserve()
        # The first rank is in this process, on devices that an actor keeps for it.
        self._keeper = self._actor(group, 0)
        visible = ray.get(self._keeper.visible_devices.remote())
        if self._gpus_per_rank and visible is not None:
            os.environ[VISIBLE] = visible
        address = self._meeting.address
        for rank in range(1, self._world_size):
            actor = self._actor(group, rank)
            self._runs[rank] = actor.run.remote(address, self._secret, rank, self._timeout)
        threading.Thread(target=self._watch, args=(lose,), name="ray-watch", daemon=True).start()
        return super().gather(lose)

    def epitaph(self, member: Member) -> str:
        return _outcome(self._runs[member.seat.rank]) or super().epitaph(member)

    def dismiss(self) -> None:
        super().dismiss()
        ray.shutdown()  # and with this driver go its actors and its placement group

    def _reserve(self) -> PlacementGroup:
        """Return places for all ranks, the first one on this machine.

        Raises:
            TimeoutError: the cluster has no room.
        """
        bundle = {"CPU": self._config.cpus_per_rank, "GPU": self._gpus_per_rank}
        bundle = {name: amount for name, amount in bundle.items() if amount}
        here = {f"node:{self._meeting.address.host}": 0.001}
        group = placement_group([bundle | here] + [bundle] * (self._world_size - 1), "PACK")
        if not group.wait(self._timeout):
            raise TimeoutError(
                f"Ray has found no room for {self._world_size} ranks of {bundle}, the first one on "
                f"this machine, within launcher.timeout={self._timeout:g} seconds; free are "
                f"{ray.available_resources()}"
            )
        return group

    def _actor(self, group: PlacementGroup, rank: int) -> Any:
        return (
            ray.remote(RankActor)
            .options(
                num_cpus=self._config.cpus_per_rank,
                num_gpus=self._gpus_per_rank,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=rank
                ),
            )
            .remote()
        )

    def _watch(self, lose: Callable[[str], None]) -> None:
        """Wait, as Ray does, for the end of any actor."""
        ranks = {run: rank for rank, run in self._runs.items()}
        [ended], _ = ray.wait(list(ranks), num_returns=1)
        lose(f"rank {ranks[ended]} {_outcome(ended)}")


def _outcome(run: Any) -> str:
    """Return how a rank has ended; empty if that is not known yet."""
    try:
        return str(ray.get(run, timeout=SECONDS_TO_TELL))
    except GetTimeoutError:
        return ""
    except RayError as error:
        return f"was lost: {' '.join(str(error).split())}"


def _connect(address: str) -> None:
    """Become a driver of the cluster at ``address``.

    Raises:
        ConfigError: there is none.
    """
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray would try for minutes
            socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"launcher.address={address}: no Ray cluster there; start one with: ray start --head, "
            f"and on every other machine: ray start --address=HOST:PORT ({error})"
        ) from error
    logging.setLogRecordFactory(logging.LogRecord)  # Ray's adds fields to what others log
    # Ray has taken the signals that whoever started the engine handles for it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
