"""Watch which bytes of which files torch reads through mapped memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MappedReads(TorchDispatchMode):
    """While it is entered, counts what operations read of files that are mapped already.

    Attributes:
        num_bytes: read, by file.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes: Counter[Path] = Counter()
        self._regions = sorted(_regions({str(file): file for file in files}))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not func.is_view:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    self._note(tensor)
        return func(*args, **(kwargs or {}))

    def _note(self, tensor: Tensor) -> None:
        address = tensor.data_ptr()
        at = bisect_right(self._regions, address, key=lambda region: region[0]) - 1
        if at >= 0 and address < self._regions[at][1]:
            self.num_bytes[self._regions[at][2]] += tensor.numel() * tensor.itemsize


def _regions(files: dict[str, Path]) -> Iterator[tuple[int, int, Path]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, *_, path = line.split(maxsplit=5)
        if path in files:
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            yield start, end, files[path]
