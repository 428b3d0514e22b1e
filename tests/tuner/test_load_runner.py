"""The open loop: requests leave when they are due, whatever became of the ones before.

Time is a clock that jumps to the next planned moment, up to a moment that the test allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_events import StartServer, answer_well

from amounts import examples
from core.errors import Unavailable
from tuner.load.metrics import RunResult
from tuner.load.openai_target import OpenAIOptions, OpenAITarget
from tuner.load.plan import Plan, PlannedRequest
from tuner.load.prompts import Prompt
from tuner.load.records import Usage
from tuner.load.runner import RunLimits, run_plan
from tuner.load.target import AnswerLog, ServedModel

LIMITS = RunLimits(request_timeout_s=600.0, drain_s=60.0)
FOREVER = float("inf")


class JumpingClock:
    """Whoever sleeps until a moment makes it now; beyond ``allow`` it waits for the test."""

    def __init__(self, allowed: float = FOREVER) -> None:
        self._now = 0.0
        self._allowed = allowed
        self._changed = asyncio.Event()
        self._awaited: dict[float, asyncio.Event] = {}

    def now(self) -> float:
        return self._now

    async def sleep_until(self, moment: float) -> None:
        while moment > self._allowed:
            self._changed.clear()
            await self._changed.wait()
        self._now = max(self._now, moment)
        for due in [at for at in self._awaited if at <= self._now]:
            self._awaited.pop(due).set()

    async def reached(self, moment: float) -> None:
        """Until somebody has slept until ``moment``."""
        if self._now < moment:
            await self._awaited.setdefault(moment, asyncio.Event()).wait()

    def allow(self, until: float) -> None:
        self._allowed = until
        self._changed.set()


class ScriptedTarget:
    """Request ``i`` does what ``script[i]`` says: "ok", "stuck" (until released) or a kind of
    error. Tells by ``sent`` which have arrived."""

    def __init__(self, script: Sequence[str]) -> None:
        self._script = script
        self.sent: asyncio.Queue[int] = asyncio.Queue()
        self.released = asyncio.Event()

    async def describe(self) -> ServedModel:
        return ServedModel("scripted")

    async def check(self, prompt: Prompt, output_tokens: int) -> AnswerLog:
        raise AssertionError("the runner has nothing to check")

    def prepare(self, prompt: Prompt, output_tokens: int) -> int:
        return int(np.asarray(prompt)[0])

    async def send(self, prepared: int, answer: AnswerLog) -> None:
        self.sent.put_nowait(prepared)
        action = self._script[prepared]
        if action == "stuck":
            await self.released.wait()
        elif action == "defect":
            raise ZeroDivisionError
        elif action != "ok":
            raise Unavailable(f"words of {action}", reason=action)
        answer.chunk()
        answer.usage = Usage(1, 1)

    async def close(self) -> None: ...

    async def arrived(self, count: int) -> list[int]:
        return [await self.sent.get() for _ in range(count)]


def prompt_of(planned: PlannedRequest) -> Prompt:
    return np.array([planned.index], dtype=np.int32)


def plan_at(*moments: float) -> Plan:
    requests = tuple(PlannedRequest(0, i, at, 1, 1) for i, at in enumerate(moments))
    return Plan(0, moments[-1], requests)


async def test_a_stuck_request_does_not_delay_the_next_ones() -> None:
    clock = JumpingClock(allowed=4.0)
    target = ScriptedTarget(["stuck", "ok", "ok", "ok", "ok"])
    plan = plan_at(0.0, 1.0, 2.0, 3.0, 4.0)
    run = asyncio.create_task(run_plan(target, prompt_of, plan, LIMITS, asyncio.Event(), clock))
    assert await target.arrived(5) == [0, 1, 2, 3, 4]
    target.released.set()
    result = await run
    assert [record.sent_s for record in result.records] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [record.ttft_s for record in result.records] == [4.0, 0.0, 0.0, 0.0, 0.0]
    assert (result.window_s, result.elapsed_s, result.interrupted) == (4.0, 4.0, False)


async def test_what_does_not_end_within_the_drain_is_cut_off() -> None:
    clock = JumpingClock(allowed=1.0)
    target = ScriptedTarget(["stuck", "ok"])
    stop = asyncio.Event()
    run = asyncio.create_task(run_plan(target, prompt_of, plan_at(0.0, 1.0), LIMITS, stop, clock))
    await target.arrived(2)
    clock.allow(FOREVER)
    result = await run
    assert [record.error for record in result.records] == ["NOT_FINISHED", ""]
    assert result.records[0].ended_s == 61.0


async def test_a_stopped_run_keeps_what_was_measured() -> None:
    clock = JumpingClock(allowed=1.0)
    target = ScriptedTarget(["ok", "stuck", "ok"])
    stop = asyncio.Event()
    plan = plan_at(0.0, 1.0, 100.0)
    run = asyncio.create_task(run_plan(target, prompt_of, plan, LIMITS, stop, clock))
    await target.arrived(2)
    stop.set()
    result = await run
    assert [record.error for record in result.records] == ["", "INTERRUPTED"]
    assert result.interrupted
    assert result.window_s == 1.0


async def test_each_kind_of_failure_is_kept_with_its_words() -> None:
    target = ScriptedTarget(["HTTP_429", "ok", "DISCONNECTED"])
    result = await run_all(target, plan_at(0.0, 1.0, 2.0))
    assert [record.error for record in result.records] == ["HTTP_429", "", "DISCONNECTED"]
    assert result.records[0].detail == "words of HTTP_429"
    assert result.records[0].chunk_times_s == ()


async def test_a_request_has_its_own_time_limit() -> None:
    limits = RunLimits(request_timeout_s=0.0, drain_s=60.0)
    clock = JumpingClock(allowed=0.0)
    target = ScriptedTarget(["stuck"])
    result = await run_plan(target, prompt_of, plan_at(0.0), limits, asyncio.Event(), clock)
    assert [record.error for record in result.records] == ["TIMEOUT"]


async def test_a_cap_holds_requests_back_and_shows_as_lag() -> None:
    limits = RunLimits(request_timeout_s=600.0, drain_s=60.0, max_concurrency=1)
    clock = JumpingClock(allowed=3.0)
    target = ScriptedTarget(["stuck", "ok", "ok"])
    plan = plan_at(0.0, 1.0, 3.0)
    run = asyncio.create_task(run_plan(target, prompt_of, plan, limits, asyncio.Event(), clock))
    assert await target.arrived(1) == [0]
    await clock.reached(3.0)
    target.released.set()
    result = await run
    assert [record.lag_s for record in result.records] == [0.0, 2.0, 0.0]
    assert [record.ttft_s for record in result.records] == [3.0, 2.0, 0.0]


async def test_a_defect_of_ours_is_not_counted_as_a_failure_of_the_server() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await run_all(ScriptedTarget(["stuck", "defect"]), plan_at(0.0, 1.0), allowed=1.0)
    assert isinstance(raised.value.exceptions[0], ZeroDivisionError)


async def test_a_prompt_that_cannot_be_made_ends_the_run() -> None:
    def fail(planned: PlannedRequest) -> Prompt:
        raise ZeroDivisionError

    target = ScriptedTarget(["ok"])
    with pytest.raises(ExceptionGroup):
        await run_plan(target, fail, plan_at(0.0), LIMITS, asyncio.Event(), JumpingClock())


async def test_a_burst_larger_than_what_is_made_ready_ahead() -> None:
    target = ScriptedTarget(["ok"] * 300)
    result = await run_all(target, plan_at(*[0.0] * 300), allowed=0.0)
    assert await target.arrived(300) == list(range(300))
    assert [record.index for record in result.records] == list(range(300))
    assert result.window_s == result.elapsed_s


@settings(max_examples=examples(25), deadline=None)
@given(
    script=st.lists(st.sampled_from(["ok", "HTTP_500", "stuck"]), min_size=1, max_size=20),
    gaps=st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=20, max_size=20),
)
def test_every_request_leaves_on_time_and_has_one_record(
    script: list[str], gaps: list[float]
) -> None:
    moments = np.cumsum(gaps[: len(script)]).tolist()

    async def scenario() -> RunResult:
        clock = JumpingClock(allowed=moments[-1])
        target = ScriptedTarget(script)
        plan = plan_at(*moments)
        run = asyncio.create_task(run_plan(target, prompt_of, plan, LIMITS, asyncio.Event(), clock))
        await target.arrived(len(script))
        clock.allow(FOREVER)
        return await run

    result = asyncio.run(scenario())
    assert [record.index for record in result.records] == list(range(len(script)))
    assert [record.sent_s for record in result.records] == moments
    kinds = {"ok": "", "stuck": "NOT_FINISHED", "HTTP_500": "HTTP_500"}
    assert [record.error for record in result.records] == [kinds[action] for action in script]


async def run_all(target: ScriptedTarget, plan: Plan, allowed: float = FOREVER) -> RunResult:
    clock = JumpingClock(allowed)
    return await run_plan(target, prompt_of, plan, LIMITS, asyncio.Event(), clock)


async def test_over_http_the_first_answer_may_wait_for_the_last_request(
    openai_server: StartServer,
) -> None:
    """With a closed loop nobody would ever send the request that the first one waits for."""
    last_came = asyncio.Event()

    async def wait_for_the_last(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["prompt"] == [4]:
            last_came.set()
        await last_came.wait()
        return await answer_well(request)

    target = OpenAITarget(OpenAIOptions(await openai_server(wait_for_the_last)))
    await target.describe()
    plan = plan_at(0.0, 0.001, 0.002, 0.003, 0.004)
    result = await run_plan(target, prompt_of, plan, LIMITS, asyncio.Event())
    await target.close()
    assert [record.error for record in result.records] == [""] * 5
    assert [record.usage for record in result.records] == [Usage(1, 1)] * 5
    assert all(record.lag_s is not None and record.lag_s >= 0 for record in result.records)
