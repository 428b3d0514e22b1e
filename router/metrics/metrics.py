"""What the router measures, as Prometheus reads it.

Does not cover: names and meanings (``router.metrics.metric_table``), vLLM's names
(``router.metrics.vllm_names``), what other processes measure (``router.doors.cluster_metrics``).
"""

from __future__ import annotations

from collections import Counter as CountOf
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from core.lifecycle import State
from core.request import FinishReason, Role
from core.tls_files import ServerFiles
from core.values import value
from router.flow.messages import Finish
from router.metrics import metric_table as table
from router.metrics.tenant_metrics import REFUSED, TenantMetrics
from router.metrics.vllm_names import VllmNames
from router.placement import Mode, Placement, WorkerView
from router.slo import DEFAULT_CLASS, TPOT, TTFT, SloTargets, counts, tpot_s
from router.store_state import StoreState
from wire.certificate_expiry import CertificateExpiry
from wire.exposition import (
    CountedHistogram,
    Counts,
    family,
    new_gauge,
    single,
)


@dataclass(frozen=True, slots=True)
class RouterState:
    """What is counted at the moment of a scrape. ``excluded``: why, by worker; ``known``: names of
    all workers; ``streaming``: requests with a token; ``guessed``: whether what a worker caches is,
    by its name; ``block_size`` in tokens; ``at_door``: requests by tenant."""

    views: Sequence[WorkerView] = ()
    excluded: Sequence[str] = ()
    known: Sequence[str] = ()
    index_blocks: int = 0
    left_out_blocks: int = 0
    guessed: Mapping[str, bool] = field(default_factory=dict)
    running: int = 0
    streaming: int = 0
    block_size: int = 0
    at_door: Mapping[str, int] = field(default_factory=dict)


@value()
class EndedRequest:
    """``finishes``: of its answers, all n if it succeeded; ``expected_cached``: prompt tokens that
    routing believed to be in a cache."""

    tenant: str
    outcome: State
    prompt_tokens: int = 0
    expected_cached: int = 0
    finishes: Sequence[Finish] = ()
    slo_class: str = DEFAULT_CLASS


class Metrics(Collector):
    """One set of metrics per router process. ``tenant``: who has the metrics of requests that were
    refused before anybody looked at whose they are. ``vllm_model``: tell them under vLLM's names
    as well, as those of this model; "": don't. ``certificates``: that this process shows, by
    name."""

    def __init__(
        self,
        tenant: str = "default",
        slo: SloTargets | None = None,
        vllm_model: str = "",
        certificates: Mapping[str, ServerFiles | None] | None = None,
    ) -> None:
        self._slo = slo or SloTargets()
        self._kv_events: CountOf[str] = CountOf()
        self._kv_gaps: CountOf[str] = CountOf()
        self._state = RouterState()
        # With a store: how this router gets on with it.
        self.store_state: Callable[[], StoreState] | None = None
        self._registry = CollectorRegistry()
        self._tenants = TenantMetrics(self._registry)
        self._unknown = self._tenants.of(tenant, DEFAULT_CLASS)
        self._make_counters(self._registry)
        self._make_histograms(self._registry)
        self._registry.register(self)
        self._vllm: CollectorRegistry | None = None
        if vllm_model:
            self._vllm = CollectorRegistry()
            self._vllm.register(VllmNames(self._registry, vllm_model))
        # Not among what has a second name.
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._process.register(CertificateExpiry(certificates or {}))

    def _make_counters(self, registry: CollectorRegistry) -> None:
        self._retries = Counts(table.RETRIES, registry).labels()
        self._failed_attempts = Counts(table.FAILED_ATTEMPTS, registry)
        self._defects = Counts(table.DEFECTS, registry).labels()
        self._read = Counts(table.READ_TOKENS, registry).labels()
        self._relayed = Counts(table.RELAYED, registry).labels()
        self._expected_cached = Counts(table.PREDICTED_CACHED, registry).labels()
        self._turned_away = Counts(table.TURNED_AWAY, registry)
        answers = Counts(table.FINISHES, registry)
        self._ended_by = {reason: answers.labels(reason.value) for reason in FinishReason}
        self._decisions = Counts(table.DECISIONS, registry)
        self._blocks = Counts(table.ROUTED_BLOCKS, registry).labels()
        self._overlap = Counts(table.OVERLAP_BLOCKS, registry)
        self._placed_as = {mode: self._decisions.labels(mode.value) for mode in Mode}
        self._held = {role: self._overlap.labels(role) for role in ("prefill", "decode")}
        targets = new_gauge(table.SLO_TARGET, registry)
        targets.labels(TTFT).set(self._slo.ttft_s)
        targets.labels(TPOT).set(self._slo.tpot_s)

    def _make_histograms(self, registry: CollectorRegistry) -> None:
        self._ttft = CountedHistogram(table.TTFT, registry)
        self._itl = CountedHistogram(table.ITL, registry)
        self._tpot = CountedHistogram(table.TPOT, registry)
        self._e2e = CountedHistogram(table.E2E, registry)
        self._queue = CountedHistogram(table.QUEUE, registry)
        self._prefill_time = CountedHistogram(table.PREFILL_TIME, registry)
        self._decode_time = CountedHistogram(table.DECODE_TIME, registry)
        self._inference_time = CountedHistogram(table.INFERENCE_TIME, registry)
        self._prompt_length = CountedHistogram(table.PROMPT_LENGTH, registry)
        self._answer_length = CountedHistogram(table.ANSWER_LENGTH, registry)
        self._longest_answer = CountedHistogram(table.LONGEST_ANSWER, registry)
        self._computed_length = CountedHistogram(table.COMPUTED_LENGTH, registry)
        self._decision_time = CountedHistogram(table.DECISION_TIME, registry)
        self._predicted_ttft = CountedHistogram(table.PREDICTED_TTFT, registry)
        self._ttft_ratio = CountedHistogram(table.TTFT_RATIO, registry)
        self._predicted_tpot = CountedHistogram(table.PREDICTED_TPOT, registry)
        self._tpot_ratio = CountedHistogram(table.TPOT_RATIO, registry)
        self._store_time = CountedHistogram(table.STORE_TIME, registry)

    # Routing

    def placed(self, placement: Placement, blocks: int, seconds: float) -> None:
        """An attempt with a prompt of so many ``blocks`` goes there; choosing took ``seconds``."""
        forecast, mode = placement.forecast, placement.mode
        self._decision_time.observe(seconds)
        self._placed_as[mode].inc()
        self._blocks.inc(blocks)
        self._held["decode"].inc(forecast.decode_held)
        if mode is Mode.HANDOFF:
            self._held["prefill"].inc(forecast.prefill_held)

    def retried(self) -> None:
        self._retries.inc()

    def attempt_failed(self, cause: str) -> None:
        """``cause``: the name of a ``core.handoff.FailureCause``."""
        self._failed_attempts.labels(cause.lower()).inc()

    def defect(self) -> None:
        self._defects.inc()

    def read(self, tokens: int) -> None:
        """A client has read so many tokens from a worker itself."""
        self._read.inc(tokens)

    def relayed(self) -> None:
        """A client wants the rest of an answer by this router."""
        self._relayed.inc()

    def kv_event(self, worker: str) -> None:
        """A worker told of its cached blocks."""
        self._kv_events[worker] += 1

    def kv_gap(self, worker: str) -> None:
        """Events of a worker were missing."""
        self._kv_gaps[worker] += 1

    def asked_store(self, seconds: float) -> None:
        """A request waited for the store, and got an answer."""
        self._store_time.observe(seconds)

    # Requests

    def refused(self, tenant: str | None = None, slo_class: str = DEFAULT_CLASS) -> None:
        """A request was not taken: nobody's (None), invalid, a taken id, or the router drains."""
        whose = self._unknown if tenant is None else self._tenants.of(tenant, slo_class)
        whose.requests[REFUSED].inc()

    def turned_away(self, tenant: str, slo_class: str, reason: str) -> None:
        """A valid request is refused for a limit, at once or after it has waited at the door."""
        self._tenants.of(tenant, slo_class).requests[REFUSED].inc()
        self._turned_away.labels(self._tenants.label(tenant), reason.lower()).inc()

    def generated(self, tenant: str, tokens: int, slo_class: str = DEFAULT_CLASS) -> None:
        self._tenants.of(tenant, slo_class).generated.inc(tokens)

    def first_output(
        self, since_arrival_s: float, since_dispatch_s: float, placement: Placement | None
    ) -> None:
        """The first output of a request, whichever of its answers it belongs to."""
        self._ttft.observe(since_arrival_s)
        predicted = 0.0 if placement is None else placement.forecast.ttft_s
        if predicted > 0:
            self._predicted_ttft.observe(predicted)
            self._ttft_ratio.observe(since_dispatch_s / predicted)

    def next_outputs(self, count: int, since_last_s: float) -> None:
        """Further outputs, each of another answer, all so long after the one before."""
        self._itl.observe(since_last_s, count)

    def ended(self, ended: EndedRequest) -> None:
        whose = self._tenants.of(ended.tenant, ended.slo_class)
        whose.requests[ended.outcome.value].inc()
        finished = ended.outcome is State.FINISHED
        if finished:
            whose.prompt_tokens.inc(ended.prompt_tokens)
            whose.cached_tokens.inc(ended.finishes[-1].cached_tokens)
            self._finished(ended)
        if counts(ended.outcome):
            whose.judge(self._slo.met(ended.finishes) if finished else frozenset())

    def _finished(self, ended: EndedRequest) -> None:
        last = ended.finishes[-1]
        first_s = min([finish.ttft_s for finish in ended.finishes])
        self._e2e.observe(last.total_s)
        self._queue.observe(last.queue_s)
        self._prefill_time.observe(max(0.0, first_s - last.queue_s))
        self._inference_time.observe(max(0.0, last.total_s - last.queue_s))
        self._prompt_length.observe(ended.prompt_tokens)
        self._computed_length.observe(ended.prompt_tokens - last.cached_tokens)
        self._longest_answer.observe(max([f.completion_tokens for f in ended.finishes]))
        self._expected_cached.inc(ended.expected_cached)
        for finish in ended.finishes:
            self._ended_by[finish.reason].inc()
            self._answer_length.observe(finish.completion_tokens)
            self._decode_time.observe(finish.total_s - finish.ttft_s)
            tpot = tpot_s(finish)
            if tpot is not None:
                self._tpot.observe(tpot)
                self._compare_tpot(tpot, finish.placement.forecast.tpot_s)

    def _compare_tpot(self, tpot: float, predicted: float) -> None:
        if predicted > 0:
            self._predicted_tpot.observe(predicted)
            self._tpot_ratio.observe(tpot / predicted)

    # Scrapes

    def render(self, state: RouterState) -> bytes:
        """The text of a scrape."""
        self._state = state
        parts = (self._registry, self._vllm, self._process)
        return b"".join(generate_latest(part) for part in parts if part is not None)

    def collect(self) -> Iterator[Metric]:
        state = self._state
        yield single(table.RUNNING, state.running)
        yield single(table.WAITING, state.running - state.streaming)
        yield single(table.STREAMING, state.streaming)
        at_door: CountOf[str] = CountOf()
        for tenant, count in state.at_door.items():
            at_door[self._tenants.label(tenant)] += count
        yield family(table.AT_DOOR, [((name,), count) for name, count in at_door.items()])
        by_role = CountOf(view.role for view in state.views)
        yield family(table.WORKERS, [((role.value,), by_role[role]) for role in Role])
        reasons = CountOf(_category(reason) for reason in state.excluded)
        yield family(table.EXCLUDED, [((reason,), count) for reason, count in reasons.items()])
        yield family(table.KV_EVENTS, [((name,), self._kv_events[name]) for name in state.known])
        yield family(table.KV_GAPS, [((name,), self._kv_gaps[name]) for name in state.known])
        yield family(table.KV_GUESSED, [((n,), float(yes)) for n, yes in state.guessed.items()])
        yield single(table.INDEX_BLOCKS, state.index_blocks)
        yield single(table.INDEX_LEFT_OUT, state.left_out_blocks)
        decoders = [view for view in state.views if view.role.decodes]
        blocks = sum(view.num_blocks for view in decoders)
        used = blocks - sum(view.load.free_blocks for view in decoders)
        yield single(table.KV_USAGE, used / blocks if blocks else 0.0)
        yield family(table.KV_CONFIG, [((str(state.block_size), str(blocks)), 1.0)])
        if self.store_state is not None:
            yield from _of_store(self.store_state())


def _of_store(state: StoreState) -> Iterator[Metric]:
    yield single(table.STORE_SHARED, float(state.is_shared))
    yield single(table.STORE_FAILURES, state.failures)
    yield single(table.PEERS, state.peers)


def _category(reason: str) -> str:
    """Bounded: what differs from the registry's word or from this router is told in the log."""
    return reason if reason in ("not attached", "draining") else "differs"
