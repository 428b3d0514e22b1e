"""The life of all workers as one plain object: events in, commands out, the clock passed in.

Each pool has a wanted number of workers. After every event workers are started or retired until
as many are there or on their way. A worker that retires serves until enough others do, then
drains: it finishes what it has and ends. A worker that dies is replaced for ever, with growing
delays; one that can't start ends the start of the cluster, because trying again would not help.
Does not cover: which changes an operator may want (``cluster.wishes``), carrying it all out
(``cluster.controller``), room for workers (``cluster.places``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.plan import POOLS, Slot
from cluster.pool_messages import (
    Answered,
    BeginDrain,
    Command,
    Drained,
    DrainWorker,
    EndWorker,
    Event,
    EvictWorker,
    FlipWorker,
    GiveUp,
    KillWorker,
    Lost,
    Member,
    MemberState,
    NotAnswered,
    PublishWorkers,
    RestartDue,
    RestartLater,
    ScaleTo,
    Started,
    StartWorker,
)
from cluster.wanted import Wanted, refusal
from cluster.wishes import Wish, plan_change
from core.request import Role

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
# A worker that lived this long is healthy: its next death starts the delays anew.
HEALTHY_AFTER_S = 60.0
# A worker that answers nothing for this long hangs and is replaced.
HANG_LIMIT_S = 60.0
# One lost answer is no proof, also not after a pause of the whole machine.
MIN_MISSED = 3
# A router that does not attach for this long does not hold up the draining of others.
ATTACH_PATIENCE_S = 10.0

_USEFULNESS = (
    MemberState.WAITING,
    MemberState.STARTING,
    MemberState.LOST,
    MemberState.READY,
    MemberState.DRAINING,
)


class PoolState:
    """Decides; ``cluster.controller`` carries out. What an operator wants and can't have is raised
    and changes nothing."""

    def __init__(
        self,
        slots: Sequence[Slot],
        now: float,
        *,
        prefill_required: bool = False,
        hang_limit_s: float | None = None,
    ) -> None:
        """``slots``: the first workers. ``prefill_required``: decode workers may not prefill."""
        self._members = {slot: Member(slot, MemberState.STARTING, now) for slot in slots}
        counts = {pool: sum(slot.pool == pool for slot in slots) for pool in POOLS}
        self.wanted = Wanted(counts["prefill"], counts["decode"])
        mixed = any(slot.role is Role.MIXED for slot in slots)
        self._decode_role = Role.MIXED if mixed else Role.DECODE
        self._prefill_required = prefill_required
        self._hang_limit_s = HANG_LIMIT_S if hang_limit_s is None else hang_limit_s
        self._next_index = counts
        self._published: tuple[tuple[Slot, int, bool], ...] = ()
        self._complete = False
        self.restarts = 0

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    @property
    def all_ready(self) -> bool:
        return all(m.state is MemberState.READY for m in self._members.values())

    @property
    def settled(self) -> bool:
        """As many workers serve as are wanted, and nothing is under way."""
        return all(m.serving and m.active for m in self._members.values())

    def begin(self) -> list[Command]:
        return [StartWorker(slot) for slot in self._members]

    def handle(self, event: Event, now: float) -> list[Command]:
        commands = self._decide(event, now)
        if self._complete:
            commands += self._reconcile(now)
        self._complete = self._complete or self.all_ready
        return [*self._publish(), *commands]

    def _decide(self, event: Event, now: float) -> list[Command]:
        match event:
            case ScaleTo() | DrainWorker() | EvictWorker() | FlipWorker():
                return self._on_wish(event, now)
            case _:
                return self._on_worker(event, now)

    def _on_worker(
        self,
        event: Started | Lost | RestartDue | Drained | Answered | NotAnswered,
        now: float,
    ) -> list[Command]:
        member = self._members.get(event.slot)
        if member is None:
            return []
        match event:
            case Started():
                self._started(member, event, now)
                return []
            case Lost():
                return self._lost(member, event.reason, now)
            case RestartDue():
                return self._restart(member, now)
            case Drained():
                return self._remove(member, now)
            case Answered():
                self._answered(member, event, now)
                return []
            case NotAnswered():
                return self._not_answered(member, event, now)

    # What happened to workers

    def _started(self, member: Member, event: Started, now: float) -> None:
        # Attempts that find no room are none: a node that is away would count for ever.
        self.restarts += member.was_ready
        self._put(
            replace(
                member,
                state=MemberState.READY,
                since=now,
                endpoint=event.endpoint,
                epoch=event.epoch,
                pid=event.pid,
                was_ready=True,
                detail="",
                attached=False,
                busy=0,
                missed=0,
            )
        )

    def _lost(self, member: Member, reason: str, now: float) -> list[Command]:
        if not member.active:
            return self._remove(member, now)
        if not member.was_ready and not self._complete:
            self._put(replace(member, state=MemberState.LOST, since=now, detail=reason))
            return [GiveUp(member.slot, reason)]
        healthy = member.state is MemberState.READY and now - member.since >= HEALTHY_AFTER_S
        deaths = 1 if healthy else member.deaths + 1
        delay = _delay(deaths)
        detail = f"{reason}; starts again in {delay:g} s"
        lost = replace(member, state=MemberState.LOST, since=now, deaths=deaths, detail=detail)
        self._put(replace(lost, attached=False))
        return [RestartLater(member.slot, delay)]

    def _restart(self, member: Member, now: float) -> list[Command]:
        if member.state is not MemberState.LOST:
            return []
        self._put(replace(member, state=MemberState.STARTING, since=now))
        return [StartWorker(member.slot)]

    def _answered(self, member: Member, event: Answered, now: float) -> None:
        if event.epoch == member.epoch:
            attached = event.attached or now - member.since >= ATTACH_PATIENCE_S
            self._put(replace(member, busy=event.busy, missed=0, attached=attached))

    def _not_answered(self, member: Member, event: NotAnswered, now: float) -> list[Command]:
        alive = member.state in (MemberState.READY, MemberState.DRAINING)
        if event.epoch != member.epoch or not alive:
            return []
        since = now if member.missed == 0 else member.missed_since
        member = replace(member, missed=member.missed + 1, missed_since=since)
        self._put(member)
        silent = now - since
        if silent < self._hang_limit_s or member.missed < MIN_MISSED:
            return []
        reason = f"it has answered nothing for {silent:.0f} s"
        return [KillWorker(member.slot, reason), *self._lost(member, reason, now)]

    # What an operator wants

    def _on_wish(self, wish: Wish, now: float) -> list[Command]:
        if not self._complete:
            raise refusal("the cluster is still starting; try again when it is ready")
        change = plan_change(
            wish, self.wanted, self.members, prefill_required=self._prefill_required
        )
        self.wanted = change.wanted
        if change.retire is None:
            return []
        if change.successor_role is None:
            return self._retire(change.retire, now)
        return self._retire(self._with_successor(change.retire, change.successor_role, now), now)

    def _with_successor(self, member: Member, role: Role, now: float) -> Member:
        successor = self._new_slot("prefill" if role is Role.PREFILL else "decode", role)
        detail = f"waits for {member.slot.name}, whose place it takes over"
        self._put(Member(successor, MemberState.WAITING, now, detail=detail))
        return replace(member, successor=successor)

    # Towards what is wanted

    def _reconcile(self, now: float) -> list[Command]:
        commands: list[Command] = []
        if self.wanted.prefill > 0:
            self._decode_role = Role.DECODE
        commands += self._roll_over(now)
        for pool in POOLS:
            commands += self._retire_surplus(pool, now)
            commands += self._start_missing(pool, now)
        for pool in POOLS:
            commands += self._drain_spared(pool, now)
        return commands

    def _roll_over(self, now: float) -> list[Command]:
        """Mixed workers take no handoffs: beside prefill workers they are replaced, one by one."""
        pool = self._pool("decode")
        mixed = [m for m in pool if m.slot.role is Role.MIXED and m.active]
        if self._decode_role is Role.MIXED or not mixed or any(not m.active for m in pool):
            return []
        return self._retire(min(mixed, key=_usefulness), now)

    def _retire_surplus(self, pool: str, now: float) -> list[Command]:
        commands: list[Command] = []
        active = sorted((m for m in self._pool(pool) if m.active), key=_usefulness)
        for member in active[: max(0, len(active) - self.wanted.of(pool))]:
            commands += self._retire(member, now)
        return commands

    def _start_missing(self, pool: str, now: float) -> list[Command]:
        commands: list[Command] = []
        while sum(m.active for m in self._pool(pool)) < self.wanted.of(pool):
            role = Role.PREFILL if pool == "prefill" else self._decode_role
            slot, beside = self._new_slot(pool, role), self._unreplaced(pool)
            self._put(Member(slot, MemberState.STARTING, now, beside=beside))
            commands.append(StartWorker(slot, beside))
        return commands

    def _drain_spared(self, pool: str, now: float) -> list[Command]:
        commands: list[Command] = []
        ready = [m for m in self._pool(pool) if m.state is MemberState.READY]
        for member in sorted((m for m in ready if m.retiring), key=_usefulness):
            others = sum(m.serving for m in self._pool(pool) if m.slot != member.slot)
            if others < self.wanted.of(pool) and not member.evicted:
                detail = f"drains when {self.wanted.of(pool)} other {pool} workers serve"
                self._put(replace(member, detail=detail))
                continue
            draining = replace(member, state=MemberState.DRAINING, since=now)
            self._put(replace(draining, detail="finishes what it has"))
            commands.append(BeginDrain(member.slot, member.drain_limit_s))
        return commands

    def _retire(self, member: Member, now: float) -> list[Command]:
        if member.state in (MemberState.READY, MemberState.DRAINING):
            self._put(replace(member, retiring=True))
            return []
        return self._remove(member, now)

    def _remove(self, member: Member, now: float) -> list[Command]:
        del self._members[member.slot]
        heir = self._members.get(member.successor) if member.successor is not None else None
        if heir is None:
            return [EndWorker(member.slot)]
        self._put(replace(heir, state=MemberState.STARTING, since=now, detail=""))
        # A place that goes away is no place for anybody.
        passed_to = None if member.evicted else heir.slot
        return [EndWorker(member.slot, passed_to), StartWorker(heir.slot)]

    def _unreplaced(self, pool: str) -> Slot | None:
        """A worker that leaves and whose cores nobody has been promised yet."""
        taken = {m.beside for m in self._members.values()}
        leaving = [m for m in self._pool(pool) if not m.active and m.successor is None]
        return next((m.slot for m in leaving if m.slot not in taken), None)

    def _new_slot(self, pool: str, role: Role) -> Slot:
        """Names are never used again: a log or a graph never means two workers by one."""
        index = self._next_index[pool]
        self._next_index[pool] += 1
        return Slot(pool, index, role.value)

    def _pool(self, pool: str) -> list[Member]:
        return [m for m in self._members.values() if m.slot.pool == pool]

    def _put(self, member: Member) -> None:
        self._members[member.slot] = member

    def _publish(self) -> list[Command]:
        known = (MemberState.READY, MemberState.DRAINING)
        workers = tuple(m for m in self._members.values() if m.state in known)
        told = tuple((m.slot, m.epoch, m.state is MemberState.DRAINING) for m in workers)
        if told == self._published:
            return []
        self._published = told
        return [PublishWorkers(workers)]


def _usefulness(member: Member) -> tuple[int, bool, int, int]:
    """The least useful first: not ready, not reached by routers, idle, young."""
    order = _USEFULNESS.index(member.state)
    return order, member.attached, member.busy, -member.slot.index


def _delay(deaths: int) -> float:
    """Seconds before the next start: at once the first time, then doubling up to a limit."""
    if deaths <= 1:
        return 0.0
    return float(min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(deaths - 2, 16)))
