"""D's lease rules, message by message."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from core.block_hash import block_hashes
from core.block_pool import BlockPool
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
    Piece,
    Reserve,
    Ticket,
)
from core.lease import LeaseTable
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
    Opened,
    PeerLost,
    SendToPrefill,
    StartSequence,
    Tick,
)
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import SampledToken

PEER = "P0@1"
KEY = AttemptKey(RequestKey("default", "r"), 1)
TOKENS = np.arange(1, 11, dtype=np.int32)
SIZE = 4
TIMES = LeaseTimes()
FIRST = (SampledToken(42),)


class Desk:
    """A lease table with a pool of ten blocks, and the grant that a scheduler would give."""

    def __init__(self) -> None:
        self.pool = BlockPool(10, SIZE)
        self.table = LeaseTable(self.pool, TIMES, itertools.count(100).__next__)

    def hear(self, message: object, now: float = 0.0, peer: str = PEER) -> list[LeaseCommand]:
        return self.table.handle(FromPrefill(peer, message), now)  # type: ignore[arg-type]

    def reserve(self, now: float = 0.0) -> list[LeaseCommand]:
        return self.hear(Reserve(KEY, TOKENS, 0, SamplingParams(8)), now)

    def grant(self, now: float = 0.0) -> Ticket:
        blocks = self.pool.allocate(3)
        assert blocks is not None
        granted = Granted(KEY, blocks, 0, block_hashes(TOKENS, SIZE, 0))
        (sent,) = self.table.handle(granted, now)
        assert isinstance(sent, SendToPrefill)
        assert isinstance(sent.message, Ticket)
        return sent.message

    def announce(self, lease_id: int, first: int, count: int) -> list[LeaseCommand]:
        pieces = tuple(Piece(i, 1, 0) for i in range(first, first + count))
        return self.hear(Announce(KEY, lease_id, first, pieces))

    def everything_is_free(self) -> bool:
        self.pool.validate()
        self.table.validate()
        return self.pool.num_leased == 0 and self.pool.num_quarantined == 0


@pytest.fixture
def desk() -> Desk:
    return Desk()


def granted(desk: Desk) -> int:
    desk.reserve()
    return desk.grant().lease_id


def test_a_reserve_waits_in_the_queue_of_the_scheduler(desk: Desk) -> None:
    (command,) = desk.reserve()
    assert isinstance(command, EnqueueReserve)
    assert desk.reserve() == [], "a doubled reserve queues nothing twice"


def test_a_doubled_reserve_after_the_grant_gets_the_same_ticket(desk: Desk) -> None:
    lease_id = granted(desk)
    assert desk.reserve() == [SendToPrefill(PEER, Ticket(KEY, lease_id, 0))]


def test_without_blocks_in_time_the_answer_is_no_room(desk: Desk) -> None:
    desk.reserve(now=0.0)
    refusal, dequeue = desk.table.handle(Tick(), TIMES.no_room)
    assert isinstance(refusal, SendToPrefill)
    assert isinstance(refusal.message, NoRoom)
    assert dequeue == DequeueReserve(KEY)
    assert desk.reserve(now=3.0) == [refusal], "the answer is remembered"


def test_a_commit_starts_when_all_is_verified_and_the_router_has_opened(desk: Desk) -> None:
    lease_id = granted(desk)
    (copy,) = desk.announce(lease_id, 0, 3)
    assert isinstance(copy, CopyPieces)
    assert desk.hear(Commit(KEY, lease_id, FIRST, 0)) == []
    assert len(desk.table.handle(Copied(lease_id, (0, 1, 2), ()), 0.0)) == 1
    start, committed = desk.table.handle(Opened(KEY), 0.0)
    assert isinstance(start, StartSequence)
    assert (start.first_tokens, start.computed) == (FIRST, len(TOKENS))
    assert committed == SendToPrefill(PEER, Committed(KEY, lease_id))
    assert desk.hear(Commit(KEY, lease_id, FIRST, 0)) == [committed], "a doubled commit starts once"


def test_blocks_announced_twice_are_copied_once(desk: Desk) -> None:
    lease_id = granted(desk)
    desk.announce(lease_id, 0, 2)
    (copy,) = desk.announce(lease_id, 0, 3)
    assert isinstance(copy, CopyPieces)
    assert [c.index for c in copy.copies] == [2]


def test_a_damaged_piece_is_asked_for_once_more_and_then_recomputed(desk: Desk) -> None:
    desk.table.handle(Opened(KEY), 0.0)
    lease_id = granted(desk)
    desk.announce(lease_id, 0, 3)
    (ack,) = desk.table.handle(Copied(lease_id, (0, 2), (1,)), 0.0)
    assert ack == SendToPrefill(PEER, Ack(KEY, lease_id, 1, (1,)))
    desk.hear(Commit(KEY, lease_id, FIRST, 0))
    desk.announce(lease_id, 1, 1)
    _, start, _ = desk.table.handle(Copied(lease_id, (), (1,)), 0.0)
    assert isinstance(start, StartSequence)
    assert start.computed == 1 * SIZE, "D computes again from the damaged block"


def test_a_wrong_lease_id_gets_nowhere(desk: Desk) -> None:
    lease_id = granted(desk)
    for message in (Commit(KEY, lease_id + 1, FIRST, 0), Announce(KEY, lease_id + 1, 0, ())):
        (answer,) = desk.hear(message)
        assert isinstance(answer, SendToPrefill)
        assert isinstance(answer.message, LeaseLost)


def test_another_peer_cannot_use_the_lease(desk: Desk) -> None:
    lease_id = granted(desk)
    (answer,) = desk.hear(Commit(KEY, lease_id, FIRST, 0), peer="P1@9")
    assert isinstance(answer, SendToPrefill)
    assert isinstance(answer.message, LeaseLost)


def test_blocks_under_copy_are_quarantined_until_the_copy_ends(desk: Desk) -> None:
    lease_id = granted(desk)
    desk.announce(lease_id, 0, 2)
    desk.table.handle(Aborted(KEY), 0.0)
    assert desk.pool.num_quarantined == 2
    desk.table.handle(Copied(lease_id, (0, 1), ()), 0.0)
    assert desk.everything_is_free()


def test_verified_blocks_of_a_dead_prefill_worker_stay_as_cache(desk: Desk) -> None:
    lease_id = granted(desk)
    desk.table.handle(Opened(KEY), 0.0)
    desk.announce(lease_id, 0, 2)
    desk.table.handle(Copied(lease_id, (0, 1), ()), 0.0)
    commands = desk.table.handle(PeerLost(PEER), 0.0)
    failure = commands[-1]
    assert isinstance(failure, FailAttempt)
    assert failure.cause is FailureCause.PREFILL_LOST
    assert desk.everything_is_free()
    assert desk.pool.num_cached == 2


def test_an_aborted_attempt_is_refused_when_its_reserve_comes_late(desk: Desk) -> None:
    desk.table.handle(Aborted(KEY), 0.0)
    (answer,) = desk.reserve(now=1.0)
    assert isinstance(answer, SendToPrefill)
    assert isinstance(answer.message, LeaseLost)
    desk.table.handle(Tick(), TIMES.tombstone + 1.0)
    assert isinstance(desk.reserve(now=TIMES.tombstone + 1.0)[0], EnqueueReserve)


def test_a_lease_that_nobody_opens_ends(desk: Desk) -> None:
    granted(desk)
    assert desk.table.handle(Tick(), TIMES.open - 0.1) == []
    (lost,) = desk.table.handle(Tick(), TIMES.open)
    assert isinstance(lost, SendToPrefill)
    assert isinstance(lost.message, LeaseLost)
    assert desk.everything_is_free()


def test_beats_renew_only_with_progress(desk: Desk) -> None:
    desk.table.handle(Opened(KEY), 0.0)
    lease_id = granted(desk)
    now = 0.0
    for computed in (4, 8):
        now += TIMES.lease
        desk.hear(Beat(((lease_id, computed),), 0.5), now)
        assert desk.table.handle(Tick(), now) == [], "a slow chunk keeps its lease"
    stalled = now
    while now < stalled + 2 * TIMES.decode_deadline:
        now += TIMES.beat
        desk.hear(Beat(((lease_id, 8),), 0.5), now)
        desk.table.handle(Tick(), now)
    assert desk.table.num_leases == 0, "a hung engine does not"
    assert desk.everything_is_free()


def test_cancel_by_the_prefill_worker_frees_the_blocks(desk: Desk) -> None:
    granted(desk)
    desk.hear(Cancel(KEY, "answered by the first token"))
    assert desk.everything_is_free()


def test_a_cancel_that_comes_before_its_reserve_is_remembered(desk: Desk) -> None:
    assert desk.hear(Cancel(KEY, "aborted by the router")) == []
    (answer,) = desk.reserve(now=1.0)
    assert isinstance(answer, SendToPrefill)
    assert isinstance(answer.message, LeaseLost)


def test_an_open_that_comes_after_the_end_is_answered(desk: Desk) -> None:
    granted(desk)
    desk.hear(Cancel(KEY, "over"))
    (failure,) = desk.table.handle(Opened(KEY), 0.0)
    assert isinstance(failure, FailAttempt)


def test_an_ended_attempt_is_forgotten_before_its_id_may_be_used_again() -> None:
    assert TIMES.decode_deadline < TIMES.tombstone < 60.0
