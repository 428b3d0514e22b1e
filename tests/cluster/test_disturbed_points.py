"""What the measuring process says of a point that was disturbed for a moment: a made-up engine."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from cluster.profiling.engine_child import Company, measure_points
from cluster.profiling.step_runs import StepRun
from cluster.profiling.tasks import EngineTask, Found, Patience
from core.request import Role
from core.worker_settings import WorkerSettings
from tuner.profile.points import StepPoint

POINTS = tuple(
    StepPoint(decodes=batch, context=context)
    for batch in (1, 2, 4, 6, 8, 12, 16, 24)
    for context in (64, 1024)
)
WILD = StepPoint(decodes=6, context=1024)
TASK = EngineTask(
    worker=WorkerSettings(
        worker="w", role=Role.MIXED, model_folder="", num_blocks=1, block_size=16, dtype="float32"
    ),
    rank_cores=((0,),),
    company=(),
    points=POINTS,
    patience=Patience(2, 9, 0.2),
    overhead_batches=(),
    overhead_steps=0,
    shares_cores=False,
)


class Engine:
    """``disturbed``: how often the wild point still takes four times as long."""

    def __init__(self, disturbed: int) -> None:
        self._disturbed = disturbed

    def measure(self, point: StepPoint, least: int, most: int, seconds: float) -> list[StepRun]:
        taken = 12e-3 + 0.4e-3 * point.decodes + 1.5e-6 * point.decodes * point.context
        if point == WILD and self._disturbed:
            self._disturbed -= 1
            taken *= 4
        return [StepRun(taken, 0.0)] * least


def said_of_it(disturbed: int, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    """Seconds by name, of what names the wild point; as the parent has it in the end."""
    measure_points(TASK, cast(Any, Engine(disturbed)), Company([]))
    found = [Found(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert {point.name for point in POINTS} < {one.name for one in found}
    return {one.name: one.seconds for one in found if WILD.name in one.name}


def test_a_disturbed_point_is_said_with_what_it_took_at_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = said_of_it(0, capsys)[WILD.name]
    assert said_of_it(1, capsys) == {WILD.name: right, f"first: {WILD.name}": 4 * right}


def test_a_point_that_is_as_slow_again_is_said_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = said_of_it(0, capsys)[WILD.name]
    assert said_of_it(9, capsys) == {WILD.name: 4 * right}
