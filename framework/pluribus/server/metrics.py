"""``/metrics``: what Prometheus reads. The names are documented in docs/metrics.md."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pluribus.engine.messages import Stats
from pluribus.flight import Flight
from pluribus.observer import Refusal, ServiceObserver
from pluribus.replica import Readings
from pluribus.server.meter import OTHER, Exposition, Meter
from pluribus.supervisor import State

if TYPE_CHECKING:
    from pluribus.fleet import Fleet
    from pluribus.service import Service

MAX_TENANTS = 100

_WAITING = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
_STEP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2.5)
_SIZE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics(ServiceObserver, Meter):
    """Counts and times what a service does.

    Attributes:
        registry: holds every metric; of this service alone.
        http_workers: processes that speak HTTP.
        http_worker_restarts: of them, those started again after one had died.
    """

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self._add_counters()
        self._add_histograms()
        self.registry.register(_Readings(service))
        ProcessCollector(registry=self.registry)
        self._tenants: dict[str, _Tenant] = {}
        self._last_step_seconds: dict[int, float] = {}

    def _add_counters(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"pluribus_{name}", text, labels, registry=self.registry)

        self._requests = counter("requests", "HTTP requests answered", "endpoint", "status")
        self._refused = counter("requests_rejected", "Requests not taken in", "reason")
        self._ended = counter("generations", "Generations that ended", "tenant", "outcome")
        self._cancelled = counter("cancellations", "Generations whose askers all left")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts taken in", "tenant")
        self._tokens = counter("generated_tokens", "Tokens generated", "tenant")
        self._cached = counter("response_cache_hits", "Answers from the response cache")
        self._shared = counter("shared_generations", "Requests that joined a generation")
        # The series exist from the start, so that a rate can be told of the first event.
        for reason in Refusal:
            self._refused.labels(reason)
        self.http_worker_restarts = counter("http_worker_restarts", "HTTP processes started again")
        self.http_workers = Gauge(
            "pluribus_http_workers", "Processes that speak HTTP", registry=self.registry
        )
        self.http_workers.set(1)

    def _add_histograms(self) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"pluribus_{name}", text, buckets=buckets, registry=self.registry)

        self._first_token = histogram(
            "time_to_first_token_seconds", "From a request to its first token", _WAITING
        )
        self._next_token = histogram(
            "inter_token_latency_seconds", "From a token to the next", _TOKEN
        )
        self._latency = histogram(
            "e2e_latency_seconds", "From a request to the end of its answer", _WAITING
        )
        self._queued = histogram("queue_seconds", "From arrival to the first step", _WAITING)
        self._batch_size = histogram("batch_size", "Generations in a step", _SIZE)
        self._step_seconds = histogram("step_seconds", "From a step's start to its result", _STEP)

    def generation_began(self, flight: Flight) -> None:
        self._of(flight).prompt.inc(len(flight.query.prompt))

    def tokens_came(self, flight: Flight, num_tokens: int) -> None:
        if not num_tokens:
            return
        now = time.monotonic()
        if flight.advanced is None:
            self._first_token.observe(now - flight.began)
        else:
            self._next_token.observe((now - flight.advanced) / num_tokens)
        flight.advanced = now
        self._of(flight).generated.inc(num_tokens)

    def generation_ended(self, flight: Flight) -> None:
        outcome = "error" if flight.finish_reason is None else str(flight.finish_reason)
        self._ended.labels(self._of(flight).label, outcome).inc()
        if flight.error is None:
            self._latency.observe(time.monotonic() - flight.began)
        if flight.timing is not None:
            self._queued.observe(flight.timing.queue)

    def generation_cancelled(self, flight: Flight) -> None:
        self._cancelled.inc()

    def response_cache_hit(self) -> None:
        self._cached.inc()

    def generation_shared(self) -> None:
        self._shared.inc()

    def request_refused(self, reason: Refusal) -> None:
        self._refused.labels(reason).inc()

    def engine_spoke(self, replica: int, stats: Stats) -> None:
        # It also speaks of what is no step: no two of them take the same number of nanoseconds.
        if stats.step_seconds != self._last_step_seconds.get(replica, 0.0):
            self._last_step_seconds[replica] = stats.step_seconds
            self._batch_size.observe(stats.batch_size)
            self._step_seconds.observe(stats.step_seconds)

    def request_answered(self, endpoint: str, status: int) -> None:
        self._requests.labels(endpoint, status).inc()

    async def expose(self, accept: str) -> Exposition:
        encode, media_type = choose_encoder(accept)
        return Exposition(encode(self.registry), media_type)

    def _of(self, flight: Flight) -> _Tenant:
        label = flight.tenant.name
        if label not in self._tenants and len(self._tenants) >= MAX_TENANTS:
            label = OTHER
        if label not in self._tenants:
            self._tenants[label] = _Tenant(
                label, self._prompt_tokens.labels(label), self._tokens.labels(label)
            )
        return self._tenants[label]


@dataclass(frozen=True, slots=True)
class _Tenant:
    """A tenant's label, and its series, which would take long to look up for every token."""

    label: str
    prompt: Counter
    generated: Counter


class _Readings(Collector):
    """What is read off the service when somebody asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield every reading."""
        service, fleet = self._service, self._service.fleet
        readings = fleet.readings
        yield _info(service)
        yield _gauge("engine_ready", "1 while an engine answers", _is_ready(service))
        yield _count("engine_restarts", "Engines started again", fleet.num_restarts)
        # Where it exceeds what the engines count, the rest waits for an engine.
        num_waiting = max(service.num_flights - readings.num_running, 0)
        yield _gauge("generations_waiting", "Generations that wait for their turn", num_waiting)
        yield from _engine_readings(readings)
        yield from _replica_readings(fleet)


def _engine_readings(readings: Readings) -> Iterator[Metric]:
    running, used, queried, hit = (
        readings.num_running,
        readings.num_kv_tokens_used,
        readings.num_prompt_tokens,
        readings.num_cached_tokens,
    )
    yield _gauge("generations_running", "Generations in the engines' steps", running)
    yield _gauge("kv_cache_capacity_tokens", "Tokens that fit", readings.num_kv_tokens)
    yield _gauge("kv_cache_used_tokens", "Tokens held by generations", used)
    yield _count("prefix_cache_queried_tokens", "Prompt tokens looked for", queried)
    yield _count("prefix_cache_hit_tokens", "Prompt tokens found", hit)
    yield _count(
        "preemptions", "Always 0: room is reserved or promised before a generation starts", 0
    )


def _replica_readings(fleet: Fleet) -> Iterator[Metric]:
    states = GaugeMetricFamily("pluribus_replicas", "Replicas in each state", labels=["state"])
    for state in State:
        states.add_metric([state], fleet.num_in_state[state])
    yield states
    loads = GaugeMetricFamily(
        "pluribus_replica_generations", "Generations given to a replica", labels=["replica"]
    )
    for replica in fleet.replicas:
        loads.add_metric([str(replica.index)], replica.num_generations)
    yield loads


def _info(service: Service) -> Metric:
    info = {"version": version("pluribus"), "model": service.spec.name}
    return InfoMetricFamily("pluribus_build", "What is served, by what", value=info)


def _is_ready(service: Service) -> bool:
    return service.status.state is State.READY


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pluribus_{name}", text, value=value)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"pluribus_{name}", text, value=value)
