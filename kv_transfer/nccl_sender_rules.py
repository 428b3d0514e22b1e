"""P's rules of an NCCL edge: pure, driven by events.

P sends batch k when D has said go(k) and never before, in the order of the numbers, and joins or
leaves a communicator when D says so. Does not cover: D's rules, with the reasons
(``kv_transfer.nccl_receiver_rules``), carrying commands out.
"""

from __future__ import annotations

from enum import Enum

from kv_transfer import nccl_events as ev
from kv_transfer.nccl_receiver_rules import Limits


class Phase(Enum):
    CLOSED = "closed"
    MAKING_ROOM = "making room for a communicator"
    JOINING = "making the communicator"
    READY = "ready to send"
    SENDING = "sending a batch"
    CLOSING = "giving the communicator up"
    FENCED = "fenced"


class SenderRules:
    """One edge. ``deadline``: when the present phase is over at the latest, or None."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.phase = Phase.CLOSED
        self.deadline: float | None = None
        self.opening = 0
        self._unique_id = b""
        self._next = ev.PROBE

    @property
    def is_idle(self) -> bool:
        """Nothing is under way."""
        return self.phase in (Phase.CLOSED, Phase.READY)

    def handle(self, event: ev.Event, now: float) -> list[ev.Command]:
        if self.phase is Phase.FENCED:
            return []
        match event:
            case ev.Heard(message):
                return self._hear(message, now)
            case ev.RoomMade() if self.phase is Phase.MAKING_ROOM:
                self._enter(Phase.JOINING, self.limits.join, now)
                return [ev.Say(ev.Joining(self.opening)), ev.Join(self._unique_id)]
            case ev.NoRoom() if self.phase is Phase.MAKING_ROOM:
                self._enter(Phase.CLOSED, None, now)
                return [ev.Say(ev.Full(self.opening))]
            case ev.Joined() if self.phase is Phase.JOINING:
                self._next = ev.PROBE
                self._enter(Phase.READY, None, now)
                return []
            case ev.SendOver(number, present) if self._is_sending(number):
                self._next += 1
                self._enter(Phase.READY, None, now)
                return [ev.Say(ev.Sent(self.opening, number, present))]
            case ev.Destroyed() if self.phase is Phase.CLOSING:
                self._enter(Phase.CLOSED, None, now)
                return []
            case ev.Failed(reason):
                return self._fence(reason)
            case _:
                return self._fence(f"{event} while {self.phase.value}")

    def _hear(self, message: object, now: float) -> list[ev.Command]:
        match message:
            case ev.Open(opening, unique_id) if self._may_open(opening):
                self.opening, self._unique_id = opening, unique_id
                self._enter(Phase.MAKING_ROOM, None, now)
                return [ev.MakeRoom(message)]
            case ev.Go(opening, number, pieces) if self._may_send(opening, number, pieces):
                limit = self.limits.join if number == ev.PROBE else self.limits.batch
                self._enter(Phase.SENDING, limit, now)
                return [ev.Send(number, pieces) if pieces else ev.SendProbe()]
            case ev.Close(opening) if self.phase is Phase.READY and opening == self.opening:
                self._enter(Phase.CLOSING, self.limits.join, now)
                return [ev.Destroy()]
            case _:
                return self._fence(f"the decode worker said {message} while {self.phase.value}")

    def _may_open(self, opening: int) -> bool:
        return self.phase is Phase.CLOSED and opening > self.opening

    def _may_send(self, opening: int, number: int, pieces: ev.Batch) -> bool:
        is_next = (opening, number) == (self.opening, self._next)
        return self.phase is Phase.READY and is_next and bool(pieces) == (number != ev.PROBE)

    def _is_sending(self, number: int) -> bool:
        return self.phase is Phase.SENDING and number == self._next

    def _fence(self, reason: str) -> list[ev.Command]:
        self.phase, self.deadline = Phase.FENCED, None
        return [ev.Fence(reason)]

    def _enter(self, phase: Phase, limit_s: float | None, now: float) -> None:
        self.phase = phase
        self.deadline = None if limit_s is None else now + limit_s
