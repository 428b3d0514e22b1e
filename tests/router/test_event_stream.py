"""Tokens on their way to HTTP clients: what is written for each, and how often."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import HttpVersion10, HttpVersion11
from hypothesis import given
from hypothesis import strategies as st

from core.request import RequestKey
from crossdock.v1 import worker_pb2 as pb
from router.doors.event_stream import EventStream
from router.doors.openai_answers import AnswerHead, AnswerWriter, ChatShape, CompletionShape
from router.flow.answer_progress import AnswerProgress
from router.placement import WorkerId
from router.requests.answer_stream import Choice, Write
from router.requests.running_request import RunningAnswer
from router.requests.step_tokens import StepTokens

WORKER = WorkerId("d0", 1)


class Transport(asyncio.WriteTransport):
    def __init__(self, closing: bool = False) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self._closing = closing

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: Any) -> None:
        self.writes.append(data)


class Words:
    """A sink whose tokens are written as they are."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def token(self, token_id: int, text: str) -> Write | None:
        if text == "defect":
            raise RuntimeError(text)
        return (self._transport, text.encode()) if text else None


def writer(shape: str, usage: tuple[bool, bool]) -> AnswerWriter:
    tokens: Any = None
    answer: Any = SimpleNamespace(num_choices=2, prompt_tokens=3)
    return AnswerWriter(
        ChatShape() if shape == "chat" else CompletionShape(),
        AnswerHead("id", "name", 0, "print"),
        answer,
        tokens,
        include_usage=usage[0],
        continuous_usage=usage[1],
    )


def answer_to(transport: Transport, source: WorkerId | None = WORKER) -> RunningAnswer:
    key = RequestKey("default", "r")
    return RunningAnswer(
        key, "default", 0, AnswerProgress(1, 0.0, False, source), Choice(Words(transport))
    )


def taken(answers: list[RunningAnswer], *texts: str) -> StepTokens:
    """A step with so many texts of each of ``answers``, numbered from 0."""
    step = StepTokens(WORKER, 1.0)
    numbers = [number for _ in texts for number in range(len(answers))]
    columns = [text for text in texts for _ in answers]
    further = pb.FurtherTokens(answers=numbers, token_ids=[5] * len(columns), texts=columns)
    step.take(further, dict(enumerate(answers)).get)
    return step


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    shape=st.sampled_from(["chat", "completion"]),
    usage=st.sampled_from([(False, False), (True, False), (True, True)]),
    version=st.sampled_from([HttpVersion10, HttpVersion11]),
)
def test_a_token_is_one_event_and_one_chunk(
    text: str, shape: str, usage: tuple[bool, bool], version: Any
) -> None:
    request: Any = SimpleNamespace(transport=Transport(), version=version)
    answer: Any = None
    stream = EventStream(request, answer, writer(shape, usage))
    event = writer(shape, usage).text(1, 1, text)
    chunk = b"%x\r\n%b\r\n" % (len(event), event) if version is HttpVersion11 else event
    expected = (request.transport, chunk) if text else None
    assert stream.choice(1).token(5, text) == expected


def test_a_step_is_one_write_for_each_client() -> None:
    one, other = Transport(), Transport()
    step = taken([answer_to(one), answer_to(other), answer_to(one)], "a", "", "b")
    assert not one.writes
    step.write()
    assert (one.writes, other.writes) == ([b"aabb"], [b"ab"])


def test_nothing_is_written_to_who_is_gone() -> None:
    gone = Transport(closing=True)
    taken([answer_to(gone)], "a").write()
    assert not gone.writes


@pytest.mark.parametrize("source", [None, WorkerId("d1", 1)])
def test_tokens_of_an_answer_that_does_not_come_from_here_are_left(source: WorkerId | None) -> None:
    transport = Transport()
    answers = [answer_to(transport, source), answer_to(transport)]
    step = taken(answers, "a", "b")
    step.write()
    assert transport.writes == [b"ab"]
    assert [(left.answer is answers[0], left.text) for left in step.left] == [
        (True, "a"),
        (True, "b"),
    ]
    assert (answers[0].told.tokens, answers[1].told.tokens) == (1, 3)


def test_a_defect_in_one_answer_hurts_no_other() -> None:
    broken, fine = Transport(), Transport()
    step = StepTokens(WORKER, 1.0)
    further = pb.FurtherTokens(answers=[0, 1], token_ids=[5, 6], texts=["defect", "a"])
    step.take(further, dict(enumerate([answer_to(broken), answer_to(fine)])).get)
    step.write()
    assert [str(left.error) for left in step.left] == ["defect"]
    assert (broken.writes, fine.writes) == ([], [b"a"])
