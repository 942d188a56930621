"""In what tiles linear layers of few rows are fastest, and which weights lie by columns."""

from __future__ import annotations

from dataclasses import dataclass

import triton

TILE_ROWS = (16, 64)
"""Rows of a tile; the smallest that holds all is taken. Each more costs seconds at start."""
MAX_ROWS = TILE_ROWS[-1]
NUM_PROCESSORS = 132
"""Multiprocessors of an H100. So many tiles of outputs, or fewer, may be split."""
SPARE_BYTES = 3 << 10
"""Of a multiprocessor's shared memory, for all but tiles; the system has one of these KiB."""
COLUMN_MAJOR = frozenset(
    {
        (12288, 4096),
        (4096, 4096),
        (16384, 4096),
        (8192, 4096),
        (4096, 16384),
        (4096, 8192),
        (2560, 10240),
        (2048, 8192),
    }
)
"""Outputs and inputs of weights that are stored by columns: where few rows gain more by it than
many lose. At other shapes cuBLAS may take half as long again.

All of OPT-6.7B's layers, the wide ones also split in two, and the last of OPT-1.3B's and 2.7B's.
Programs that run side by side read what lies side by side then. On an H100 in float16, the linears
of a layer of OPT-6.7B take 2 to 5 % less time for up to 256 rows, and as long for 2,048; other
devices have not been measured.
"""


@dataclass(frozen=True, slots=True)
class Config:
    """How ``few_rows_linear`` runs.

    Attributes:
        outputs, inputs: of a tile.
        num_warps, num_stages: of a program.
        splits: programs that share the inputs of a tile of outputs.
    """

    outputs: int
    inputs: int
    num_warps: int
    num_stages: int
    splits: int = 1


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """What there is to know of a device's multiprocessors.

    Attributes:
        major: of their compute capability.
        shared_memory: bytes of each.
    """

    major: int
    shared_memory: int

    @property
    def copies_tiles(self) -> bool:
        """Whether a program can have tiles copied, in place of loading them thread by thread."""
        return self.major >= 9

    @property
    def reads_registers_late(self) -> bool:
        """Whether a product reads what is made for it in registers while the program goes on.

        Hopper's do (``wgmma``). Triton's pipeline leaves the last one under way, and ptxas gives
        its registers to the next weights all the same: where two programs shared a multiprocessor,
        results have been wrong by half.
        """
        return self.major == 9

    def num_stages(self, config: Config, rows: int, weight_bytes: int) -> int:
        """Return as many stages as a configuration has, or as there is room for.

        Args:
            config: the configuration.
            rows: of a tile.
            weight_bytes: of each weight.
        """
        stage = config.inputs * (2 * rows + weight_bytes * config.outputs)
        room = (self.shared_memory - SPARE_BYTES) // stage
        # Most have what they multiply in registers: a stage less is in shared memory.
        is_in_registers = self.major not in {9, 10} and weight_bytes == 2
        return max(1, min(config.num_stages, room + is_in_registers))


H100 = Multiprocessor(major=9, shared_memory=228 << 10)


def few_rows_config(
    num_rows: int, out_features: int, in_features: int, *, by_columns: bool = False
) -> Config | None:
    """Return how ``few_rows_linear`` is fastest; None where cuBLAS is faster, or it cannot.

    Measured on an H100 in float16 for 8 and 64 rows, each linear after a norm as in the network: at
    the shapes of OPT-125M to 13B, and of OPT-30B and 66B split in two and four.

    Args:
        num_rows: of the input.
        out_features, in_features: of the weight.
        by_columns: whether that is stored column-major.
    """
    if not _can_run(num_rows, out_features, in_features):
        return None
    is_few = num_rows <= TILE_ROWS[0]
    num_tiles = triton.cdiv(out_features, 64)
    if num_tiles > NUM_PROCESSORS:
        if is_few:
            return Config(64, 128, 4, 4)
        return Config(128, 128, 4, 3) if by_columns else Config(128, 128, 8, 4)
    # One program a processor then, with as much under way as there is room for.
    splits = _power_of_2(min(NUM_PROCESSORS // num_tiles, 4))
    if in_features <= out_features:
        splits = 1
    elif not is_few and splits == 1 and in_features >= 2 * out_features and not by_columns:
        return None
    return Config(64, 256, 4, 4, splits) if is_few else Config(64, 128, 4, 6, splits)


def eight_bit_config(num_rows: int, out_features: int, in_features: int) -> Config | None:
    """Return how ``few_rows_linear`` is fastest on eight-bit weights; None where it cannot run.

    Measured on an H100 as ``few_rows_config`` is, at the shapes of OPT-125M, 1.3B and 6.7B.
    """
    if not _can_run(num_rows, out_features, in_features):
        return None
    is_few = num_rows <= TILE_ROWS[0]
    num_tiles = triton.cdiv(out_features, 64)
    if num_tiles > NUM_PROCESSORS:
        return Config(64, 256 if is_few else 128, 4, 4)
    splits = 1
    if in_features >= out_features:
        # Few rows leave room for two programs a processor: one multiplies, one makes plain.
        num_programs, most = (2 * NUM_PROCESSORS, 8) if is_few else (NUM_PROCESSORS, 4)
        splits = _power_of_2(min(num_programs // num_tiles, in_features // 512, most))
    return Config(64, 256, 4, 4 if is_few else 3, splits)


def _power_of_2(most: int) -> int:
    """Return the largest power of 2 up to ``most``, and 1 at least."""
    return 1 << max(0, most.bit_length() - 1)


def _can_run(num_rows: int, out_features: int, in_features: int) -> bool:
    """Return whether there is anything to compute, for no more rows than the kernel takes."""
    return 0 < num_rows <= MAX_ROWS and out_features > 0 and in_features > 0
