"""Carries out what the flows of all requests decide: the shell around ``router.flow.flow``.

Covers: waiting at the door, routing an attempt, timers, and the stream of each answer.
Does not cover: validation (``router.intake.request_intake``), sending to workers
(``router.requests.attempt_sender``), what they say (``router.workers.worker_news``), the doors.
Runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from random import Random

from core.config import DEFAULT_MAX_INDEX_BLOCKS
from core.errors import CrossdockError, InternalError, NotFound
from core.request import RequestKey
from crossdock.v1 import worker_pb2 as pb
from router.access_rules import AccessRules
from router.admission.admission import Admission
from router.admission.door import Door
from router.admission.messages import Started
from router.admission.shared_tenants import SharedTenants
from router.admission.tenant_sums import BudgetsLeft, Charged, Paid, Share
from router.admission.worker_room import WorkerRoom
from router.flow.flow import Flow
from router.flow.messages import (
    ClientGone,
    Command,
    CountRead,
    DeadlinePassed,
    Emit,
    Fail,
    Finish,
    FlowEvent,
    GiveTicket,
    Output,
    RelayAsked,
    ReportDefect,
    Route,
    Routed,
    RouteDue,
    RouterStopping,
    SendAbort,
    SendOpen,
    SendPrefill,
    SendRelay,
    Unroutable,
    WorkerLost,
)
from router.flow.retries import RetryLimits
from router.metrics.metrics import Metrics, RouterState
from router.placement import WorkerId
from router.requests.answer_numbers import AnswerNumbers
from router.requests.answer_stream import Prompt, Receiver
from router.requests.attempt_sender import AttemptSender
from router.requests.read_tickets import ReadTickets
from router.requests.request_ids import RequestIds
from router.requests.running_request import RunningRequest
from router.requests.step_tokens import Left, StepTokens
from router.routing.routing_rules import RoutingRules
from router.routing.routing_state import RoutedPrompt, RoutingState
from router.workers.worker_answers import output_from_wire
from router.workers.worker_news import WorkerNews
from router.workers.worker_pool import LinkFactory

log = logging.getLogger(__name__)


class Dispatcher:
    """All running requests. ``clock`` gives seconds, monotonic. ``attempts_after``: attempts are
    numbered from the next one on; another router has other numbers, so that workers never take an
    attempt of one for that of another, also where both were given the same request id."""

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
        tickets: ReadTickets,
        max_index_blocks: int = DEFAULT_MAX_INDEX_BLOCKS,
        attempts_after: int = 0,
        shared: SharedTenants | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.block_size = block_size
        self.routing = RoutingState(rules, random, max_index_blocks)
        self.workers = WorkerNews(
            block_size=block_size,
            open_link=open_link,
            routing=self.routing,
            requests=self,
            metrics=metrics,
            clock=clock,
        )
        self.pool = self.workers.pool
        self._room = WorkerRoom(self.routing, access.door, rules, block_size)
        self._admission = Admission(
            access.tenant, self._room, access.door.max_waiting, block_size, shared
        )
        # Is told the key of each request that has ended.
        self.ended: Callable[[RequestKey], None] = lambda key: None
        self._door = Door(self._admission, self._let_in, self._turn_away)
        self._ttft_s = rules.slo.ttft_s
        self.idle = asyncio.Event()
        self.idle.set()
        self._metrics = metrics
        self._limits = limits
        self._attempts_after = attempts_after
        self._clock = clock
        self._ids = RequestIds()
        self._numbers = AnswerNumbers()
        self._sender = AttemptSender(
            self.pool, self.routing, self._numbers, tickets, metrics, clock
        )
        # A request key is such a pair, too: outputs look requests up without making one.
        self._running: dict[tuple[str, str], RunningRequest] = {}

    def start(self, prompt: Prompt, answers: Receiver) -> Callable[[], None]:
        """Send a request on its way; raises AlreadyExists.

        ``answers`` gets all that the client gets: in the end a Fail, or a Finish for each of the n
        answers. What is returned ends the request if it still runs.
        """
        now = self._clock()
        self._ids.claim(prompt.key, now)
        flow = Flow(
            prompt.key,
            prompt.arrived,
            prompt.deadline,
            prompt.sampling.n,
            self._limits,
            self._attempts_after,
            prompt.by_ticket,
        )
        routed = RoutedPrompt(prompt.shape(self.block_size), prompt.hashes, prompt.sampling.n)
        running = RunningRequest(prompt, routed, flow, answers)
        self._running[prompt.key] = running
        self.idle.clear()
        if prompt.deadline is not None:
            self._after(running, prompt.deadline - now, DeadlinePassed())
        self._door.tell(running.arrived(self._ttft_s), now)
        return lambda: self._handle(running, ClientGone())

    def check_id(self, key: RequestKey) -> None:
        """Raises AlreadyExists while the id is taken here."""
        self._ids.check(key, self._clock())

    def is_running(self, key: RequestKey) -> bool:
        return key in self._running

    def tokens_of(self, prompt: Prompt) -> int:
        """Its own, and as many as its answers are expected to have."""
        sampling = prompt.sampling
        return self._admission.tokens_of(
            prompt.key.tenant, len(prompt.tokens), sampling.n, sampling.max_tokens
        )

    def check_budgets(self, prompts: Sequence[Prompt]) -> None:
        """Of the tenant of a call, for all of its prompts together; raises Overloaded."""
        tenant, tokens = prompts[0].key.tenant, sum(map(self.tokens_of, prompts))
        refusal = self._admission.over_budget(tenant, len(prompts), tokens, self._clock())
        if refusal is not None:
            raise refusal

    def allow(self, part: float) -> None:
        """So much of each tenant's limits is for this router, 1 for all of it."""
        self._admission.allow(part, self._clock())
        self.room_changed()

    def budgets_left(self, tenant: str) -> BudgetsLeft:
        """By what was charged here, and elsewhere as far as heard."""
        return self._admission.budgets_left(tenant, self._clock())

    def paid_elsewhere(self, share: Share, more: Paid) -> None:
        """At other routers, since they were last heard of."""
        self._admission.paid_elsewhere(share, more)

    def charged_elsewhere(self, tenant: str, more: Charged) -> None:
        """At other routers, since they were last heard of."""
        self._admission.charged_elsewhere(tenant, more, self._clock())

    def _let_in(self, key: RequestKey) -> None:
        self._handle(self._running[key], RouteDue())

    def _turn_away(self, key: RequestKey, error: CrossdockError) -> None:
        running = self._running[key]
        running.refused = True
        self._metrics.turned_away(key.tenant, running.slo_class, error.reason)
        self._handle(running, Unroutable(error))

    def abort(self, key: RequestKey) -> None:
        """End a running request; raises NotFound."""
        self._handle(self._found(key), ClientGone("ABORTED_BY_CLIENT"))

    def relay(self, key: RequestKey, attempt: int, position: int) -> None:
        """The client can't read the tokens of this attempt itself; raises NotFound."""
        self._handle(self._found(key), RelayAsked(attempt, position))

    def _found(self, key: RequestKey) -> RunningRequest:
        running = self._running.get(key)
        if running is None:
            raise NotFound(
                f"no request {key.request_id!r} is running",
                reason="REQUEST_NOT_FOUND",
                metadata={"request_id": key.request_id},
            )
        return running

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
            streaming=sum(running.is_streaming for running in self._running.values()),
            at_door=self._admission.queued_of_tenants(),
        )

    def cancel_all(self) -> None:
        """The router stops: end what still runs."""
        for running in list(self._running.values()):
            self._handle(running, RouterStopping())

    # What workers say of requests

    def worker_lost(self, worker: WorkerId) -> None:
        for running in list(self._running.values()):
            self._handle(running, WorkerLost(worker))

    def room_changed(self) -> None:
        self._door.room_changed(self._clock())

    def tell(self, key: RequestKey, event: FlowEvent) -> None:
        running = self._running.get(key)
        if running is not None:
            self._handle(running, event)

    def produced(self, worker: WorkerId, step: pb.Step) -> None:
        for output in step.outputs:
            key = output.key
            running = self._running.get((key.tenant, key.request_id))
            if running is not None:
                self._handle(running, output_from_wire(worker, output))
        if step.HasField("further"):
            self._go_on(worker, step.further)

    def _go_on(self, worker: WorkerId, further: pb.FurtherTokens) -> None:
        """Not made into events and commands: the tokens go to the clients in one pass."""
        step = StepTokens(worker, self._clock())
        step.take(further, self._numbers.find)
        step.write()
        step.count(self._metrics)
        for left in step.left:
            self._go_the_long_way(worker, left)

    def _go_the_long_way(self, worker: WorkerId, left: Left) -> None:
        running = self._running.get(left.answer.key)
        if running is None:
            return
        if left.error is not None:
            self._give_up(running, left.error)
            return
        attempt = running.flow.lifecycle.attempt
        output = Output(worker, attempt, (left.token,), left.text, None, 0, left.answer.index)
        self._handle(running, output)

    def _handle(self, running: RunningRequest, event: FlowEvent) -> None:
        if self._running.get(running.prompt.key) is not running:
            return
        try:
            for command in running.flow.handle(event, self._clock()):
                self._carry_out(running, command)
        except Exception as error:
            # A defect, such as an illegal transition, must not hurt other requests.
            self._give_up(running, error)

    def _give_up(self, running: RunningRequest, error: Exception) -> None:
        log.error("request failed by a defect", exc_info=error)
        if self._running.get(running.prompt.key) is running:
            running.broken = True
            for command in (*running.flow.abandon(), Fail(_told(error))):
                self._carry_out(running, command)

    def _carry_out(self, running: RunningRequest, command: Command) -> None:
        match command:
            case Route():
                self._route(running, command)
            case SendOpen() | SendPrefill() | SendAbort() | SendRelay():
                self._sender.send(running, command)
            case GiveTicket():
                self._sender.give_ticket(running, command)
            case Emit():
                self._emit(running, command)
            case CountRead():
                self._metrics.read(command.tokens)
                self._note_output(running, command.index, command.tokens, self._clock())
            case Finish() | Fail():
                self._finish(running, command)
            case ReportDefect():
                log.error("worker %s: %s", command.worker, command.detail)
                self._metrics.defect()

    def _route(self, running: RunningRequest, command: Route) -> None:
        if command.delay_s > 0:
            self._after(running, command.delay_s, RouteDue())
            return
        began = self._clock()
        avoid = command.avoid
        if not running.flow.lifecycle.attempts:
            avoid |= self._room.laden(len(running.prompt.tokens))
        try:
            placement = self.routing.place(running.routed, avoid)
        except CrossdockError as error:
            self._handle(running, Unroutable(error, hopeful=self.pool.expecting))
            return
        running.dispatched_at = self._clock()
        running.expected_cached = running.prompt.expected_cached(placement, self.block_size)
        blocks = running.routed.shape.num_blocks
        self._metrics.placed(placement, blocks, running.dispatched_at - began)
        readable = bool(self.pool.token_stream(placement.decode))
        self._handle(running, Routed(placement, readable))

    def _emit(self, running: RunningRequest, command: Emit) -> None:
        if not command.counted:
            now, last = self._clock(), running.answers[command.index].last_output_at
            if last is not None:
                self._metrics.next_outputs(1, now - last)
            self._note_output(running, command.index, len(command.token_ids), now)
        running.receiver.event(command)

    def _note_output(self, running: RunningRequest, index: int, tokens: int, now: float) -> None:
        self._metrics.generated(running.prompt.key.tenant, tokens)
        if not running.is_streaming:
            self._metrics.first_output(
                now - running.flow.arrived, now - running.dispatched_at, running.flow.placement
            )
            self._note_answer(running, now)
            self._door.tell(Started(running.prompt.key), now)
        running.answers[index].last_output_at = now

    def _finish(self, running: RunningRequest, command: Finish | Fail) -> None:
        if isinstance(command, Finish):
            running.finishes.append(command)
        if isinstance(command, Fail) or running.flow.ended:
            self._end(running)
        running.receiver.event(command)

    def _end(self, running: RunningRequest) -> None:
        for timer in running.timers:
            timer.cancel()
        self._settle_all(running)
        self._numbers.take_back(running)
        del self._running[running.prompt.key]
        self._ids.release(running.prompt.key, self._clock())
        self.ended(running.prompt.key)
        if not running.refused:
            self._metrics.ended(running.counted())
        self._door.tell(running.ended(), self._clock())
        if not self._running:
            self.idle.set()

    def _note_answer(self, running: RunningRequest, now: float) -> None:
        placement = running.flow.placement
        if placement is not None:
            key, workers = running.attempt_key, placement.workers
            for silent in self.routing.answered(key, running.routed, workers, now):
                self.workers.guess(silent)

    def _settle_all(self, running: RunningRequest) -> None:
        placement = running.flow.placement
        if placement is not None:
            self.routing.settled(running.attempt_key, placement.workers)

    def _after(self, running: RunningRequest, delay_s: float, event: FlowEvent) -> None:
        loop = asyncio.get_running_loop()
        running.timers.append(loop.call_later(delay_s, self._handle, running, event))


def _told(defect: Exception) -> CrossdockError:
    if isinstance(defect, CrossdockError):
        return defect
    return InternalError("an error inside the router; its log tells more", reason="INTERNAL")
