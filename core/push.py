"""P's side of the handoff: from "I start computing this prompt" to "D has it".

Covers: one attempt on P: when to reserve, announce, commit, report or give up. Messages may be
doubled, late or lost. Bytes never move from here: D copies what P announces.
Does not cover: computing the prompt (``prefill_worker.scheduler``), streams (``kv_transfer``).
"""

from __future__ import annotations

from core.handoff import (
    Ack,
    Committed,
    FailureCause,
    LeaseLost,
    LeaseTimes,
    NoRoom,
    Ticket,
    ToPrefill,
)
from core.request import AttemptKey
from core.step import SampledToken
from core.transitions import StateMachine, Symbol, TransitionTable
from core.values import value


class PushState(Symbol):
    IDLE = "waiting"
    ASKED = "asked"
    PUSHING = "pushing"
    COMMITTING = "committing"
    RELEASED = "released"
    FAILED = "failed"


class PushEvent(Symbol):
    ASK = "reserve"
    TICKET = "ticket"
    COMMIT = "commit"
    COMMITTED = "committed"
    LOSE = "no room, deadline or peer lost"


PUSH_TABLE: TransitionTable[PushState, PushEvent] = TransitionTable(
    name="push",
    initial=PushState.IDLE,
    moves={
        (PushState.IDLE, PushEvent.ASK): PushState.ASKED,
        (PushState.IDLE, PushEvent.LOSE): PushState.FAILED,
        (PushState.ASKED, PushEvent.TICKET): PushState.PUSHING,
        (PushState.ASKED, PushEvent.LOSE): PushState.FAILED,
        (PushState.PUSHING, PushEvent.COMMIT): PushState.COMMITTING,
        (PushState.PUSHING, PushEvent.LOSE): PushState.FAILED,
        (PushState.COMMITTING, PushEvent.COMMITTED): PushState.RELEASED,
        (PushState.COMMITTING, PushEvent.LOSE): PushState.FAILED,
    },
)


# Commands.
@value()
class SendReserve:
    key: AttemptKey


@value()
class AnnounceBlocks:
    """Announce these prompt block indices (their KV is final)."""

    key: AttemptKey
    lease_id: int
    indices: tuple[int, ...]


@value()
class SendCommit:
    key: AttemptKey
    lease_id: int
    first_tokens: tuple[SampledToken, ...]


@value()
class Release:
    """The attempt is over on P: its blocks stay as prefix cache."""

    key: AttemptKey


@value()
class ReportFailure:
    key: AttemptKey
    cause: FailureCause
    detail: str


PushCommand = SendReserve | AnnounceBlocks | SendCommit | Release | ReportFailure


class Push:
    """One attempt's handoff as P sees it. Not thread-safe: its owner holds a lock."""

    def __init__(
        self, key: AttemptKey, prompt_length: int, block_size: int, times: LeaseTimes
    ) -> None:
        self.key = key
        self.lease_id = 0
        self.computed = 0
        self._machine = StateMachine(PUSH_TABLE, key)
        self._prompt_length = prompt_length
        self._block_size = block_size
        self._times = times
        self._announced = 0
        self._first_tokens: tuple[SampledToken, ...] = ()
        self._renewed = float("inf")

    @property
    def state(self) -> PushState:
        return self._machine.state

    @property
    def ended(self) -> bool:
        return self._machine.ended

    @property
    def has_ticket(self) -> bool:
        return self.state in (PushState.PUSHING, PushState.COMMITTING)

    def ask(self, now: float) -> list[PushCommand]:
        """P wants to compute this prompt: time to reserve on D."""
        if self.state is not PushState.IDLE:
            return []
        self._machine.advance(PushEvent.ASK)
        self._renew(now)
        return [SendReserve(self.key)]

    def on_computed(self, computed: int, now: float) -> list[PushCommand]:
        """KV of the first ``computed`` prompt tokens is final."""
        if self.ended:
            return []
        if computed > self.computed:
            self._renew(now)
        self.computed = computed
        return self._announce()

    def on_sampled(self, tokens: tuple[SampledToken, ...]) -> list[PushCommand]:
        """The first token of each answer; called after `on_computed` with the whole prompt."""
        if self.ended:
            return []
        self._first_tokens = tokens
        return self._try_commit()

    def handle(self, message: ToPrefill, now: float) -> list[PushCommand]:
        """What follows from D's message at monotonic time ``now`` (seconds)."""
        if self.ended or message.key != self.key:
            return []
        match message:
            case Ticket():
                return self._on_ticket(message, now)
            case Ack():
                return self._on_ack(message, now)
            case Committed():
                return self._on_committed(message)
            case NoRoom(_, detail):
                return self.lose(FailureCause.NO_ROOM, detail)
            case LeaseLost(_, lease_id, reason):
                stale = lease_id not in (0, self.lease_id) and self.lease_id != 0
                return [] if stale else self.lose(FailureCause.LEASE_EXPIRED, reason)

    def on_tick(self, now: float, longest_step: float) -> list[PushCommand]:
        """Stops before D's promise runs out, so that nothing late can happen.

        ``longest_step`` (seconds): a slow engine keeps its leases, a hung one does not.
        """
        if self.ended or now < self.deadline(longest_step):
            return []
        if self.state is PushState.PUSHING:
            return self.lose(FailureCause.LEASE_EXPIRED, "no progress within the lease")
        # P has done its part and waits for an answer that D owes at once, or after NO_ROOM's time.
        return self.lose(FailureCause.DECODE_LOST, "the decode worker does not answer")

    def deadline(self, longest_step: float) -> float:
        """When `on_tick` gives up if nothing else happens; infinite before `ask`."""
        patience = self._times.prefill_deadline
        if self.state is PushState.PUSHING:
            patience = max(patience, self._times.stall_limit(longest_step))
        return self._renewed + patience

    def lose(self, cause: FailureCause, detail: str) -> list[PushCommand]:
        """Gives the attempt up and tells the router why."""
        if self.ended:
            return []
        self._machine.advance(PushEvent.LOSE)
        return [ReportFailure(self.key, cause, detail), Release(self.key)]

    def abandon(self) -> list[PushCommand]:
        """The router gave the attempt up, or P answered it by itself: nobody needs to be told."""
        if self.ended:
            return []
        self._machine.advance(PushEvent.LOSE)
        return [Release(self.key)]

    def _on_ticket(self, message: Ticket, now: float) -> list[PushCommand]:
        if self.state is not PushState.ASKED:
            return []
        self._machine.advance(PushEvent.TICKET)
        self.lease_id = message.lease_id
        self._announced = message.held_blocks
        self._renew(now)
        return [*self._announce(), *self._try_commit()]

    def _on_ack(self, message: Ack, now: float) -> list[PushCommand]:
        if message.lease_id != self.lease_id:
            return []
        self._renew(now)
        if not message.resend:
            return []
        return [AnnounceBlocks(self.key, self.lease_id, message.resend)]

    def _on_committed(self, message: Committed) -> list[PushCommand]:
        if self.state is PushState.ASKED:
            return self.lose(FailureCause.DECODE_LOST, "D knows this attempt as an ended one")
        if message.lease_id != self.lease_id or self.state is not PushState.COMMITTING:
            return []
        self._machine.advance(PushEvent.COMMITTED)
        return [Release(self.key)]

    def _announce(self) -> list[PushCommand]:
        ready = self._finished_blocks()
        if self.state is not PushState.PUSHING or ready <= self._announced:
            return []
        indices = tuple(range(self._announced, ready))
        self._announced = ready
        return [AnnounceBlocks(self.key, self.lease_id, indices)]

    def _finished_blocks(self) -> int:
        if self.computed >= self._prompt_length:
            return -(-self._prompt_length // self._block_size)
        return self.computed // self._block_size

    def _try_commit(self) -> list[PushCommand]:
        if self.state is not PushState.PUSHING or not self._first_tokens:
            return []
        self._machine.advance(PushEvent.COMMIT)
        return [SendCommit(self.key, self.lease_id, self._first_tokens)]

    def _renew(self, now: float) -> None:
        self._renewed = now
