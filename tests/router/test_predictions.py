"""Predicted times are those of the profile: queue, prompt, transfer, room, step."""

from dataclasses import replace

import numpy as np
import pytest
from predicted_workers import COSTS, ENGINE, MS, STEP, decode, mixed, predict, prefill

from core.latency_profile import StepWork, chunk_pairs
from router.routing.cost_model import EngineTimes
from router.routing.predictions import ANSWER_TOKENS
from router.routing.queued_context import QueuedContext


def test_a_prompt_takes_what_its_chunks_take() -> None:
    step = replace(STEP, per_prefill_pair=MS // 1000)
    times = EngineTimes(replace(ENGINE, step=step))
    for start, count in ((0, 1), (0, 60), (50, 150), (0, 200)):
        exact = step.time(StepWork(count, 0, chunk_pairs(start, count), 0, 0)) / MS
        assert times.prompt_ms(count, start + count) == pytest.approx(exact)
    three_chunks = 3 * step.time(StepWork(200, 0, 0, 0, 0)) + step.per_prefill_pair * chunk_pairs(
        0, 600
    )
    assert times.prompt_ms(600, 600) == pytest.approx(three_chunks / MS)


def test_stages_of_a_pipeline_share_the_chunks_of_a_prompt() -> None:
    alone, two = EngineTimes(ENGINE), EngineTimes(replace(ENGINE, stages=2))
    assert two.prompt_ms(200, 200) == alone.prompt_ms(200, 200)
    assert two.prompt_ms(1000, 1000) == pytest.approx(30 + 4 * 30 / 2)
    assert two.waiting_ms(1000, 0) == pytest.approx(alone.waiting_ms(1000, 0) / 2)


def test_what_waits_and_what_is_not_cached_comes_before_the_first_token() -> None:
    predictions = predict(prefill("idle"), prefill("queue", 400), prefill("warm", held=5))
    assert predictions.prefill_ms.tolist() == pytest.approx([20, 80, 12])


def test_prompts_that_wait_have_context_too() -> None:
    costs = replace(COSTS, prefill=replace(ENGINE, step=replace(STEP, per_prefill_pair=MS // 1000)))
    own = predict(prefill("idle"), costs=costs).prefill_ms[0]
    queued = predict(prefill("queue", 400), costs=costs, context=50.0).prefill_ms[0]
    assert queued - own == pytest.approx(60 + 400 * 50 / 1000)


def test_what_is_late_anyway_gives_way_once_its_chunk_has_ended() -> None:
    waits = replace(prefill("p", 9000), late=8000)
    in_time, late = predict(waits, tokens=100), predict(waits, tokens=7000)
    assert late.prefill_own_of(0) > 900 > in_time.prefill_own_of(0)
    for known, before in ((in_time, 1200), (late, 9000)):
        assert known.prefill_of(0) == known.prefill_ms[0]
        assert known.prefill_of(0) - known.prefill_own_of(0) == pytest.approx(before * 0.15)


def test_the_context_of_those_that_wait_is_that_of_the_latest_prompts() -> None:
    queued = QueuedContext()
    assert queued.mean == 0.0
    queued.add(100, 100)
    assert queued.mean == 50.0
    for _ in range(200):
        queued.add(20, 1000)
    assert queued.mean == pytest.approx(990, abs=1)


def test_a_step_is_that_of_the_batch_with_this_request_in_it() -> None:
    predictions = predict(decode("idle"), decode("busy", 9, used=100))
    # 10 ms, 1.1 ms for each answer, 1 µs for each token of context, this prompt's too.
    assert predictions.tpot_ms.tolist() == pytest.approx([11.2, 10 + 11 + 1.6 + 0.1])


def test_a_batch_is_never_larger_than_the_worker_takes() -> None:
    predictions = predict(decode("full", 32), decode("queue", 60))
    assert predictions.tpot_ms[0] == predictions.tpot_ms[1]


def test_only_blocks_that_are_not_there_are_shipped() -> None:
    predictions = predict(decode("cold"), decode("warm", held=6))
    assert predictions.transfer_ms().tolist() == pytest.approx([1 + 7 * 0.16, 1 + 0.16])


def test_room_comes_when_others_have_ended() -> None:
    full = replace(decode("full", 8, used=1000), blocks=1000)
    crowded, queue = decode("crowded", 31), decode("queue", 47)
    predictions = predict(decode("free"), full, crowded, queue)
    free, blocks, one_left, places = predictions.room_ms.tolist()
    assert free == one_left == 0
    # 7 blocks of 1,000 are those of 0.7 % of an answer's time; 16 of 32 places half of it.
    assert blocks == pytest.approx(7 / 1000 * ANSWER_TOKENS * predictions.tpot_ms[1])
    assert places == pytest.approx(16 / 32 * ANSWER_TOKENS * predictions.tpot_ms[3])


def test_a_worker_that_does_it_alone_computes_beside_its_answers() -> None:
    predictions = predict(mixed("idle"), mixed("busy", 9, pending=500))
    idle, busy = predictions.local_ms.tolist()
    assert idle == pytest.approx(20 + predictions.tpot_ms[0] - 10.1)
    assert busy == pytest.approx(500 * 0.15 + 20 + 3 * (predictions.tpot_ms[1] - 10.1))


def test_shipping_hides_behind_computing_but_for_the_last_chunk() -> None:
    one = predict(prefill("p"), decode("d"), tokens=100)
    assert one.handoff_ms(0, 1) == pytest.approx(20 + 2 + 2)
    many = predict(prefill("p"), decode("d"), tokens=2000)
    assert many.handoff_ms(0, 1) == pytest.approx(300 + 3 + 2)
    # P holds nearly all of it: it computes one token, and everything is to be shipped.
    cached = predict(prefill("p", held=125), decode("d"), tokens=2001)
    assert cached.handoff_ms(0, 1) == pytest.approx(10.1 + 1 + 20.16 - 10.1 + 2)


def test_a_forecast_tells_both_times_in_seconds_and_what_was_held() -> None:
    predictions = predict(prefill("p", held=5), decode("d", held=2))
    forecast = predictions.forecast(decode=1, prefill=0)
    assert forecast.ttft_s == pytest.approx(predictions.handoff_ms(0, 1) / 1000)
    assert forecast.tpot_s == pytest.approx(predictions.tpot_ms[1] / 1000)
    assert (forecast.prefill_held, forecast.decode_held) == (5, 2)
    alone = predictions.forecast(decode=1, prefill=None)
    assert alone.ttft_s == pytest.approx(predictions.local_ms[1] / 1000)
    assert alone.prefill_held == 0


def test_columns_have_a_time_for_each_worker() -> None:
    predictions = predict(prefill("p"), decode("d"), mixed("m"))
    for times in (predictions.prefill_ms, predictions.local_ms, predictions.tpot_ms):
        assert times.shape == (3,)
        assert np.isfinite(times).all()
