"""Reading an OpenAI stream: any cut of the bytes, several tokens in a piece, what goes wrong."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_events import sse, text_event, usage_event

from core.errors import Unavailable
from tuner.load.openai_stream import OpenAIStream, error_message
from tuner.load.records import Usage
from tuner.load.sse import MAX_EVENT_BYTES, EventParser
from tuner.load.target import AnswerLog


def read(*received: bytes) -> AnswerLog:
    """An answer whose clock counts 0, 1, 2 … with each piece."""
    ticks = count()
    answer = AnswerLog(lambda: float(next(ticks)))
    stream = OpenAIStream(answer)
    for part in received:
        stream.feed(part)
    stream.close()
    return answer


def delta(**fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


GOOD = sse(text_event("a"), text_event("b"), text_event("", "stop"), usage_event(7, 2), "[DONE]")


@given(cuts=st.lists(st.integers(0, len(GOOD)), max_size=12))
def test_any_cut_of_the_bytes_reads_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(GOOD)]
    parts = [GOOD[a:b] for a, b in pairwise(edges)]
    answer = read(*parts)
    assert answer.chunk_times == [0.0, 1.0]
    assert answer.usage == Usage(7, 2)


def test_comments_other_fields_and_crlf() -> None:
    parser = EventParser()
    text = b": ping\r\n\r\nevent: x\r\nid: 4\r\ndata: one\r\ndata:two\r\n\r\n\n\ndata: [DONE]\n\n"
    assert parser.feed(text) == [b"one\ntwo", b"[DONE]"]


def test_an_event_without_end_is_refused() -> None:
    with pytest.raises(Unavailable) as refused:
        EventParser().feed(b"x" * (MAX_EVENT_BYTES + 1))
    assert refused.value.reason == "MALFORMED_STREAM"


def test_the_opening_of_a_chat_is_no_token() -> None:
    opening = delta(role="assistant", content="")
    answer = read(
        sse(opening, delta(content="hi"), delta(reasoning_content="hm"), delta(), "[DONE]")
    )
    assert answer.chunk_tokens == [None, None]


def test_pieces_that_say_how_many_tokens_they_hold() -> None:
    grown = text_event("abc") | {"usage": {"prompt_tokens": 5, "completion_tokens": 3}}
    more = text_event("de") | {"usage": {"prompt_tokens": 5, "completion_tokens": 5}}
    with_ids = text_event("fgh")
    with_ids["choices"][0]["token_ids"] = [1, 2, 3, 4]
    assert read(sse(grown, more, with_ids, "[DONE]")).chunk_tokens == [3, 2, 4]


def test_tokens_whose_text_was_held_back_count_with_the_piece_that_shows_them() -> None:
    parts = [
        text_event(text) | {"usage": {"prompt_tokens": 5, "completion_tokens": done}}
        for text, done in [("a", 1), ("", 2), ("", 3), ("bcd", 4)]
    ]
    assert read(sse(*parts, "[DONE]")).chunk_tokens == [1, 3]


def test_usage_with_cached_tokens_and_null_in_between() -> None:
    last = usage_event(9, 1)
    last["usage"]["prompt_tokens_details"] = {"cached_tokens": 4}
    answer = read(sse(text_event("a") | {"usage": None}, last, "[DONE]"))
    assert answer.usage == Usage(9, 1, 4)


def test_a_finish_reason_is_an_end_without_done() -> None:
    assert len(read(sse(text_event("a", "stop"))).chunk_times) == 1


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (sse(text_event("a")), "DISCONNECTED"),
        (b"", "DISCONNECTED"),
        (b'data: {"choices": []', "DISCONNECTED"),
        (sse("{oops"), "MALFORMED_STREAM"),
        (sse("[1]"), "MALFORMED_STREAM"),
        (sse({"choices": ["x"]}), "MALFORMED_STREAM"),
        (sse({"choices": 7}), "MALFORMED_STREAM"),
        (sse({"usage": {"prompt_tokens": "many"}}), "MALFORMED_STREAM"),
        (sse({"usage": [1]}), "MALFORMED_STREAM"),
        (b"data: \xff\xfe\n\n", "MALFORMED_STREAM"),
        (sse(text_event("a"), {"error": {"message": "worker gone"}}), "STREAM_ERROR"),
        (sse("[DONE]"), "NO_TOKENS"),
    ],
)
def test_what_goes_wrong_has_a_kind(received: bytes, reason: str) -> None:
    with pytest.raises(Unavailable) as failure:
        read(received)
    assert failure.value.reason == reason


def test_words_of_an_error() -> None:
    assert error_message({"error": {"message": "no"}}) == "no"
    assert error_message({"error": "no"}) == "no"
    assert error_message({"detail": "no"}) == "no"
    assert error_message([1]) == "[1]"
