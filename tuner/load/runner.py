"""Sends a plan's requests when they are due and waits for the answers: an open loop.

A request is sent at its planned time however many are still unanswered, as independent users would
do it; only ``max_concurrency`` makes it wait. Does not cover how a request is sent (``target``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from core.errors import CrossdockError
from tuner.load.metrics import RunResult
from tuner.load.plan import Plan, PlannedRequest
from tuner.load.prompts import Prompt
from tuner.load.records import INTERRUPTED, NOT_FINISHED, TIMEOUT, RequestRecord
from tuner.load.target import AnswerLog, Target

# Requests that are made ready before they are due, so that a burst finds them ready.
_LOOK_AHEAD = 64


class Clock(Protocol):
    """Seconds from any moment on."""

    def now(self) -> float: ...

    async def sleep_until(self, moment: float) -> None: ...


class WallClock:
    def now(self) -> float:
        return time.perf_counter()

    async def sleep_until(self, moment: float) -> None:
        # A timer may fire a little early.
        while (wait_s := moment - self.now()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait_s)


@dataclass(frozen=True, slots=True)
class RunLimits:
    """``request_timeout_s`` counts from sending; ``drain_s`` from the last planned arrival, for
    the answers that are still coming. ``max_concurrency`` None: an open loop."""

    request_timeout_s: float
    drain_s: float
    max_concurrency: int | None = None


async def run_plan(
    target: Target,
    make_prompt: Callable[[PlannedRequest], Prompt],
    plan: Plan,
    limits: RunLimits,
    stop: asyncio.Event,
    clock: Clock | None = None,
) -> RunResult:
    """Run ``plan`` to its end, or until ``stop`` is set. All that came due have a record."""
    run = _Run(target, plan, limits, stop, clock or WallClock())
    return await run.carry_out(make_prompt)


class _Run:
    def __init__(
        self, target: Target, plan: Plan, limits: RunLimits, stop: asyncio.Event, clock: Clock
    ) -> None:
        self._target = target
        self._plan = plan
        self._limits = limits
        self._stop = stop
        self._clock = clock
        cap = limits.max_concurrency
        self._slots = nullcontext() if cap is None else asyncio.Semaphore(cap)
        self._records: list[RequestRecord] = []
        self._running: set[asyncio.Task[None]] = set()
        self._start = clock.now()
        # Why unanswered requests are cut off, once they are.
        self._cut = ""

    async def carry_out(self, make_prompt: Callable[[PlannedRequest], Prompt]) -> RunResult:
        async with asyncio.TaskGroup() as group, aclosing(self._prepared(make_prompt)) as prepared:
            await self._send_all(group, prepared)
            limit = self._plan.window_s + self._limits.drain_s
            await self._first_of(self._drained(), self._clock.sleep_until(self._start + limit))
            self._cut_off()
        return self._result()

    async def _prepared(
        self, make_prompt: Callable[[PlannedRequest], Prompt]
    ) -> AsyncGenerator[tuple[PlannedRequest, Any]]:
        """Requests in order, made ready in a thread some way ahead."""

        def prepare(planned: PlannedRequest) -> Any:
            return self._target.prepare(make_prompt(planned), planned.output_tokens)

        coming = iter(self._plan.requests)
        ahead: deque[tuple[PlannedRequest, asyncio.Task[Any]]] = deque()
        try:
            while True:
                for planned in islice(coming, _LOOK_AHEAD - len(ahead)):
                    work = asyncio.to_thread(prepare, planned)
                    ahead.append((planned, asyncio.create_task(work)))
                if not ahead:
                    return
                first, made = ahead.popleft()
                yield first, await made
        finally:
            await asyncio.gather(*(made for _, made in ahead), return_exceptions=True)

    async def _send_all(
        self, group: asyncio.TaskGroup, prepared: AsyncGenerator[tuple[PlannedRequest, Any]]
    ) -> None:
        first = True
        async for planned, request in prepared:
            if first:
                self._start, first = self._clock.now(), False
            if not await self._is_due(planned.at_s):
                return
            task = group.create_task(self._send(planned, request))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _is_due(self, at_s: float) -> bool:
        """True at the planned time, or at once if that has passed; False if the run is stopped."""
        wait_s = at_s - self._seconds()
        if wait_s > 0:
            await self._first_of(self._clock.sleep_until(self._start + at_s))
        else:
            # A generator that is late must still send what it has and read what comes.
            await asyncio.sleep(0)
        return not self._stop.is_set()

    async def _send(self, planned: PlannedRequest, request: Any) -> None:
        answer = AnswerLog(self._seconds)
        sent: float | None = None
        error = detail = ""
        try:
            async with self._slots:
                sent = self._seconds()
                async with asyncio.timeout(self._limits.request_timeout_s):
                    await self._target.send(request, answer)
        except TimeoutError:
            error, detail = TIMEOUT, f"no end after {self._limits.request_timeout_s:g} s"
        except CrossdockError as failure:
            error, detail = failure.reason, failure.message
        except asyncio.CancelledError:
            if not self._cut:
                raise
            error = self._cut
        self._records.append(self._record(planned, sent, answer, error, detail))

    def _record(
        self,
        planned: PlannedRequest,
        sent: float | None,
        answer: AnswerLog,
        error: str,
        detail: str,
    ) -> RequestRecord:
        return RequestRecord(
            seed=planned.seed,
            index=planned.index,
            planned_s=planned.at_s,
            wanted_prompt_tokens=planned.prompt_tokens,
            wanted_output_tokens=planned.output_tokens,
            sent_s=sent,
            ended_s=self._seconds(),
            chunk_times_s=tuple(answer.chunk_times),
            chunk_tokens=tuple(answer.chunk_tokens),
            usage=answer.usage,
            error=error,
            detail=detail,
        )

    async def _drained(self) -> None:
        while self._running:
            await asyncio.wait(self._running)

    async def _first_of(self, *waits: Coroutine[Any, Any, Any]) -> None:
        """Until one of them is over, or the run is stopped."""
        tasks = [asyncio.create_task(wait) for wait in (*waits, self._stop.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _cut_off(self) -> None:
        self._cut = INTERRUPTED if self._stop.is_set() else NOT_FINISHED
        for task in self._running:
            task.cancel()

    def _result(self) -> RunResult:
        elapsed = max((r.ended_s for r in self._records if r.ended_s is not None), default=0.0)
        window, stopped = self._plan.window_s, self._stop.is_set()
        return RunResult(
            seed=self._plan.seed,
            records=tuple(sorted(self._records, key=lambda record: record.index)),
            # A trace of a single moment has no window of its own.
            window_s=min(window, elapsed) if stopped else window or elapsed,
            elapsed_s=elapsed,
            interrupted=stopped,
        )

    def _seconds(self) -> float:
        """Since the start of the run."""
        return self._clock.now() - self._start
