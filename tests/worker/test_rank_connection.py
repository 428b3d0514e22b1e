"""Questions and answers on one connection that are too large to be sent."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from core.errors import InternalError
from crossdock.v1 import rank_pb2 as pb
from worker.ranks import framing
from worker.ranks.connection import RankConnection

LARGE = pb.RankMessage(get_value=pb.GetValue(key="k" * 1000))


@pytest.fixture
def peers(monkeypatch) -> Iterator[tuple[RankConnection, RankConnection]]:
    """The second one answers every question by a large message."""
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 500)
    with socket.create_server(("127.0.0.1", 0)) as server:
        asking = RankConnection(socket.create_connection(server.getsockname()), "answerer", 10)
        answering = RankConnection(server.accept()[0], "asker", 10)
    asking.start(lambda message: None, lambda error: None)
    answering.start(lambda message: answering.answer(message, LARGE), lambda error: None)
    yield asking, answering
    asking.close()
    answering.close()


def test_an_answer_that_is_too_large_is_told_as_a_refusal(peers) -> None:
    asking, _ = peers
    for _ in range(2):
        asked = asking.ask(pb.RankMessage(get_value=pb.GetValue(key="small")))
        with pytest.raises(InternalError, match="at most 500 are allowed") as refused:
            asked.result(10)
        assert refused.value.reason == "RANK_MESSAGE_TOO_LARGE"


def test_a_question_that_is_too_large_is_not_awaited(peers) -> None:
    asking, _ = peers
    with pytest.raises(InternalError, match="at most 500 are allowed"):
        asking.ask(pb.RankMessage(get_value=pb.GetValue(key="k" * 1000)))
    assert not asking._awaited
