"""An answer that comes on two ways: which of them goes on, and what is given once and only once."""

from __future__ import annotations

from typing import Any

import grpc

from crossdock.client.errors import Aborted, ServerError, Unavailable
from crossdock.client.ticket_answer import (
    Action,
    End,
    Fail,
    Give,
    Read,
    Relay,
    StopReading,
    TicketAnswer,
)
from crossdock.v1 import inference_pb2 as pb
from crossdock.v1.token_stream_pb2 import ReadResponse


def chunk(*ids: int, index: int = 0) -> pb.GenerateResponse:
    text = "".join(f"<{token}>" for token in ids)
    return pb.GenerateResponse(index=index, chunk=pb.Chunk(token_ids=ids, text=text))


def complete(tokens: int, index: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(index=index, complete=pb.Complete(completion_tokens=tokens))


def read(position: int, *responses: pb.GenerateResponse) -> ReadResponse:
    return ReadResponse(position=position, responses=responses)


def ticket(attempt: int = 1, endpoint: str = "d0:1") -> pb.ReadTicket:
    return pb.ReadTicket(attempt=attempt, endpoint=endpoint, ticket=b"t")


def begun(n: int = 1) -> TicketAnswer:
    answer = TicketAnswer(n)
    given = ticket()
    assert answer.from_router(pb.GenerateResponse(ticket=given)) == [Read(given, 0)]
    return answer


def given(actions: list[Action]) -> list[int]:
    return [t for a in actions if isinstance(a, Give) for t in a.response.chunk.token_ids]


def error(code: grpc.StatusCode, reason: str = "", kind: Any = ServerError) -> ServerError:
    failure: ServerError = kind(code, "it broke", reason=reason)
    return failure


BROKEN = error(grpc.StatusCode.UNAVAILABLE, kind=Unavailable)


def test_the_end_is_given_after_the_last_token_whichever_comes_first() -> None:
    answer = begun()
    assert answer.from_worker(1, read(1, chunk(7))) == [Give(chunk(7))]
    assert answer.from_router(complete(2)) == []
    assert answer.router_ended(None) == []
    last = answer.from_worker(1, read(2, chunk(8), complete(2)))
    assert last == [Give(chunk(8)), Give(complete(2)), End()]


def test_a_connection_that_breaks_is_made_again_at_the_same_place() -> None:
    answer = begun()
    answer.from_worker(1, read(1, chunk(7)))
    assert answer.worker_ended(1, BROKEN) == [Read(ticket(), 1)]
    assert answer.worker_ended(1, BROKEN) == [Relay(1, 1)]
    assert given(answer.from_router(chunk(8))) == [8]


def test_a_worker_out_of_reach_is_left_to_the_router() -> None:
    answer = begun()
    assert answer.worker_ended(1, BROKEN) == [Relay(1, 0)]
    assert given(answer.from_router(chunk(7, 8))) == [7, 8]
    assert answer.from_router(complete(2)) == [Give(complete(2)), End()]


def test_what_the_router_knows_is_left_to_it() -> None:
    for known in (
        error(grpc.StatusCode.ABORTED, "NO_ROOM"),
        error(grpc.StatusCode.DEADLINE_EXCEEDED),
        error(grpc.StatusCode.CANCELLED),
    ):
        assert begun().worker_ended(1, known) == []
    for unknown in (
        error(grpc.StatusCode.ABORTED, "READ_ELSEWHERE"),
        error(grpc.StatusCode.NOT_FOUND),
        error(grpc.StatusCode.UNAUTHENTICATED),
    ):
        assert begun().worker_ended(1, unknown) == [Relay(1, 0)]


def test_another_attempt_repeats_what_was_given_and_goes_on() -> None:
    answer = begun()
    answer.from_worker(1, read(2, chunk(7, 8)))
    second = ticket(2, "d1:1")
    assert answer.from_router(pb.GenerateResponse(ticket=second)) == [
        StopReading(),
        Read(second, 0),
    ]
    assert answer.from_worker(1, read(3, chunk(9))) == [], "of the first attempt"
    assert answer.from_worker(2, read(1, chunk(7))) == []
    [give] = answer.from_worker(2, read(3, chunk(8, 9)))
    assert give == Give(chunk(9))
    assert answer.from_router(complete(3)) == [Give(complete(3)), End()]


def test_another_attempt_with_other_tokens_or_fewer_cuts_the_answer() -> None:
    for different in (chunk(6), complete(1)):
        answer = begun()
        answer.from_worker(1, read(2, chunk(7, 8)))
        answer.from_router(pb.GenerateResponse(ticket=ticket(2, "")))
        if different.HasField("complete"):
            answer.from_router(chunk(7))
        [fail] = answer.from_router(different)
        assert isinstance(fail, Fail)
        assert isinstance(fail.error, Aborted)
        assert fail.error.metadata["tokens_sent"] == "2"


def test_without_the_router_the_worker_tells_the_end() -> None:
    answer = begun(2)
    answer.from_worker(1, read(2, chunk(7), chunk(5, index=1), complete(1, index=1)))
    assert answer.router_ended(BROKEN) == [Give(complete(1, index=1))]
    assert answer.from_worker(1, read(3, chunk(8), complete(2)))[-1] == End()


def test_a_router_that_is_lost_after_everything_was_read_is_not_missed() -> None:
    answer = begun()
    answer.from_worker(1, read(1, chunk(7), complete(1)))
    assert answer.worker_ended(1, None) == []
    assert answer.router_ended(BROKEN) == [Give(complete(1)), End()]


def test_without_both_the_call_fails() -> None:
    answer = begun()
    answer.from_worker(1, read(1, chunk(7)))
    assert answer.router_ended(BROKEN) == []
    assert answer.worker_ended(1, BROKEN) == [Read(ticket(), 1)]
    assert answer.worker_ended(1, BROKEN) == [Fail(BROKEN)]


def test_what_the_router_says_at_the_end_holds() -> None:
    refused = error(grpc.StatusCode.RESOURCE_EXHAUSTED, "FULL")
    assert TicketAnswer(1).router_ended(refused) == [Fail(refused)]
    assert begun().router_ended(refused) == [Fail(refused)]
    stopping = error(grpc.StatusCode.UNAVAILABLE, "ROUTER_STOPPING", Unavailable)
    assert begun().router_ended(stopping) == [Fail(stopping)]
    assert TicketAnswer(1).router_ended(BROKEN) == [Fail(BROKEN)]


def test_a_stream_that_ends_before_its_tokens_came_is_no_good_end() -> None:
    answer = begun()
    answer.from_worker(1, read(1, chunk(7)))
    answer.from_router(complete(3))
    answer.worker_ended(1, None)
    [fail] = answer.router_ended(None)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Aborted)
