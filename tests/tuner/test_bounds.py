"""Bounds beside simulation: nothing meets its goal above them, and good clusters come near."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from bounded_worlds import World, profile_of_steps, worlds
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from amounts import examples
from core.latency_profile import RowCurve, StepModel, TransferModel
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.search.bounds import SLACK, Resource
from tuner.search.evaluate import Goal
from tuner.search.space import Accelerators, Candidate, Limits, PoolChoice

FEW = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
MOST_REQUESTS = 150


def check(world: World, seed: int) -> None:
    """At a little more than its bound allows the cluster misses its goal."""
    few = world.trace(40, seed)
    if world.bound(few).rate == 0:
        # Even requests that come one by one miss it.
        assert world.share(few, 0.1 / world.service_s) < world.goal.share
        return
    rate = world.bound(world.trace(MOST_REQUESTS, seed)).rate
    assume(0 < rate < inf)
    count = world.count(SLACK * rate)
    assume(count <= MOST_REQUESTS)
    trace = world.trace(count, seed)
    rate = 1.001 * SLACK * world.bound(trace).rate
    # The first ones find an empty cluster.
    assert world.share(trace, rate, skipped=count // 2) < world.goal.share


@pytest.mark.thorough
@given(worlds(), st.integers(0, 1000))
@FEW
def test_nothing_meets_its_goal_above_the_bound(world: World, seed: int) -> None:
    check(world, seed)


@pytest.mark.thorough
@given(worlds(), st.integers(0, 1000))
@settings(FEW, max_examples=examples(300))
def test_nothing_meets_its_goal_above_the_bound_in_many_worlds(world: World, seed: int) -> None:
    check(world, seed)


MILLISECOND = 10**12
# A step takes 1 ms up to 8 rows, then 0.1 ms for each further one.
STEP = StepModel(RowCurve(((1, MILLISECOND), (8, MILLISECOND), (108, 11 * MILLISECOND))), 0, 0, 0)


def steady(prompt: int, answer: int, kv_tokens: int, per_token: int, *, split: bool) -> World:
    """Equal requests at equal distances, and patience."""
    on = Accelerators(profile_of_steps(STEP, ONE_RANK, kv_tokens, TransferModel(1, per_token)), 2)
    pool = PoolChoice(on, 1, ONE_RANK, Limits(8, 64))
    candidate = Candidate(pool if split else None, (pool,))
    goal = Goal(Slo(0.2, 0.02), 100.0)
    return World(candidate, goal, (prompt, prompt), (answer, answer), 0, 0, steady=True)


@pytest.mark.parametrize(
    ("world", "limit"),
    [
        (steady(128, 1, 4000, 1, split=True), Resource.PREFILL_COMPUTE),
        (steady(8, 40, 4000, 1, split=True), Resource.DECODE_BANDWIDTH),
        (steady(128, 8, 4000, MILLISECOND, split=True), Resource.LINK),
        (steady(64, 30, 208, 1, split=True), Resource.KV_MEMORY),
        (steady(64, 8, 4000, 1, split=False), Resource.PREFILL_COMPUTE),
        (steady(8, 40, 4000, 1, split=False), Resource.DECODE_BANDWIDTH),
    ],
)
def test_what_a_steady_flow_reaches_is_near_the_bound(world: World, limit: Resource) -> None:
    trace = world.trace(60, 0)
    bound = world.bound(trace)
    assert bound.limited_by is limit
    assert world.share(trace, 0.8 * bound.rate) == 1.0


def test_a_prefix_that_all_share_takes_its_memory_once() -> None:
    """Four sequences of 272 tokens in room for 400: 256 of them are the same."""
    world = replace(steady(8, 8, 400, 1, split=False), prefixes=1, prefix_parts=32)
    trace = world.trace(80, 0)
    alone = 8 * 1e-3
    assert world.bound(trace).rate > 3 / alone
    assert world.share(trace, 2 / alone) == 1.0
