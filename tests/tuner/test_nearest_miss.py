"""The cluster that misses a hopeless goal by the least, and how near it really comes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from search_worlds import LIMITS, chat_trace, only_shapes, profile_of

from core.config import ClusterSpec
from core.latency_profile import FEMTOSECONDS, StepWork
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.search.evaluate import Goal
from tuner.search.report_json import as_json
from tuner.search.space import Accelerators, Budget
from tuner.search.tune import Question, bounded_candidates, tune

ONE = Accelerators(only_shapes(profile_of("h100"), {ONE_RANK}), 1)


def test_the_nearest_is_simulated_to_the_end() -> None:
    """Half of the prompts are too long for the TPOT even alone; with 90 % to meet it, a simulation
    that ends with the first tenth that misses it would see next to nobody within it."""
    chats = chat_trace(200)
    lengths = np.where(np.arange(len(chats)) % 2, 20_000, 200).astype(np.int32)
    trace = replace(chats, prompt_tokens=lengths)
    step = ONE.profile.engine(ONE_RANK).step
    tpot_s = step.time(StepWork(1, 1, 0, 1, 10_000)) / FEMTOSECONDS
    goal = Goal(Slo(5.0, tpot_s), 90.0)
    question = Question(trace, ClusterSpec(), Budget(ONE, ONE), goal, LIMITS)
    bounded = bounded_candidates(question)
    assert not any(bound.rate for _, bound in bounded)
    result = tune(question, bounded, processes=1)
    nearest = as_json(result)["verdict"]["nearest"]
    assert result.verdict.winner is None
    assert nearest["is_cut_short"] is False
    assert 0.2 < nearest["share_within_slo"] < 0.6
