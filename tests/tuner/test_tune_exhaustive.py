"""The search finds what simulating every candidate closely finds, on a space small enough."""

from __future__ import annotations

import pytest
from search_worlds import GOAL, Accelerators, Budget, chat_trace, profile_of

from core.config import ClusterSpec
from tuner.search.halving import RUNGS, Job
from tuner.search.laboratory import Laboratory, Traced
from tuner.search.space import Limits
from tuner.search.tune import Question, bounded_candidates, tune


@pytest.mark.thorough
def test_the_winner_is_within_three_percent_of_the_best_of_all() -> None:
    accelerators = Accelerators(profile_of("l4", "smollm2-135m"), 3)
    trace = chat_trace(500)
    question = Question(
        trace,
        ClusterSpec(),
        Budget(accelerators, accelerators),
        GOAL,
        Limits(64, 512),
        replicates=1,
    )
    bounded = bounded_candidates(question)
    assert len(bounded) >= 4
    result = tune(question, bounded, processes=1)
    assert result.verdict.winner is not None
    jobs = [
        Job(candidate, RUNGS[-1], 0.5 * bound.rate, 1.2 * bound.rate)
        for candidate, bound in bounded
    ]
    with Laboratory(Traced(trace, question.base, GOAL, question.seed), processes=1) as laboratory:
        best = max(reached.rate for reached in laboratory.measure(jobs))
    assert result.verdict.winner.rate >= 0.97 * best
