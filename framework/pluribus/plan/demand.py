"""What each rank needs, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass

from pluribus.cuda.sizes import TOKENS
from pluribus.interfaces import ModelSpec, Share
from pluribus.plan.outline import Outline
from pluribus.units import item_size

CUDA_RUNTIME = 704 * 2**20
"""A CUDA context with torch's and cuBLAS's kernels in it: 693 MiB on an H100."""
COLLECTIVES = 768 * 2**20
"""What NCCL keeps on each device to add up with the others: an estimate."""
LINK = 128 * 2**20
"""What NCCL keeps at each end of a link between two stages: an estimate."""
CUBLAS = 2 * 64 * 2**20
"""What cuBLAS and cuBLASLt work in, 32 MiB each, for each of the two streams that launch them."""
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
        num_tokens: that its largest step computes.
        weights: exactly.
        kv_bytes_per_token: keys and values of one token, exactly.
        activations: of the network, in the largest step.
        attention: one text's keys and values in one piece, and the mask of a chunk of it.
        sampling: logits, and what choosing tokens from them takes.
        slots: the tokens of running generations, and where their keys and values are.
        graphs: what the largest of the captured passes keeps for its activations and logits.
        libraries: what those that multiply matrices work in.
        context: what is there before any tensor is.
        collectives: what is kept to talk to other ranks.
    """

    share: Share
    num_tokens: int
    weights: int
    kv_bytes_per_token: int
    activations: int
    attention: int
    sampling: int
    slots: int
    graphs: int
    libraries: int
    context: int
    collectives: int

    @property
    def work(self) -> int:
        """Work space: everything besides weights, keys, values and the runtime."""
        return sum(self.work_parts.values())

    @property
    def work_parts(self) -> dict[str, int]:
        """What work space is made of, by name."""
        return {
            "activations": self.activations,
            "attention": self.attention,
            "sampling": self.sampling,
            "slots": self.slots,
            "graphs": self.graphs,
            "libraries": self.libraries,
        }

    @property
    def runtime(self) -> int:
        """What is taken before any weight is loaded."""
        return self.context + self.collectives


def demand(outline: Outline, rank: int, device_type: str) -> Demand:
    """Return what a rank needs on a device of the type ``cpu`` or ``cuda``."""
    blueprint, spec = outline.blueprint, outline.blueprint.spec
    share = outline.parallelism.share(rank, spec)
    dtype = outline.dtype_on(device_type)
    num_tokens = outline.batcher_class.most_tokens(outline.batcher_config, spec.max_length)
    is_cuda = device_type == "cuda"
    return Demand(
        share=share,
        num_tokens=num_tokens,
        weights=blueprint.weight_bytes(share, dtype, device_type),
        kv_bytes_per_token=kv_bytes_per_token(spec, share, dtype),
        activations=blueprint.activation_bytes(share, num_tokens, dtype),
        attention=_attention_bytes(spec, share, num_tokens, dtype),
        sampling=_sampling_bytes(spec, share, outline.num_slots, dtype),
        slots=2 * outline.num_slots * (spec.max_length + 1) * 8,
        graphs=_graph_bytes(outline, share, num_tokens, dtype) if is_cuda else 0,
        libraries=CUBLAS if is_cuda else 0,
        context=CUDA_RUNTIME if is_cuda else CPU_RUNTIME,
        collectives=_collective_bytes(share, outline.parallelism.world_size) if is_cuda else 0,
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
    return _logit_bytes(spec, share, num_rows, dtype, extra=BYTES_PER_LOGIT)


def _logit_bytes(
    spec: ModelSpec, share: Share, num_rows: int, dtype: str, *, extra: int = 0
) -> int:
    """Return the bytes of rows' logits, and ``extra`` for each of them."""
    if not share.is_last:
        return 0
    # Several ranks gather: what others have computed arrives in parts, which are then joined.
    copies = 1 if share.tensor_size == 1 else 2 + 1 / share.tensor_size
    return int(num_rows * spec.vocab_size * (copies * item_size(dtype) + extra))


def _graph_bytes(outline: Outline, share: Share, num_tokens: int, dtype: str) -> int:
    """Return what the pool of a rank's graphs holds once the largest of them is captured."""
    blueprint, num_rows = outline.blueprint, outline.num_slots
    largest = num_rows
    if share.num_stages == 1:
        of_prompts = min((size for size in TOKENS if size >= num_tokens), default=TOKENS[-1])
        largest = max(num_rows, of_prompts)
    layers = blueprint.activation_bytes(share, largest, dtype)
    return layers + _logit_bytes(blueprint.spec, share, num_rows, dtype)


def _collective_bytes(share: Share, world_size: int) -> int:
    if world_size == 1:
        return 0
    num_groups = 1 if 1 in (share.num_stages, share.tensor_size) else 2  # all, and its stage
    num_links = 0 if share.num_stages == 1 else 2
    return num_groups * COLLECTIVES + num_links * LINK
