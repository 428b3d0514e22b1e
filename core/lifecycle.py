"""The life of a request as the router sees it, in one transition table.

Covers: states, events, the table, what is counted along the way (attempts, tokens delivered), the
history that an illegal move is raised with. ``REQUEST_TABLE.mermaid()`` draws it.
Does not cover: what is done on a move (``router.flow``), the handoff's own states on the workers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from core.request import RequestKey
from core.transitions import IllegalTransition, TransitionTable

HISTORY_LENGTH = 64


class State(Enum):
    """Where a request stands. The last five are terminal and name its outcome."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    STREAMING = "streaming"
    FINISHED = "finished"
    FAILED = "failed"
    ABORTED = "aborted"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Event(Enum):
    """What can happen to a request."""

    DISPATCHED = "dispatched"
    FIRST_TOKEN = "first token"
    TOKEN = "token"
    COMPLETED = "completed"
    ATTEMPT_FAILED = "attempt failed"
    GAVE_UP = "gave up"
    CLIENT_GONE = "client gone"
    DEADLINE = "deadline"


REQUEST_TABLE: TransitionTable[State, Event] = TransitionTable(
    "request",
    State.QUEUED,
    {
        (State.QUEUED, Event.DISPATCHED): State.PREFILLING,
        (State.QUEUED, Event.GAVE_UP): State.FAILED,
        (State.QUEUED, Event.CLIENT_GONE): State.CANCELLED,
        (State.QUEUED, Event.DEADLINE): State.EXPIRED,
        (State.PREFILLING, Event.FIRST_TOKEN): State.STREAMING,
        # An answer may be empty: the first sampled token can be the end of the sequence.
        (State.PREFILLING, Event.COMPLETED): State.FINISHED,
        (State.PREFILLING, Event.ATTEMPT_FAILED): State.QUEUED,
        (State.PREFILLING, Event.CLIENT_GONE): State.CANCELLED,
        (State.PREFILLING, Event.DEADLINE): State.EXPIRED,
        (State.STREAMING, Event.TOKEN): State.STREAMING,
        (State.STREAMING, Event.COMPLETED): State.FINISHED,
        (State.STREAMING, Event.ATTEMPT_FAILED): State.ABORTED,
        (State.STREAMING, Event.CLIENT_GONE): State.CANCELLED,
        (State.STREAMING, Event.DEADLINE): State.EXPIRED,
    },
)


@dataclass(frozen=True, slots=True)
class Move:
    """One change of state; ``at`` in seconds on the caller's clock."""

    at: float
    attempt: int
    source: State
    event: Event
    target: State

    def __str__(self) -> str:
        what = f"{self.source.value} --{self.event.value}--> {self.target.value}"
        return f"{self.at:.3f} s #{self.attempt} {what}"


@dataclass(slots=True)
class Lifecycle:
    """State of one request, driven by ``move`` and ``deliver`` only.

    ``attempt`` is 0 until the first dispatch; ``tokens_delivered`` counts over all attempts, so
    that a later attempt could continue where an earlier one stopped.
    """

    key: RequestKey
    state: State = State.QUEUED
    attempt: int = 0
    tokens_delivered: int = 0
    history: deque[Move] = field(default_factory=lambda: deque(maxlen=HISTORY_LENGTH))

    @property
    def ended(self) -> bool:
        return self.state in REQUEST_TABLE.terminal

    def move(self, event: Event, now: float) -> State:
        """Apply ``event``; raises IllegalTransition if the table does not have it."""
        target = REQUEST_TABLE.moves.get((self.state, event))
        if target is None:
            raise self._illegal(event)
        if event is Event.DISPATCHED:
            self.attempt += 1
        # A long answer is thousands of equal moves; they would push out everything that matters.
        if target is not self.state:
            self.history.append(Move(now, self.attempt, self.state, event, target))
        self.state = target
        return target

    def deliver(self, tokens: int, now: float) -> None:
        """Count ``tokens`` given to the client, as the first token or as a further one."""
        first = self.state is State.PREFILLING
        self.move(Event.FIRST_TOKEN if first else Event.TOKEN, now)
        self.tokens_delivered += tokens

    def _illegal(self, event: Event) -> IllegalTransition:
        return IllegalTransition(
            f"request {self.key.request_id}: '{event.value}' can't happen when {self.state.value}",
            reason="ILLEGAL_TRANSITION",
            metadata={
                "state": self.state.value,
                "event": event.value,
                "attempt": str(self.attempt),
                "history": "; ".join(str(move) for move in self.history),
            },
        )
