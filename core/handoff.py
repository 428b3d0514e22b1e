"""The words that a prefill worker (P) and a decode worker (D) say to each other in a handoff.

One dataclass per message of ``protos/crossdock/v1/handoff.proto``. The rules are in
``core.lease`` (D's side) and ``core.push`` (P's side).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from core.block_hash import HashArray, TokenArray
from core.request import AttemptKey, SamplingParams
from core.step import SampledToken
from core.values import value


# A tuple: a prompt has hundreds, and one is made in a quarter of the time of a frozen dataclass.
class Piece(NamedTuple):
    """One finished block in P's pool: where it is on every rank, which use of that place, what it
    holds.

    ``checksums``: of each edge's part of the block, in the order of ``core.transfer_plan``.
    """

    block_id: int
    generation: int
    checksums: tuple[int, ...]


@value(eq=False)
class Reserve:
    """P → D: keep room for this prompt.

    ``hashes``: of all full blocks of the prompt, from who has computed them already; no wire
    carries them.
    """

    key: AttemptKey
    tokens: TokenArray
    salt: int
    params: SamplingParams
    hashes: HashArray | None = None


@value()
class Ticket:
    """D → P: room is kept under ``lease_id``; the first ``held_blocks`` need not be shipped."""

    key: AttemptKey
    lease_id: int
    held_blocks: int


@value()
class NoRoom:
    """D → P: nothing became free in time."""

    key: AttemptKey
    detail: str


@value()
class Announce:
    """P → D: blocks ``first`` to ``first + len(pieces) - 1`` of the prompt are finished."""

    key: AttemptKey
    lease_id: int
    first: int
    pieces: tuple[Piece, ...]


@value()
class Ack:
    """D → P: ``verified`` blocks from the start are in place; ``resend`` ones were damaged."""

    key: AttemptKey
    lease_id: int
    verified: int
    resend: tuple[int, ...]


@value()
class Commit:
    """P → D: all blocks are announced; this is the first token of each of the n answers."""

    key: AttemptKey
    lease_id: int
    first_tokens: tuple[SampledToken, ...]
    cached_tokens: int


@value()
class Committed:
    """D → P: the request is mine now; your blocks are yours again."""

    key: AttemptKey
    lease_id: int


@value()
class Beat:
    """P → D: how many prompt tokens are computed, by lease, and P's longest step in seconds."""

    progress: tuple[tuple[int, int], ...]
    longest_step: float


@value()
class Cancel:
    """P → D: forget this attempt."""

    key: AttemptKey
    reason: str


@value()
class LeaseLost:
    """D → P: the lease is gone, and why."""

    key: AttemptKey
    lease_id: int
    reason: str


ToDecode = Reserve | Announce | Commit | Beat | Cancel
ToPrefill = Ticket | NoRoom | Ack | Committed | LeaseLost


class FailureCause(Enum):
    """Why an attempt ended without an answer, as the router is told."""

    NO_ROOM = "no_room"
    DECODE_LOST = "decode_lost"
    PREFILL_LOST = "prefill_lost"
    LEASE_EXPIRED = "lease_expired"
    INCOMPATIBLE = "incompatible"
    REJECTED = "rejected"
    DEADLINE = "deadline"
    DRAINING = "draining"
    INTERNAL = "internal"
    READER_LOST = "reader_lost"


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Time limits of the handoff, in seconds on each side's own monotonic clock.

    ``lease``: how long a grant lasts without renewal. ``beat``: how often P reports progress.
    ``no_room``: how long a reserve may wait for blocks. ``open``: how long a reserve may come
    before the router's Open. ``stall``: how long P may go without progress and still renew.
    """

    lease: float = 30.0
    beat: float = 5.0
    no_room: float = 2.0
    open: float = 5.0
    stall: float = 10.0

    @property
    def decode_deadline(self) -> float:
        """D acts this long after the last renewal: two beats after the promise ends."""
        return self.lease + 2 * self.beat

    @property
    def prefill_deadline(self) -> float:
        """P stops this long after the last renewal: two beats before the promise ends."""
        return self.lease - 2 * self.beat

    def stall_limit(self, longest_step: float) -> float:
        """How long P may show no progress: five of its longest steps, if that is more."""
        return max(self.stall, 5 * longest_step)

    @property
    def tombstone(self) -> float:
        """How long an ended attempt is remembered: longer than a lease lasts without renewal, and
        shorter than the 60 s after which a request id may be used again."""
        return self.decode_deadline + 2 * self.beat
