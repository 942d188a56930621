from __future__ import annotations

from pluribus import Batcher, KVLedger, SamplingParams
from pluribus.testing import BatcherContract, RoomFor, generation, run_step
from pluribus_convoy.batcher import ConvoyBatcher, ConvoyConfig


class TestConvoyBatcher(BatcherContract):
    def make(self, ledger: KVLedger) -> Batcher:
        return ConvoyBatcher(ConvoyConfig(max_batch_size=self.max_batch_size), ledger)

    def test_unlike_queries_travel_together(self) -> None:
        batcher = self.make(RoomFor(100))
        batcher.add(generation(1, params=SamplingParams(max_tokens=1, top_k=1)))
        batcher.add(generation(2, params=SamplingParams(max_tokens=9, temperature=0.5)))
        assert run_step(batcher) == [1, 2]

    def test_latecomers_wait_for_the_next_convoy(self) -> None:
        batcher = self.make(RoomFor(100))
        batcher.add(first := generation(1))
        run_step(batcher)
        batcher.add(generation(2))
        assert run_step(batcher) == [1]
        batcher.finish(first)
        assert run_step(batcher) == [2]
