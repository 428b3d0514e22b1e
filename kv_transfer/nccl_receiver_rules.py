"""D's rules of an NCCL edge: pure, driven by events.

NCCL matches sends and receives by their order alone. So D numbers the batches, enqueues receive k
into staging, and only then says go(k); one batch is under way at a time, and none is given up half
way: an edge that can't go on is fenced for good. The first batch of an opening is the other way
round: two ranks connect at their first send and receive, each waiting for the other in a host call,
so D says go before it enqueues. That batch is known bytes, which makes it the edge's self-test.
Does not cover: P's rules (``kv_transfer.nccl_sender_rules``), carrying commands out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from kv_transfer import nccl_events as ev


class Phase(Enum):
    CLOSED = "closed"
    MAKING_ROOM = "making room for a communicator"
    INVITING = "waiting for the prefill worker to join"
    JOINING = "making the communicator"
    TESTING = "testing the edge"
    IDLE = "idle"
    RECEIVING = "receiving a batch"
    CLOSING = "giving the communicator up"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a phase may take. ``room`` counts on P as well, before it joins."""

    room: float = 5.0
    join: float = 20.0
    batch: float = 10.0


class ReceiverRules:
    """One edge. ``deadline``: when the present phase is over at the latest, or None."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.phase = Phase.CLOSED
        self.deadline: float | None = None
        self._opening = 0
        self._number = ev.PROBE
        self._batch: ev.Batch = ()
        self._waiting: deque[ev.Batch] = deque()
        self._has_job = False
        self._close_wanted = False

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, in the communicator or before it."""
        return not self._has_job and self.phase in (Phase.CLOSED, Phase.IDLE)

    def handle(self, event: ev.Event, now: float) -> list[ev.Command]:
        if self.phase is Phase.FENCED:
            return []
        match event:
            case ev.CopyWanted(batches):
                return self._begin(batches, now)
            case ev.RoomWanted():
                return self._want_close(now)
            case ev.Heard(message):
                return self._hear(message, now)
            case ev.Failed(reason):
                return self._fence(reason)
            case _:
                return self._done(event, now)

    def _done(self, event: ev.Event, now: float) -> list[ev.Command]:
        """What came of a command."""
        match event:
            case ev.RoomMade() if self.phase is Phase.MAKING_ROOM:
                return self._invite(now)
            case ev.NoRoom() if self.phase is Phase.MAKING_ROOM:
                return self._give_up()
            case ev.Joined() if self.phase is Phase.JOINING:
                return self._test(now)
            case ev.Landed(number) if number == self._number:
                return self._landed()
            case ev.ProbeSeen(right) if self.phase is Phase.TESTING:
                return self._proceed(now) if right else self._fence("the self-test failed")
            case ev.Stored(number) if number == self._number:
                return self._proceed(now)
            case ev.Destroyed() if self.phase is Phase.CLOSING:
                self._enter(Phase.CLOSED, None, now)
                return []
            case _:
                return self._fence(f"{event} while {self.phase.value}")

    def _hear(self, message: object, now: float) -> list[ev.Command]:
        match message:
            case ev.Joining(opening) if self._is_now(Phase.INVITING, opening):
                self._enter(Phase.JOINING, self.limits.join, now)
                return [ev.Join()]
            case ev.Full(opening) if self._is_now(Phase.INVITING, opening):
                return self._give_up()
            case ev.Sent(opening, number, present) if self._is_awaited(opening, number, present):
                self._present = present
                return [ev.AwaitReceive(number)]
            case ev.CloseWanted(opening):
                # One that crossed our own `Close` is about an opening that is over.
                return self._want_close(now) if opening == self._opening else []
            case _:
                return self._fence(f"the prefill worker said {message} while {self.phase.value}")

    def _begin(self, batches: tuple[ev.Batch, ...], now: float) -> list[ev.Command]:
        self._has_job = True
        self._waiting = deque(batches)
        if self.phase is Phase.IDLE:
            return self._proceed(now)
        self._enter(Phase.MAKING_ROOM, None, now)
        return [ev.MakeRoom()]

    def _invite(self, now: float) -> list[ev.Command]:
        self._opening += 1
        self._number = ev.PROBE
        self._close_wanted = False
        self._enter(Phase.INVITING, self.limits.room + self.limits.join, now)
        return [ev.Invite(self._opening)]

    def _give_up(self) -> list[ev.Command]:
        """Not an error of the edge: what is wanted later may find room."""
        self._waiting.clear()
        self._has_job = False
        self.phase, self.deadline = Phase.CLOSED, None
        return [ev.Finish()]

    def _test(self, now: float) -> list[ev.Command]:
        self._enter(Phase.TESTING, self.limits.join, now)
        self._batch = ()
        return [ev.Say(ev.Go(self._opening, ev.PROBE, ())), ev.Receive(ev.PROBE, 1)]

    def _landed(self) -> list[ev.Command]:
        if self.phase is Phase.TESTING:
            return [ev.CheckProbe()]
        return [ev.Store(self._number, self._present)]

    def _proceed(self, now: float) -> list[ev.Command]:
        if self._waiting:
            self._batch = self._waiting.popleft()
            self._number += 1
            self._enter(Phase.RECEIVING, self.limits.batch, now)
            return [
                ev.Receive(self._number, len(self._batch)),
                ev.Say(ev.Go(self._opening, self._number, self._batch)),
            ]
        self._enter(Phase.IDLE, None, now)
        finished: list[ev.Command] = [ev.Finish()] if self._has_job else []
        self._has_job = False
        return finished + (self._close(now) if self._close_wanted else [])

    def _want_close(self, now: float) -> list[ev.Command]:
        self._close_wanted = True
        return self._close(now) if self.phase is Phase.IDLE else []

    def _close(self, now: float) -> list[ev.Command]:
        self._enter(Phase.CLOSING, self.limits.join, now)
        return [ev.Say(ev.Close(self._opening)), ev.Destroy()]

    def _fence(self, reason: str) -> list[ev.Command]:
        finish: list[ev.Command] = [ev.Finish()] if self._has_job else []
        self._has_job = False
        self._waiting.clear()
        self.phase, self.deadline = Phase.FENCED, None
        return [ev.Fence(reason), *finish]

    def _is_now(self, phase: Phase, opening: int) -> bool:
        return self.phase is phase and opening == self._opening

    def _is_awaited(self, opening: int, number: int, present: tuple[bool, ...]) -> bool:
        return self.phase in (Phase.TESTING, Phase.RECEIVING) and (
            opening,
            number,
            len(present),
        ) == (self._opening, self._number, len(self._batch))

    def _enter(self, phase: Phase, limit_s: float | None, now: float) -> None:
        self.phase = phase
        self.deadline = None if limit_s is None else now + limit_s
