"""One request from its arrival to its end: what to do when something happens to it.

Pure: ``handle(event, now)`` gives commands, the dispatcher carries them out. Decides about new
attempts by tokens delivered and never by phase: before the first token a failed attempt is
followed by another one, after it the request is aborted.
Does not cover: the choice of workers (``router.policy``), reading and writing streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestAborted,
    RequestCancelled,
    Unavailable,
)
from core.handoff import FailureCause
from core.lifecycle import Event, Lifecycle, State
from core.request import FinishReason, RequestKey
from router.flow_messages import (
    AttemptFailed,
    ClientGone,
    Command,
    DeadlinePassed,
    Emit,
    Fail,
    Finish,
    FlowEvent,
    Output,
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
from router.placement import Placement, WorkerId

_BLAMES_DECODE = frozenset({FailureCause.NO_ROOM, FailureCause.DECODE_LOST})
_BLAMES_PREFILL = frozenset(
    {FailureCause.PREFILL_LOST, FailureCause.LEASE_EXPIRED, FailureCause.INCOMPATIBLE}
)


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """Waiting for room is no failure: it is bounded by time, not by the number of attempts."""

    max_attempts: int = 5
    room_patience_s: float = 120.0
    first_pause_s: float = 0.05
    longest_pause_s: float = 0.5
    retry_after_s: float = 2.0


@dataclass(slots=True)
class Flow:
    """One request. ``arrived`` and ``deadline`` in seconds on the caller's monotonic clock."""

    key: RequestKey
    arrived: float
    deadline: float | None = None
    limits: RetryLimits = field(default_factory=RetryLimits)
    lifecycle: Lifecycle = field(init=False)
    placement: Placement | None = field(default=None, init=False)
    _avoid: frozenset[WorkerId] = field(default=frozenset(), init=False)
    _failures: int = field(default=0, init=False)
    _cached_tokens: int = field(default=0, init=False)
    _dispatched_at: float | None = field(default=None, init=False)
    _first_token_at: float | None = field(default=None, init=False)
    _no_room_since: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.lifecycle = Lifecycle(self.key)

    @property
    def ended(self) -> bool:
        return self.lifecycle.ended

    @property
    def _streaming(self) -> bool:
        return self.lifecycle.state is State.STREAMING

    def handle(self, event: FlowEvent, now: float) -> list[Command]:
        """What to do now; nothing once the request has ended."""
        if self.ended:
            return []
        match event:
            case RouteDue():
                return self._route(0.0)
            case Routed():
                return self._dispatch(event.placement, now)
            case Unroutable():
                return self._unroutable(event, now)
            case Output():
                return self._output(event, now)
            case AttemptFailed():
                return self._attempt_failed(event, now)
            case WorkerLost():
                return self._worker_lost(event, now)
            case ClientGone() | DeadlinePassed() | RouterStopping():
                return self._end_from_outside(event, now)

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

    def _dispatch(self, placement: Placement, now: float) -> list[Command]:
        if self.lifecycle.state is not State.QUEUED:
            return []
        self.lifecycle.move(Event.DISPATCHED, now)
        self.placement = placement
        if self._dispatched_at is None:
            self._dispatched_at = now
        attempt, left = self.lifecycle.attempt, self._deadline_left(now)
        handoff = placement.prefill is not None
        commands: list[Command] = [SendOpen(placement.decode, attempt, handoff, left)]
        if placement.prefill is not None:
            commands.append(SendPrefill(placement.prefill, attempt, placement.decode, left))
        return commands

    def _unroutable(self, event: Unroutable, now: float) -> list[Command]:
        if self.lifecycle.state is not State.QUEUED:
            return []
        self.lifecycle.move(Event.GAVE_UP, now)
        return [Fail(event.error)]

    def _output(self, event: Output, now: float) -> list[Command]:
        placement = self.placement
        if placement is None or not self._is_current(event.worker, event.attempt):
            return []
        # P answers itself only when the first token ends the request; D streams everything else.
        completed_by_prefill = event.worker == placement.prefill
        if completed_by_prefill and (self._streaming or event.finish_reason is None):
            return []
        self._cached_tokens = max(self._cached_tokens, event.cached_tokens)
        commands = self._emit(event, now)
        if event.finish_reason is not None:
            others = [SendAbort(placement.decode, event.attempt)] if completed_by_prefill else []
            commands += [*others, self._finish(event.finish_reason, placement, now)]
        return commands

    def _emit(self, event: Output, now: float) -> list[Command]:
        if not event.token_ids and not event.text:
            return []
        self.lifecycle.deliver(len(event.token_ids), now)
        if self._first_token_at is None:
            self._first_token_at = now
        return [Emit(event.token_ids, event.text)]

    def _finish(self, reason: FinishReason, placement: Placement, now: float) -> Finish:
        self.lifecycle.move(Event.COMPLETED, now)
        dispatched = self._dispatched_at if self._dispatched_at is not None else now
        first = self._first_token_at if self._first_token_at is not None else now
        return Finish(
            reason=reason,
            completion_tokens=self.lifecycle.tokens_delivered,
            cached_tokens=self._cached_tokens,
            queue_s=dispatched - self.arrived,
            ttft_s=first - self.arrived,
            total_s=now - self.arrived,
            placement=placement,
            attempts=self.lifecycle.attempt,
        )

    def _attempt_failed(self, event: AttemptFailed, now: float) -> list[Command]:
        placement = self.placement
        if placement is None or not self._is_current(event.worker, event.attempt):
            return []
        if self._streaming and event.worker != placement.decode:
            return []
        if event.cause is FailureCause.DEADLINE and self.deadline is not None:
            return self._expire(now)
        blamed = _blamed(event, placement)
        if event.cause is FailureCause.NO_ROOM:
            return self._no_room(event, blamed, now)
        return self._next_attempt(event.worker, blamed, f"{event.cause.name} {event.detail}", now)

    def _worker_lost(self, event: WorkerLost, now: float) -> list[Command]:
        placement = self.placement
        if placement is None or event.worker not in placement.workers:
            return []
        # After the commit P has nothing that the answer still needs.
        if self._streaming and event.worker == placement.prefill:
            return []
        return self._next_attempt(event.worker, event.worker, f"lost worker {event.worker}", now)

    def _no_room(self, event: AttemptFailed, blamed: WorkerId, now: float) -> list[Command]:
        aborts = self._end_attempt(event.worker, blamed, now)
        if self.ended:
            return [*aborts, Fail(self._aborted(FailureCause.NO_ROOM.name))]
        self._no_room_since = now if self._no_room_since is None else self._no_room_since
        waited = now - self._no_room_since
        if waited <= self.limits.room_patience_s:
            return [*aborts, *self._route(self.limits.first_pause_s)]
        self.lifecycle.move(Event.GAVE_UP, now)
        return [*aborts, Fail(self._overloaded(waited))]

    def _next_attempt(
        self, silent: WorkerId, blamed: WorkerId, why: str, now: float
    ) -> list[Command]:
        """``silent`` is dead or has dropped the attempt by itself: it needs no abort."""
        aborts = self._end_attempt(silent, blamed, now)
        if self.ended:
            return [*aborts, Fail(self._aborted(why))]
        self._failures += 1
        if self._failures >= self.limits.max_attempts:
            self.lifecycle.move(Event.GAVE_UP, now)
            return [*aborts, Fail(self._gave_up(why))]
        return [*aborts, *self._route(self._pause_s())]

    def _end_attempt(self, silent: WorkerId, blamed: WorkerId, now: float) -> list[Command]:
        aborts = self._aborts(silent)
        self.lifecycle.move(Event.ATTEMPT_FAILED, now)
        self.placement = None
        self._avoid |= {blamed}
        return aborts

    def _client_gone(self, event: ClientGone, now: float) -> list[Command]:
        # A call is closed by its deadline, too, and the transport does not say which it was.
        if self.deadline is not None and now >= self.deadline:
            return self._expire(now)
        self.lifecycle.move(Event.CLIENT_GONE, now)
        error = RequestCancelled(
            f"request {self.key.request_id} was cancelled",
            reason=event.reason,
            metadata=self._counts(),
        )
        return [*self._aborts(None), Fail(error)]

    def _expire(self, now: float) -> list[Command]:
        self.lifecycle.move(Event.DEADLINE, now)
        error = DeadlineExceeded(
            f"the deadline of request {self.key.request_id} passed after "
            f"{self.lifecycle.tokens_delivered} tokens; allow more time or ask for fewer tokens",
            reason="DEADLINE",
            metadata=self._counts(),
        )
        return [*self._aborts(None), Fail(error)]

    def _router_stopping(self, now: float) -> list[Command]:
        aborts, why = self._aborts(None), "the router stops"
        if self.lifecycle.state is not State.QUEUED:
            self.lifecycle.move(Event.ATTEMPT_FAILED, now)
        if self.ended:
            return [*aborts, Fail(self._aborted(why))]
        self.lifecycle.move(Event.GAVE_UP, now)
        error = Unavailable(
            f"{why}; send the request again",
            reason="ROUTER_STOPPING",
            metadata=self._counts(),
            retry_after=self.limits.retry_after_s,
        )
        return [*aborts, Fail(error)]

    def abandon(self) -> list[Command]:
        """After a defect in this flow: whatever its attempt still holds on workers is let go."""
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

    def _pause_s(self) -> float:
        """The first retry comes at once, further ones are spaced out."""
        if self._failures == 1:
            return 0.0
        pause = self.limits.first_pause_s * 2.0 ** (self._failures - 2)
        return min(pause, self.limits.longest_pause_s)

    def _deadline_left(self, now: float) -> float:
        # 0 would mean "none" on the wire.
        return 0.0 if self.deadline is None else max(0.001, self.deadline - now)

    def _counts(self) -> dict[str, str]:
        delivered, attempts = self.lifecycle.tokens_delivered, self.lifecycle.attempt
        return {"tokens_sent": str(delivered), "attempts": str(attempts)}

    def _aborted(self, why: str) -> RequestAborted:
        sent = self.lifecycle.tokens_delivered
        return RequestAborted(
            f"the answer was cut after {sent} tokens ({why.strip()}); send the request again",
            reason="STREAM_CUT",
            metadata={**self._counts(), "cause": why.strip()},
        )

    def _gave_up(self, why: str) -> Unavailable:
        return Unavailable(
            f"{self._failures} attempts failed, the last by {why.strip()}; try again later",
            reason="ATTEMPTS_EXHAUSTED",
            metadata={**self._counts(), "cause": why.strip()},
            retry_after=self.limits.retry_after_s,
        )

    def _overloaded(self, waited: float) -> Overloaded:
        return Overloaded(
            f"no decode worker had room for {waited:.0f} s; try again later",
            reason="NO_ROOM",
            metadata=self._counts(),
            retry_after=self.limits.retry_after_s,
        )


def _blamed(event: AttemptFailed, placement: Placement) -> WorkerId:
    if event.cause in _BLAMES_DECODE:
        return placement.decode
    if event.cause in _BLAMES_PREFILL and placement.prefill is not None:
        return placement.prefill
    return event.worker
