"""One lease on D's blocks: its states and how far it has come. The rules are in ``core.lease``."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from core.block_hash import HashArray
from core.block_pool import BlockIds
from core.handoff import Commit, Reserve
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
    """One promise of blocks and how far it has come."""

    lease_id: int
    peer: str
    reserve: Reserve
    machine: StateMachine[LeaseState, LeaseEvent]
    created: float
    deadline: float
    last_progress: float
    num_prompt_blocks: int
    progress: int = 0
    held: int = 0
    block_ids: BlockIds = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    hashes: HashArray = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    verified: set[int] = field(default_factory=set)
    copying: set[int] = field(default_factory=set)
    damaged_once: set[int] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)
    commit: Commit | None = None

    @property
    def key(self) -> AttemptKey:
        return self.reserve.key

    @property
    def state(self) -> LeaseState:
        return self.machine.state

    @property
    def holds_blocks(self) -> bool:
        return self.state in (LeaseState.GRANTED, LeaseState.COMMITTING)

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
        prompt = len(self.reserve.tokens)
        return min([prompt, *(index * block_size for index in self.given_up)])
