"""What is measured is what happened, under the names that the documentation promises."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from pluribus.engine.messages import Ready, Stats, Stepped
from pluribus.generation import SamplingParams
from pluribus.server.config import ServerConfig
from pluribus.server.meter import OTHER
from pluribus.server.metrics import MAX_TENANTS
from pluribus.supervisor import State
from pluribus_caches.response.lru import LRUResponseCache
from server.fakes import CONTINUATION, FakeService, client_of, listening

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "metrics.md"

NAMES = {
    "pluribus_batch_size": "histogram",
    "pluribus_build_info": "gauge",
    "pluribus_cancellations_total": "counter",
    "pluribus_e2e_latency_seconds": "histogram",
    "pluribus_engine_ready": "gauge",
    "pluribus_engine_restarts_total": "counter",
    "pluribus_generated_tokens_total": "counter",
    "pluribus_generations_running": "gauge",
    "pluribus_generations_total": "counter",
    "pluribus_generations_waiting": "gauge",
    "pluribus_http_worker_restarts_total": "counter",
    "pluribus_http_workers": "gauge",
    "pluribus_inter_token_latency_seconds": "histogram",
    "pluribus_kv_cache_capacity_tokens": "gauge",
    "pluribus_kv_cache_used_tokens": "gauge",
    "pluribus_preemptions_total": "counter",
    "pluribus_prefix_cache_hit_tokens_total": "counter",
    "pluribus_prefix_cache_queried_tokens_total": "counter",
    "pluribus_prompt_tokens_total": "counter",
    "pluribus_queue_seconds": "histogram",
    "pluribus_replica_generations": "gauge",
    "pluribus_replicas": "gauge",
    "pluribus_requests_rejected_total": "counter",
    "pluribus_requests_total": "counter",
    "pluribus_response_cache_hits_total": "counter",
    "pluribus_shared_generations_total": "counter",
    "pluribus_step_seconds": "histogram",
    "pluribus_time_to_first_token_seconds": "histogram",
}

ASK = {"prompt": "Once", "top_k": 1}


def families(client: TestClient) -> dict[str, str]:
    """Return the names and types of our metrics."""
    text = client.get("/metrics").text
    return {
        match[1]: match[2] for match in re.finditer(r"^# TYPE (pluribus_\w+) (\w+)$", text, re.M)
    }


def values(client: TestClient, name: str) -> dict[str, float]:
    """Return a metric's values, each under those of its labels; ``*`` where it has none."""
    samples = [
        sample
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == f"pluribus_{name}"
    ]
    assert samples, f"no metric is called {name}"
    return {",".join(sample.labels.values()) or "*": sample.value for sample in samples}


def value(client: TestClient, name: str) -> float:
    return values(client, name)["*"]


def tell(service: FakeService, *, step_seconds: float, num_running: int = 0) -> None:
    """Let the engine say how it is."""
    stats = Stats(
        num_steps=1,
        num_running=num_running,
        num_waiting=0,
        num_kv_tokens_used=96,
        num_prompt_tokens=40,
        num_cached_tokens=16,
        batch_size=3,
        num_batch_tokens=3,
        step_seconds=step_seconds,
    )
    service.replica.engine_spoke(Stepped((), stats))


def test_the_names_are_the_promised_ones() -> None:
    # `_created` comes with every counter, from the library.
    found = {
        name: kind
        for name, kind in families(client_of(FakeService())).items()
        if not name.endswith("_created")
    }
    assert found == NAMES


def test_the_names_are_documented() -> None:
    documented = set(re.findall(r"`(pluribus_\w+)", DOCUMENTATION.read_text()))
    assert documented == set(NAMES)


def test_the_process_is_measured_too() -> None:
    assert "process_resident_memory_bytes" in client_of(FakeService()).get("/metrics").text


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [("*/*", "text/plain"), ("application/openmetrics-text", "application/openmetrics-text")],
)
def test_it_is_told_in_the_format_that_is_asked_for(accept: str, media_type: str) -> None:
    response = client_of(FakeService()).get("/metrics", headers={"Accept": accept})
    assert response.headers["Content-Type"].startswith(media_type)


def test_requests_are_counted_by_route_and_status() -> None:
    client = client_of(FakeService())
    for path in ("/livez", "/livez", "/nothing", "/nothing/else", "/v1/models/fake"):
        client.get(path)
    client.get("/generation")
    client.post("/generation", json={})
    assert values(client, "requests_total") == {
        "/livez,200": 2,
        "other,404": 2,
        "/v1/models/{model:path},200": 1,
        "/generation,405": 1,
        "/generation,422": 1,
    }


def test_tokens_and_latencies_are_measured() -> None:
    client = client_of(FakeService(seconds=0.02))
    client.post("/generation", json=ASK)
    assert values(client, "generations_total") == {"stop,anonymous": 1}
    assert values(client, "prompt_tokens_total") == {"anonymous": 1 + len(ASK["prompt"])}  # type: ignore[arg-type]
    assert values(client, "generated_tokens_total") == {"anonymous": len(CONTINUATION)}
    for name in ("time_to_first_token_seconds", "e2e_latency_seconds"):
        assert value(client, f"{name}_count") == 1
        assert 0.02 < value(client, f"{name}_sum") < 5
    assert value(client, "queue_seconds_sum") == 0.001
    assert value(client, "inter_token_latency_seconds_count") == 0


def test_time_between_tokens_is_measured() -> None:
    client = client_of(FakeService(say=lambda _: "abc", seconds_per_token=0.02))
    client.post("/generation", json=ASK)
    assert value(client, "time_to_first_token_seconds_count") == 1
    assert value(client, "inter_token_latency_seconds_count") == 2
    assert 0.03 < value(client, "inter_token_latency_seconds_sum") < 5


def test_steps_are_measured_once_each() -> None:
    service = FakeService()
    client = client_of(service)
    tell(service, step_seconds=0.01)
    tell(service, step_seconds=0.02)
    tell(service, step_seconds=0.02)
    assert value(client, "batch_size_count") == 2
    assert value(client, "batch_size_sum") == 6
    assert value(client, "step_seconds_sum") == pytest.approx(0.03)


def test_readings_are_of_the_moment() -> None:
    service = FakeService()
    client = client_of(service)
    service.replica.engine_ready(Ready(1000))
    assert value(client, "engine_ready") == 1
    assert value(client, "kv_cache_used_tokens") == 0
    tell(service, step_seconds=0.01, num_running=2)
    assert value(client, "generations_running") == 2
    assert value(client, "generations_waiting") == 0
    assert value(client, "kv_cache_used_tokens") == 96
    assert value(client, "kv_cache_capacity_tokens") == 1000
    assert value(client, "prefix_cache_queried_tokens_total") == 40
    assert value(client, "prefix_cache_hit_tokens_total") == 16
    assert value(client, "preemptions_total") == 0


def test_an_engine_that_died_holds_nothing() -> None:
    service = FakeService()
    client = client_of(service)
    tell(service, step_seconds=0.01, num_running=2)
    service.become(State.LOADING)
    service.replica.supervisor.num_restarts = 1
    service.die("killed by a test")
    assert value(client, "engine_ready") == 0
    assert value(client, "generations_running") == 0
    assert value(client, "kv_cache_used_tokens") == 0
    assert value(client, "engine_restarts_total") == 1


def test_answers_from_the_response_cache_are_counted() -> None:
    cache = LRUResponseCache(LRUResponseCache.Config(size=4, list_size=1))
    client = client_of(FakeService(cache=cache))
    for _ in range(3):
        client.post("/generation", json=ASK)
    assert value(client, "response_cache_hits_total") == 2
    assert values(client, "generations_total") == {"stop,anonymous": 1}


def test_refusals_are_counted_by_reason() -> None:
    service = FakeService()
    client = client_of(service)
    none = {"not_ready": 0.0, "queue_full": 0.0, "tenant_limit": 0.0}
    assert values(client, "requests_rejected_total") == none
    service.become(State.STOPPING)
    assert client.post("/generation", json=ASK).status_code == 503
    assert values(client, "requests_rejected_total") == none | {"not_ready": 1}


def test_generations_that_fail_are_counted() -> None:
    service = FakeService(seconds=60)
    client = client_of(service)

    async def life() -> None:
        with service.ask(service.query("Once", SamplingParams())):
            service.become(State.FAILED)
            service.die("killed by a test")

    asyncio.run(life())
    assert values(client, "generations_total") == {"error,anonymous": 1}
    assert value(client, "e2e_latency_seconds_count") == 0


def test_generations_that_are_left_are_counted() -> None:
    service = FakeService(seconds=60)
    with listening(service) as url:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/generation", json=ASK, timeout=0.3)
        assert service.engine.cancelled.wait(10)
        assert "pluribus_cancellations_total 1.0" in httpx2.get(f"{url}/metrics").text


def test_tenants_over_a_number_count_as_one() -> None:
    config = ServerConfig(tenant_header="X-Tenant")
    client = client_of(FakeService(), config)
    for number in range(MAX_TENANTS + 5):
        client.post("/generation", json=ASK, headers={"X-Tenant": f"t{number}"})
    counted = values(client, "generations_total")
    assert len(counted) == MAX_TENANTS + 1
    assert counted[f"stop,{OTHER}"] == 5
    assert counted["stop,t7"] == 1
