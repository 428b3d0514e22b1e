"""The life of all workers as one plain object: events in, commands out, the clock passed in.

A worker is starting, ready, or lost and waiting for its next start. A worker that was ready once
is replaced for ever, with growing delays if it keeps dying; one that never became ready ends the
start of the cluster, because trying again would not help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from cluster.plan import Slot

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
# A worker that lived this long is healthy: its next death starts the delays anew.
HEALTHY_AFTER_S = 60.0


class MemberState(Enum):
    STARTING = "starting"
    READY = "ready"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Member:
    """One slot. ``since`` is when ``state`` began; ``deaths`` counts those in quick succession."""

    slot: Slot
    state: MemberState
    since: float
    endpoint: str = ""
    epoch: int = 0
    pid: int = 0
    deaths: int = 0
    was_ready: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """``slot``'s worker serves at ``endpoint`` (host:port)."""

    slot: Slot
    endpoint: str
    epoch: int
    pid: int


@dataclass(frozen=True, slots=True)
class Lost:
    """``slot``'s worker died, or could not start."""

    slot: Slot
    reason: str


@dataclass(frozen=True, slots=True)
class RestartDue:
    """The delay before the next start of ``slot`` is over."""

    slot: Slot


Event = Started | Lost | RestartDue


@dataclass(frozen=True, slots=True)
class StartWorker:
    slot: Slot


@dataclass(frozen=True, slots=True)
class RestartLater:
    slot: Slot
    delay_s: float


@dataclass(frozen=True, slots=True)
class PublishWorkers:
    """Routers must learn who is ready now."""

    ready: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    slot: Slot
    reason: str


Command = StartWorker | RestartLater | PublishWorkers | GiveUp


class PoolState:
    """Decides; ``cluster.controller`` carries out."""

    def __init__(self, slots: Sequence[Slot], now: float) -> None:
        self._members = {slot: Member(slot, MemberState.STARTING, now) for slot in slots}
        self.restarts = 0

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    @property
    def ready(self) -> tuple[Member, ...]:
        return tuple(m for m in self._members.values() if m.state is MemberState.READY)

    @property
    def all_ready(self) -> bool:
        return len(self.ready) == len(self._members)

    def begin(self) -> list[Command]:
        return [StartWorker(slot) for slot in self._members]

    def handle(self, event: Event, now: float) -> list[Command]:
        match event:
            case Started():
                return self._started(event, now)
            case Lost():
                return self._lost(event, now)
            case RestartDue():
                return self._restart(event.slot, now)

    def _started(self, event: Started, now: float) -> list[Command]:
        self._members[event.slot] = replace(
            self._members[event.slot],
            state=MemberState.READY,
            since=now,
            endpoint=event.endpoint,
            epoch=event.epoch,
            pid=event.pid,
            was_ready=True,
            detail="",
        )
        return [PublishWorkers(self.ready)]

    def _lost(self, event: Lost, now: float) -> list[Command]:
        member = self._members[event.slot]
        if not member.was_ready:
            self._members[event.slot] = replace(
                member, state=MemberState.LOST, since=now, detail=event.reason
            )
            return [GiveUp(event.slot, event.reason)]
        healthy = member.state is MemberState.READY and now - member.since >= HEALTHY_AFTER_S
        deaths = 1 if healthy else member.deaths + 1
        delay = _delay(deaths)
        self._members[event.slot] = replace(
            member,
            state=MemberState.LOST,
            since=now,
            deaths=deaths,
            detail=f"{event.reason}; starts again in {delay:g} s",
        )
        return [PublishWorkers(self.ready), RestartLater(event.slot, delay)]

    def _restart(self, slot: Slot, now: float) -> list[Command]:
        member = self._members[slot]
        if member.state is not MemberState.LOST:
            return []
        self._members[slot] = replace(member, state=MemberState.STARTING, since=now)
        self.restarts += 1
        return [StartWorker(slot)]


def _delay(deaths: int) -> float:
    """Seconds before the next start: at once the first time, then doubling up to a limit."""
    if deaths <= 1:
        return 0.0
    return float(min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(deaths - 2, 16)))
