"""Requests of a simulation: shared prompts, resampling, and traffic by description."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.block_hash import block_hashes
from core.errors import InvalidField
from tuner.load.traces import TraceEntry
from tuner.simulate.prompt_hashes import PromptHashes
from tuner.simulate.requests import RequestTrace
from tuner.simulate.synthetic import draw_requests, read_description
from tuner.simulate.traces import from_entries, load_requests

CHATS = """\
rate: 2
duration: 60s
prompts: [{share: 0.5, tokens: 30-50}, {share: 0.5, tokens: 200}]
answers: 5-9
system_prompts: {tokens: 40, count: 2}
turns: 1-3
pause: 4s
"""


def equal_tokens(trace: RequestTrace, one: int, other: int) -> int:
    """How many leading tokens two prompts have in common."""
    a, b = trace.prompt(one), trace.prompt(other)
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def small_trace() -> RequestTrace:
    return from_entries(
        "t",
        [
            TraceEntry(10.0, 1300, 4, (7, 9, 11)),
            TraceEntry(11.0, 1100, 5, (7, 9, 12)),
            TraceEntry(11.5, 20, 6, (7,)),
            TraceEntry(14.0, 600, 1, (8, 9)),
        ],
    )


def test_prompts_share_what_their_hash_ids_say() -> None:
    trace = small_trace()
    assert trace.arrivals_s.tolist() == [0.0, 1.0, 1.5, 4.0]
    assert [len(trace.prompt(i)) for i in range(4)] == [1300, 1100, 20, 600]
    assert equal_tokens(trace, 0, 1) == 1024
    assert equal_tokens(trace, 0, 2) == 20
    assert equal_tokens(trace, 0, 3) == 0


@given(
    st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(0, 3), max_size=6)), min_size=1),
    st.sampled_from([3, 4, 8, 16]),
)
def test_hashes_are_equal_where_those_of_the_tokens_are(
    prompts: list[tuple[int, list[int]]], block_size: int
) -> None:
    lengths, ids = zip(*prompts, strict=True)
    count = len(prompts)
    trace = RequestTrace(
        "t",
        np.arange(count, dtype=np.float64),
        np.array(lengths, dtype=np.int32),
        np.ones(count, dtype=np.int32),
        [np.array(own, dtype=np.int32) for own in ids],
        part_tokens=8,
    )
    hashes = PromptHashes(trace, block_size)
    mine = [hashes.of(i).tolist() for i in range(count)]
    real = [block_hashes(trace.prompt(i), block_size, 0).tolist() for i in range(count)]
    assert [len(hashes) for hashes in mine] == [len(hashes) for hashes in real]
    pairs = {*zip(chain.from_iterable(mine), chain.from_iterable(real), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_without_hash_ids_nothing_is_shared() -> None:
    trace = from_entries("t", [TraceEntry(float(i), 50, 2) for i in range(5)])
    assert all(equal_tokens(trace, 0, other) == 0 for other in range(1, 5))


def test_a_prompt_longer_than_its_hash_ids_ends_with_tokens_of_its_own() -> None:
    trace = from_entries("t", [TraceEntry(0.0, 700, 1, (3,)), TraceEntry(1.0, 700, 1, (3,))])
    assert equal_tokens(trace, 0, 1) == 512


def test_rates() -> None:
    trace = small_trace()
    assert trace.rate == pytest.approx(0.75)
    assert trace.at_rate(3.0).arrivals_s.tolist() == [0.0, 0.25, 0.375, 1.0]
    assert len(trace.first(2)) == 2


def test_requests_that_come_at_one_moment_have_no_rate_to_change() -> None:
    trace = from_entries("t", [TraceEntry(5.0, 10, 2), TraceEntry(5.0, 10, 2)])
    with pytest.raises(InvalidField, match="longer than a year"):
        small_trace().at_rate(1e-300)
    with pytest.raises(InvalidField, match="at one moment"):
        trace.at_rate(2.0)


def test_copies_of_a_trace_share_nothing_with_each_other() -> None:
    trace = small_trace().repeated(3)
    assert len(trace) == 12
    assert (np.diff(trace.arrivals_s) >= 0).all()
    assert equal_tokens(trace, 4, 5) == 1024
    assert equal_tokens(trace, 0, 4) == 0


@given(st.integers(0, 1000), st.integers(1, 6))
def test_resampling_keeps_order_and_what_neighbours_share(seed: int, parts: int) -> None:
    trace = small_trace().repeated(5)
    drawn = trace.resampled(np.random.default_rng(seed), parts)
    starts = [run[0] for run in np.array_split(np.arange(len(trace)), parts)]
    assert len(drawn) == len(trace)
    assert (np.diff(drawn.arrivals_s) >= 0).all()
    assert set(drawn.output_tokens.tolist()) <= set(trace.output_tokens.tolist())
    for first, second in pairwise(starts):
        assert equal_tokens(drawn, first, second) == 0


@pytest.mark.parametrize(
    ("arrivals", "prompts", "words"),
    [
        ([], [], "holds no request"),
        ([1.0, 0.0], [1, 1], "must rise"),
        ([0.0], [0], "a token or more"),
    ],
)
def test_nonsense_is_refused(arrivals: list[float], prompts: list[int], words: str) -> None:
    lengths = np.array(prompts, dtype=np.int32)
    with pytest.raises(InvalidField, match=words):
        RequestTrace("t", np.array(arrivals), lengths, lengths)


def test_traffic_by_description(tmp_path: Path) -> None:
    path = tmp_path / "chats.yaml"
    path.write_text(CHATS)
    description = read_description(path)
    trace = draw_requests(description, "chats")
    again, other = draw_requests(description, "chats"), draw_requests(description, "chats", 1)
    assert trace.arrivals_s.tolist() == again.arrivals_s.tolist()
    assert trace.arrivals_s.tolist() != other.arrivals_s.tolist()
    assert 120 < len(trace) < 480
    assert set(trace.output_tokens.tolist()) == {5, 6, 7, 8, 9}
    assert int(trace.prompt_tokens.min()) >= 70


def test_turns_hold_the_whole_chat_so_far(tmp_path: Path) -> None:
    path = tmp_path / "chats.yaml"
    path.write_text(CHATS.replace("turns: 1-3", "turns: 2").replace("rate: 2", "rate: 0.05"))
    trace = load_requests(path, seed=3)
    longest = np.argsort(trace.prompt_tokens)[::-1]
    later = int(longest[0])
    earlier = max(range(later), key=lambda i: equal_tokens(trace, i, later))
    assert equal_tokens(trace, earlier, later) == int(trace.prompt_tokens[earlier])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": "fast"}, "rate"),
        ({"duration": "-1s"}, "duration"),
        ({"prompts": []}, "prompts"),
        ({"prompts": [{"share": 0.5, "tokens": "5"}]}, "bad.yaml"),
        ({"prompts": [{"tokens": "9-5"}]}, "prompts.0.tokens"),
        ({"answers": "0"}, "answers"),
        ({"turn": 3}, "turn"),
        ({"rate": 1e-9}, "rate"),
    ],
)
def test_a_bad_description_names_the_entry(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    good = {"rate": 1, "duration": "10s", "prompts": [{"tokens": "5"}], "answers": "5"}
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(good | change))
    with pytest.raises(InvalidField) as caught:
        load_requests(path)
    assert caught.value.metadata["field"] == field


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CHATS.replace("rate: 2", "rate: -2"), "rate = -2"),
        (CHATS.replace("rate: 2", "rate: .nan"), "rate = nan"),
        (CHATS.replace("rate: 2", "rate: 1e12"), "rate = 1000000000000.0: makes more than"),
        (CHATS.replace("5-9", "many"), "answers = 'many': must be a number from 1"),
        (CHATS.replace("5-9", "5-99999999"), "answers = '5-99999999': must be a number from 1"),
        (BOMB + CHATS.replace("5-9", "*l"), "answers = .*: must be a number from 1"),
        (CHATS.replace("1-3", "1-100000"), "turns = '1-100000': a chat has at most 10000 turns"),
        (CHATS.replace("4s", "{}"), "pause = '…': must be a time above zero"),
        (CHATS.replace("4s", "1e300"), "pause = '1e300': must be a time above zero"),
        (CHATS.replace("tokens: 40", "tokens: 1e30"), "system_prompts.tokens"),
        (CHATS.replace("{tokens: 40, count: 2}", "40"), "system_prompts = 40: must hold fields"),
        ("rate: 1\nduration: 9s\nanswers: 5\nprompts: 5", "prompts = 5: must be a list, such as"),
        (CHATS + "speed: 7", "speed = 7: is no field of traffic"),
        ("rates: 1\nduration: 9\n", "rates = 1: is no field of traffic; did you mean rate"),
        ("- 1", "must describe traffic: rate"),
        ("", "must describe traffic: rate"),
        ("{a: [", "is not YAML: line 1"),
        ("[" * 1000, "nested too deeply"),
        ("a: 2023-99-99", "is not YAML: month must be in"),
        (CHATS + "rate: 3", "line 8: rate comes twice"),
    ],
)
def test_a_description_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "chats.yaml"
    path.write_text(text)
    with pytest.raises(InvalidField, match=words):
        draw_requests(read_description(path), "chats")


def test_a_description_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "chats.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InvalidField, match=r"TRACE = .*is no text file"):
        read_description(path)


def test_times_in_another_unit(tmp_path: Path) -> None:
    entries = [TraceEntry(0.0, 1, 1), TraceEntry(1e15, 1, 1)]
    with pytest.raises(InvalidField, match="more than a year: is it another unit"):
        from_entries("t", entries)
