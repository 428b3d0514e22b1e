"""The numbers of the report, against ones worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.load.metrics import RunResult, Slo, Spread, summarize
from tuner.load.records import INTERRUPTED, RequestRecord, Usage

SLO = Slo(ttft_s=1.0, tpot_s=0.05)


def record(
    planned: float = 0.0,
    times: tuple[float, ...] = (),
    counts: tuple[int | None, ...] | None = None,
    usage: Usage | None = None,
    error: str = "",
    sent: float | None = None,
) -> RequestRecord:
    return RequestRecord(
        seed=0,
        index=0,
        planned_s=planned,
        wanted_prompt_tokens=10,
        wanted_output_tokens=4,
        sent_s=planned if sent is None else sent,
        ended_s=times[-1] if times else planned,
        chunk_times_s=times,
        chunk_tokens=(None,) * len(times) if counts is None else counts,
        usage=usage,
        error=error,
        detail=f"words of {error}",
    )


def test_latencies_count_from_the_planned_arrival() -> None:
    late = record(planned=2.0, sent=3.0, times=(3.5, 3.6, 3.9), usage=Usage(10, 3))
    assert late.lag_s == pytest.approx(1.0)
    assert late.ttft_s == pytest.approx(1.5)
    assert late.e2e_s == pytest.approx(1.9)
    assert late.tpot_s == pytest.approx(0.2)
    assert late.itls_s.tolist() == pytest.approx([0.1, 0.3])


def test_a_piece_of_several_tokens_is_several_gaps() -> None:
    said = record(times=(1.0, 1.2, 1.6), counts=(1, 2, 4), usage=Usage(10, 7))
    assert said.itls_s.tolist() == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert said.tpot_s == pytest.approx(0.1)
    spread = record(times=(1.0, 1.2, 1.6), usage=Usage(10, 6))
    assert spread.itls_s.tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert spread.tpot_s == pytest.approx(0.12)


def test_without_usage_pieces_are_counted() -> None:
    answer = record(times=(1.0, 1.5), counts=(None, 3))
    assert answer.output_tokens == 4


def test_one_token_has_no_time_per_further_token() -> None:
    single = record(times=(0.3,), usage=Usage(10, 1))
    assert single.tpot_s is None
    assert len(single.itls_s) == 0
    assert summarize([RunResult(0, (single,), 1.0, 1.0)], SLO).goodput.share == 1.0


@given(
    gaps=st.lists(st.floats(0, 10), max_size=30),
    extra=st.integers(0, 60),
    counted=st.booleans(),
)
def test_gaps_between_tokens_add_up_to_the_whole(
    gaps: list[float], extra: int, counted: bool
) -> None:
    times = tuple(np.cumsum([1.0, *gaps]).tolist())
    pieces = len(times)
    counts = tuple(1 + extra * (i == pieces - 1) for i in range(pieces)) if counted else None
    answer = record(times=times, counts=counts, usage=Usage(1, pieces + extra))
    total = times[-1] - times[0]
    if pieces > 1:
        assert answer.itls_s.sum() == pytest.approx(total)
        assert answer.tpot_s * (pieces + extra - 1) == pytest.approx(total)
    assert len(answer.itls_s) <= pieces + extra - 1


def test_spread_interpolates_linearly() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(
        3.0, 3.0, pytest.approx(4.6), pytest.approx(4.96), 5.0
    )


def test_summary_of_two_runs() -> None:
    quick = record(times=(0.5, 0.52, 0.54), usage=Usage(100, 3, 16))
    slow_start = record(planned=1.0, times=(2.5, 2.52), usage=Usage(200, 2))
    slow_stream = record(times=(0.9, 1.9), usage=Usage(50, 2))
    refused = record(error="HTTP_429")
    cut = record(error=INTERRUPTED, times=(0.1,))
    runs = [
        RunResult(0, (quick, slow_start, refused, cut), window_s=4.0, elapsed_s=5.0),
        RunResult(1, (slow_stream,), window_s=4.0, elapsed_s=5.0),
    ]
    total = summarize(runs, SLO)
    assert (total.planned, total.sent, total.completed, total.failed, total.interrupted) == (
        (5, 5, 3, 1, 1)
    )
    assert total.errors["HTTP_429"].count == 1
    assert total.errors["HTTP_429"].example == "words of HTTP_429"
    assert (total.input_tokens, total.output_tokens, total.cached_tokens) == (350, 7, 16)
    assert total.input_tokens_per_s == pytest.approx(35.0)
    assert total.output_tokens_per_s == pytest.approx(0.7)
    assert total.planned_requests_per_s == pytest.approx(5 / 8)
    assert total.completed_requests_per_s == pytest.approx(0.3)
    # Of the four that ended one met both; the interrupted one is left out.
    assert total.goodput.requests_per_s == pytest.approx(1 / 8)
    assert total.goodput.share == pytest.approx(1 / 4)
    assert total.goodput.share_ttft == pytest.approx(2 / 4)
    assert total.goodput.share_tpot == pytest.approx(2 / 4)
    assert total.ttft_s is not None
    assert total.ttft_s.p50 == pytest.approx(0.9)
    assert total.tpot_s is not None
    assert total.tpot_s.max == pytest.approx(1.0)
    assert total.itl_s is not None
    assert total.itl_s.mean == pytest.approx((0.02 * 3 + 1.0) / 4)
    alone = summarize(runs[1:], SLO)
    assert alone.completed == 1
    assert alone.goodput.share == 0.0


def test_nothing_completed_is_no_division_by_zero() -> None:
    for runs in ([], [RunResult(0, (record(error="TIMEOUT"),), 0.0, 0.0)]):
        total = summarize(runs, SLO)
        assert total.ttft_s is None
        assert total.goodput.share == 0.0


def test_a_record_becomes_json() -> None:
    line = json.loads(json.dumps(record(times=(1.0, 1.5), usage=Usage(10, 2)).as_json()))
    assert line["chunk_times_s"] == [1.0, 1.5]
    assert line["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "cached_tokens": 0}
    assert (line["ttft_s"], line["tpot_s"], line["e2e_s"], line["lag_s"]) == (1.0, 0.5, 1.5, 0.0)
