"""The step loop's thread: its order of calls, steps under way, its sleep, its end, its crashes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue

import numpy as np
import pytest

from core.step import SampledToken, Slice, StepPlan, StepResult
from engine.local_executor import LocalExecutor
from engine.loop import EngineLoop, StepExecutor

WAIT_S = 10.0


def plan(sequence_id: int) -> StepPlan:
    one = np.zeros(1, np.int32)
    return StepPlan((Slice(sequence_id, 0, one, one),))


class Scripted:
    """A scheduler with a list of plans; says when it was found empty."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []
        self.events: list[str] = []
        self.idle = threading.Semaphore(0)

    def plan_step(self, now: float) -> StepPlan | None:
        if self.plans:
            self.events.append("plan")
            return self.plans.pop(0)
        self.idle.release()
        return None

    def complete_step(self, plan: StepPlan, result: StepResult, now: float) -> list[int]:
        self.events.append("complete")
        return [drawn.token for row in result.sampled.values() for drawn in row]


class Pipeline:
    """An executor whose results come when the test says so."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self.submitted: SimpleQueue[tuple[int, Future[StepResult]]] = SimpleQueue()

    @property
    def depth(self) -> int:
        return self._depth

    def submit(self, plan: StepPlan, meanwhile: Callable[[], None]) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        meanwhile()
        self.submitted.put((plan.slices[0].sequence_id, future))
        return future

    def next_submitted(self) -> tuple[int, Future[StepResult]]:
        return self.submitted.get(timeout=WAIT_S)


def result_of(sequence_id: int) -> StepResult:
    return StepResult({sequence_id: (SampledToken(100 + sequence_id),)})


class World:
    """A loop around a scripted scheduler, and what came out of it."""

    def __init__(self, executor: StepExecutor | None = None) -> None:
        self.scheduler = Scripted()
        self.outputs: SimpleQueue[list[int]] = SimpleQueue()
        self.crashes: SimpleQueue[BaseException] = SimpleQueue()
        self.execute: Callable[[StepPlan], StepResult] = self.answer
        self.deliver: Callable[[list[int]], None] = self.outputs.put
        self.loop: EngineLoop[list[int]] = EngineLoop(
            executor or LocalExecutor(self.run),
            self.scheduler,
            self.hand_out,
            self.crashes.put,
            clock=lambda: 0.0,
        )

    def run(self, plan: StepPlan, meanwhile: Callable[[], None]) -> StepResult:
        """As on a device that computes by itself: what is done meanwhile comes after the start."""
        self.scheduler.events.append("start")
        meanwhile()
        return self.execute(plan)

    def hand_out(self, outputs: list[int]) -> None:
        self.scheduler.events.append("deliver")
        self.deliver(outputs)

    def answer(self, plan: StepPlan) -> StepResult:
        ids = [part.sequence_id for part in plan.slices]
        return StepResult({i: (SampledToken(100 + i),) for i in ids})

    def add(self, *sequence_ids: int) -> None:
        with self.loop.lock:
            self.scheduler.plans += [plan(i) for i in sequence_ids]
            self.loop.wake()

    def wait_until_idle(self) -> None:
        assert self.scheduler.idle.acquire(timeout=WAIT_S)

    def lock_is_free(self) -> bool:
        """Seen from another thread: the one that holds it could take it again."""
        free: list[bool] = []

        def try_lock() -> None:
            if self.loop.lock.acquire(timeout=0.1):
                self.loop.lock.release()
                free.append(True)

        thread = threading.Thread(target=try_lock)
        thread.start()
        thread.join(WAIT_S)
        return free == [True]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    assert world.loop.stop(WAIT_S)
    assert not any(thread.name == "engine-loop" for thread in threading.enumerate())


def test_what_a_step_gave_is_delivered_while_the_next_one_is_under_way(world: World) -> None:
    world.add(1, 2)
    world.loop.start()
    assert [world.outputs.get(timeout=WAIT_S) for _ in range(2)] == [[101], [102]]
    first = ["plan", "start", "complete"]
    second = ["plan", "start", "deliver", "complete"]
    assert world.scheduler.events == [*first, *second, "deliver"]


def test_what_the_last_step_gave_waits_for_no_other(world: World) -> None:
    world.loop.start()
    for number in (1, 2):
        world.add(number)
        assert world.outputs.get(timeout=WAIT_S) == [100 + number]
        world.wait_until_idle()
    assert world.scheduler.events == ["plan", "start", "complete", "deliver"] * 2


def test_an_idle_loop_asks_once_and_sleeps_until_it_is_woken(world: World) -> None:
    world.loop.start()
    world.wait_until_idle()
    assert not world.scheduler.idle.acquire(timeout=0.05)
    world.add(3)
    assert world.outputs.get(timeout=WAIT_S) == [103]
    world.wait_until_idle()


def test_the_lock_is_free_while_a_step_executes_and_while_outputs_are_delivered(
    world: World,
) -> None:
    seen: SimpleQueue[bool] = SimpleQueue()

    def execute(plan: StepPlan) -> StepResult:
        seen.put(world.lock_is_free())
        return world.answer(plan)

    world.execute = execute
    world.deliver = lambda outputs: seen.put(world.lock_is_free())
    world.add(1)
    world.loop.start()
    assert seen.get(timeout=WAIT_S)
    assert seen.get(timeout=WAIT_S)


@pytest.mark.parametrize("part", ["plan_step", "execute", "complete_step", "deliver"])
def test_a_crash_is_told_once_and_ends_the_thread(world: World, part: str) -> None:
    error = RuntimeError(part)

    def fail(*_: object) -> None:
        raise error

    owner = world if part in ("execute", "deliver") else world.scheduler
    setattr(owner, part, fail)
    world.add(1, 2)
    world.loop.start()
    assert world.crashes.get(timeout=WAIT_S) is error
    assert world.loop.stop(WAIT_S)
    assert world.crashes.empty()
    assert world.outputs.empty()


def test_stopping_waits_for_the_step_under_way_and_takes_no_other(world: World) -> None:
    started, finish = threading.Event(), threading.Event()

    def slow(plan: StepPlan) -> StepResult:
        started.set()
        assert finish.wait(WAIT_S)
        return world.answer(plan)

    world.execute = slow
    world.add(1, 2)
    world.loop.start()
    assert started.wait(WAIT_S)
    assert not world.loop.stop(timeout=0.01)
    finish.set()
    assert world.loop.stop(WAIT_S)
    assert world.outputs.get(timeout=WAIT_S) == [101]
    assert world.outputs.empty()
    assert len(world.scheduler.plans) == 1


def test_the_loop_may_be_stopped_before_it_starts_and_by_its_own_thread(world: World) -> None:
    assert World().loop.stop(0)
    stopped: SimpleQueue[bool] = SimpleQueue()
    world.deliver = lambda outputs: stopped.put(world.loop.stop(WAIT_S))
    world.add(1, 2, 3)
    world.loop.start()
    assert stopped.get(timeout=WAIT_S)
    assert world.loop.stop(WAIT_S)
    assert stopped.get(timeout=WAIT_S), "the second step was under way"
    assert stopped.empty()
    assert len(world.scheduler.plans) == 1


# Several steps under way


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(depth=2)


@pytest.fixture
def piped(pipeline: Pipeline) -> Iterator[World]:
    world = World(pipeline)
    world.loop.start()
    yield world
    assert world.loop.stop(WAIT_S)


def test_as_many_steps_are_under_way_as_there_are_stages(piped: World, pipeline: Pipeline) -> None:
    piped.add(1, 2, 3)
    (one, first), (two, second) = pipeline.next_submitted(), pipeline.next_submitted()
    assert (one, two) == (1, 2)
    assert piped.scheduler.events == ["plan", "plan"]
    first.set_result(result_of(1))
    three, third = pipeline.next_submitted()
    assert three == 3
    assert piped.scheduler.events == ["plan", "plan", "complete", "plan", "deliver"]
    second.set_result(result_of(2))
    third.set_result(result_of(3))
    assert [piped.outputs.get(timeout=WAIT_S) for _ in range(3)] == [[101], [102], [103]]


def test_steps_are_completed_in_the_order_of_their_plans(piped: World, pipeline: Pipeline) -> None:
    piped.add(1, 2)
    (_, first), (_, second) = pipeline.next_submitted(), pipeline.next_submitted()
    second.set_result(result_of(2))
    assert piped.outputs.empty()
    first.set_result(result_of(1))
    assert [piped.outputs.get(timeout=WAIT_S) for _ in range(2)] == [[101], [102]]


def test_new_work_wakes_a_loop_that_waits_for_a_result(piped: World, pipeline: Pipeline) -> None:
    piped.add(1)
    _, first = pipeline.next_submitted()
    piped.wait_until_idle()
    piped.add(2)
    two, second = pipeline.next_submitted()
    assert two == 2
    first.set_result(result_of(1))
    second.set_result(result_of(2))
    assert [piped.outputs.get(timeout=WAIT_S) for _ in range(2)] == [[101], [102]]


def test_a_result_may_come_from_a_thread_that_holds_the_lock(
    piped: World, pipeline: Pipeline
) -> None:
    piped.add(1)
    _, first = pipeline.next_submitted()
    with piped.loop.lock:
        first.set_result(result_of(1))
    assert piped.outputs.get(timeout=WAIT_S) == [101]


def test_a_step_that_fails_crashes_the_loop_once_and_loses_the_others(
    piped: World, pipeline: Pipeline
) -> None:
    piped.add(1, 2, 3)
    (_, first), (_, second) = pipeline.next_submitted(), pipeline.next_submitted()
    error = ConnectionError("a rank is gone")
    first.set_exception(error)
    second.set_exception(error)
    assert piped.crashes.get(timeout=WAIT_S) is error
    assert piped.loop.stop(WAIT_S)
    assert piped.crashes.empty()
    assert piped.outputs.empty()
    assert pipeline.submitted.empty()


def test_stopping_waits_for_all_steps_under_way(piped: World, pipeline: Pipeline) -> None:
    piped.add(1, 2, 3)
    (_, first), (_, second) = pipeline.next_submitted(), pipeline.next_submitted()
    assert not piped.loop.stop(timeout=0)
    first.set_result(result_of(1))
    assert piped.outputs.get(timeout=WAIT_S) == [101]
    assert not piped.loop.stop(timeout=0)
    second.set_result(result_of(2))
    assert piped.loop.stop(WAIT_S)
    assert piped.outputs.get(timeout=WAIT_S) == [102]
    assert pipeline.submitted.empty()
    assert len(piped.scheduler.plans) == 1
