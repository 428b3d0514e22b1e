"""A goal lets some requests miss it: a few that nothing could serve in time decide nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from search_worlds import LIMITS, chat_trace, only_shapes, profile_of

from core.config import ClusterSpec
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.search.bench import Traced
from tuner.search.bounds import Traffic
from tuner.search.estimate import Estimates
from tuner.search.evaluate import Goal
from tuner.search.laboratory import Laboratory
from tuner.search.single_replica import replicas_of
from tuner.search.space import Accelerators, Budget, Candidate, PoolChoice
from tuner.search.tune import Question, bounded_candidates, tune
from tuner.simulate.requests import RequestTrace

TWO = Accelerators(only_shapes(profile_of("h100"), {ONE_RANK}), 2)
GOAL = Goal(Slo(1.0, 0.0086), 90.0)
POOL = PoolChoice(TWO, 1, ONE_RANK, LIMITS)


def with_long_prompts(count: int) -> RequestTrace:
    """``count`` of 200, too long for the TPOT even alone."""
    chats = chat_trace(200)
    prompts = chats.prompt_tokens.copy()
    prompts[np.random.default_rng(0).choice(len(chats), count, replace=False)] = 60_000
    return replace(chats, prompt_tokens=prompts)


@pytest.mark.thorough
def test_two_pools_win_although_a_few_prompts_are_too_long_for_the_goal() -> None:
    question = Question(
        with_long_prompts(2), ClusterSpec(), Budget(TWO, TWO), GOAL, LIMITS, replicates=0
    )
    result = tune(question, bounded_candidates(question), processes=1)
    assert result.verdict.winner is not None
    assert str(result.verdict.winner.candidate) == "1P:1D, tp 1/tp 1"
    assert result.verdict.colocated is not None
    assert result.verdict.colocated.ratio > 1.2


@pytest.mark.thorough
def test_a_decode_replica_is_estimated_near_what_it_serves() -> None:
    """The long prompts take much of its steps on average, but few of them come near others."""
    trace = with_long_prompts(2)
    _, decode = replicas_of(Candidate(POOL, (POOL,)))
    served, least = Traffic.of_all(trace, GOAL.share), Traffic.of(trace, GOAL.share)
    assert decode.bound(Traffic.of(trace), GOAL.slo) == 0.0
    with Laboratory(Traced(trace, ClusterSpec(), GOAL, 0), processes=1) as laboratory:
        estimates = Estimates(laboratory.replicas, served, least, GOAL.slo)
        estimates.learn([decode])
    known = estimates.known(decode)
    assert known is not None
    assert 1.1 * decode.bound(served, GOAL.slo) < known < decode.bound(least, GOAL.slo)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_all_requests_are_served_and_the_share_keeps_the_tpot(share: float) -> None:
    trace = with_long_prompts(10)
    served, whole, least = (
        Traffic.of_all(trace, share),
        Traffic.of(trace),
        Traffic.of(trace, share),
    )
    assert served.least.context_to_meet == least.least.context_to_meet
    assert replace(served.least, context_to_meet=0) == replace(whole.least, context_to_meet=0)


def test_a_share_of_one_token_each_leaves_the_tpot_to_the_others() -> None:
    chats = with_long_prompts(2)
    answers = np.where(chats.prompt_tokens == 60_000, 100, 1).astype(np.int32)
    trace = replace(chats, output_tokens=answers)
    mixed = replicas_of(Candidate(None, (POOL,)))[0]
    assert mixed.bound(Traffic.of(trace), GOAL.slo) == 0.0
    assert mixed.bound(Traffic.of_all(trace, GOAL.share), GOAL.slo) > 0.0
    assert mixed.bound(Traffic.of_all(trace, GOAL.share), Slo(1.0, 1e-6)) > 0.0
