"""One request from its arrival to its end: what to do when something happens to it.

Pure: ``handle(event, now)`` gives commands, the dispatcher carries them out. Decides about new
attempts by tokens delivered and never by phase: before the first token a failed attempt is
followed by another one, after it the request is aborted.
Does not cover: the choice of workers (``router.routing.choosing``), how often and how long they
are tried (``router.flow.retries``), reading and writing streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.handoff import FailureCause
from core.lifecycle import Event, Lifecycle, State
from core.request import FinishReason, RequestKey
from router.flow.answer_progress import AnswerProgress
from router.flow.errors import (
    Tally,
    cancelled,
    cut,
    exhausted,
    expired,
    no_room,
    router_stopping,
)
from router.flow.messages import (
    AttemptFailed,
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
from router.flow.retries import Retries, RetryLimits
from router.placement import Placement, WorkerId

_BLAMES_DECODE = frozenset({FailureCause.NO_ROOM, FailureCause.DECODE_LOST})
_BLAMES_PREFILL = frozenset(
    {FailureCause.PREFILL_LOST, FailureCause.LEASE_EXPIRED, FailureCause.INCOMPATIBLE}
)


@dataclass(slots=True)
class Flow:
    """One request with ``n`` answers, each of which ends by itself.

    ``arrived`` and ``deadline`` in seconds on the caller's monotonic clock; ``numbered_after``: see
    `Lifecycle`. The source of the answers is the worker that sent the first output; nobody else can
    answer then. ``by_ticket``: the client may read tokens from D itself, until it asks for them
    here.
    """

    key: RequestKey
    arrived: float
    deadline: float | None = None
    n: int = 1
    limits: RetryLimits = field(default_factory=RetryLimits)
    numbered_after: int = 0
    by_ticket: bool = False
    lifecycle: Lifecycle = field(init=False)
    answers: list[AnswerProgress] = field(init=False)
    placement: Placement | None = field(default=None, init=False)
    _avoid: frozenset[WorkerId] = field(default=frozenset(), init=False)
    _retries: Retries = field(init=False)
    _cached_tokens: int = field(default=0, init=False)
    _dispatched_at: float | None = field(default=None, init=False)
    _source: WorkerId | None = field(default=None, init=False)
    _relayed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.lifecycle = Lifecycle(self.key, self.numbered_after)
        self.answers = [AnswerProgress() for _ in range(self.n)]
        self._retries = Retries(self.limits)

    @property
    def ended(self) -> bool:
        return self.lifecycle.ended

    @property
    def tokens_delivered(self) -> int:
        """Over all answers. Only one attempt gives any."""
        return sum(answer.tokens for answer in self.answers)

    def handle(self, event: FlowEvent, now: float) -> list[Command]:
        """What to do now; nothing once the request has ended."""
        if self.ended:
            return []
        commands = self._decide(event, now)
        if self.ended:
            self._end_answers()
        return commands

    def _decide(self, event: FlowEvent, now: float) -> list[Command]:
        match event:
            case RouteDue():
                return self._route(0.0)
            case Routed():
                return self._dispatch(event, now)
            case Unroutable():
                return self._unroutable(event, now)
            case Output():
                return self._output(event, now)
            case RelayAsked():
                return self._relay(event)
            case AttemptFailed():
                return self._attempt_failed(event, now)
            case WorkerLost():
                return self._worker_lost(event, now)
            case ClientGone() | DeadlinePassed() | RouterStopping():
                return self._end_from_outside(event, now)

    def _end_answers(self) -> None:
        for answer in self.answers:
            answer.source = None

    def _end_from_outside(
        self, event: ClientGone | DeadlinePassed | RouterStopping, now: float
    ) -> list[Command]:
        match event:
            case ClientGone():
                return self._client_gone(event, now)
            case DeadlinePassed():
                return self._expire(now)
            case RouterStopping():
                return self._router_stopping(now)

    def _route(self, delay_s: float) -> list[Command]:
        if self.lifecycle.state is not State.QUEUED:
            return []
        return [Route(self._avoid, delay_s)]

    def _dispatch(self, event: Routed, now: float) -> list[Command]:
        if self.lifecycle.state is not State.QUEUED:
            return []
        self.lifecycle.move(Event.DISPATCHED)
        self.placement = placement = event.placement
        self._retries.routed()
        if self._dispatched_at is None:
            self._dispatched_at = now
        attempt, left = self.lifecycle.attempt, self._deadline_left(now)
        handoff = placement.prefill is not None
        readable = self.by_ticket and event.readable and not self._relayed
        commands: list[Command] = [SendOpen(placement.decode, attempt, handoff, left, readable)]
        if placement.prefill is not None:
            commands.append(SendPrefill(placement.prefill, attempt, placement.decode, left))
        if self.by_ticket:
            commands.append(GiveTicket(placement.decode if readable else None, attempt))
        return commands

    def _relay(self, event: RelayAsked) -> list[Command]:
        """Of an earlier attempt it means nothing any more."""
        placement, attempt = self.placement, self.lifecycle.attempt
        if placement is None or event.attempt != attempt or self._relayed:
            return []
        self._relayed = True
        return [SendRelay(placement.decode, attempt, event.position)]

    def _unroutable(self, event: Unroutable, now: float) -> list[Command]:
        if self.lifecycle.state is not State.QUEUED:
            return []
        taken = self.lifecycle.attempts > 0
        if self._retries.may_wait_for_workers(now, taken=taken, hopeful=event.hopeful):
            return self._route(self.limits.attach_pause_s)
        self.lifecycle.move(Event.GAVE_UP)
        return [Fail(event.error)]

    def _output(self, event: Output, now: float) -> list[Command]:
        placement = self.placement
        if placement is None or not self._is_current(event.worker, event.attempt):
            return []
        if not self._may_answer(event, placement):
            return []
        if event.counted and event.index < self.n:
            return [_emit(event)]
        if not self._expects(event.index):
            return [ReportDefect(event.worker, f"output for answer {event.index} of {self.n}")]
        self._cached_tokens = max(self._cached_tokens, event.cached_tokens)
        commands = self._emit(event, now)
        if event.finish_reason is not None:
            commands += self._finish(event, event.finish_reason, placement, now)
        if commands and self._source is None:
            self._source = event.worker
            if event.worker == placement.prefill:
                commands.insert(0, SendAbort(placement.decode, event.attempt))
        return commands

    def _may_answer(self, event: Output, placement: Placement) -> bool:
        """P answers itself only when first tokens end all answers; D streams everything else."""
        if self._source is not None and event.worker != self._source:
            return False
        return event.worker == placement.decode or event.finish_reason is not None

    def _expects(self, index: int) -> bool:
        return index < self.n and not self.answers[index].finished

    def _emit(self, event: Output, now: float) -> list[Command]:
        tokens = event.read_tokens or len(event.token_ids)
        if not tokens and not event.text:
            return []
        answer = self.answers[event.index]
        answer.tokens += tokens
        if answer.first_token_at is None:
            answer.first_token_at = now
            answer.source = event.worker
        self.lifecycle.deliver()
        if event.read_tokens:
            return [CountRead(tokens, event.index)]
        return [_emit(event)]

    def _finish(
        self, event: Output, reason: FinishReason, placement: Placement, now: float
    ) -> list[Command]:
        answer = self.answers[event.index]
        answer.finished, answer.source = True, None
        if all(other.finished for other in self.answers):
            self.lifecycle.move(Event.COMPLETED)
        else:
            # The client knows now that this one ended, even if it has no tokens: no way back.
            self.lifecycle.deliver()
        dispatched = self._dispatched_at if self._dispatched_at is not None else now
        first = answer.first_token_at if answer.first_token_at is not None else now
        finish = Finish(
            reason=reason,
            completion_tokens=answer.tokens,
            cached_tokens=self._cached_tokens,
            queue_s=dispatched - self.arrived,
            ttft_s=first - self.arrived,
            total_s=now - self.arrived,
            placement=placement,
            attempts=self.lifecycle.attempts,
            index=event.index,
        )
        return [finish]

    def _attempt_failed(self, event: AttemptFailed, now: float) -> list[Command]:
        placement = self.placement
        if placement is None or not self._is_current(event.worker, event.attempt):
            return []
        if self._source is not None and event.worker != self._source:
            return []
        if event.cause is FailureCause.DEADLINE and self.deadline is not None:
            return self._expire(now)
        if event.cause is FailureCause.DRAINING:
            return self._drained(event, now)
        blamed = _blamed(event, placement)
        if event.cause is FailureCause.NO_ROOM:
            return self._no_room(event, blamed, now)
        return self._next_attempt(event.worker, blamed, f"{event.cause.name} {event.detail}", now)

    def _worker_lost(self, event: WorkerLost, now: float) -> list[Command]:
        placement = self.placement
        if placement is None or event.worker not in placement.workers:
            return []
        # After the commit P has nothing that the answers still need.
        if self._source is not None and event.worker != self._source:
            return []
        return self._next_attempt(event.worker, event.worker, f"lost worker {event.worker}", now)

    def _no_room(self, event: AttemptFailed, blamed: WorkerId, now: float) -> list[Command]:
        aborts = self._end_attempt(event.worker, blamed, now)
        if self.ended:
            return [*aborts, Fail(cut(self._tally(), FailureCause.NO_ROOM.name))]
        return [*aborts, *self._wait_for_room(self.limits.first_pause_s, now)]

    def _drained(self, event: AttemptFailed, now: float) -> list[Command]:
        """The worker leaves in good order: nobody failed, and others take over at once."""
        pause = self.limits.first_pause_s if event.worker in self._avoid else 0.0
        aborts = self._end_attempt(event.worker, event.worker, now)
        if self.ended:
            return [*aborts, Fail(cut(self._tally(), f"{event.cause.name} {event.detail}"))]
        return [*aborts, *self._wait_for_room(pause, now)]

    def _wait_for_room(self, pause_s: float, now: float) -> list[Command]:
        waited = self._retries.without_room_s(now)
        if waited <= self.limits.room_patience_s:
            return self._route(pause_s)
        self.lifecycle.move(Event.GAVE_UP)
        return [Fail(no_room(self._tally(), waited, self.limits.retry_after_s))]

    def _next_attempt(
        self, silent: WorkerId, blamed: WorkerId, why: str, now: float
    ) -> list[Command]:
        """``silent`` is dead or has dropped the attempt by itself: it needs no abort."""
        aborts = self._end_attempt(silent, blamed, now)
        if self.ended:
            return [*aborts, Fail(cut(self._tally(), why))]
        if self._retries.count_failure():
            return [*aborts, *self._route(self._retries.pause_s())]
        self.lifecycle.move(Event.GAVE_UP)
        failures, after = self._retries.failures, self.limits.retry_after_s
        return [*aborts, Fail(exhausted(self._tally(), failures, why, after))]

    def _end_attempt(self, silent: WorkerId, blamed: WorkerId, now: float) -> list[Command]:
        aborts = self._aborts(silent)
        self.lifecycle.move(Event.ATTEMPT_FAILED)
        self.placement = None
        self._avoid |= {blamed}
        return aborts

    def _client_gone(self, event: ClientGone, now: float) -> list[Command]:
        # A call is closed by its deadline, too, and the transport does not say which it was.
        if self.deadline is not None and now >= self.deadline:
            return self._expire(now)
        self.lifecycle.move(Event.CLIENT_GONE)
        return [*self._aborts(None), Fail(cancelled(self._tally(), event.reason))]

    def _expire(self, now: float) -> list[Command]:
        self.lifecycle.move(Event.DEADLINE)
        return [*self._aborts(None), Fail(expired(self._tally()))]

    def _router_stopping(self, now: float) -> list[Command]:
        aborts = self._aborts(None)
        if self.lifecycle.state is not State.QUEUED:
            self.lifecycle.move(Event.ATTEMPT_FAILED)
        if self.ended:
            return [*aborts, Fail(cut(self._tally(), "the router stops"))]
        self.lifecycle.move(Event.GAVE_UP)
        return [*aborts, Fail(router_stopping(self._tally(), self.limits.retry_after_s))]

    def abandon(self) -> list[Command]:
        """After a defect in this flow: whatever its attempt still holds on workers is let go."""
        self._end_answers()
        return self._aborts(None)

    def _is_current(self, worker: WorkerId, attempt: int) -> bool:
        placement = self.placement
        return (
            placement is not None
            and attempt == self.lifecycle.attempt
            and worker in placement.workers
        )

    def _aborts(self, silent: WorkerId | None) -> list[Command]:
        workers = self.placement.workers if self.placement is not None else ()
        attempt = self.lifecycle.attempt
        return [SendAbort(worker, attempt) for worker in workers if worker != silent]

    def _deadline_left(self, now: float) -> float:
        # 0 would mean "none" on the wire.
        return 0.0 if self.deadline is None else max(0.001, self.deadline - now)

    def _tally(self) -> Tally:
        return Tally(self.key, self.lifecycle.attempts, self.tokens_delivered)


def _emit(event: Output) -> Emit:
    return Emit(event.token_ids, event.text, event.index, event.logprobs, event.counted)


def _blamed(event: AttemptFailed, placement: Placement) -> WorkerId:
    if event.cause in _BLAMES_DECODE:
        return placement.decode
    if event.cause in _BLAMES_PREFILL and placement.prefill is not None:
        return placement.prefill
    return event.worker
