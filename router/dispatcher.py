"""Carries out what the flows of all requests decide: the shell around ``router.flow``.

Covers: waiting at the door, routing an attempt, messages to and from workers, timers, and the
stream of each answer.
Does not cover: validation (``router.request_intake``), the doors. Runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from core.config import DEFAULT_MAX_INDEX_BLOCKS
from core.errors import CrossdockError, NotFound
from core.request import AttemptKey, RequestKey
from crossdock.v1 import worker_pb2 as pb
from crossdock.v1.registry_pb2 import WorkerRecord
from router.access_rules import AccessRules
from router.admission import Admission
from router.admission_messages import Arrived, Ended, Started
from router.answer_stream import Deliver, Prompt
from router.cache_view import AskEvents
from router.door import Door
from router.flow import Flow, RetryLimits
from router.flow_messages import (
    ClientGone,
    Command,
    DeadlinePassed,
    Emit,
    Fail,
    Finish,
    FlowEvent,
    ReportDefect,
    Route,
    Routed,
    RouteDue,
    RouterStopping,
    SendAbort,
    SendOpen,
    SendPrefill,
    Unroutable,
    WorkerLost,
)
from router.metrics import EndedRequest, Metrics, RouterState
from router.placement import WorkerId
from router.request_ids import RequestIds
from router.routing_rules import RoutingRules
from router.routing_state import RoutedPrompt, RoutingState
from router.slo import slo_class
from router.worker_answers import failure_from_wire, output_from_wire
from router.worker_pool import LinkFactory, WorkerPool
from router.worker_room import WorkerRoom
from wire.attempts import (
    key_from_wire,
    key_to_wire,
    load_from_wire,
    sampling_to_wire,
    tokens_to_wire,
)
from wire.cache_events import change_from_wire

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    prompt: Prompt
    routed: RoutedPrompt
    flow: Flow
    deliver: Deliver
    dispatched_at: float = 0.0
    expected_cached: int = 0
    refused: bool = False
    finishes: list[Finish] = field(default_factory=list)
    last_output_at: dict[int, float] = field(default_factory=dict)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def attempt_key(self) -> AttemptKey:
        return AttemptKey(self.prompt.key, self.flow.lifecycle.attempt)


class Dispatcher:
    """All running requests. ``clock`` gives seconds, monotonic."""

    def __init__(
        self,
        *,
        block_size: int,
        open_link: LinkFactory,
        rules: RoutingRules,
        metrics: Metrics,
        random: Random,
        limits: RetryLimits,
        access: AccessRules,
        max_index_blocks: int = DEFAULT_MAX_INDEX_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.block_size = block_size
        self.routing = RoutingState(rules, random, max_index_blocks)
        self.pool = WorkerPool(block_size, open_link, self, self.routing)
        self._room = WorkerRoom(self.routing, access.door)
        self._admission = Admission(access.tenant, self._room, access.door.max_waiting, block_size)
        self._door = Door(self._admission, self._let_in, self._turn_away)
        self._ttft_s = rules.slo.ttft_s
        self.idle = asyncio.Event()
        self.idle.set()
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._ids = RequestIds()
        self._running: dict[RequestKey, _Running] = {}
        self.ready_changed: Callable[[bool], None] = lambda ready: None

    def start(self, prompt: Prompt, deliver: Deliver) -> Callable[[], None]:
        """Send a request on its way; raises AlreadyExists.

        ``deliver`` is called with all that the client gets: in the end a Fail, or a Finish for
        each of the n answers. What is returned ends the request if it still runs.
        """
        now = self._clock()
        self._ids.claim(prompt.key, now)
        flow = Flow(prompt.key, prompt.arrived, prompt.deadline, prompt.sampling.n, self._limits)
        routed = RoutedPrompt(prompt.shape(self.block_size), prompt.hashes, prompt.sampling.n)
        running = _Running(prompt, routed, flow, deliver)
        self._running[prompt.key] = running
        self.idle.clear()
        if prompt.deadline is not None:
            self._after(running, prompt.deadline - now, DeadlinePassed())
        self._door.tell(self._arrived(prompt), now)
        return lambda: self._handle(running, ClientGone())

    def _arrived(self, prompt: Prompt) -> Arrived:
        due = prompt.arrived + self._ttft_s
        return Arrived(
            prompt.key,
            prompt.priority,
            due if prompt.deadline is None else min(due, prompt.deadline),
            len(prompt.tokens),
            prompt.sampling.n,
            prompt.sampling.max_tokens,
        )

    def _let_in(self, key: RequestKey) -> None:
        self._handle(self._running[key], RouteDue())

    def _turn_away(self, key: RequestKey, error: CrossdockError) -> None:
        running = self._running[key]
        running.refused = True
        self._metrics.turned_away(key.tenant, slo_class(running.prompt.priority), error.reason)
        self._handle(running, Unroutable(error))

    def abort(self, key: RequestKey) -> None:
        """End a running request; raises NotFound."""
        running = self._running.get(key)
        if running is None:
            raise NotFound(
                f"no request {key.request_id!r} is running",
                reason="REQUEST_NOT_FOUND",
                metadata={"request_id": key.request_id},
            )
        self._handle(running, ClientGone("ABORTED_BY_CLIENT"))

    @property
    def state(self) -> RouterState:
        """What a scrape shows beside what is counted all the time."""
        return RouterState(
            views=self.pool.candidates(),
            excluded=list(self.pool.excluded().values()),
            known=self.pool.names(),
            index_blocks=len(self.routing.caches.index),
            left_out_blocks=self.routing.caches.left_out,
            guessed=self.pool.guessed(),
            block_size=self.block_size,
            running=len(self._running),
            streaming=sum(bool(r.last_output_at) for r in self._running.values()),
            at_door=self._admission.queued_of_tenants(),
        )

    def cancel_all(self) -> None:
        """The router stops: end what still runs."""
        for running in list(self._running.values()):
            self._handle(running, RouterStopping())

    def on_listed(self, records: Sequence[WorkerRecord]) -> None:
        self.pool.update(records)
        self.ready_changed(self.pool.ready)
        self._door.room_changed(self._clock())

    def on_attached(self, worker: WorkerId, welcome: pb.Welcome) -> None:
        self.pool.attached(worker, welcome)
        if self.routing.caches.is_guessed(worker) or not welcome.cache_events:
            self._tell_fallback(worker, True)
        self.ready_changed(self.pool.ready)
        self._door.room_changed(self._clock())

    def on_lost(self, worker: WorkerId) -> None:
        self.pool.lost(worker)
        self.ready_changed(self.pool.ready)
        for running in list(self._running.values()):
            self._handle(running, WorkerLost(worker))
        self._door.room_changed(self._clock())

    def on_message(self, worker: WorkerId, message: pb.WorkerMessage) -> None:
        match message.WhichOneof("message"):
            case "step":
                self._step(worker, message.step)
            case "failed":
                failed = message.failed
                self.routing.settled(key_from_wire(failed.key), (worker,))
                if failed.cause == pb.AttemptFailed.DRAINING:
                    self.pool.refused(worker)
                self._metrics.attempt_failed(pb.AttemptFailed.Cause.Name(failed.cause))
                self._tell(failed.key, failure_from_wire(worker, failed))
            case "cache":
                self._metrics.kv_event(worker.name)
                self._cache_changed(worker, message.cache)

    def cache_sequence(self, worker: WorkerId) -> int:
        return self.routing.caches.sequence(worker)

    def _cache_changed(self, worker: WorkerId, events: pb.CacheEvents) -> None:
        caches, change = self.routing.caches, change_from_wire(events)
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

    def _tell_fallback(self, worker: WorkerId, active: bool) -> None:
        """``active``: the worker gives no events, so what it holds is guessed from now on."""
        if active:
            log.warning(
                "worker %s tells nothing of its prefix cache: routing goes by what it was sent",
                worker,
            )
            self.routing.caches.guess(worker)
        fallback = pb.CacheFallback(active=active)
        self.pool.send(worker, pb.RouterMessage(cache_fallback=fallback))

    def _step(self, worker: WorkerId, step: pb.Step) -> None:
        now = self._clock()
        if step.HasField("load"):
            self.routing.load_reported(worker, load_from_wire(step.load), now)
        sequence = step.cache_sequence
        self._ask(worker, self.routing.caches.hears_of(worker, worker.epoch, sequence, now))
        for output in step.outputs:
            self._tell(output.key, output_from_wire(worker, output))
        self._door.room_changed(self._clock())

    def _tell(self, key: pb.AttemptKey, event: FlowEvent) -> None:
        running = self._running.get(RequestKey(key.tenant, key.request_id))
        if running is not None:
            self._handle(running, event)

    def _handle(self, running: _Running, event: FlowEvent) -> None:
        if self._running.get(running.prompt.key) is not running:
            return
        try:
            commands = running.flow.handle(event, self._clock())
        except CrossdockError as error:
            # Only an illegal transition gets here: a defect that must not hurt other requests.
            log.exception("request failed by a defect")
            commands = [*running.flow.abandon(), Fail(error)]
        for command in commands:
            self._carry_out(running, command)

    def _carry_out(self, running: _Running, command: Command) -> None:
        match command:
            case Route():
                self._route(running, command)
            case SendOpen():
                self._send_open(running, command)
            case SendPrefill():
                self._send_prefill(running, command)
            case SendAbort():
                self._send_abort(running, command)
            case Emit():
                self._emit(running, command)
            case Finish() | Fail():
                self._finish(running, command)
            case ReportDefect():
                log.error("worker %s: %s", command.worker, command.detail)
                self._metrics.defect()

    def _route(self, running: _Running, command: Route) -> None:
        if command.delay_s > 0:
            self._after(running, command.delay_s, RouteDue())
            return
        began = self._clock()
        avoid = command.avoid
        if not running.flow.lifecycle.attempt:
            avoid |= self._room.laden()
        try:
            placement = self.routing.place(running.routed, avoid)
        except CrossdockError as error:
            self._handle(running, Unroutable(error, hopeful=self.pool.expecting))
            return
        running.dispatched_at = self._clock()
        running.expected_cached = running.prompt.expected_cached(placement, self.block_size)
        blocks = running.routed.shape.num_blocks
        self._metrics.placed(placement, blocks, running.dispatched_at - began)
        self._handle(running, Routed(placement))

    def _send_open(self, running: _Running, command: SendOpen) -> None:
        prompt, key = running.prompt, running.attempt_key
        if command.attempt > 1:
            self._metrics.retried()
        now = self._clock()
        self.routing.sent_open(key, running.routed, command.worker, command.handoff, now)
        message = pb.Open(
            key=key_to_wire(key),
            mode=pb.Open.HANDOFF if command.handoff else pb.Open.LOCAL,
            token_ids=b"" if command.handoff else tokens_to_wire(prompt.tokens),
            sampling=sampling_to_wire(prompt.sampling),
            salt=prompt.salt,
            deadline_s=command.deadline_s,
        )
        self.pool.send(command.worker, pb.RouterMessage(open=message))

    def _send_prefill(self, running: _Running, command: SendPrefill) -> None:
        prompt, key = running.prompt, running.attempt_key
        self.routing.sent_prefill(key, running.routed, command.worker, self._clock())
        message = pb.Prefill(
            key=key_to_wire(key),
            token_ids=tokens_to_wire(prompt.tokens),
            sampling=sampling_to_wire(prompt.sampling),
            decode_worker=command.decode.name,
            decode_endpoint=self.pool.endpoint(command.decode),
            decode_epoch=command.decode.epoch,
            salt=prompt.salt,
            deadline_s=command.deadline_s,
        )
        self.pool.send(command.worker, pb.RouterMessage(prefill=message))

    def _send_abort(self, running: _Running, command: SendAbort) -> None:
        key = AttemptKey(running.prompt.key, command.attempt)
        self.routing.settled(key, (command.worker,))
        self.pool.send(command.worker, pb.RouterMessage(abort=pb.Abort(key=key_to_wire(key))))

    def _emit(self, running: _Running, command: Emit) -> None:
        now, last = self._clock(), running.last_output_at.get(command.index)
        self._metrics.generated(running.prompt.key.tenant, len(command.token_ids))
        if last is not None:
            self._metrics.next_output(now - last)
        elif not running.last_output_at:
            self._metrics.first_output(
                now - running.flow.arrived, now - running.dispatched_at, running.flow.placement
            )
            self._note_answer(running, now)
            self._door.tell(Started(running.prompt.key), now)
        running.last_output_at[command.index] = now
        running.deliver(command)

    def _finish(self, running: _Running, command: Finish | Fail) -> None:
        if isinstance(command, Finish):
            running.finishes.append(command)
        if isinstance(command, Fail) or running.flow.ended:
            self._end(running)
        running.deliver(command)

    def _end(self, running: _Running) -> None:
        for timer in running.timers:
            timer.cancel()
        self._settle_all(running)
        del self._running[running.prompt.key]
        self._ids.release(running.prompt.key, self._clock())
        if not running.refused:
            self._count(running)
        self._door.tell(self._ended(running), self._clock())
        if not self._running:
            self.idle.set()

    def _ended(self, running: _Running) -> Ended:
        cached = max((finish.cached_tokens for finish in running.finishes), default=0)
        generated = running.flow.lifecycle.tokens_delivered
        return Ended(running.prompt.key, len(running.prompt.tokens) - cached, generated)

    def _count(self, running: _Running) -> None:
        self._metrics.ended(
            EndedRequest(
                running.prompt.key.tenant,
                running.flow.lifecycle.state,
                len(running.prompt.tokens),
                running.expected_cached,
                running.finishes,
                slo_class(running.prompt.priority),
            )
        )

    def _note_answer(self, running: _Running, now: float) -> None:
        placement = running.flow.placement
        if placement is not None:
            key, workers = running.attempt_key, placement.workers
            for silent in self.routing.answered(key, workers, now):
                self._tell_fallback(silent, True)

    def _settle_all(self, running: _Running) -> None:
        placement = running.flow.placement
        if placement is not None:
            self.routing.settled(running.attempt_key, placement.workers)

    def _after(self, running: _Running, delay_s: float, event: FlowEvent) -> None:
        loop = asyncio.get_running_loop()
        running.timers.append(loop.call_later(delay_s, self._handle, running, event))
