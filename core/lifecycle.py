"""The life of a request as the router sees it, in one transition table.

Covers: states, events, the table, how many attempts there were.
``REQUEST_TABLE.mermaid()`` draws it.
Does not cover: what is done on a move (``router.flow.flow``), the handoff's own states on the
workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.request import RequestKey
from core.transitions import StateMachine, Symbol, TransitionTable


class State(Symbol):
    """Where a request stands. The last five are terminal and name its outcome."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    STREAMING = "streaming"
    FINISHED = "finished"
    FAILED = "failed"
    ABORTED = "aborted"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Event(Symbol):
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


@dataclass(slots=True)
class Lifecycle:
    """State of one request, driven by ``move`` and ``deliver`` only.

    ``numbered_after``: the number before that of the first attempt; ``attempts``: so far.
    """

    key: RequestKey
    numbered_after: int = 0
    attempts: int = 0
    _machine: StateMachine[State, Event] = field(init=False)

    def __post_init__(self) -> None:
        self._machine = StateMachine(REQUEST_TABLE, self.key.request_id)

    @property
    def attempt(self) -> int:
        """The number of the latest one."""
        return self.numbered_after + self.attempts

    @property
    def state(self) -> State:
        return self._machine.state

    @property
    def ended(self) -> bool:
        return self._machine.ended

    def move(self, event: Event) -> State:
        """Apply ``event``; raises IllegalTransition if the table does not have it."""
        state = self._machine.advance(event)
        if event is Event.DISPATCHED:
            self.attempts += 1
        return state

    def deliver(self) -> None:
        """The client was given the first output, or a further one."""
        first = self.state is State.PREFILLING
        self.move(Event.FIRST_TOKEN if first else Event.TOKEN)
