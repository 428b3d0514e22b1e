"""What the registry and the workers say: who is there, how busy, what is cached, what failed.

Covers: cache events, asking for those that are missing, going by guesses where there are none.
Does not cover: streams (``router.workers.worker_link``), what is known by all that
(``router.workers.worker_pool``, ``router.routing.routing_state``), what it means for a request
(``router.requests.dispatcher``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from core.request import RequestKey
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1.registry_pb2 import WorkerRecord
from router.flow.messages import FlowEvent
from router.metrics.metrics import Metrics
from router.placement import WorkerId
from router.prefix_index.cache_view import AskEvents
from router.routing.routing_state import RoutingState
from router.workers.worker_answers import failure_from_wire
from router.workers.worker_pool import LinkFactory, WorkerPool
from wire.attempts import key_from_wire, load_from_wire
from wire.cache_events import change_from_wire

log = logging.getLogger(__name__)


class Requests(Protocol):
    """All that run."""

    def tell(self, key: RequestKey, event: FlowEvent) -> None:
        """One of them may have ended: it is told nothing."""
        ...

    def produced(self, worker: WorkerId, step: pb.Step) -> None:
        """The tokens of a step: the same for each of its requests. Raises ``ValueError`` for what
        makes no sense."""
        ...

    def worker_lost(self, worker: WorkerId) -> None: ...

    def room_changed(self) -> None:
        """Workers may take more than before."""
        ...


class WorkerNews:
    """The listener of all links. ``clock`` gives seconds, monotonic."""

    def __init__(
        self,
        *,
        block_size: int,
        open_link: LinkFactory,
        routing: RoutingState,
        requests: Requests,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self.pool = WorkerPool(block_size, open_link, self, routing)
        self.ready_changed: Callable[[bool], None] = lambda ready: None
        self._routing = routing
        self._requests = requests
        self._metrics = metrics
        self._clock = clock

    # Who is there

    def on_listed(self, records: Sequence[WorkerRecord]) -> None:
        self.pool.update(records)
        self._workers_changed()

    def on_attached(self, worker: WorkerId, welcome: pb.Welcome) -> None:
        self.pool.attached(worker, welcome)
        if self._routing.caches.is_guessed(worker) or not welcome.cache_events:
            self.guess(worker)
        self._workers_changed()

    def on_lost(self, worker: WorkerId) -> None:
        self.pool.lost(worker)
        self.ready_changed(self.pool.ready)
        self._requests.worker_lost(worker)
        self._requests.room_changed()

    def _workers_changed(self) -> None:
        self.ready_changed(self.pool.ready)
        self._requests.room_changed()

    # What they say

    def on_message(self, worker: WorkerId, message: pb.WorkerMessage) -> None:
        match message.WhichOneof("message"):
            case "step":
                self._step(worker, message.step)
            case "failed":
                self._failed(worker, message.failed)
            case "cache":
                self._cache_changed(worker, message.cache)

    def _step(self, worker: WorkerId, step: pb.Step) -> None:
        now = self._clock()
        if step.HasField("load"):
            self._routing.load_reported(worker, load_from_wire(step.load), now)
        if step.HasField("cache"):
            self._cache_changed(worker, step.cache)
        sequence = step.cache_sequence
        self._ask(worker, self._routing.caches.hears_of(worker, worker.epoch, sequence, now))
        self._requests.produced(worker, step)
        self._requests.room_changed()

    def _failed(self, worker: WorkerId, failed: pb.AttemptFailed) -> None:
        key = key_from_wire(failed.key)
        self._routing.settled(key, (worker,))
        if failed.cause == pb.AttemptFailed.DRAINING:
            self.pool.refused(worker)
        self._metrics.attempt_failed(pb.AttemptFailed.Cause.Name(failed.cause))
        self._requests.tell(key.request, failure_from_wire(worker, failed))
        self._requests.room_changed()

    # What they cache

    def cache_sequence(self, worker: WorkerId) -> int:
        return self._routing.caches.sequence(worker)

    def _cache_changed(self, worker: WorkerId, events: pb.CacheEvents) -> None:
        self._metrics.kv_event(worker.name)
        caches, change = self._routing.caches, change_from_wire(events)
        was_guessed = caches.is_guessed(worker)
        self._ask(worker, caches.take(worker, events.epoch, change, self._clock()))
        if was_guessed and not caches.is_guessed(worker):
            self._tell_fallback(worker, False)

    def _ask(self, worker: WorkerId, ask: AskEvents | None) -> None:
        if ask is not None:
            log.info("worker %s: cache events after %d are missing", worker, ask.after)
            self._metrics.kv_gap(worker.name)
            request = pb.CacheRequest(after_sequence=ask.after)
            self.pool.send(worker, pb.RouterMessage(cache_request=request))

    def guess(self, worker: WorkerId) -> None:
        """It gives no events, so what it holds is guessed from now on."""
        log.warning(
            "worker %s tells nothing of its prefix cache: routing goes by what it was sent", worker
        )
        self._routing.caches.guess(worker)
        self._tell_fallback(worker, True)

    def _tell_fallback(self, worker: WorkerId, active: bool) -> None:
        fallback = pb.CacheFallback(active=active)
        self.pool.send(worker, pb.RouterMessage(cache_fallback=fallback))
