"""Answers that clients read themselves: positions, readers, what the router hears, the end."""

from __future__ import annotations

import pytest

from core.errors import CrossdockError, InvalidField, NotFound, RequestAborted
from core.request import AttemptKey, RequestKey
from decode_worker.read_responses import read_response
from decode_worker.readable_answers import (
    PATIENCE_S,
    REPORT_S,
    ReadableAnswers,
    ReaderLost,
    RelayUnread,
)

KEY = AttemptKey(RequestKey("default", "r1"), 1)
VALID_S = 10.0


def opened() -> ReadableAnswers:
    answers = ReadableAnswers()
    answers.open(KEY, 5, b"key", VALID_S, 0.0)
    return answers


def produce(answers: ReadableAnswers, *tokens: int, finish: str = "", index: int = 0) -> None:
    for token in tokens:
        output = answers.new_output(KEY)
        assert output is not None
        output.index = index
        output.token_ids.append(token)
        output.text = f"<{token}>"
        output.finish_reason = finish if token == tokens[-1] else ""


def why_ended(answers: ReadableAnswers, reader: object) -> CrossdockError:
    with pytest.raises(CrossdockError) as caught:
        answers.take(reader)  # type: ignore[arg-type]
    return caught.value


def test_a_reader_gets_everything_from_its_position_on() -> None:
    answers = opened()
    produce(answers, 7, 8)
    reader = answers.claim(KEY, 0, 1.0)
    assert [o.token_ids[0] for o in answers.take(reader).outputs] == [7, 8]
    produce(answers, 9, finish="stop")
    answers.completed(KEY, 2.0)
    assert not answers.has_all(reader)
    answers.take(reader)
    assert answers.has_all(reader)
    again = answers.claim(KEY, 2, 2.5)
    assert read_response(answers.take(again).outputs, 2, 5, "d0").position == 3
    answers.validate()


def test_the_router_hears_of_the_first_tokens_of_the_last_and_now_and_then() -> None:
    answers = opened()
    produce(answers, 7)
    assert answers.report(KEY, 1.0) is None, "nobody has read it"
    reader = answers.claim(KEY, 0, 1.0)
    answers.take(reader)
    first = answers.report(KEY, 1.0)
    assert first is not None
    assert ([o.read_tokens for o in first.outputs], first.last) == ([1], False)
    produce(answers, 8, 9)
    answers.take(reader)
    assert answers.report(KEY, 1.0 + REPORT_S / 2) is None
    second = answers.report(KEY, 1.0 + REPORT_S)
    assert second is not None
    assert [o.read_tokens for o in second.outputs] == [2]
    produce(answers, 1, finish="stop")
    answers.completed(KEY, 2.0)
    answers.take(reader)
    last = answers.report(KEY, 1.0 + REPORT_S)
    assert last is not None
    assert ([o.finish_reason for o in last.outputs], last.last) == (["stop"], True)


def test_only_the_newest_reader_reads() -> None:
    answers = opened()
    first = answers.claim(KEY, 0, 1.0)
    second = answers.claim(KEY, 0, 1.5)
    assert why_ended(answers, first).reason == "READ_ELSEWHERE"
    answers.left(first, 1.6)
    produce(answers, 7)
    assert answers.take(second).read == 1


def test_nothing_is_skipped_that_was_not_read() -> None:
    answers = opened()
    produce(answers, 7, 8)
    with pytest.raises(InvalidField, match="at most 0"):
        answers.claim(KEY, 1, 1.0)
    with pytest.raises(InvalidField, match="at most 0"):
        answers.relay(KEY, 1)


def test_without_a_reader_the_router_gets_the_tokens() -> None:
    answers = opened()
    produce(answers, 7)
    assert answers.tick(VALID_S - 0.1) == []
    assert answers.tick(VALID_S) == [RelayUnread(KEY)]
    with pytest.raises(NotFound):
        answers.claim(KEY, 0, VALID_S)
    relayed = answers.relay(KEY, 0)
    assert relayed is not None
    assert [(o.token_ids[0], o.counted) for o in relayed.outputs] == [(7, False)]
    assert answers.new_output(KEY) is None
    assert answers.relay(KEY, 0) is None


def test_what_was_read_and_is_relayed_is_not_counted_twice() -> None:
    answers = opened()
    produce(answers, 7, 8)
    reader = answers.claim(KEY, 0, 1.0)
    answers.take(reader)
    produce(answers, 9)
    relayed = answers.relay(KEY, 1)
    assert relayed is not None
    assert [(o.token_ids[0], o.counted) for o in relayed.outputs] == [(8, True), (9, False)]
    assert not relayed.complete
    assert why_ended(answers, reader).reason == "READ_ELSEWHERE"


def test_a_reader_may_come_back_within_a_while() -> None:
    answers = opened()
    produce(answers, 7)
    reader = answers.claim(KEY, 0, 1.0)
    answers.take(reader)
    answers.left(reader, 20.0)
    assert answers.tick(20.0 + PATIENCE_S - 0.1) == []
    assert answers.claim(KEY, 1, 20.0 + PATIENCE_S - 0.1).position == 1
    answers = opened()
    produce(answers, 7)
    reader = answers.claim(KEY, 0, 1.0)
    answers.take(reader)
    answers.left(reader, 20.0)
    assert answers.tick(20.0 + PATIENCE_S) == [ReaderLost(KEY)]


def test_without_its_router_an_answer_goes_on_while_it_is_read() -> None:
    answers = opened()
    assert not answers.lost_router(AttemptKey(KEY.request, 2), 1.0)
    reader = answers.claim(KEY, 0, 1.0)
    assert answers.lost_router(KEY, 2.0)
    produce(answers, 7)
    answers.take(reader)
    assert answers.report(KEY, 3.0) is None
    assert answers.report_all(KEY, 3.0) is None
    assert answers.tick(100.0) == []
    answers.left(reader, 100.0)
    assert answers.tick(100.0 + PATIENCE_S) == [ReaderLost(KEY)]


def test_an_answer_that_was_read_is_kept_for_a_moment() -> None:
    answers = opened()
    produce(answers, 7, finish="stop")
    answers.completed(KEY, 1.0)
    assert not answers.idle
    reader = answers.claim(KEY, 0, 1.0)
    answers.take(reader)
    assert answers.idle
    answers.left(reader, 2.0)
    assert answers.tick(2.0 + PATIENCE_S - 0.1) == []
    assert KEY in answers
    answers.tick(2.0 + PATIENCE_S)
    assert KEY not in answers


def test_what_fails_ends_its_reader() -> None:
    answers = opened()
    reader = answers.claim(KEY, 0, 1.0)
    answers.drop(KEY, RequestAborted("no room", reason="NO_ROOM"))
    assert why_ended(answers, reader).reason == "NO_ROOM"
    assert not answers.has_all(reader)
    assert KEY not in answers


def test_neighbours_share_a_chunk_and_each_answer_ends_with_its_own_counts() -> None:
    answers = opened()
    produce(answers, 7, 8)
    produce(answers, 5, finish="stop", index=1)
    produce(answers, 9, finish="length")
    reader = answers.claim(KEY, 0, 1.0)
    outputs = answers.take(reader).outputs
    outputs[0].cached_tokens = 3
    outputs[0].logprobs.add(logprob=-1.0, top_token_ids=[7, 6], top_logprobs=[-1.0, -2.0])
    responses = read_response(outputs, 0, 5, "d0").responses
    assert [(r.index, list(r.chunk.token_ids), r.chunk.text) for r in responses] == [
        (0, [7, 8], "<7><8>"),
        (1, [5], "<5>"),
        (1, [], ""),
        (0, [9], "<9>"),
        (0, [], ""),
    ]
    [told] = responses[0].chunk.logprobs
    assert (told.token_id, [t.token_id for t in told.top]) == (7, [7, 6])
    ends = [r.complete for r in responses if r.HasField("complete")]
    assert [(e.finish_reason, e.completion_tokens) for e in ends] == [("stop", 1), ("length", 3)]
    assert {(e.prompt_tokens, e.cached_tokens) for e in ends} == {(5, 3)}
