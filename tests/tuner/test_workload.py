"""Lengths of prompts and answers, and the plans made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidField
from tuner.load.arrivals import ArrivalKind
from tuner.load.plan import plan_rate, plan_trace
from tuner.load.quantities import parse_range, parse_rate, parse_seconds, parse_seeds
from tuner.load.traces import TraceEntry
from tuner.load.workload import PRESETS, PromptPart, TokenRange, Workload

MIXED = PRESETS["mixed"]


def test_the_mixed_preset_is_four_short_prompts_to_one_long() -> None:
    prompts, outputs = MIXED.workload.draw(20_000, np.random.default_rng(0))
    short = prompts[prompts <= 250]
    long = prompts[prompts > 250]
    # Uniform, and so many draws that both ends are met.
    assert (short.min(), short.max()) == (150, 250)
    assert (long.min(), long.max()) == (1_300, 1_700)
    assert (outputs.min(), outputs.max()) == (80, 120)
    assert len(long) / len(prompts) == pytest.approx(0.2, abs=0.015)
    assert short.mean() == pytest.approx(200, abs=2)
    assert long.mean() == pytest.approx(1_500, abs=12)
    assert (MIXED.duration_s, MIXED.seeds) == (180.0, (0, 1, 2))


@given(
    low=st.integers(1, 1000),
    width=st.integers(0, 1000),
    count=st.integers(0, 50),
    seed=st.integers(0, 2**32),
)
def test_lengths_never_leave_their_range(low: int, width: int, count: int, seed: int) -> None:
    workload = Workload((PromptPart(1.0, TokenRange(low, low + width)),), TokenRange(3, 3))
    prompts, outputs = workload.draw(count, np.random.default_rng(seed))
    assert np.all((prompts >= low) & (prompts <= low + width))
    assert outputs.tolist() == [3] * count


def test_a_request_has_the_same_length_at_any_rate() -> None:
    slow = plan_rate(ArrivalKind.CONSTANT, 1.0, 10.0, MIXED.workload, 3)
    fast = plan_rate(ArrivalKind.CONSTANT, 5.0, 10.0, MIXED.workload, 3)
    lengths = [(r.prompt_tokens, r.output_tokens) for r in fast.requests]
    assert [(r.prompt_tokens, r.output_tokens) for r in slow.requests] == lengths[:10]
    other = plan_rate(ArrivalKind.CONSTANT, 1.0, 10.0, MIXED.workload, 4)
    assert [r.prompt_tokens for r in other.requests] != [r.prompt_tokens for r in slow.requests]


def test_a_window_in_which_nobody_comes_is_refused() -> None:
    with pytest.raises(InvalidField, match="no request arrives"):
        plan_rate(ArrivalKind.POISSON, 1e-6, 1.0, MIXED.workload, 0)


def test_a_trace_becomes_a_plan_with_its_shared_blocks() -> None:
    entries = [TraceEntry(50.0, 600, 9, (7, 8)), TraceEntry(58.0, 20, 1)]
    plan = plan_trace(entries, 4.0, 1)
    assert [r.at_s for r in plan.requests] == [0.0, 2.0]
    assert plan.window_s == 2.0
    first = plan.requests[0]
    assert (first.prompt_tokens, first.output_tokens, first.block_ids) == (600, 9, (7, 8))


@pytest.mark.parametrize(
    ("text", "seconds"), [("1", 1.0), ("1.5s", 1.5), ("50ms", 0.05), (" 3m ", 180.0)]
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_seconds("--slo-ttft", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "0", "-1", "1h", "1..5s", "ms", "1e400", "nan", "."])
def test_no_time(text: str) -> None:
    with pytest.raises(InvalidField, match="--slo-ttft"):
        parse_seconds("--slo-ttft", text)


def test_ranges_and_seeds() -> None:
    assert parse_range("--x", "5-9") == TokenRange(5, 9)
    assert parse_range("--x", "7") == TokenRange(7, 7)
    assert parse_seeds("--seeds", "0, 12,3") == (0, 12, 3)


@pytest.mark.parametrize("text", ["", "9-5", "0-5", "a-b", "5-", "-5", "1-2-3"])
def test_no_range(text: str) -> None:
    with pytest.raises(InvalidField, match="--input-tokens"):
        parse_range("--input-tokens", text)


@pytest.mark.parametrize("text", ["", "1,", "1,1", "x", "-1", "1.5"])
def test_no_seeds(text: str) -> None:
    with pytest.raises(InvalidField, match="--seeds"):
        parse_seeds("--seeds", text)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_no_rate(value: float) -> None:
    with pytest.raises(InvalidField, match="--rate"):
        parse_rate("--rate", value)
