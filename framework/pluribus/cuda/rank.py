"""What captured work is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pluribus.cuda.arrival import Arrivals
from pluribus.cuda.graphs import GraphPool
from pluribus.cuda.sampler import CudaSampler
from pluribus.cuda.state import CudaSlotState
from pluribus.head import Head
from pluribus.interfaces import Network
from pluribus.interfaces.device_store import DeviceKVStore


@dataclass(frozen=True, slots=True)
class Rank:
    """One rank's parts, and what its graphs share."""

    network: Network
    store: DeviceKVStore
    state: CudaSlotState
    sampler: CudaSampler
    head: Head
    device: torch.device
    pool: GraphPool
    arrivals: Arrivals
