"""Conformance kit: what every plugin of a kind must do, as tests to inherit.

Install it with ``pip install 'pluribus[testing]'``. A plugin's test file is a subclass, plus
whatever is special about the plugin::

    class TestMyBatcher(BatcherContract):
        def make(self, ledger: KVLedger) -> Batcher:
            return MyBatcher(MyConfig(max_batch_size=self.max_batch_size), ledger)
"""

from __future__ import annotations

import pytest

# Before the imports, so that a failing assertion in the kit shows its values.
pytest.register_assert_rewrite(
    "pluribus.testing.batcher",
    "pluribus.testing.fakes",
    "pluribus.testing.kv_cache",
    "pluribus.testing.kv_store",
    "pluribus.testing.response_cache",
)

from pluribus.testing.batcher import BatcherContract, BatcherMachine  # noqa: E402
from pluribus.testing.fakes import RoomFor, generation, run_step  # noqa: E402
from pluribus.testing.kv_cache import KVCacheContract  # noqa: E402
from pluribus.testing.reference import ReferenceKVStore  # noqa: E402
from pluribus.testing.response_cache import ResponseCacheContract  # noqa: E402

__all__ = [
    "BatcherContract",
    "BatcherMachine",
    "KVCacheContract",
    "ReferenceKVStore",
    "ResponseCacheContract",
    "RoomFor",
    "generation",
    "run_step",
]
