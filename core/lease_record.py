"""One lease on D's blocks: its states, its pieces, its time.

Covers: which pieces are copied, verified, asked for again or given up; what renews the promise.
Does not cover: which message leads to what, and all leases of a worker (``core.lease``); how the
blocks of a lost one come back (``core.lease_returns``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from core.block_hash import HashArray
from core.block_pool import BlockIds
from core.errors import InternalError
from core.handoff import Announce, Commit, LeaseTimes, Reserve
from core.lease_events import Granted, PieceCopy
from core.request import AttemptKey
from core.transitions import StateMachine, Symbol, TransitionTable


class LeaseState(Symbol):
    QUEUED = "queued"
    GRANTED = "granted"
    COMMITTING = "committing"
    COMMITTED = "committed"
    LOST = "lost"


class LeaseEvent(Symbol):
    GRANT = "blocks found"
    COMMIT = "commit"
    READY = "all verified and open"
    LOSE = "abort, deadline or peer lost"


LEASE_TABLE: TransitionTable[LeaseState, LeaseEvent] = TransitionTable(
    name="lease",
    initial=LeaseState.QUEUED,
    moves={
        (LeaseState.QUEUED, LeaseEvent.GRANT): LeaseState.GRANTED,
        (LeaseState.QUEUED, LeaseEvent.LOSE): LeaseState.LOST,
        (LeaseState.GRANTED, LeaseEvent.COMMIT): LeaseState.COMMITTING,
        (LeaseState.GRANTED, LeaseEvent.LOSE): LeaseState.LOST,
        (LeaseState.COMMITTING, LeaseEvent.READY): LeaseState.COMMITTED,
        (LeaseState.COMMITTING, LeaseEvent.LOSE): LeaseState.LOST,
    },
)


@dataclass(slots=True, eq=False)
class Lease:
    """One promise of blocks to ``peer``, made at ``created``, and how far it has come.

    Times are in seconds on D's monotonic clock, pieces are indices of prompt blocks; the first
    ``held`` blocks need none. ``progress``: prompt tokens that P has computed, as its beats tell.
    """

    lease_id: int
    peer: str
    reserve: Reserve
    times: LeaseTimes
    created: float
    num_prompt_blocks: int
    machine: StateMachine[LeaseState, LeaseEvent] = field(init=False)
    deadline: float = field(init=False)
    last_progress: float = field(init=False)
    progress: int = 0
    held: int = 0
    block_ids: BlockIds = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    hashes: HashArray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    verified: set[int] = field(default_factory=set)
    copying: set[int] = field(default_factory=set)
    damaged_once: set[int] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)
    commit: Commit | None = None

    def __post_init__(self) -> None:
        self.machine = StateMachine(LEASE_TABLE, self.key)
        self.renew(self.created)

    @property
    def key(self) -> AttemptKey:
        return self.reserve.key

    @property
    def state(self) -> LeaseState:
        return self.machine.state

    @property
    def holds_blocks(self) -> bool:
        return self.state in (LeaseState.GRANTED, LeaseState.COMMITTING)

    def grant(self, event: Granted, now: float) -> None:
        """The scheduler found blocks."""
        self.machine.advance(LeaseEvent.GRANT)
        self.block_ids = event.block_ids
        self.held = event.held
        self.hashes = event.hashes
        self.renew(now)

    # Time

    def renew(self, now: float) -> None:
        """P has got on with the prompt."""
        self.last_progress = now
        self.deadline = now + self.times.decode_deadline

    def note_beat(self, computed: int, longest_step: float, now: float) -> None:
        """P is alive and has ``computed`` so many tokens: a slow chunk keeps the lease, a hung
        engine does not."""
        if computed > self.progress:
            self.progress = computed
            self.renew(now)
        elif now - self.last_progress <= self.times.stall_limit(longest_step):
            self.deadline = now + self.times.decode_deadline

    def ends_at(self, is_open: bool) -> float:
        """When it is lost if nothing else happens. ``is_open``: a router waits for its answer."""
        ends = self.deadline
        if self.state is LeaseState.QUEUED:
            ends = min(ends, self.created + self.times.no_room)
        return ends if is_open else min(ends, self.created + self.times.open)

    # Pieces

    def take_announced(self, message: Announce) -> tuple[PieceCopy, ...]:
        """Copies of the announced pieces that are still wanted; from now on they are under way."""
        first = max(message.first, self.held)
        end = max(first, min(message.first + len(message.pieces), self.num_prompt_blocks))
        pieces = message.pieces[first - message.first :]
        places = self.block_ids[first:end].tolist()
        copies = tuple(map(PieceCopy, range(first, end), pieces, places))
        done = self.verified | self.copying | self.given_up
        wanted = set(range(first, end)) - done
        self.copying |= wanted
        if len(wanted) < len(copies):
            return tuple(copy for copy in copies if copy.index in wanted)
        return copies

    def note_copied(self, good: Collection[int], bad: Collection[int]) -> tuple[int, ...]:
        """A copy has ended. Returns the damaged pieces that are to be announced once more; those
        that were damaged before are given up."""
        damaged = set(bad)
        self.copying.difference_update(good, damaged)
        self.verified.update(good)
        again = tuple(sorted(damaged - self.damaged_once))
        self.given_up.update(damaged & self.damaged_once)
        self.damaged_once.update(damaged)
        return again

    @property
    def verified_prefix(self) -> int:
        """Blocks from the start of the prompt whose KV is in place."""
        count = self.held
        while count in self.verified:
            count += 1
        return count

    @property
    def settled(self) -> bool:
        """Every piece is verified or given up, and nothing is being copied."""
        done = len(self.verified) + len(self.given_up)
        return not self.copying and done == self.num_prompt_blocks - self.held

    def usable_tokens(self, block_size: int) -> int:
        """Of the prompt, those from its start whose KV is in place once it is `settled`."""
        prompt = len(self.reserve.tokens)
        return min([prompt, *(index * block_size for index in self.given_up)])

    def validate(self) -> None:
        """Raises `InternalError` if it has ended, or its pieces contradict each other."""
        pieces = set(range(self.held, self.num_prompt_blocks))
        marked = self.verified | self.copying | self.given_up
        if self.machine.ended or not marked <= pieces:
            raise InternalError(f"lease {self.key} is inconsistent: {self}", reason="INVARIANT")
        if self.verified & self.copying or self.verified & self.given_up:
            raise InternalError(f"lease {self.key} counts a piece twice", reason="INVARIANT")
