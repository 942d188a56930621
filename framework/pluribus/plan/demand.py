"""What each rank needs, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.interfaces import ModelSpec, Share
from pluribus.plan.outline import Outline
from pluribus.units import item_size

CUDA_RUNTIME = 704 * 2**20
"""A CUDA context with torch's and cuBLAS's kernels in it: 693 MiB on an H100."""
COLLECTIVES = 768 * 2**20
"""What NCCL keeps on each device to talk to the others: an estimate."""
CPU_RUNTIME = 256 * 2**20
"""A process that has imported torch."""
BYTES_PER_LOGIT = 20
"""Of float32, one each: a copy for penalties, probabilities, those likelier than a draw (2), and
what the next draw is from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The memory that one rank needs, in bytes.

    Attributes:
        share: what it holds of the network.
        weights: exactly.
        kv_bytes_per_token: keys and values of one token, exactly.
        activations: of the network, in the largest step.
        attention: one text's keys and values in one piece, and the mask of a chunk of it.
        sampling: logits, and what choosing tokens from them takes.
        slots: the tokens of running generations, and where their keys and values are.
        runtime: what is there before any tensor is.
    """

    share: Share
    weights: int
    kv_bytes_per_token: int
    activations: int
    attention: int
    sampling: int
    slots: int
    runtime: int

    @property
    def work(self) -> int:
        """Work space: everything besides weights, keys, values and the runtime."""
        return self.activations + self.attention + self.sampling + self.slots


def demand(outline: Outline, rank: int, device_type: str) -> Demand:
    """Return what a rank needs on a device of the type ``cpu`` or ``cuda``."""
    blueprint, spec = outline.blueprint, outline.blueprint.spec
    share = outline.parallelism.share(rank, spec)
    dtype = outline.dtype_on(device_type)
    num_tokens = outline.batcher_class.most_tokens(outline.batcher_config, spec.max_length)
    return Demand(
        share=share,
        weights=blueprint.weight_bytes(share, dtype, device_type),
        kv_bytes_per_token=kv_bytes_per_token(spec, share, dtype),
        activations=blueprint.activation_bytes(share, num_tokens, dtype),
        attention=_attention_bytes(spec, share, num_tokens, dtype),
        sampling=_sampling_bytes(spec, share, outline.num_slots, dtype),
        slots=2 * outline.num_slots * (spec.max_length + 1) * 8,
        runtime=_runtime_bytes(device_type, outline.parallelism.world_size),
    )


def kv_bytes_per_token(spec: ModelSpec, share: Share, dtype: str) -> int:
    """Return the bytes of one token's keys and values in all of a rank's layers."""
    return 2 * len(share.layers) * num_heads(spec, share) * spec.head_dim * item_size(dtype)


def num_heads(spec: ModelSpec, share: Share) -> int:
    """Return how many attention heads a rank has of each of its layers."""
    start, end = share.span(spec.num_heads)
    return end - start


def _attention_bytes(spec: ModelSpec, share: Share, num_tokens: int, dtype: str) -> int:
    width = num_heads(spec, share) * spec.head_dim
    longest_chunk = min(num_tokens, spec.max_length)
    return (2 * width + longest_chunk) * spec.max_length * item_size(dtype)


def _sampling_bytes(spec: ModelSpec, share: Share, num_rows: int, dtype: str) -> int:
    if not share.is_last:
        return 0
    # Several ranks gather: what others have computed arrives in parts, which are then joined.
    copies = 1 if share.tensor_size == 1 else 2 + 1 / share.tensor_size
    return int(num_rows * spec.vocab_size * (copies * item_size(dtype) + BYTES_PER_LOGIT))


def _runtime_bytes(device_type: str, world_size: int) -> int:
    if device_type == "cpu":
        return CPU_RUNTIME
    return CUDA_RUNTIME + (COLLECTIVES if world_size > 1 else 0)
