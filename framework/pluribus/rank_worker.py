"""One rank's worker: from parts and a seat to what runs steps, in the rank's own process."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING

from pluribus.assembly import Parts
from pluribus.errors import ConfigError
from pluribus.interfaces import (
    Executor,
    KVShape,
    KVStore,
    ModelSpec,
    Network,
    Place,
    Progress,
    Seat,
)
from pluribus.interfaces.device_store import DeviceKVStore
from pluribus.memory import free_memory
from pluribus.phases import Phases, told
from pluribus.plan.demand import Demand, demand
from pluribus.plan.fit import find_room, kv_shape, shortage
from pluribus.units import format_bytes

if TYPE_CHECKING:
    import torch

    from pluribus.worker import Worker

logger = logging.getLogger(__name__)


def start_rank(parts: Parts, progress: Progress, seat: Seat) -> Executor:
    """Return one rank's worker, in the rank's process, having met the others."""
    import torch

    from pluribus.plan.measure import Meter

    phases, spec = Phases(), parts.model.spec
    num_local = seat.num_local * parts.replicas.replicas
    device = _device(parts.device, parts.replicas.replica * seat.num_local + seat.local_rank)
    _prepare(device, num_local)
    dtype = getattr(torch, parts.outline.dtype_on(device.type))
    needs = demand(parts.outline, seat.rank, device.type)
    meter = Meter(device)
    meter.note_taken("context", needs.context)
    place = parts.parallelism.place(needs.share, device, seat.rendezvous)
    _check_fit(parts, num_local, device)
    meter.note_taken("collectives", needs.collectives)
    phases.end("device")
    with torch.inference_mode():
        network = parts.model.load(place, device, dtype, progress)
        meter.note("weights", needs.weights)
        phases.end("weights")
        shape = _kv_shape(parts, needs, num_local, device)
        store = parts.kv_cache.store(shape, device, dtype)
        meter.note("KV", parts.kv_cache.capacity(shape) * needs.kv_bytes_per_token)
        phases.end("KV")
    worker = _worker(network, store, spec, shape, device, place, dtype, needs.num_tokens)
    meter.note_taken("graphs", needs.graphs + needs.libraries)
    phases.split("kernels", worker.kernel_seconds)
    phases.end("graphs")
    worker.phases = phases.seconds
    logger.info("rank %d on %s: %s", seat.rank, device, meter.report(needs.work))
    logger.info("rank %d is %s", seat.rank, told(phases.seconds))
    return worker


def _prepare(device: torch.device, num_local: int) -> None:
    """Set what is the whole process's."""
    import torch

    _share_processors(num_local)
    if device.type == "cuda":
        from pluribus.kernels import preparing

        preparing.check()
        torch.cuda.set_device(device)  # Triton and graphs know no other
    # cuDNN's attention plans anew for every length: 40 ms a step on an H100, others take 2.
    torch.backends.cuda.enable_cudnn_sdp(False)


def _worker(
    network: Network,
    store: KVStore,
    spec: ModelSpec,
    shape: KVShape,
    device: torch.device,
    place: Place,
    dtype: torch.dtype,
    most_tokens: int,
) -> Worker:
    if isinstance(store, DeviceKVStore):
        from pluribus.cuda.stage import CudaStageWorker
        from pluribus.cuda.worker import CudaWorker

        if place.ring is None:
            return CudaWorker(network, store, spec, shape, device, most_tokens)
        return CudaStageWorker(network, store, spec, shape, device, place, dtype)
    from pluribus import worker
    from pluribus.stages import stage_of

    join = partial(stage_of, place, hidden_size=spec.hidden_size, dtype=dtype)
    return worker.Worker(network, store, spec, shape, device, join)


def _check_fit(parts: Parts, num_local: int, device: torch.device) -> None:
    """Refuse what does not fit on every rank's own device, before any of them loads."""
    from pluribus.parallel.agreement import everybodys

    everybodys(0, device)  # NCCL takes its memory at the first collective: it is not free
    free = everybodys(_free(device, num_local), device)
    if problem := shortage(parts.outline, free, device.type):
        raise ConfigError(
            f"{parts.model.spec.name} does not fit: {problem} (pluribus plan has the details)"
        )


def _free(device: torch.device, num_local: int) -> int:
    """Return the bytes that are one rank's to use."""
    return free_memory(device) // (num_local if device.type == "cpu" else 1)


def _kv_shape(parts: Parts, needs: Demand, num_local: int, device: torch.device) -> KVShape:
    from pluribus.parallel.agreement import smallest

    outline, max_length = parts.outline, parts.model.spec.max_length
    free = _free(device, num_local)
    room = find_room(outline, needs, device_type=device.type, where=str(device), free=free)
    if room.problem:
        raise ConfigError(room.problem)
    num_tokens = smallest(room.num_tokens, device)
    logger.info(
        "KV cache on %s: %d tokens, %d generations of full length, %s",
        device,
        num_tokens,
        num_tokens // max_length,
        format_bytes(num_tokens * needs.kv_bytes_per_token),
    )
    return kv_shape(outline, needs, num_tokens)


def _share_processors(num_sharing: int) -> None:
    """Let all ranks on this host compute at once, where nothing else says how."""
    import torch

    if num_sharing > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_sharing))


def _device(setting: str, index: int) -> torch.device:
    """Return a device, ``index`` counted over the ranks of all replicas."""
    import torch

    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device={setting}: a rank needs CUDA device {index}, and torch sees "
            f"{torch.cuda.device_count()} here; choose device=cpu, a smaller parallel.size or "
            "fewer parallel.replicas"
        )
    return torch.device("cuda", index)
