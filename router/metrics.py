"""What the router measures, in Prometheus form, under the prefix ``crossdock_``.

The histograms have the bucket edges of vLLM, so that existing dashboards can be pointed here.
"""

from __future__ import annotations

from collections import Counter as CountOf
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from core.lifecycle import State
from core.request import Role
from router.flow_messages import Finish
from router.placement import WorkerView

_TTFT_EDGES = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_EDGES = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0),
)
_E2E_EDGES = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class Metrics:
    """One set of metrics per router process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._make_counters(self._registry)
        self._make_histograms(self._registry)

    def _make_counters(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"crossdock_{name}", text, labels, registry=registry)

        self._requests = counter("requests", "Requests by outcome", "outcome")
        self._retries = counter("request_retries", "Attempts after the first one")
        self._prompt = counter("prompt_tokens", "Prompt tokens of finished requests")
        self._cached = counter("cached_tokens", "Prompt tokens that were in some worker's cache")
        self._generated = counter("generation_tokens", "Tokens sent to clients, all answers")
        self._defects = counter("worker_defects", "Outputs of workers that made no sense")
        self.running = Gauge("crossdock_requests_running", "Requests under way", registry=registry)
        self._workers = Gauge(
            "crossdock_workers", "Workers that may get requests", ["role"], registry=registry
        )
        for state in State:
            if state not in (State.QUEUED, State.PREFILLING, State.STREAMING):
                self._requests.labels(state.value)

    def _make_histograms(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, edges: tuple[float, ...]) -> Histogram:
            return Histogram(f"crossdock_{name}_seconds", text, buckets=edges, registry=registry)

        self._ttft = histogram("time_to_first_token", "Arrival to first token", _TTFT_EDGES)
        self._itl = histogram("inter_token_latency", "Between outputs of an answer", _ITL_EDGES)
        self._e2e = histogram("e2e_request_latency", "Arrival to end of answer", _E2E_EDGES)

    def refused(self) -> None:
        """A request was not taken: invalid, a taken id, or the router drains."""
        self._requests.labels("refused").inc()

    def retried(self) -> None:
        self._retries.inc()

    def generated(self, tokens: int) -> None:
        self._generated.inc(tokens)

    def first_output(self, since_arrival_s: float) -> None:
        """The first output of a request, whichever of its answers it belongs to."""
        self._ttft.observe(since_arrival_s)

    def next_output(self, since_last_s: float) -> None:
        """A further output of one answer."""
        self._itl.observe(since_last_s)

    def defect(self) -> None:
        self._defects.inc()

    def ended(self, outcome: State) -> None:
        self._requests.labels(outcome.value).inc()

    def finished(self, finish: Finish, prompt_tokens: int) -> None:
        """``finish`` of the answer that ended last."""
        self._e2e.observe(finish.total_s)
        self._prompt.inc(prompt_tokens)
        self._cached.inc(finish.cached_tokens)

    def render(self, workers: Iterable[WorkerView]) -> bytes:
        """The text format of Prometheus."""
        by_role = CountOf(view.role for view in workers)
        for role in Role:
            self._workers.labels(role.value).set(by_role[role])
        return generate_latest(self._registry)
