"""A request whose tokens the client reads itself: what its flow counts, gives and sends."""

from __future__ import annotations

from core.errors import RequestAborted
from core.handoff import FailureCause
from core.request import FinishReason, RequestKey
from router.flow.flow import Flow
from router.flow.messages import (
    AttemptFailed,
    CountRead,
    Emit,
    Fail,
    Finish,
    GiveTicket,
    Output,
    RelayAsked,
    Routed,
    RouteDue,
    SendAbort,
    SendOpen,
    SendPrefill,
    SendRelay,
    WorkerLost,
)
from router.placement import Placement, WorkerId

P0, D0, D1 = (WorkerId(name, 1) for name in ("p0", "d0", "d1"))
PAIR = Placement(D0, P0)


def dispatched(n: int = 1, readable: bool = True) -> Flow:
    flow = Flow(RequestKey("default", "r1"), arrived=0.0, n=n, by_ticket=True)
    flow.handle(RouteDue(), 0.0)
    flow.handle(Routed(PAIR, readable), 0.0)
    return flow


def read(tokens: int, finish: FinishReason | None = None, index: int = 0) -> Output:
    return Output(D0, 1, (), "", finish, index=index, read_tokens=tokens)


def test_each_attempt_has_a_ticket_of_its_own() -> None:
    flow = Flow(RequestKey("default", "r1"), arrived=0.0, by_ticket=True)
    flow.handle(RouteDue(), 0.0)
    assert flow.handle(Routed(PAIR, readable=True), 0.0) == [
        SendOpen(D0, 1, True, 0.0, by_ticket=True),
        SendPrefill(P0, 1, D0, 0.0),
        GiveTicket(D0, 1),
    ]
    flow.handle(WorkerLost(D0), 1.0)
    assert flow.handle(Routed(Placement(D1), readable=True), 1.0)[-1] == GiveTicket(D1, 2)


def test_where_nobody_can_read_the_tokens_come_by_the_router() -> None:
    flow = Flow(RequestKey("default", "r1"), arrived=0.0, by_ticket=True)
    flow.handle(RouteDue(), 0.0)
    opened, given = flow.handle(Routed(Placement(D0)), 0.0)
    assert (opened, given) == (SendOpen(D0, 1, False, 0.0), GiveTicket(None, 1))


def test_what_was_read_is_counted_and_ends_the_request() -> None:
    flow = dispatched()
    assert flow.handle(read(1), 0.5) == [CountRead(1, 0)]
    counted, finish = flow.handle(read(4, FinishReason.STOP), 1.0)
    assert counted == CountRead(4, 0)
    assert isinstance(finish, Finish)
    assert (finish.completion_tokens, finish.ttft_s, finish.total_s) == (5, 0.5, 1.0)
    assert flow.ended


def test_after_tokens_were_read_there_is_no_other_attempt() -> None:
    flow = dispatched()
    flow.handle(read(3), 0.5)
    commands = flow.handle(AttemptFailed(D0, 1, FailureCause.READER_LOST), 1.0)
    [error] = [command.error for command in commands if isinstance(command, Fail)]
    assert isinstance(error, RequestAborted)
    assert error.metadata["tokens_sent"] == "3"


def test_a_first_token_of_prefill_comes_by_the_router() -> None:
    flow = dispatched()
    abort, emit, finish = flow.handle(Output(P0, 1, [1], "x", FinishReason.STOP), 0.5)
    assert (abort, emit) == (SendAbort(D0, 1), Emit([1], "x"))
    assert isinstance(finish, Finish)


def test_tokens_are_relayed_once_and_those_that_were_read_count_no_more() -> None:
    flow = dispatched(n=2)
    flow.handle(read(3), 0.5)
    flow.handle(read(2, FinishReason.STOP, index=1), 0.5)
    assert flow.handle(RelayAsked(1, 2), 0.6) == [SendRelay(D0, 1, 2)]
    assert flow.handle(RelayAsked(1, 2), 0.6) == []
    again = Output(D0, 1, [7], "x", None, counted=True)
    assert flow.handle(again, 0.7) == [Emit([7], "x", counted=True)]
    # Also of one whose end was told.
    ended = Output(D0, 1, [8], "y", FinishReason.STOP, index=1, counted=True)
    assert flow.handle(ended, 0.7) == [Emit([8], "y", 1, counted=True)]
    _, finish = flow.handle(Output(D0, 1, [9], "z", FinishReason.LENGTH), 0.8)
    assert isinstance(finish, Finish)
    assert finish.completion_tokens == 4
    assert flow.tokens_delivered == 6


def test_after_a_relay_no_attempt_is_read_any_more() -> None:
    flow = dispatched()
    flow.handle(RelayAsked(1, 0), 0.5)
    flow.handle(WorkerLost(D0), 1.0)
    opened, given = flow.handle(Routed(Placement(D1), readable=True), 1.0)
    assert (opened, given) == (SendOpen(D1, 2, False, 0.0), GiveTicket(None, 2))


def test_of_an_earlier_attempt_nothing_is_relayed() -> None:
    flow = dispatched()
    flow.handle(WorkerLost(D0), 1.0)
    assert flow.handle(RelayAsked(1, 0), 1.0) == []
    opened, _ = flow.handle(Routed(Placement(D1), readable=True), 1.0)
    assert opened == SendOpen(D1, 2, False, 0.0, by_ticket=True)
    assert flow.handle(RelayAsked(1, 0), 1.0) == []
