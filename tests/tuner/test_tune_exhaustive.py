"""The search finds what simulating every candidate closely finds, on spaces small enough."""

from __future__ import annotations

from dataclasses import replace

import pytest
from search_worlds import (
    Accelerators,
    Budget,
    chat_trace,
    only_shapes,
    profile_of,
    shared_trace,
)

from core.config import ClusterSpec
from core.shards import ParallelShape
from tuner.load.metrics import Slo
from tuner.search.bench import Traced
from tuner.search.bounds import SLACK
from tuner.search.evaluate import Goal
from tuner.search.finals import FINAL
from tuner.search.halving import Job
from tuner.search.laboratory import Laboratory
from tuner.search.space import Limits
from tuner.search.tune import Question, bounded_candidates, tune
from tuner.simulate.requests import RequestTrace

_LIMITS = Limits(64, 512)
# Short limits make short windows.
_GOAL = Goal(Slo(0.3, 0.03), 90.0)
_CLOSE = replace(FINAL, precision=0.01)


def three_small_gpus() -> Budget:
    three = Accelerators(profile_of("l4", "smollm2-135m"), 3)
    return Budget(three, three)


def four_gpus_of_one_rank() -> Budget:
    four = Accelerators(only_shapes(profile_of("h100"), {ParallelShape(1, 1)}), 4)
    return Budget(four, four)


def two_kinds() -> Budget:
    one_rank = {ParallelShape(1, 1)}
    return Budget(
        Accelerators(only_shapes(profile_of("h100"), one_rank), 1),
        Accelerators(only_shapes(profile_of("l40s"), one_rank), 2),
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("budget", "trace"),
    [
        pytest.param(three_small_gpus(), chat_trace(500), id="3 l4"),
        pytest.param(four_gpus_of_one_rank(), chat_trace(500), id="4 h100 of one rank"),
        pytest.param(two_kinds(), chat_trace(500), id="1 h100 and 2 l40s"),
        pytest.param(four_gpus_of_one_rank(), shared_trace(500), id="shared prefixes"),
    ],
)
def test_the_winner_is_within_three_percent_of_the_best_of_all(
    budget: Budget, trace: RequestTrace
) -> None:
    question = Question(trace, ClusterSpec(), budget, _GOAL, _LIMITS, replicates=0)
    bounded = bounded_candidates(question)
    assert len(bounded) >= 3
    result = tune(question, bounded, processes=1)
    assert result.verdict.winner is not None
    found = result.verdict.winner.rate
    # All start at the winner's rate: who serves more says so, the others end after a trial.
    jobs = [
        Job(candidate, _CLOSE, found, SLACK * bound.rate, 1.03, floor=found)
        for candidate, bound in bounded
    ]
    given = Traced(trace, question.base, _GOAL, question.seed)
    with Laboratory(given, processes=1) as laboratory:
        best = max(reached.rate for reached in laboratory.measure(jobs))
    assert found >= 0.97 * best
