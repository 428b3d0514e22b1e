"""P's side of the handoff, message by message."""

from __future__ import annotations

import pytest

from core.handoff import Ack, Committed, FailureCause, LeaseLost, LeaseTimes, NoRoom, Ticket
from core.push import (
    AnnounceBlocks,
    Push,
    PushState,
    Release,
    ReportFailure,
    SendCommit,
    SendReserve,
)
from core.request import AttemptKey, RequestKey
from core.step import SampledToken

KEY = AttemptKey(RequestKey("default", "r"), 1)
TIMES = LeaseTimes()
LEASE = 77
FIRST = (SampledToken(5),)


@pytest.fixture
def push() -> Push:
    push = Push(KEY, prompt_length=10, block_size=4, times=TIMES)
    assert push.ask(0.0) == [SendReserve(KEY)]
    return push


def test_finished_blocks_are_announced_as_they_come(push: Push) -> None:
    push.handle(Ticket(KEY, LEASE, 0), 0.0)
    assert push.on_computed(4, 0.0) == [AnnounceBlocks(KEY, LEASE, (0,))]
    assert push.on_computed(6, 0.0) == [], "half a block is not finished"
    assert push.on_computed(10, 0.0) == [AnnounceBlocks(KEY, LEASE, (1, 2))]


def test_a_late_ticket_announces_all_that_is_finished_and_commits(push: Push) -> None:
    assert push.on_computed(10, 0.0) == []
    assert push.on_sampled(FIRST) == []
    announce, commit = push.handle(Ticket(KEY, LEASE, 1), 0.0)
    assert announce == AnnounceBlocks(KEY, LEASE, (1, 2)), "block 0 is held by D"
    assert commit == SendCommit(KEY, LEASE, FIRST)


def test_the_blocks_are_released_when_decode_has_committed(push: Push) -> None:
    push.handle(Ticket(KEY, LEASE, 0), 0.0)
    push.on_computed(10, 0.0)
    assert push.on_sampled(FIRST) == [SendCommit(KEY, LEASE, FIRST)]
    assert push.handle(Committed(KEY, LEASE + 1), 0.0) == []
    assert push.handle(Committed(KEY, LEASE), 0.0) == [Release(KEY)]
    assert push.handle(Committed(KEY, LEASE), 0.0) == [], "released once"


def test_damaged_blocks_are_announced_again(push: Push) -> None:
    push.handle(Ticket(KEY, LEASE, 0), 0.0)
    push.on_computed(10, 0.0)
    again = push.handle(Ack(KEY, LEASE, 1, (1,)), 0.0)
    assert again == [AnnounceBlocks(KEY, LEASE, (1,))]


def test_no_room_is_reported_and_frees(push: Push) -> None:
    report, release = push.handle(NoRoom(KEY, "full"), 0.0)
    assert report == ReportFailure(KEY, FailureCause.NO_ROOM, "full")
    assert release == Release(KEY)
    assert push.state is PushState.FAILED


def test_a_lost_lease_is_reported_unless_it_is_an_older_one(push: Push) -> None:
    push.handle(Ticket(KEY, LEASE, 0), 0.0)
    assert push.handle(LeaseLost(KEY, LEASE - 1, "old"), 0.0) == []
    report, _ = push.handle(LeaseLost(KEY, LEASE, "expired"), 0.0)
    assert isinstance(report, ReportFailure)


def test_prefill_stops_before_the_promise_of_decode_runs_out(push: Push) -> None:
    push.handle(Ticket(KEY, LEASE, 0), 0.0)
    assert push.on_tick(TIMES.prefill_deadline - 0.1, 0.5) == []
    assert push.on_tick(TIMES.prefill_deadline, 0.5)[1] == Release(KEY)
    assert TIMES.prefill_deadline < TIMES.decode_deadline


def test_a_slow_engine_keeps_its_lease(push: Push) -> None:
    push.handle(Ticket(KEY, LEASE, 0), 0.0)
    assert push.on_tick(100.0, longest_step=25.0) == []
    assert push.on_tick(125.0, longest_step=25.0) != []


def test_an_attempt_that_decode_has_ended_before_is_given_up_at_once(push: Push) -> None:
    report, _ = push.handle(Committed(KEY, LEASE), 0.0)
    assert isinstance(report, ReportFailure)


def test_a_decode_worker_that_does_not_answer_is_given_up(push: Push) -> None:
    report, _ = push.on_tick(TIMES.prefill_deadline, 0.5)
    assert isinstance(report, ReportFailure)
    assert report.cause is FailureCause.DECODE_LOST


def test_an_abandoned_attempt_reports_nothing(push: Push) -> None:
    assert push.abandon() == [Release(KEY)]
    assert push.on_computed(10, 0.0) == []
    assert push.lose(FailureCause.DECODE_LOST, "gone") == []
