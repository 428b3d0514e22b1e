"""One call's answers on their way out: read in batches, or given away as they come."""

import asyncio
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import RequestAborted
from core.request import FinishReason, RequestKey, SamplingParams
from router.doors.openai_answers import (
    AnswerHead,
    AnswerShape,
    AnswerWriter,
    ChatShape,
    CompletionShape,
    Json,
    Usage,
    sse_event,
)
from router.flow.messages import Emit, Fail, Finish
from router.placement import Placement, WorkerId
from router.requests.answer_stream import AnswerStream, ChoiceEvent, Prompt, Receiver, TokenSink

PLACED = Placement(WorkerId("d0", 1))
NO_TOKENS: Any = None


def finish(index: int = 0) -> Finish:
    return Finish(FinishReason.STOP, 1, 0, 0.0, 0.0, 0.0, PLACED, 1, index)


class Call:
    """A call of some prompts with ``n`` answers each, and where their tokens are put in."""

    def __init__(self, prompts: int = 1, n: int = 1) -> None:
        ids = np.array([1], dtype=np.int32)
        hashes = np.empty(0, dtype=np.uint64)
        self.receivers: list[Receiver] = []
        self.stream = AnswerStream(
            [
                Prompt(RequestKey("t", f"r{k}"), 0.0, ids, hashes, 0, SamplingParams(4, n=n), None)
                for k in range(prompts)
            ]
        )
        self.stream.start(self._start)

    def _start(self, prompt: Prompt, receiver: Receiver) -> Callable[[], None]:
        self.receivers.append(receiver)
        return lambda: None


class TokensOf:
    def __init__(self, choice: int, seen: list[tuple[int, object]]) -> None:
        self._choice, self._seen = choice, seen

    def token(self, token_id: int, text: str) -> None:
        self._seen.append((self._choice, text))


class Sink:
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, object]] = []

    def choice(self, choice: int) -> TokenSink:
        return TokensOf(choice, self.seen)

    def event(self, item: ChoiceEvent) -> None:
        event = item.event
        self.seen.append((item.choice, event.text if isinstance(event, Emit) else "end"))


async def test_what_came_of_one_answer_in_the_meantime_is_one_piece() -> None:
    call = Call()
    (answers,) = call.receivers
    answers.event(Emit([1], "a"))
    answers.choice(0).sink.token(2, "b")
    answers.choice(0).sink.token(3, "")
    answers.event(finish())
    batch = await call.stream.batch()
    assert [item.event for item in batch] == [Emit((1, 2, 3), "ab"), finish()]
    assert not await call.stream.batch()


async def test_answers_that_take_turns_stay_apart() -> None:
    call = Call(prompts=2, n=2)
    for prompt, index in ((1, 1), (0, 0), (0, 1), (1, 0)):
        call.receivers[prompt].choice(index).sink.token(prompt, f"p{prompt} a{index}")
    batch = await call.stream.batch()
    assert [(item.prompt, item.choice) for item in batch] == [(1, 3), (0, 0), (0, 1), (1, 2)]
    assert [item.event.index for item in batch] == [1, 0, 1, 0]


async def test_a_sink_gets_what_has_come_and_then_all_else_at_once() -> None:
    call, sink = Call(n=2), Sink()
    (answers,) = call.receivers
    answers.event(Emit([1], "early", 1))
    feeding = asyncio.ensure_future(call.stream.feed(sink))
    await asyncio.sleep(0)
    answers.choice(1).sink.token(2, "late")
    assert sink.seen == [(1, "early"), (1, "late")]
    answers.event(finish(1))
    answers.event(finish(0))
    await feeding
    assert sink.seen[2:] == [(1, "end"), (0, "end")]


async def test_after_an_error_a_sink_gets_nothing_more() -> None:
    call, sink = Call(prompts=2), Sink()
    feeding = asyncio.ensure_future(call.stream.feed(sink))
    await asyncio.sleep(0)
    call.receivers[0].event(Fail(RequestAborted("cut", reason="ABORTED")))
    with pytest.raises(RequestAborted):
        await feeding
    call.receivers[1].choice(0).sink.token(1, "too late")
    assert sink.seen == []


@given(text=st.text(st.characters(exclude_categories=["Cs"])), chat=st.booleans(), data=st.data())
def test_chunks_are_the_json_of_their_parts(text: str, chat: bool, data: st.DataObject) -> None:
    """Names may hold whatever can be printed."""
    name = data.draw(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
    usage = data.draw(st.sampled_from([(False, False), (True, False), (True, True)]))
    shape = ChatShape() if chat else CompletionShape()
    head = AnswerHead("id", name, 0, json.dumps(name))
    of_tokens, of_events = (writer(shape, head, *usage) for _ in range(2))

    def chunk(part: Json, tokens: Sequence[int]) -> bytes:
        body = head.body(shape.prefix, shape.chunk_object, [part])
        so_far = Usage(3, dict(enumerate(tokens))).so_far() if usage[1] else None
        return sse_event({**body, "usage": so_far} if usage[0] else body)

    for choice, tokens in (0, (2, 0)), (1, (2, 2)), (0, (4, 2)):
        item = ChoiceEvent(0, choice, Emit((5, 6), text, choice))
        expected = chunk(shape.part(choice, text, None, None), tokens) if text else b""
        assert of_tokens.text(choice, 2, text) == of_events.parts([item]) == expected
    # The end tells how many there were, whatever was told before.
    ended = chunk(shape.part(1, "", None, "stop"), (4, 1))
    assert of_tokens.parts([ChoiceEvent(0, 1, finish(1))]) == ended


def writer(
    shape: AnswerShape, head: AnswerHead, include_usage: bool, continuous: bool
) -> AnswerWriter:
    answer: Any = SimpleNamespace(num_choices=2, prompt_tokens=3)
    return AnswerWriter(
        shape, head, answer, NO_TOKENS, include_usage=include_usage, continuous_usage=continuous
    )
