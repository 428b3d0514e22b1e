"""The arithmetic behind `crossdock bench engine`: floors, medians, steady parts, tables."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.engine_bench.cases import (
    Cases,
    check_memory,
    check_positions,
    choose_cases,
    choose_threads,
    parse_sizes,
)
from cluster.engine_bench.child_process import read_result
from cluster.engine_bench.report import (
    as_json,
    decode_table,
    headings,
    notes,
    overhead_lines,
    prefill_table,
)
from cluster.engine_bench.results import (
    DecodeResult,
    EngineBenchResult,
    EngineResult,
    PrefillResult,
    ServerResult,
    StepOverhead,
)
from cluster.engine_bench.roofline import MachineRates, ModelWork
from cluster.engine_bench.steady_part import SteadyWatch, Stream, find_steady_part
from cluster.engine_bench.system_memory import read_buffer_bytes
from cluster.engine_bench.timing import Timing, summarize
from core.errors import InternalError, InvalidField
from core.kv_layout import KVLayout
from engine.model_config import ModelConfig
from engine.rope_config import RopeConfig

CONFIG = ModelConfig(
    model_type="llama",
    hidden_size=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    intermediate_size=16,
    vocab_size=32,
    rms_norm_eps=1e-6,
    rope=RopeConfig(10_000.0),
    max_position_embeddings=64,
    tie_word_embeddings=False,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    layer_windows=(None, 3),
)
# Q 8 × 8, K and V 8 × 4 each, output 8 × 8; gate, up and down 8 × 16 each.
LAYER_WEIGHTS = 2 * (64 + 2 * 32 + 64 + 3 * 128)
HEAD_WEIGHTS = 32 * 8
WORK = ModelWork(CONFIG, itemsize=2)

# One of the two is so fast that the other alone counts.
SLOW_READS = MachineRates(1.0, 1e30, "", "")
SLOW_PRODUCTS = MachineRates(1e30, 1.0, "", "")


# Floors


def test_the_floor_of_decode_reads_weights_once_and_every_context() -> None:
    # A token of K or V has 2 heads of 2 numbers; one layer sees 10 tokens, the other one 3.
    kv = 3 * (10 + 3) * 2 * 2 * 2
    expected = (LAYER_WEIGHTS + HEAD_WEIGHTS + kv) * 2
    assert WORK.decode_floor_s(SLOW_READS, 3, 10) == expected


def test_the_floor_of_decode_computes_every_weight_for_each_sequence() -> None:
    attention = 3 * 4 * (10 + 3) * 4 * 2
    expected = 3 * 2 * (LAYER_WEIGHTS + HEAD_WEIGHTS) + attention
    assert WORK.decode_floor_s(SLOW_PRODUCTS, 3, 10) == expected


def test_the_floor_of_prefill_is_causal_and_draws_once() -> None:
    pairs = sum(1 for i in range(5) for j in range(i + 1))
    windowed = sum(1 for i in range(5) for j in range(i + 1) if i - j < 3)
    attention = 4 * (pairs + windowed) * 4 * 2
    expected = 2 * (5 * LAYER_WEIGHTS + HEAD_WEIGHTS) + attention
    assert WORK.prefill_floor_s(SLOW_PRODUCTS, 5) == expected


def test_a_short_prompt_is_bound_by_reading_the_weights() -> None:
    assert WORK.prefill_floor_s(SLOW_READS, 1) == (LAYER_WEIGHTS + HEAD_WEIGHTS) * 2


def test_of_two_measurements_of_the_machine_the_better_rates_count() -> None:
    one, other = MachineRates(5.0, 7.0, "sum", "matmul"), MachineRates(6.0, 3.0, "norm", "packed")
    assert one.best(other) == other.best(one) == MachineRates(6.0, 7.0, "norm", "matmul")


def test_reads_go_far_beyond_the_largest_cache(tmp_path: Path) -> None:
    assert read_buffer_bytes(tmp_path) == 512 * 2**20
    for index, size in enumerate(("32K", "1024K", "320M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert read_buffer_bytes(tmp_path) == 8 * 320 * 2**20


def test_a_median_with_its_spread() -> None:
    assert summarize([5.0, 1.0, 2.0, 3.0, 4.0]) == Timing(3.0, 1.4, 4.6, 5)


# The steady part of streams


def stream(start: float, step: float, count: int) -> Stream:
    return Stream([start + step * i for i in range(count)], [1] * count)


def test_the_steady_part_lies_between_the_last_start_and_the_first_end() -> None:
    # The first stream is fast while it is alone; together they take 2 s a step.
    alone = [0.0, 1.0, 2.0, 3.0]
    together = [4.0 + 2.0 * i for i in range(8)]
    first = Stream(alone + together, [1] * 12)
    second = Stream([*together, 19.5, 20.0], [1] * 10)
    part = find_steady_part([first, second])
    assert part is not None
    assert (part.step.median_s, part.step.p10_s, part.step.p90_s) == (2.0, 2.0, 2.0)
    # At its middle the streams have 5 + 3.5 and 1 + 3.5 tokens.
    assert part.mean_generated == 6.5


def test_pieces_of_several_tokens_and_bunched_ones_do_not_change_the_pace() -> None:
    smooth = stream(0.0, 1.0, 13)
    bunched = Stream([0.0, 3.0, 3.0, 6.0, 6.0, 12.0], [1, 1, 2, 1, 2, 6])
    part = find_steady_part([smooth, bunched])
    assert part is not None
    assert part.step.median_s == 1.0
    assert part.step.count == 24


def test_streams_that_hardly_overlap_have_no_steady_part() -> None:
    assert find_steady_part([stream(0.0, 1.0, 10), stream(6.0, 1.0, 10)]) is None
    assert find_steady_part([stream(0.0, 1.0, 10), stream(20.0, 1.0, 10)]) is None


def watched(steps: int, *pieces: tuple[int, float, int]) -> list[bool]:
    watch = SteadyWatch([Stream([], []), Stream([], [])], steps)
    return [watch.piece(*piece) for piece in pieces]


def test_the_watch_counts_only_what_comes_after_all_have_begun() -> None:
    before = [(0, 0.0, 5), (0, 1.0, 5), (1, 2.0, 1)]
    after = [(0, 3.0, 1), (1, 3.1, 2), (0, 4.0, 1), (0, 5.0, 1), (1, 6.0, 1)]
    assert watched(2, *before, *after) == [False] * 7 + [True]


def test_the_watch_waits_until_bunched_streams_overlap() -> None:
    bunches = [(0, 0.0, 1), (1, 0.0, 1), *[(0, 1.0, 1)] * 6, *[(1, 5.0, 1)] * 6]
    assert not any(watched(4, *bunches))
    assert watched(4, *bunches, (0, 6.0, 1))[-1]


def test_what_the_watch_calls_enough_has_a_steady_part() -> None:
    streams = [Stream([], []), Stream([], [])]
    watch = SteadyWatch(streams, steps=4)
    arrivals = itertools.chain.from_iterable(
        [*[(0, 2.0 * i + 1.0)] * 3, *[(1, 2.0 * i + 2.0)] * 3] for i in itertools.count()
    )
    assert any(watch.piece(index, time, 1) for index, time in arrivals)
    assert find_steady_part(streams) is not None


# Options


@pytest.mark.parametrize("text", ["", "0", "1,1", "1,,2", "a", "-1", "1.5", "99999999"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InvalidField, match="--batches"):
        parse_sizes("--batches", text)


def test_threads_are_one_and_all_cores_unless_told() -> None:
    assert [choose_threads(None, 1), choose_threads(None, 8)] == [(1,), (1, 8)]
    assert choose_threads("2, 1", 2) == (2, 1)
    with pytest.raises(InvalidField, match="--threads = '1,3': this process may use 2 cores"):
        choose_threads("1,3", 2)


def test_what_is_told_wins_over_quick() -> None:
    cases = choose_cases(True, "64", None, "32", 256)
    assert (cases.prompts, cases.contexts, cases.runs) == ((64,), (32,), 3)
    assert len(cases.batches) < len(Cases().batches)


def test_cases_that_the_model_or_the_memory_can_not_take() -> None:
    cases = Cases(prompts=(100,), batches=(1,), contexts=(90,), steps=20)
    check_positions(cases, 113)
    with pytest.raises(InvalidField, match="--contexts"):
        check_positions(cases, 112)
    with pytest.raises(InvalidField, match="--prompts"):
        check_positions(cases, 99)
    layout = KVLayout(2, 2, 16, 16, "float32")
    check_memory(cases, layout, 0, None)
    check_memory(cases, layout, 0, 2**30)
    with pytest.raises(InvalidField, match=r"--batches = '1': 1\.4 GiB are needed"):
        check_memory(cases, layout, 2**30, 2**30)


def test_what_a_measuring_process_that_failed_has_to_say() -> None:
    with pytest.raises(InternalError, match="no numbers") as told:
        read_result('{"reason": "STEP_FAILED", "message": "no numbers"}', 1)
    assert told.value.reason == "STEP_FAILED"
    with pytest.raises(InternalError, match="signal 9"):
        read_result("", -9)


# Reports


def timing(seconds: float) -> Timing:
    return Timing(seconds, seconds / 2, seconds * 2, 5)


RESULT = EngineBenchResult(
    model="tiny",
    dtype="bfloat16",
    random_weights=False,
    cases=Cases(prompts=(100,), batches=(4,), contexts=(128,)),
    engine=(
        EngineResult(
            device="cpu",
            threads=2,
            cores=(0, 1),
            kernels="torch (not built)",
            machine=MachineRates(1e9, 2e9, "sum", "matmul"),
            prefill=(PrefillResult(100, timing(0.1), 0.05),),
            decode=(DecodeResult(4, 128, timing(0.02), 140.0, 0.015),),
            overhead=StepOverhead(32, 1.0, 0.9, 0.1, 0.01, 0.02, 0.03, 0.04),
        ),
    ),
    servers=(
        ServerResult(
            url="http://one",
            model="m",
            sent="token ids",
            prefill=(PrefillResult(100, timing(0.2)),),
            decode=(DecodeResult(4, 128, timing(0.05), 200.0),),
            warnings=("no usage",),
        ),
    ),
)


def test_the_prefill_table_has_shares_and_ratios() -> None:
    columns, rows = prefill_table(RESULT)
    assert columns[-1] == "tokens/s ÷ A"
    assert rows == [
        ("100", "2 threads", "100.0", "50.0–200.0", "1000", "50.0", "0.50", "2.00"),
        ("100", "A", "200.0", "100.0–400.0", "500", "–", "–", "1.00"),
    ]


def test_the_decode_table_has_shares_and_ratios() -> None:
    columns, rows = decode_table(RESULT)
    assert columns[-1] == "ms ÷ A"
    assert rows == [
        ("128", "4", "2 threads", "20.0", "10.0–40.0", "15.0", "0.75", "0.40"),
        ("128", "4", "A", "50.0", "25.0–100.0", "–", "–", "1.00"),
    ]


def test_what_was_measured_and_how_stands_above_the_tables() -> None:
    said = "\n".join(headings(RESULT))
    assert "2 threads: reads 1.0 GB/s (sum), products 2 GFLOP/s (matmul)" in said
    assert "kernels: torch (not built)" in said
    assert "A: http://one, model m (token ids)" in said


def test_the_json_says_what_was_measured_how() -> None:
    data = as_json(RESULT)
    assert data["engine"][0]["measured"] == "engine only"
    assert data["servers"][0]["measured"] == "over HTTP"
    assert data["engine"][0]["prefill"][0]["share"] == 0.5
    assert data["engine"][0]["decode"][0]["times_as_fast"] == [2.5]


def test_a_gpu_stands_under_its_own_name_and_without_what_was_not_measured() -> None:
    engine = replace(RESULT.engine[0], device="cuda", threads=1, overhead=None)
    result = replace(RESULT, random_weights=True, engine=(engine,), servers=())
    assert [row[2] for row in decode_table(result)[1]] == ["cuda"]
    assert overhead_lines(result) == []
    said = headings(result)
    assert said[:2] == [
        "tiny, bfloat16, random weights, prompts in chunks of 256 tokens",
        "engine alone, no server:",
    ]
    assert as_json(result)["random_weights"] is True


def test_notes_tell_of_failures_warnings_and_longer_contexts() -> None:
    failed = DecodeResult(8, 128, None, 128.0, failure="too long")
    server = replace(RESULT.servers[0], decode=(*RESULT.servers[0].decode, failed))
    assert notes(replace(RESULT, servers=(server,))) == [
        "A: no usage",
        "A, decode, context 128, batch 8: not measured: too long",
        "A, decode, context 128, batch 4: 200 tokens of context on average",
    ]
