"""How many steps of a point are run, with an engine that counts them."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cluster.profiling.step_runs import StepRuns
from core.kv_layout import KVLayout
from core.step import StepPlan, StepResult
from engine.runner import LoadedModel
from tuner.profile.points import Chunk, StepPoint

PROMPT = StepPoint((Chunk(32, 16, draws=True),))
DECODES = StepPoint(decodes=2, context=40)


class Engine:
    """Answers each step at once, with the same token for all."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []

    def submit(self, plan: StepPlan, meanwhile: object) -> Future[StepResult]:
        self.plans.append(plan)
        drawn = {one.sequence_id: (SimpleNamespace(token=1),) for one in plan.slices}
        done: Future[Any] = Future()
        done.set_result(SimpleNamespace(failed={}, sampled=drawn))
        return done


def runs_of(engine: Engine) -> StepRuns:
    layout = KVLayout(1, 1, 4, block_size=16, dtype="float32")
    pool = SimpleNamespace(tensor=torch.zeros(64, 4), layout=layout, num_blocks=64)
    model = SimpleNamespace(pool=pool, config=SimpleNamespace(vocab_size=100))
    return StepRuns(cast(LoadedModel, model), cast(Any, engine))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Each of its steps takes a second."""
    made = Engine()
    monkeypatch.setattr(time, "perf_counter", lambda: float(len(made.plans)))
    return made


def test_a_point_is_measured_as_often_as_asked_after_its_warm_up(engine: Engine) -> None:
    runs = runs_of(engine)
    assert len(runs.measure(DECODES, least=3, most=9, seconds=5.0)) == 5
    assert len(engine.plans) == 2 + 5
    assert len(runs.measure(PROMPT, least=1, most=4, seconds=1e9)) == 4
    assert len(engine.plans) == 7 + 1 + 4


def test_a_step_that_takes_long_counts_from_its_first_run_on(engine: Engine) -> None:
    runs = runs_of(engine)
    assert len(runs.measure(DECODES, least=2, most=9, seconds=4.0)) == 4
    assert len(engine.plans) == 4
    assert len(runs.measure(PROMPT, least=3, most=9, seconds=0.5)) == 3
    assert len(engine.plans) == 4 + 3


def test_no_step_begins_when_it_is_over() -> None:
    engine = Engine()
    runs_of(engine).until(lambda: len(engine.plans) == 2, PROMPT, runs=4)
    assert len(engine.plans) == 2


def test_else_as_many_as_asked_with_contexts_that_grow() -> None:
    engine = Engine()
    runs_of(engine).until(lambda: False, DECODES, runs=4)
    first, *_, last = (plan.slices[0].start for plan in engine.plans)
    assert len(engine.plans) == 4
    assert last == first + 3
