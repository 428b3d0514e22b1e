"""Other clusters that a profile might have been of, as far as served ones were from predictions."""

from __future__ import annotations

from dataclasses import replace
from math import log
from statistics import mean, stdev

import pytest
from simulated_clusters import STEP

from core.latency_profile import (
    EngineProfile,
    FitError,
    Interference,
    LatencyProfile,
    Origin,
    StepWork,
)
from core.shards import ONE_RANK
from tuner.search.served_error import as_served

ERROR = FitError(0.0, 0.0, 0.0, (1.0, 1.0))
ALONE = EngineProfile(ONE_RANK, 1, 1.0, STEP, 10_000, ERROR)
PROFILE = LatencyProfile(
    origin=Origin.MEASURED,
    hardware="two cores",
    model="any",
    model_hash="",
    dtype="float32",
    created="2026-11-21",
    max_positions=4096,
    weight_bytes=1,
    kv_bytes_per_token=1,
    message_s=0.0,
    request_s=0.0,
    engines=(ALONE, replace(ALONE, core_share=0.5), replace(ALONE, error=None)),
    transfers=(),
    interference=Interference(1.4, 1.1, 1.2, 1.0),
)
WORKS = (StepWork(1, 1, 0, 1, 500), StepWork(256, 1, 256 * 257 // 2, 0, 0))


def factors(engine: int) -> list[float]:
    """What is drawn for one engine, many times; whatever it computes, it is the same."""
    found = []
    for seed in range(400):
        step = as_served(PROFILE, [seed]).engines[engine].step
        first, second = (step.time(work) / STEP.time(work) for work in WORKS)
        assert first == pytest.approx(second, rel=1e-6)
        found.append(log(first))
    return found


def test_engines_are_as_far_off_as_served_ones_were() -> None:
    own, shared = factors(0), factors(1)
    assert mean(own) == pytest.approx(0, abs=0.02)
    assert stdev(own) == pytest.approx(0.10, abs=0.015)
    assert stdev(shared) == pytest.approx(0.15, abs=0.02)


def test_a_computed_engine_stays_as_it_is() -> None:
    assert set(factors(2)) == {0.0}


def test_neighbours_disturb_more_or_less_and_never_help() -> None:
    for seed in range(50):
        found = as_served(PROFILE, [seed]).interference
        assert found is not None
        added = found.decode_beside_decode - 1
        assert added > 0
        assert found.decode_beside_prefill - 1 == pytest.approx(added / 4)
        assert found.prefill_beside_prefill == 1.0


def test_the_same_seed_draws_the_same() -> None:
    assert as_served(PROFILE, [3]) == as_served(PROFILE, [3]) != as_served(PROFILE, [4])
