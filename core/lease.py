"""D's side of the handoff: leases on D's blocks, from reserve to commit.

Covers: every promise of blocks that D makes to a prefill worker; what each message leads to; when a
commit may become a running sequence; and that each way out frees the blocks. Messages may be
doubled, late or lost; answers are idempotent.
Does not cover: the pieces and the time of one lease (``core.lease_record``), which reserve gets
blocks next (``decode_worker.admission``), moving the bytes and the streams (``kv_transfer``), P's
side (``core.push``).
"""

from __future__ import annotations

from collections.abc import Callable

from core.block_pool import BlockIds, BlockPool
from core.errors import InternalError
from core.handoff import (
    Ack,
    Announce,
    Beat,
    Cancel,
    Commit,
    Committed,
    FailureCause,
    LeaseLost,
    LeaseTimes,
    NoRoom,
    Reserve,
    Ticket,
    ToDecode,
    ToPrefill,
)
from core.lease_events import (
    Aborted,
    Copied,
    CopyPieces,
    DequeueReserve,
    EnqueueReserve,
    FailAttempt,
    FromPrefill,
    Granted,
    LeaseCommand,
    LeaseInput,
    Opened,
    PeerLost,
    SendToPrefill,
    StartSequence,
    Tick,
)
from core.lease_record import Lease, LeaseEvent, LeaseState
from core.lease_returns import LeaseReturns
from core.request import AttemptKey


class LeaseTable:
    """All leases of one decode worker. Not thread-safe: its owner holds a lock."""

    def __init__(self, pool: BlockPool, times: LeaseTimes, new_lease_id: Callable[[], int]) -> None:
        self._pool = pool
        self._times = times
        self._new_lease_id = new_lease_id
        self._leases: dict[AttemptKey, Lease] = {}
        self._num_granted = 0
        self._open: set[AttemptKey] = set()
        self._tombstones: dict[AttemptKey, tuple[float, ToPrefill]] = {}
        self._returns = LeaseReturns(pool)

    @property
    def num_leases(self) -> int:
        """Leases that are queued or hold blocks."""
        return len(self._leases)

    @property
    def num_granted(self) -> int:
        """Leases that hold blocks."""
        return self._num_granted

    @property
    def num_open(self) -> int:
        """Attempts that a router has opened and no prefill worker has committed."""
        return len(self._open)

    def held_references(self) -> list[BlockIds]:
        """Block ids on which leases hold references, for invariant checks."""
        return [lease.block_ids for lease in self._leases.values() if lease.holds_blocks]

    @property
    def num_draining(self) -> int:
        """Lost leases whose blocks a copy may still be writing into."""
        return len(self._returns)

    def next_deadline(self) -> float | None:
        """When a `Tick` ends the first lease if nothing else happens; None without leases."""
        ends = (lease.ends_at(key in self._open) for key, lease in self._leases.items())
        return min(ends, default=None)

    def keeps_to_itself(self, event: LeaseInput) -> bool:
        """Whether `handle` would change nothing outside of this table: no block changes hands,
        nobody is queued and no sequence starts."""
        match event:
            case FromPrefill(message=Announce() | Beat()):
                return True
            case FromPrefill(message=Commit() as commit):
                return self._only_notes(commit)
            case Copied(lease_id):
                lease = self._granted(lease_id)
                return lease is not None and lease.commit is None
            case Opened(key):
                lease = self._leases.get(key)
                return lease is None or lease.commit is None
        return False

    def _only_notes(self, commit: Commit) -> bool:
        lease = self._leases.get(commit.key)
        if lease is None or not lease.copying:
            return False
        return len(commit.first_tokens) == lease.reserve.params.n

    def handle(self, event: LeaseInput, now: float) -> list[LeaseCommand]:
        """What follows from an event at monotonic time ``now`` (seconds)."""
        match event:
            case FromPrefill(peer, message):
                return self._on_message(peer, message, now)
            case Granted():
                return self._on_granted(event, now)
            case Copied():
                return self._on_copied(event, now)
            case Opened(key):
                return self._on_opened(key, now)
            case Aborted(key):
                return self._on_aborted(key, now)
            case PeerLost(peer):
                return self._on_peer_lost(peer, now)
            case Tick():
                return self._on_tick(now)

    def _on_message(self, peer: str, message: ToDecode, now: float) -> list[LeaseCommand]:
        match message:
            case Reserve():
                return self._on_reserve(peer, message, now)
            case Announce():
                return self._on_announce(peer, message, now)
            case Commit():
                return self._on_commit(peer, message, now)
            case Beat():
                return self._on_beat(peer, message, now)
            case Cancel(key, reason):
                return self._end_attempt(key, f"cancelled: {reason}", now)

    # Reserve and grant

    def _on_reserve(self, peer: str, message: Reserve, now: float) -> list[LeaseCommand]:
        ended = self._tombstones.get(message.key)
        if ended is not None:
            return [SendToPrefill(peer, ended[1])]
        lease = self._leases.get(message.key)
        if lease is not None:
            return [SendToPrefill(peer, self._ticket(lease))] if lease.holds_blocks else []
        self._leases[message.key] = Lease(
            lease_id=self._new_lease_id(),
            peer=peer,
            reserve=message,
            times=self._times,
            created=now,
            num_prompt_blocks=-(-len(message.tokens) // self._pool.block_size),
        )
        tokens, answers = message.tokens, message.params.n
        return [EnqueueReserve(message.key, tokens, message.salt, answers, message.hashes)]

    def _on_granted(self, event: Granted, now: float) -> list[LeaseCommand]:
        lease = self._leases[event.key]
        lease.grant(event, now)
        self._num_granted += 1
        return [SendToPrefill(lease.peer, self._ticket(lease))]

    def _ticket(self, lease: Lease) -> Ticket:
        return Ticket(lease.key, lease.lease_id, lease.held)

    # Pieces

    def _on_announce(self, peer: str, message: Announce, now: float) -> list[LeaseCommand]:
        lease = self._valid_lease(peer, message.key, message.lease_id)
        if lease is None:
            return [SendToPrefill(peer, self._unknown(message.key, message.lease_id))]
        lease.renew(now)
        copies = lease.take_announced(message)
        if not copies:
            return [SendToPrefill(peer, self._ack(lease, ()))]
        return [CopyPieces(lease.key, lease.lease_id, peer, copies)]

    def _on_copied(self, event: Copied, now: float) -> list[LeaseCommand]:
        if event.lease_id in self._returns:
            self._returns.copied(event)
            return []
        lease = self._granted(event.lease_id)
        if lease is None:
            raise InternalError(f"copy for unknown lease {event.lease_id}", reason="LEASE_UNKNOWN")
        again = lease.note_copied(event.good, event.bad)
        acknowledged = SendToPrefill(lease.peer, self._ack(lease, again))
        return [acknowledged, *self._try_start(lease, now)]

    def _granted(self, lease_id: int) -> Lease | None:
        leases = self._leases.values()
        return next((x for x in leases if x.lease_id == lease_id and x.holds_blocks), None)

    def _ack(self, lease: Lease, resend: tuple[int, ...]) -> Ack:
        return Ack(lease.key, lease.lease_id, lease.verified_prefix, resend)

    # Commit

    def _on_commit(self, peer: str, message: Commit, now: float) -> list[LeaseCommand]:
        ended = self._tombstones.get(message.key)
        if ended is not None:
            return [SendToPrefill(peer, ended[1])]
        lease = self._valid_lease(peer, message.key, message.lease_id)
        if lease is None:
            return [SendToPrefill(peer, self._unknown(message.key, message.lease_id))]
        lease.renew(now)
        if lease.commit is not None:
            return []
        if len(message.first_tokens) != lease.reserve.params.n:
            wrong = f"{len(message.first_tokens)} first tokens for n = {lease.reserve.params.n}"
            return self._lose(lease, wrong, now, cause=FailureCause.INTERNAL)
        lease.machine.advance(LeaseEvent.COMMIT)
        lease.commit = message
        return self._try_start(lease, now)

    def _on_opened(self, key: AttemptKey, now: float) -> list[LeaseCommand]:
        if key in self._tombstones:
            ended = "the handoff ended before the router opened the attempt"
            return [FailAttempt(key, FailureCause.LEASE_EXPIRED, ended)]
        self._open.add(key)
        lease = self._leases.get(key)
        return self._try_start(lease, now) if lease is not None else []

    def _try_start(self, lease: Lease, now: float) -> list[LeaseCommand]:
        if lease.commit is None or not lease.settled or lease.key not in self._open:
            return []
        lease.machine.advance(LeaseEvent.READY)
        self._num_granted -= 1
        committed = Committed(lease.key, lease.lease_id)
        self._forget(lease.key, committed, now)
        start = StartSequence(
            key=lease.key,
            tokens=lease.reserve.tokens,
            salt=lease.reserve.salt,
            params=lease.reserve.params,
            block_ids=lease.block_ids,
            held=lease.held,
            hashes=lease.hashes,
            computed=lease.usable_tokens(self._pool.block_size),
            first_tokens=lease.commit.first_tokens,
            cached_tokens=lease.commit.cached_tokens,
        )
        return [start, SendToPrefill(lease.peer, committed)]

    # Time

    def _on_beat(self, peer: str, beat: Beat, now: float) -> list[LeaseCommand]:
        progress = dict(beat.progress)
        for lease in self._leases.values():
            if lease.peer == peer and lease.lease_id in progress:
                lease.note_beat(progress[lease.lease_id], beat.longest_step, now)
        return []

    def _on_tick(self, now: float) -> list[LeaseCommand]:
        commands: list[LeaseCommand] = []
        for lease in list(self._leases.values()):
            commands += self._expire(lease, now)
        self._clear_tombstones(now)
        return commands

    def _clear_tombstones(self, now: float) -> None:
        """All of them last equally long, so they expire in the order in which they came."""
        while self._tombstones:
            key = next(iter(self._tombstones))
            if self._tombstones[key][0] > now:
                return
            del self._tombstones[key]

    def _expire(self, lease: Lease, now: float) -> list[LeaseCommand]:
        waited = now - lease.created
        if lease.state is LeaseState.QUEUED and waited >= self._times.no_room:
            refusal = NoRoom(lease.key, f"no blocks became free within {self._times.no_room:g} s")
            return self._lose(lease, refusal.detail, now, answer=refusal)
        if lease.key not in self._open and waited >= self._times.open:
            return self._lose(lease, f"not opened by a router within {self._times.open:g} s", now)
        if now >= lease.deadline:
            return self._lose(lease, "lease expired", now, cause=FailureCause.LEASE_EXPIRED)
        return []

    # Ways out

    def _on_aborted(self, key: AttemptKey, now: float) -> list[LeaseCommand]:
        self._open.discard(key)
        return self._end_attempt(key, "aborted by the router", now)

    def _end_attempt(self, key: AttemptKey, reason: str, now: float) -> list[LeaseCommand]:
        """Loses the lease; without one, remembers the end for a reserve that comes later."""
        lease = self._leases.get(key)
        if lease is not None:
            return self._lose(lease, reason, now)
        lost = LeaseLost(key, 0, reason)
        self._tombstones.setdefault(key, (now + self._times.tombstone, lost))
        return []

    def _on_peer_lost(self, peer: str, now: float) -> list[LeaseCommand]:
        commands: list[LeaseCommand] = []
        for lease in [x for x in self._leases.values() if x.peer == peer]:
            commands += self._lose(
                lease, "prefill worker lost", now, cause=FailureCause.PREFILL_LOST
            )
        return commands

    def _lose(
        self,
        lease: Lease,
        reason: str,
        now: float,
        *,
        answer: ToPrefill | None = None,
        cause: FailureCause | None = None,
    ) -> list[LeaseCommand]:
        """Ends a lease."""
        key = lease.key
        was_queued = lease.state is LeaseState.QUEUED
        held_blocks = lease.holds_blocks
        lease.machine.advance(LeaseEvent.LOSE)
        if held_blocks:
            self._num_granted -= 1
            self._returns.give_back(lease)
        answer = answer or LeaseLost(key, lease.lease_id, reason)
        tell_router = cause is not None and key in self._open
        self._forget(key, answer, now)
        commands: list[LeaseCommand] = [SendToPrefill(lease.peer, answer)]
        if was_queued:
            commands.append(DequeueReserve(key))
        if tell_router and cause is not None:
            commands.append(FailAttempt(key, cause, reason))
        return commands

    def _forget(self, key: AttemptKey, answer: ToPrefill, now: float) -> None:
        del self._leases[key]
        self._open.discard(key)
        self._tombstones[key] = (now + self._times.tombstone, answer)

    def _valid_lease(self, peer: str, key: AttemptKey, lease_id: int) -> Lease | None:
        lease = self._leases.get(key)
        if lease is None or lease.lease_id != lease_id or lease.peer != peer:
            return None
        return lease if lease.holds_blocks else None

    @staticmethod
    def _unknown(key: AttemptKey, lease_id: int) -> LeaseLost:
        return LeaseLost(key, lease_id, "no such lease")

    def validate(self) -> None:
        """Raises `InternalError` if a lease contradicts itself."""
        if self._num_granted != sum(lease.holds_blocks for lease in self._leases.values()):
            raise InternalError(f"{self._num_granted} leases hold blocks", reason="INVARIANT")
        for key, lease in self._leases.items():
            lease.validate()
            if lease.key != key:
                raise InternalError(f"lease {lease.key} is kept as {key}", reason="INVARIANT")
